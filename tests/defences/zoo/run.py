"""Evaluate every defence of the zoo and every sound model, and write reports/defences.md.

`make defences`, or `PYTHONPATH=tests python tests/defences/zoo/run.py [NAME ...] [--db defences.db] [--n 128]`. For each the
second opinion comes first: the paper's usual attack, AutoAttack, and the attack written for the defence, all judged alike and
on record. Then strong runs. What is on record is not evaluated again, so an interrupted command goes on where it stopped. Two
commands with different names may share a record.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from defences.zoo.adaptive import adaptive_images
from defences.zoo.defence import EPS, PGD, Defence, Usual
from defences.zoo.page import ADAPTIVE, AUTOATTACK, SECOND_OPINION, USUAL, newest, page
from defences.zoo.registry import DEFENCES
from defences.zoo.sound import SOUND_MODELS, SoundModel
from kwbench.config.suite import Suite, SuiteAttack, read_suite
from kwbench.errors import KwbenchError
from kwbench.evaluation.proposals import proposals_from_arrays, suite_with
from kwbench.evaluation.request import Request
from kwbench.evaluation.runner import evaluate
from kwbench.record.store import Store
from kwbench.threat import ThreatModel
from support.small_models import first_images

ROOT = Path(__file__).resolve().parents[3]
REPORT = ROOT / "reports" / "defences.md"


def second_opinion(entry: Defence | SoundModel, n: int) -> Request:
    """Return the request of the usual attack, AutoAttack, and the images of the attack written for the defence."""
    usual, eps, substitute = _how_attacked(entry)
    batch, victim = first_images(n), entry.factory()
    images = adaptive_images(victim, substitute, batch.x, batch.y, ThreatModel.of("linf", eps), draws=entry.draws)
    attacks = [SuiteAttack(USUAL, usual.attack, parameters=dict(usual.parameters))]
    if isinstance(entry, Defence):
        square = {"version": "custom", "attacks": ["square"]}
        standard, rand = ({"version": "standard"}, {"version": "rand"}) if has_gradient(victim, batch.x) else (square, square)
        attacks.append(SuiteAttack(AUTOATTACK, "autoattack", when="deterministic", parameters=standard))
        attacks.append(SuiteAttack(f"{AUTOATTACK}-rand", "autoattack", when="stochastic", parameters=rand))
    suite, label = suite_with(Suite(SECOND_OPINION, tuple(attacks)), ADAPTIVE, worst_case=True)
    proposals = {label: proposals_from_arrays(images, entry.name, paper="")}
    return _request(entry, replace(suite, name=SECOND_OPINION), n, eps, proposals=proposals)


def has_gradient(network: torch.nn.Module, x: torch.Tensor) -> bool:
    """Return whether any gradient reaches the pixels of x (b, c, h, w); of AutoAttack only Square can do without."""
    x = x.clone().requires_grad_()
    logits = network(x)
    return logits.requires_grad and bool(torch.autograd.grad(logits.square().sum(), x)[0].any())


def strong(entry: Defence | SoundModel, n: int) -> Request:
    """Return the request of the strong suite, without any hint about the defence."""
    _, eps, _ = _how_attacked(entry)
    return _request(entry, read_suite("strong"), n, eps)


def _request(entry: Defence | SoundModel, suite: Suite, n: int, eps: str, **options: Any) -> Request:
    # In this process, where networks are trained once for all that are built on them.
    return Request(entry.name, suite=suite, module=entry.factory(), dataset="digits", n=n, eps=eps, **options)


def _how_attacked(entry: Defence | SoundModel) -> tuple[Usual, str, torch.nn.Module]:
    if isinstance(entry, SoundModel):
        return PGD, entry.eps, entry.factory()
    return entry.usual, EPS, entry.substitute()


def measure(entries: Sequence[Defence | SoundModel], store: Store, n: int, report: Path, *, again: bool = False) -> list[str]:
    """Evaluate what is not on record, or all `again`, write the page after each, and return what failed."""
    failures = []
    for entry in entries:
        for suite, request in ((SECOND_OPINION, second_opinion), ("strong", strong)):
            known = newest(store, suite).get(entry.name)
            if not again and known is not None and known.n == n and (suite != "strong" or known.findings):
                continue
            print(f"{entry.name}: {suite}", file=sys.stderr, flush=True)
            try:
                evaluate(request(entry, n), store)
            except KwbenchError as failure:
                failures.append(f"{entry.name}: {suite}: {failure}")
                print(failures[-1], file=sys.stderr, flush=True)
                break
        report.write_text(page(store), encoding="utf-8")
    return failures


def main() -> None:
    """Evaluate, and write the page of all that is on record. Exit with 1 if an evaluation failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="defences and sound models; default: all")
    parser.add_argument("--db", default="defences.db", help="the record")
    parser.add_argument("--n", type=int, default=128, help="the number of images")
    parser.add_argument("--again", action="store_true", help="evaluate what is on record, too: its network has changed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    everything: list[Defence | SoundModel] = [*DEFENCES, *SOUND_MODELS]
    known = {entry.name: entry for entry in everything}
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    entries = [known[name] for name in options.names or known]
    store = Store.open(options.db, create=True)
    try:
        failures = measure(entries, store, options.n, REPORT, again=options.again)
    finally:
        store.close()
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
