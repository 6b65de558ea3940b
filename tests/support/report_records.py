"""Invented records for tests of reports: what a report has to show, and every field hostile."""

from dataclasses import replace
from typing import Any

import numpy as np

from kwbench.finding import Finding
from kwbench.outcome import Example, Status
from kwbench.record.store import Store
from support.records import deterministic, drawn, network, record, rows, specification

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "</style><style>body{display:none}",
    "javascript:alert(1)",
    '" onmouseover="alert(1)',
    "a\u202eb\u2066c\x00\x1b[31m\r\nd",
    "{{ 7 * 7 }}{% raw %}",
    "=cmd|'/C calc'!A1",
    "[x](javascript:alert(1)) | `a` @all https://example.com",
    r"\input{/etc/passwd} $x_1^2$ ~ # & %",
    "é漢字🙂" * 40,
]


def fill(store: Store) -> None:
    """Two threat models, ranked, tied, stochastic, incomplete and superseded evaluations."""
    attacks: dict[str, dict[str, Any]] = {
        "clean": {},
        "fgsm": {},
        "pgd": {"steps": 40},
        "deepfool": {"judged": "distance"},
        "autoattack": {},
    }
    for seed, (name, std, rob) in enumerate(
        [
            ("resnet18-relu", 0.99, 0.01),
            ("resnet18-relu-at", 0.98, 0.64),
            ("resnet18-kwta0.1-at", 0.96, 0.62),
            ("wrn", 0.99, 0.3),
        ]
    ):
        drops = {"fgsm": rob + 0.2, "pgd": rob + 0.05, "deepfool": rob + 0.1, "autoattack": rob}
        network(store, name, std, drops, seed=seed, attacks=attacks, eps="1/5", suite="all", checkpoint="old")
    network(store, "wrn", 0.98, drops, seed=9, attacks=attacks, eps="1/5", suite="all", checkpoint="new")
    network(store, "resnet18-relu", 0.99, drops, seed=1, attacks=attacks, eps="1/10", suite="all")
    rng = np.random.default_rng(0)
    p = rng.beta(8, 1, 360)
    spec = specification("stochastic-at", attacks, n=360, eps="1/5", suite="all", stochastic=True)
    record(store, spec, {label: drawn(rng.binomial(100, p), rng.binomial(100, p)) for label in attacks})
    spec = specification("unfinished", attacks, n=360, eps="1/5", suite="all")
    record(store, spec, {"clean": rows("h" * 360), "fgsm": rows("h" * 12)})


def diagnose(store: Store, model: str, *findings: Finding) -> None:
    for each in store.evaluations():
        if each.spec.model == model:
            store.record_findings(each.id, findings)


def verdicts(store: Store) -> None:
    """A confirmed, an overestimated, an inconclusive model, and one that was not diagnosed."""
    enough = Finding("twice the budget", 0.0, 0.01, False, "twice the budget takes 0.0 points", (), "doubt", role="budget")
    masked = Finding("shattered gradients", 0.1, 0.6, True, "gradients are shattered", ("a", "b"), "masking")
    unseen = Finding("unseen", 1.0, 0.0, True, f"not seen: {HOSTILE[0]} {HOSTILE[7]} {HOSTILE[8]}", (), "doubt")
    unfinished = Finding("eps sweep", None, 0.0, False, "could not be carried out", (), "doubt")
    spec = {"protocol_attacks": ["pgd"]}
    for name, drops in (("sound", [0.6, 0.6]), ("masked", [0.8, 0.1]), ("odd", [0.5, 0.5]), ("plain", [0.4, 0.4])):
        network(store, name, 0.9, dict(zip(("pgd", "es"), drops, strict=True)), spec=spec, origin={"classes": 10})
    diagnose(store, "sound", enough)
    diagnose(store, "masked", enough, masked)
    diagnose(store, "odd", enough, unseen, unfinished)


def hostile(store: Store) -> None:
    """Every field that a user, a file or a model can fill, filled with every hostile text."""
    for text in HOSTILE:
        evil = {"data_sha256": text, "model_sha256": text, "prediction": {"kind": text, "draws": 1}, text: text}
        deterministic(
            store,
            {"clean": "hhhh", text: "hhb."},
            model=text,
            dataset=text,
            suite=text,
            attacks={"clean": {}, text: {"surrogate": text, "judged": text, text: [text]}, f"{text} x2": {}},
            origin=evil,
            spec={text: text, "not_applicable": {f"{text} x2": text}, "protocol_attacks": [text]},
            provenance={text: text, "command": text},
        )
        found = [*rows("hh", other_status=Status.BROKEN, surrogate_prediction=1, note=text), *rows("h", start=2)]
        deterministic(store, {"clean": "hhh"}, model=text, suite=text)
        record(store, specification(text, {"clean": {}, text: {}}, n=3, suite=f"s{text}"), {"clean": rows("hhh"), text: found})


def pictured(store: Store) -> None:
    """Two models on the same twelve samples, with examples of what broke them: one as a residual, one as an image."""
    rng = np.random.default_rng(0)
    for model, letters in (("first", "bbbhhhhhhhhw"), ("second", "hbhhhhhhhhbw")):
        spec = specification(
            model, {"clean": {}, "fgsm": {}, "pgd": {}}, n=12, suite="seen", provenance={"classes": ["cat", "dog"]}
        )
        clean = rows("hhhhhhhhhhhw")
        fgsm = [
            replace(row, example=example(rng, whole=row.index == 1), prediction=1 - row.label % 2)
            if row.status == "broken"
            else row
            for row in rows(letters)
        ]
        record(store, spec, {"clean": clean, "fgsm": fgsm, "pgd": rows("hhhhhhhhhhhw")})


def example(rng: np.random.Generator, *, whole: bool) -> Example:
    """Return an adversarial example of 12 by 12 pixels; `whole`: without a residual."""
    clean = (rng.integers(0, 256, (3, 12, 12)) / np.float32(255)).astype(np.float32)
    image = np.clip(clean + np.float32(0.02), 0, 1) if whole else None
    residual = None if whole else rng.integers(-127, 128, (3, 12, 12)).astype(np.int8)
    return Example(clean, residual, 0.0002, image, ((0, 0.9), (1, 0.1)), ((1, 0.8), (0, 0.2)))
