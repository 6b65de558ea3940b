"""What kwbench adds to the passes themselves, and how its time grows with samples and steps.

    python bench/speed/overhead.py [MODEL] [--rounds 15] [--growing MODEL --growing-data FILE.npz]

Overhead: judged PGD-40 without early exit on a full tile, to the bare loop of the same forward and backward passes over it in
plain torch, by turns in one process of one thread. Growth: the attack on twice the samples, and with twice the steps. By
processor time, which other work on the machine disturbs less. Writes Markdown to stdout.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measure import alternate, machine_line, markdown_table, ratio
from torch.nn import functional as F

from kwbench.config.suite import override, suite_of
from kwbench.data import Batch
from kwbench.evaluation.execution.evaluator import LocalEvaluator
from kwbench.evaluation.request import Request
from kwbench.outcome import Outcome, Status


def evaluator(asked: argparse.Namespace, n: int, *settings: str) -> LocalEvaluator:
    """The model and its first n images, to be attacked by PGD."""
    suite = override(suite_of(("pgd",)), tuple(f"pgd.{setting}" for setting in settings))
    return LocalEvaluator(Request(asked.model, suite, n=n, data=asked.data), threads=1)


def attacked(local: LocalEvaluator, rows: list[int]) -> Callable[[], list[Outcome]]:
    """The judged attack on these rows."""
    clean = local.judge_clean(rows)
    return lambda: local.judge("pgd", rows, clean, None)


def bare(network: torch.nn.Module, batch: Batch, tile: int, steps: int) -> None:
    """The passes of PGD and of judging it, and nothing else."""
    for x, y in zip(batch.x.split(tile), batch.y.split(tile), strict=True):  # type: ignore[no-untyped-call]
        for _ in range(steps):
            leaf = x.clone().requires_grad_()
            torch.autograd.grad(F.cross_entropy(network(leaf), y, reduction="sum"), leaf)
        with torch.no_grad():
            network(x)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="resnet18-relu-at")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--n", type=int, default=180, help="samples from which they are doubled (default: 180)")
    parser.add_argument("--growing", help="model that is attacked on N and 2 N images; default: MODEL")
    parser.add_argument("--growing-data", type=Path, help="an npz file of its test images; default: its own data set")
    parser.set_defaults(data=None)
    asked = parser.parse_args()
    print(machine_line(1), end="\n\n")
    print(markdown_table(["ratio of processor times", "median [quartiles]"], []), flush=True)

    def row(name: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> None:
        seconds = alternate({"ours": ours, "theirs": theirs}, rounds, clock=time.process_time)
        print(f"| {name} | {ratio(seconds['ours'], seconds['theirs'])} |", flush=True)

    local = evaluator(asked, 128, "early_exit=false")
    tile = local.facts.identity["tile"]
    right = [row for row, each in enumerate(local.judge_clean(range(128))) if each.status is Status.HELD][:tile]
    batch, network = local._batch.take(right), local._model.module
    row("judged PGD-40 to bare passes", attacked(local, right), lambda: bare(network, batch, tile, 40), asked.rounds)

    if asked.growing:
        asked.model, asked.data = asked.growing, asked.growing_data
    few = max(1, asked.rounds // 3)
    for name, settings in (("early exit", ()), ("no early exit", ("early_exit=false",))):
        local = evaluator(asked, 2 * asked.n, "steps=10", *settings)
        whole, half = (attacked(local, list(range(n))) for n in (2 * asked.n, asked.n))
        row(f"{2 * asked.n} samples to {asked.n}, {name}", whole, half, few)
    once, twice = (
        attacked(evaluator(asked, asked.n, f"steps={k}", "early_exit=false"), list(range(asked.n))) for k in (10, 20)
    )
    row("20 steps to 10, no early exit", twice, once, few)


if __name__ == "__main__":
    main()
