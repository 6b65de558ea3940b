"""The same attacks by kwbench, Foolbox, torchattacks and adv-lib: time, ratios and the accuracy under attack.

    python bench/speed/rivals.py MODEL... [--n 128] [--threads 2] [--attacks pgd,mim,deepfool,cw,square] [--given right]

All use the same network, images, steps, step sizes and number of threads, and take turns. All get all images. kwbench predicts
them once and skips those that are misclassified; with `--given right` nobody gets these. kwbench is timed with judging, in a
single-threaded process for each of the threads; the libraries use the threads as torch does. All proposals are judged by the
same rule, in float32. `folded` searches with batch norms folded into convolutions, and `bfloat16` does so in bfloat16, if the
machine supports it. Needs torchattacks and adv-lib, which `make speed` installs. Writes Markdown to stdout.
"""

import argparse
import sys
import time
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from measure import Spread, alternate, machine_line, markdown_table, ratio, spread
from torch import Tensor

from kwbench.config.suite import override, suite_of
from kwbench.evaluation.evaluator import LocalEvaluator
from kwbench.evaluation.executors import LocalExecutor
from kwbench.evaluation.request import Request
from kwbench.evaluation.tasks import JudgeAttack, JudgeClean
from kwbench.geometry import TOLERANCE, distance
from kwbench.model import find_device, has_bfloat16
from kwbench.outcome import Outcome, Status
from kwbench.threat import ThreatModel
from kwbench.torchvision_schemas import import_torchvision

# Images in a batch of the libraries.
BATCH = 128


@dataclass(frozen=True, slots=True)
class Contest:
    """An attack with settings that all libraries support.

    Attributes:
        attack: kwbench's name of the attack.
        ours: kwbench's variants by name, each a list of settings.
        rivals: The libraries' functions by name, from network, images, labels and eps to adversarial images.
    """

    name: str
    attack: str
    ours: Mapping[str, Sequence[str]]
    rivals: Mapping[str, Callable[[torch.nn.Module, Tensor, Tensor, float], Tensor]]


def contests(norm: str, step_size: float, foolbox: Any, torchattacks: Any, adv: Any) -> list[Contest]:
    """Return the attacks in this norm; the steps of PGD and MIM are `step_size` * eps long."""

    def from_foolbox(kind: str, minimum_norm: bool = False, **settings: Any) -> Callable[..., Tensor]:
        def attack(network: torch.nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
            victim = foolbox.PyTorchModel(network, bounds=(0, 1), device=x.device)
            adversary, criterion = getattr(foolbox.attacks, kind)(**settings), foolbox.criteria.Misclassification(y)
            raw, clipped, _ = adversary(victim, x, criterion, epsilons=None if minimum_norm else eps)
            images: Tensor = raw if minimum_norm else clipped
            return images

        return attack

    def from_torchattacks(kind: str, *sizes: str, **settings: Any) -> Callable[..., Tensor]:
        def attack(network: torch.nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
            values = {"eps": eps, "alpha": step_size * eps}
            images: Tensor = getattr(torchattacks, kind)(network, **{name: values[name] for name in sizes}, **settings)(x, y)
            return images

        return attack

    if norm == "linf":
        relative = f"relative_step_size={step_size}"
        square = ("steps=200", "rescale_schedule=true")
        return [
            Contest(
                "PGD-40",
                "pgd",
                _variants(("steps=40", relative)),
                {
                    "Foolbox": from_foolbox("LinfPGD", rel_stepsize=step_size, steps=40),
                    "torchattacks": from_torchattacks("PGD", "eps", "alpha", steps=40),
                    "adv-lib": lambda network, x, y, eps: adv.pgd_linf(
                        network, x, y, eps, steps=40, relative_step_size=step_size
                    ),
                },
            ),
            Contest(
                "MIM-20",
                "mim",
                _variants(("steps=20", relative)),
                {"torchattacks": from_torchattacks("MIFGSM", "eps", "alpha", steps=20, decay=1.0)},
            ),
            Contest(
                "Square, 200 queries",
                "square",
                {"kwbench": square, "kwbench, folded": (*square, "precision=folded")},
                {"torchattacks": from_torchattacks("Square", "eps", n_queries=200, loss="margin", resc_schedule=True)},
            ),
        ]
    return [
        Contest(
            "DeepFool",
            "deepfool",
            {"kwbench": ("steps=50",)},
            {
                "Foolbox": from_foolbox("L2DeepFoolAttack", minimum_norm=True, steps=50),
                "torchattacks": from_torchattacks("DeepFool", steps=50),
                "adv-lib": lambda network, x, y, eps: adv.df(network, x, y, steps=50, norm=2),
            },
        ),
        Contest(
            "C&W, 3 x 60",
            "cw",
            {"kwbench": ("steps=60", "binary_search_steps=3", "step_size=0.02", "initial_const=0.1")},
            {
                "Foolbox": from_foolbox(
                    "L2CarliniWagnerAttack", True, binary_search_steps=3, steps=60, stepsize=0.02, initial_const=0.1
                ),
                "adv-lib": lambda network, x, y, eps: adv.carlini_wagner_l2(
                    network, x, y, learning_rate=0.02, initial_const=0.1, binary_search_steps=3, max_iterations=60
                ),
            },
        ),
    ]


def _variants(settings: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return kwbench's variants of a gradient attack: each precision of the search, with and without early exit."""
    bfloat16 = {"kwbench, bfloat16": (*settings, "precision=bfloat16")} if has_bfloat16(find_device("auto")) else {}
    full_length = (*settings, "early_exit=false")
    return {
        "kwbench": settings,
        "kwbench, folded": (*settings, "precision=folded"),
        **bfloat16,
        "kwbench, no early exit": full_length,
        "kwbench, no early exit, folded": (*full_length, "precision=folded"),
    }


def measure(contest: Contest, request: Request, threads: int, rounds: int, given: str) -> list[list[object]]:
    """Return the rows of a contest's table. `given`: the libraries get all images, or only the correctly classified ones."""
    runs: dict[str, Callable[[], object]] = {}
    accuracies: dict[str, float] = {}
    opened: list[LocalExecutor] = []
    for name, settings in contest.ours.items():
        executor = LocalExecutor(_with_settings(request, contest.attack, settings))
        opened.append(executor)
        runs[name] = _ours(executor, contest.attack, accuracies, name, given)
    local = LocalEvaluator(_with_settings(request, contest.attack, next(iter(contest.ours.values()))))
    rows: Sequence[int] = range(len(local.facts.samples))
    if given == "right":
        rows = [row for row, outcome in enumerate(local.judge_clean(rows)) if outcome.status is Status.HELD]
    images, model, threat, n = local._batch.take(rows), local._model, local.facts.threat, len(local.facts.samples)

    def rival(name: str) -> Callable[[], object]:
        def run() -> None:
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            attack = contest.rivals[name]
            parts = zip(torch.split(images.x, BATCH), torch.split(images.y, BATCH), strict=True)
            proposals = torch.cat([attack(model.module, x.clone(), y, threat.radius).detach() for x, y in parts])
            predicted = model.predict(proposals.clamp(0, 1))[0]
            accuracies[name] = _held(predicted, proposals, images.x, images.y, threat) / n

        return run

    for name in contest.rivals:
        runs[name] = rival(name)
    try:
        # With one thread, one process does all the work. With more, only wall-clock time covers all processes.
        seconds = alternate(runs, rounds, time.process_time if threads == 1 else time.perf_counter)
    finally:
        for executor in opened:
            executor.close()
    table: list[list[object]] = []
    for name in runs:
        ratios: list[Spread | str] = [
            ratio(seconds[library], seconds[name]) if name in contest.ours else "" for library in contest.rivals
        ]
        table.append([contest.name, name, str(spread(seconds[name])), f"{100 * accuracies[name]:.1f}", *ratios])
    return table


def _with_settings(request: Request, attack: str, settings: Sequence[str]) -> Request:
    suite = override(suite_of((attack,)), tuple(f"{attack}.{setting}" for setting in settings))
    return replace(request, suite=suite)


def _ours(executor: LocalExecutor, attack: str, accuracies: dict[str, float], name: str, given: str) -> Callable[[], object]:
    """Return a function that runs an attack as the runner does, shared among the workers in whole tiles.

    Its accuracy goes into `accuracies[name]`. Given all images, it first predicts which of them are correctly classified.
    """
    facts = executor.facts
    torch.set_num_threads(facts.threads)
    n, tile = len(facts.samples), facts.identity["tile"]
    share = -(-n // (tile * facts.workers)) * tile
    batches = [list(range(start, min(start + share, n))) for start in range(0, n, share)]

    def judge_clean() -> dict[int, Outcome]:
        results = executor.map([JudgeClean(rows) for rows in batches])
        return {outcome.index: outcome for _, outcomes in results for outcome in outcomes}

    clean_before = judge_clean()

    def run() -> None:
        torch.set_num_threads(facts.threads)
        clean = clean_before if given == "right" else judge_clean()
        tasks = [JudgeAttack(attack, rows, [clean[row] for row in rows], None) for rows in batches]
        outcomes = [outcome for _, batch in executor.map(tasks) for outcome in batch]
        accuracies[name] = sum(outcome.status is Status.HELD for outcome in outcomes) / n

    return run


def _held(predicted: Tensor, proposals: Tensor, x: Tensor, y: Tensor, threat: ThreatModel) -> int:
    """Count the samples that the judge would call held: predicted correctly, or perturbed beyond the ball."""
    inside = distance(x, proposals, threat.norm) <= threat.radius * (1 + 1e-5) + TOLERANCE
    return int(((predicted == y) | ~inside).sum())


def libraries() -> tuple[Any, Any, Any]:
    """Import Foolbox, torchattacks and the attacks of adv-lib."""
    import_torchvision()
    # adv-lib imports visdom for plots only.
    sys.modules.setdefault("visdom", types.ModuleType("visdom"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox
        import torchattacks
        from adv_lib import attacks as adv
    return foolbox, torchattacks, adv


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--attacks", default="pgd,mim,square,deepfool,cw")
    parser.add_argument("--step-size", type=float, default=0.25, help="of PGD and MIM, in eps (default: 0.25)")
    parser.add_argument("--eps", help="in linf; default: the data set's")
    parser.add_argument("--eps-l2", default="0.5", help="radius at which DeepFool and C&W are judged (default: 0.5)")
    parser.add_argument("--registry", type=Path)
    parser.add_argument("--dataset")
    parser.add_argument("--data", type=Path, help="an npz file of test images")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--given", choices=("all", "right"), default="all", help="the images that are attacked")
    options = parser.parse_args()
    clock = "processor" if options.threads == 1 else "wall"
    print(f"n = {options.n}; steps of {options.step_size:g} eps; {clock} time; {machine_line(options.threads)}\n")
    imported, wanted = libraries(), options.attacks.split(",")
    for name in options.models:
        for norm in ("linf", "l2"):
            for contest in contests(norm, options.step_size, *imported):
                if contest.attack not in wanted:
                    continue
                request = Request(
                    name,
                    suite_of((contest.attack,)),
                    registry=options.registry,
                    dataset=options.dataset,
                    data=options.data,
                    data_dir=options.data_dir,
                    n=options.n,
                    norm=norm,
                    eps=options.eps if norm == "linf" else options.eps_l2,
                    threads=options.threads,
                )
                header = ["attack", name, "seconds", "accuracy left, %", *(f"times {rival}" for rival in contest.rivals)]
                print(
                    markdown_table(header, measure(contest, request, options.threads, options.rounds, options.given)),
                    end="\n\n",
                    flush=True,
                )


if __name__ == "__main__":
    main()
