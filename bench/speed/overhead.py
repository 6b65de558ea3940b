"""Measure the overhead of kwbench over bare passes, and the growth of its time with samples and steps.

    python bench/speed/overhead.py [MODEL] [--rounds 15] [--growing MODEL --growing-data FILE.npz]

Overhead: judged PGD-40 without early exit on a full tile, relative to a bare loop of the same forward and backward passes in
plain torch. Both take turns in one process of one thread. Growth: the attack on twice the samples, and with twice the steps.
Times are processor times, which other work on the machine disturbs less; with a GPU, wall times. Writes Markdown to stdout.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measure import alternate, machine_line, markdown_table, ratio, waiting
from torch.nn import functional as F

from kwbench.config.suite import override, suite_of
from kwbench.data import Batch
from kwbench.evaluation.execution.evaluator import LocalEvaluator
from kwbench.evaluation.request import Request
from kwbench.model import find_device
from kwbench.outcome import Outcome, Status


def evaluator(arguments: argparse.Namespace, n: int, *settings: str) -> LocalEvaluator:
    """Return an evaluator of the model with PGD on its first n images."""
    suite = override(suite_of(("pgd",)), tuple(f"pgd.{setting}" for setting in settings))
    request = Request(arguments.model, suite, n=n, data=arguments.data, device=arguments.device, examples=0)
    return LocalEvaluator(request, threads=1)


def attacked(local: LocalEvaluator, rows: list[int]) -> Callable[[], list[Outcome]]:
    """Return a function that runs and judges the attack on these rows."""
    clean = local.judge_clean(rows)
    return lambda: local.judge("pgd", rows, clean, None)


def bare(network: torch.nn.Module, batch: Batch, tile: int, steps: int) -> None:
    """Run the passes of PGD and of its judging, and nothing else."""
    for x, y in zip(batch.x.split(tile), batch.y.split(tile), strict=True):  # type: ignore[no-untyped-call]
        for _ in range(steps):
            leaf = x.clone().requires_grad_()
            torch.autograd.grad(F.cross_entropy(network(leaf), y, reduction="sum"), leaf)
        with torch.no_grad():
            network(x)


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="resnet18-relu-at")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--n", type=int, default=180, help="samples before doubling (default: 180)")
    parser.add_argument("--growing", help="model to attack on N and 2 N images (default: MODEL)")
    parser.add_argument("--growing-data", type=Path, help="an npz file of its test images (default: its own data set)")
    parser.add_argument("--data", type=Path, help="an npz file of the test images of MODEL (default: its own data set)")
    parser.add_argument("--full", type=int, default=128, help="images among which a tile of correctly classified ones is found")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = find_device(arguments.device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    print(machine_line(1, device), end="\n\n")
    print(
        markdown_table([f"ratio of {'processor' if device.type == 'cpu' else 'wall'} times", "median [quartiles]"], []),
        flush=True,
    )

    def row(name: str, run: Callable[[], object], reference: Callable[[], object], rounds: int) -> None:
        sides = {"run": waiting(run, device), "reference": waiting(reference, device)}
        seconds = alternate(sides, rounds, clock)
        print(f"| {name} | {ratio(seconds['run'], seconds['reference'])} |", flush=True)

    local = evaluator(arguments, arguments.full, "early_exit=false")
    tile = local.facts.identity["tile"]
    outcomes = local.judge_clean(range(arguments.full))
    right = [index for index, outcome in enumerate(outcomes) if outcome.status is Status.HELD][:tile]
    batch, network = local.batch.take(right), local.model.module
    row("judged PGD-40 to bare passes", attacked(local, right), lambda: bare(network, batch, tile, 40), arguments.rounds)

    if arguments.growing:
        arguments.model, arguments.data = arguments.growing, arguments.growing_data
    fewer_rounds = max(1, arguments.rounds // 3)
    for name, settings in (("early exit", ()), ("no early exit", ("early_exit=false",))):
        local = evaluator(arguments, 2 * arguments.n, "steps=10", *settings)
        all_samples, half = (attacked(local, list(range(n))) for n in (2 * arguments.n, arguments.n))
        row(f"{2 * arguments.n} samples to {arguments.n}, {name}", all_samples, half, fewer_rounds)
    once, twice = (
        attacked(evaluator(arguments, arguments.n, f"steps={k}", "early_exit=false"), list(range(arguments.n)))
        for k in (10, 20)
    )
    row("20 steps to 10, no early exit", twice, once, fewer_rounds)


if __name__ == "__main__":
    main()
