"""Invented records for tests: evaluations with chosen outcomes, in a real database."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kwbench.outcome import Outcome, Status
from kwbench.record.evaluation import AttackSpec, Evaluation, EvaluationSpec
from kwbench.record.store import Store
from kwbench.threat import ThreatModel

LETTERS = {"w": Status.WRONG, "b": Status.BROKEN, "h": Status.HELD, "i": Status.INVALID, "e": Status.ERROR}


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def sample(index: int) -> str:
    return digest("sample", index)[:32]


def rows(letters: str, *, start: int = 0, **fields: Any) -> list[Outcome]:
    """Return one outcome per letter: w, b, h, i and e are the statuses, a dot is a missing row."""
    return [
        Outcome(
            sample=sample(start + offset),
            index=start + offset,
            label=offset % 10,
            status=LETTERS[letter],
            clean_prediction=offset % 10,
            prediction=offset % 10,
            distance=0.1,
            **{"forwards": 3, "backwards": 2, "seconds": 0.25} | fields,
        )
        for offset, letter in enumerate(letters)
        if letter != "."
    ]


def drawn(selection: Iterable[int], fresh: Iterable[int], draws: int = 100) -> list[Outcome]:
    """Return outcomes of a stochastic model from the number of right selection draws and of right fresh draws per sample."""
    return [
        Outcome(
            sample=sample(index),
            index=index,
            label=index % 10,
            status=Status.HELD if 2 * fresh_correct >= draws else Status.BROKEN,
            selection_correct=int(selection_correct),
            selection_draws=draws,
            fresh_correct=int(fresh_correct),
            fresh_draws=draws,
            forwards=1,
        )
        for index, (selection_correct, fresh_correct) in enumerate(zip(selection, fresh, strict=True))
    ]


def specification(
    model: str = "net",
    attacks: Mapping[str, Mapping[str, Any]] | Sequence[str] = ("clean", "pgd"),
    *,
    n: int = 4,
    eps: str = "8/255",
    norm: str = "linf",
    dataset: str = "digits",
    suite: str = "papers",
    stochastic: bool = False,
    checkpoint: str = "c0",
    origin: Mapping[str, Any] | None = None,
    spec: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> EvaluationSpec:
    parameters = attacks if isinstance(attacks, Mapping) else {label: {} for label in attacks}
    origin = {
        "model_sha256": digest(checkpoint),
        "data_sha256": digest("data"),
        "prediction": {"kind": "draw", "draws": 1},
        "seed": 0,
        "engine": {"judge": 1},
        "versions": {"torch": "2.13.0", "kwbench": "0.1.0"},
    } | dict(origin or {})
    # None removes an entry.
    origin = {key: value for key, value in origin.items() if value is not None}
    full_spec = {"origin": origin} | dict(spec or {})
    key = (model, dataset, suite, norm, eps, n, stochastic, sorted(full_spec.items(), key=str))
    return EvaluationSpec(
        identity=digest(key, sorted(parameters)),
        model=model,
        dataset=dataset,
        suite=suite,
        threat=ThreatModel.of(norm, eps),
        n=n,
        stochastic=stochastic,
        attacks=tuple(
            AttackSpec(label, digest(key, label, sorted(values.items())), {"name": label, "parameters": dict(values)})
            for label, values in parameters.items()
        ),
        spec=full_spec,
        provenance={"device": "cpu", "platform": "Linux"} | dict(provenance or {}),
    )


def record(store: Store, spec: EvaluationSpec, outcomes: Mapping[str, Sequence[Outcome]]) -> Evaluation:
    """Register an evaluation and append the outcomes of each attack."""
    evaluation = store.register(spec)
    for label, rows_of_attack in outcomes.items():
        store.append(evaluation.attack_runs[label], rows_of_attack)
    return evaluation


def deterministic(store: Store, letters: Mapping[str, str], **options: Any) -> Evaluation:
    """Record an evaluation of a deterministic model from one string of letters per attack; see `rows`."""
    n = options.pop("n", len(next(iter(letters.values()))))
    parameters = options.pop("attacks", {label: {} for label in letters})
    return record(
        store, specification(attacks=parameters, n=n, **options), {label: rows(statuses) for label, statuses in letters.items()}
    )


def network(
    store: Store, model: str, a_std: float, drops: Mapping[str, float], *, n: int = 360, seed: int = 0, **options: Any
) -> Evaluation:
    """Record a plausible deterministic model: hard samples break first; `drops` gives the accuracy under each attack."""
    rng = np.random.default_rng(seed)
    hardness = np.random.default_rng(99).random(n) * 0.8 + rng.random(n) * 0.2
    order = hardness.argsort().argsort() / n
    letters = {"clean": "".join("h" if rank < a_std else "w" for rank in order)}
    for name, accuracy in drops.items():
        letters[name] = "".join("w" if rank >= a_std else "h" if rank < accuracy else "b" for rank in order)
    return deterministic(store, letters, model=model, **options)
