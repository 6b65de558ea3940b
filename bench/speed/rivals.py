"""The same attack by kwbench, Foolbox, torchattacks and adv-lib: seconds, ratios, and the accuracy that each leaves.

    python bench/speed/rivals.py MODEL... [--n 128] [--threads 2] [--attacks pgd,mim,deepfool,cw,square] [--given right]

Same network, images, steps, step sizes and threads; in one process, by turns. Everybody is given all of the images; ours looks
at them once to find out which of them the network has wrong, and leaves those alone. With `--given right` all are spared them.
Ours is timed with judging, in a process of one thread for each of the threads; the libraries take them as torch does. What each
proposes is judged by the same rule. `folded` is a search with batch norms folded into convolutions, bfloat16 the same in
bfloat16, where the machine has it; what the judge says is in float32 for all. Needs torchattacks and adv-lib, which `make
speed` installs. Writes Markdown to stdout.
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
from kwbench.evaluation.execution.evaluator import LocalEvaluator
from kwbench.evaluation.execution.executors import LocalExecutor
from kwbench.evaluation.execution.tasks import JudgeAttack, JudgeClean
from kwbench.evaluation.request import Request
from kwbench.geometry import TOLERANCE, distance
from kwbench.model import find_device, has_bfloat16
from kwbench.outcome import Outcome, Status
from kwbench.threat import ThreatModel
from kwbench.torchvision_schemas import import_torchvision

# Images that a library is given at once.
BATCH = 128


@dataclass(frozen=True, slots=True)
class Contest:
    """An attack at settings that all of them have: ours in several variants, each a list of settings, and the libraries'."""

    name: str
    attack: str
    ours: Mapping[str, Sequence[str]]
    rivals: Mapping[str, Callable[[torch.nn.Module, Tensor, Tensor, float], Tensor]]
    # Judged where it is found, whatever the distance; the ball is for counting.
    minimum_norm: bool = False


def contests(norm: str, share: float, foolbox: Any, torchattacks: Any, adv: Any) -> list[Contest]:
    """Those in this norm. Steps of `share` * eps."""

    def from_foolbox(kind: str, nearest: bool = False, **settings: Any) -> Callable[..., Tensor]:
        def attack(network: torch.nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
            victim = foolbox.PyTorchModel(network, bounds=(0, 1), device=x.device)
            adversary, criterion = getattr(foolbox.attacks, kind)(**settings), foolbox.criteria.Misclassification(y)
            found: Tensor = adversary(victim, x, criterion, epsilons=None if nearest else eps)[0 if nearest else 1]
            return found

        return attack

    def from_torchattacks(kind: str, *ball: str, **settings: Any) -> Callable[..., Tensor]:
        def attack(network: torch.nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
            sizes = {"eps": eps, "alpha": share * eps}
            found: Tensor = getattr(torchattacks, kind)(network, **{name: sizes[name] for name in ball}, **settings)(x, y)
            return found

        return attack

    def variants(settings: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        rounds = {"kwbench, bfloat16": (*settings, "precision=bfloat16")} if has_bfloat16(find_device("auto")) else {}
        patient = (*settings, "early_exit=false")
        return {
            "kwbench": settings,
            "kwbench, folded": (*settings, "precision=folded"),
            **rounds,
            "kwbench, no early exit": patient,
            "kwbench, no early exit, folded": (*patient, "precision=folded"),
        }

    if norm == "linf":
        step = f"relative_step_size={share}"
        pgd = ("steps=40", step)
        mim = ("steps=20", step)
        square = ("steps=200", "rescale_schedule=true")
        return [
            Contest(
                "PGD-40",
                "pgd",
                variants(pgd),
                {
                    "Foolbox": from_foolbox("LinfPGD", rel_stepsize=share, steps=40),
                    "torchattacks": from_torchattacks("PGD", "eps", "alpha", steps=40),
                    "adv-lib": lambda network, x, y, eps: adv.pgd_linf(network, x, y, eps, steps=40, relative_step_size=share),
                },
            ),
            Contest(
                "MIM-20",
                "mim",
                variants(mim),
                {"torchattacks": from_torchattacks("MIFGSM", "eps", "alpha", steps=20, decay=1.0)},
            ),
            Contest(
                "Square, 200 queries",
                "square",
                {"kwbench": square, "kwbench, folded": (*square, "precision=folded")},
                {"torchattacks": from_torchattacks("Square", "eps", n_queries=200, loss="margin", resc_schedule=True)},
            ),
        ]
    cw = ("steps=60", "binary_search_steps=3", "step_size=0.02", "initial_const=0.1")
    return [
        Contest(
            "DeepFool",
            "deepfool",
            {"kwbench": ("steps=50",)},
            {
                "Foolbox": from_foolbox("L2DeepFoolAttack", nearest=True, steps=50),
                "torchattacks": from_torchattacks("DeepFool", steps=50),
                "adv-lib": lambda network, x, y, eps: adv.df(network, x, y, steps=50, norm=2),
            },
            minimum_norm=True,
        ),
        Contest(
            "C&W, 3 x 60",
            "cw",
            {"kwbench": cw},
            {
                "Foolbox": from_foolbox(
                    "L2CarliniWagnerAttack", True, binary_search_steps=3, steps=60, stepsize=0.02, initial_const=0.1
                ),
                "adv-lib": lambda network, x, y, eps: adv.carlini_wagner_l2(
                    network, x, y, learning_rate=0.02, initial_const=0.1, binary_search_steps=3, max_iterations=60
                ),
            },
            minimum_norm=True,
        ),
    ]


def measured(contest: Contest, request: Request, threads: int, rounds: int, given: str) -> list[list[object]]:
    """The rows of a contest's table; `given` says which images the libraries get, all or those that are right."""
    sides: dict[str, Callable[[], object]] = {}
    left: dict[str, float] = {}
    opened: list[LocalExecutor] = []
    for name, settings in contest.ours.items():
        executor = LocalExecutor(_asked(request, contest.attack, settings))
        opened.append(executor)
        sides[name] = _ours(executor, contest.attack, left, name, given)
    local = LocalEvaluator(_asked(request, contest.attack, next(iter(contest.ours.values()))))
    rows: Sequence[int] = range(len(local.facts.samples))
    if given == "right":
        rows = [row for row, outcome in enumerate(local.judge_clean(rows)) if outcome.status is Status.HELD]
    images, model, threat, n = local._batch.take(rows), local._model, local.facts.threat, len(local.facts.samples)

    def rival(name: str) -> Callable[[], object]:
        def attack() -> None:
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            parts = zip(images.x.split(BATCH), images.y.split(BATCH), strict=True)  # type: ignore[no-untyped-call]
            found = torch.cat([contest.rivals[name](model.module, x.clone(), y, threat.radius).detach() for x, y in parts])
            left[name] = _standing(model.predict(found.clamp(0, 1))[0], found, images.x, images.y, threat) / n

        return attack

    for name in contest.rivals:
        sides[name] = rival(name)
    try:
        # One process does it all on one thread; on more, only the clock on the wall sees all of them.
        seconds = alternate(sides, rounds, time.process_time if threads == 1 else time.perf_counter)
    finally:
        for executor in opened:
            executor.close()
    table: list[list[object]] = []
    for name in sides:
        ratios: list[Spread | str] = [
            ratio(seconds[other], seconds[name]) if name in contest.ours else "" for other in contest.rivals
        ]
        table.append([contest.name, name, str(spread(seconds[name])), f"{100 * left[name]:.1f}", *ratios])
    return table


def _asked(request: Request, attack: str, settings: Sequence[str]) -> Request:
    suite = override(suite_of((attack,)), tuple(f"{attack}.{setting}" for setting in settings))
    return replace(request, suite=suite)


def _ours(executor: LocalExecutor, attack: str, left: dict[str, float], name: str, given: str) -> Callable[[], object]:
    """Return a run of one attack, divided into whole tiles as the runner does; `given` all images, it first predicts them."""
    facts = executor.facts
    torch.set_num_threads(facts.threads)
    n, tile = len(facts.samples), facts.identity["tile"]
    share = -(-n // (tile * facts.workers)) * tile
    batches = [list(range(start, min(start + share, n))) for start in range(0, n, share)]

    def predict() -> dict[int, Outcome]:
        results = executor.map([JudgeClean(rows) for rows in batches])
        return {outcome.index: outcome for _, outcomes in results for outcome in outcomes}

    before = predict()

    def run() -> None:
        torch.set_num_threads(facts.threads)
        clean = before if given == "right" else predict()
        tasks = [JudgeAttack(attack, rows, [clean[row] for row in rows], None) for rows in batches]
        outcomes = [outcome for _, batch in executor.map(tasks) for outcome in batch]
        left[name] = sum(outcome.status is Status.HELD for outcome in outcomes) / n

    return run


def _standing(predicted: Tensor, found: Tensor, x: Tensor, y: Tensor, threat: ThreatModel) -> int:
    """How many the judge would call held: right, or not within the ball."""
    inside = distance(x, found, threat.norm) <= threat.radius * (1 + 1e-5) + TOLERANCE
    return int(((predicted == y) | ~inside).sum())


def libraries() -> tuple[Any, Any, Any]:
    """Foolbox, torchattacks and adv-lib's attacks."""
    import_torchvision()
    # adv-lib imports it for plots.
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
    parser.add_argument("--eps-l2", default="0.5", help="by which DeepFool and C&W are judged (default: 0.5)")
    parser.add_argument("--registry", type=Path)
    parser.add_argument("--dataset")
    parser.add_argument("--data", type=Path, help="an npz file of test images")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--given", choices=("all", "right"), default="all", help="the images that the libraries get")
    asked = parser.parse_args()
    clock = "processor" if asked.threads == 1 else "wall"
    print(f"n = {asked.n}; steps of {asked.step_size:g} eps; {clock} time; {machine_line(asked.threads)}\n")
    loaded = libraries()
    for name in asked.models:
        for norm in ("linf", "l2"):
            chosen = [each for each in contests(norm, asked.step_size, *loaded) if each.attack in asked.attacks.split(",")]
            for contest in chosen:
                request = Request(
                    name,
                    suite_of((contest.attack,)),
                    registry=asked.registry,
                    dataset=asked.dataset,
                    data=asked.data,
                    data_dir=asked.data_dir,
                    n=asked.n,
                    norm=norm,
                    eps=asked.eps if norm == "linf" else asked.eps_l2,
                    threads=asked.threads,
                )
                header = ["attack", name, "seconds", "accuracy left, %", *(f"times {rival}" for rival in contest.rivals)]
                print(
                    markdown_table(header, measured(contest, request, asked.threads, asked.rounds, asked.given)),
                    end="\n\n",
                    flush=True,
                )


if __name__ == "__main__":
    main()
