"""Compare attacks of kwbench, Foolbox, torchattacks and adv-lib: seconds, speed-ups and robust accuracy.

    python bench/speed/rivals.py MODEL... [--n 128] [--threads 2] [--attacks pgd,mim,deepfool,cw,square] [--given right]

All run with the same network, images, steps, step sizes and threads, and take turns. Every library gets all images; kwbench
first predicts them and attacks the correctly classified ones only. With `--given right`, every library gets only these. The
time of kwbench includes judging, in one single-threaded process per thread; the libraries use the threads of torch. On a GPU
times are wall times, and the convolutions of the libraries use TF32, the default of torch. One rule judges all results.
`folded` searches with batch norms folded into convolutions; `bfloat16` does so in bfloat16, where the machine has it. All are
judged in float32. As the libraries do, kwbench stores no examples for people to look at. Requires torchattacks, which `make
setup` installs; adv-lib takes part if it is installed, as by `make speed`. Writes Markdown to stdout.
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
from measure import Spread, alternate, machine_line, markdown_table, ratio, spread, torch_defaults
from torch import Tensor

from kwbench.config.suite import override, suite_of
from kwbench.evaluation.execution.evaluator import LocalEvaluator
from kwbench.evaluation.execution.executors import LocalExecutor
from kwbench.evaluation.execution.tasks import JudgeAttack, JudgeClean
from kwbench.evaluation.request import Request
from kwbench.geometry import distance
from kwbench.model import find_device, has_bfloat16
from kwbench.outcome import Outcome, Status
from kwbench.threat import TOLERANCE, ThreatModel
from kwbench.torchvision_schemas import import_torchvision


@dataclass(frozen=True, slots=True)
class Contest:
    """An attack with settings that all libraries have. Each variant of kwbench is a list of settings."""

    name: str
    attack: str
    variants: Mapping[str, Sequence[str]]
    rivals: Mapping[str, Callable[[torch.nn.Module, Tensor, Tensor, float], Tensor]]
    # The attack minimises the distance; the ball only decides what counts as robust.
    minimum_norm: bool = False


@dataclass(frozen=True, slots=True)
class Libraries:
    """The modules of the libraries; `adv` is adv_lib.attacks, None if adv-lib is not installed."""

    foolbox: Any
    torchattacks: Any
    pyautoattack: Any
    adv: Any


def contests(norm: str, share: float, queries: int, device: torch.device, libraries: Libraries) -> list[Contest]:
    """Return the contests in this norm, with steps of `share` * eps, and so many queries of Square."""
    foolbox, torchattacks, adv = libraries.foolbox, libraries.torchattacks, libraries.adv

    def with_adv_lib(attack: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor]]:
        return {} if adv is None else {"adv-lib": attack}

    def square_of_autoattack(network: torch.nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        square = libraries.pyautoattack.square.SquareAttack(network, eps=eps, n_queries=queries, device=x.device)
        adversarials: Tensor = square.perturb(x, y)
        return adversarials

    def from_foolbox(kind: str, nearest: bool = False, **settings: Any) -> Callable[..., Tensor]:
        def attack(network: torch.nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
            victim = foolbox.PyTorchModel(network, bounds=(0, 1), device=x.device)
            adversary, criterion = getattr(foolbox.attacks, kind)(**settings), foolbox.criteria.Misclassification(y)
            adversarials: Tensor = adversary(victim, x, criterion, epsilons=None if nearest else eps)[0 if nearest else 1]
            return adversarials

        return attack

    def from_torchattacks(kind: str, *ball: str, **settings: Any) -> Callable[..., Tensor]:
        def attack(network: torch.nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
            sizes = {"eps": eps, "alpha": share * eps}
            in_ball = {name: sizes[name] for name in ball}
            adversarials: Tensor = getattr(torchattacks, kind)(network, **in_ball, **settings)(x, y)
            return adversarials

        return attack

    def variants(settings: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        bfloat16 = {"kwbench, bfloat16": (*settings, "precision=bfloat16")} if has_bfloat16(device) else {}
        all_steps = (*settings, "early_exit=false")
        return {
            "kwbench": settings,
            "kwbench, folded": (*settings, "precision=folded"),
            **bfloat16,
            "kwbench, no early exit": all_steps,
            "kwbench, no early exit, folded": (*all_steps, "precision=folded"),
        }

    if norm == "linf":
        step = f"relative_step_size={share}"
        pgd = ("steps=40", step)
        mim = ("steps=20", step)
        square = (f"steps={queries}", "rescale_schedule=true")
        return [
            Contest(
                "PGD-40",
                "pgd",
                variants(pgd),
                {
                    "Foolbox": from_foolbox("LinfPGD", rel_stepsize=share, steps=40),
                    "torchattacks": from_torchattacks("PGD", "eps", "alpha", steps=40),
                    **with_adv_lib(
                        lambda network, x, y, eps: adv.pgd_linf(network, x, y, eps, steps=40, relative_step_size=share)
                    ),
                },
            ),
            Contest(
                "MIM-20",
                "mim",
                variants(mim),
                {"torchattacks": from_torchattacks("MIFGSM", "eps", "alpha", steps=20, decay=1.0)},
            ),
            Contest(
                f"Square, {queries} queries",
                "square",
                {"kwbench": square, "kwbench, folded": (*square, "precision=folded")},
                {
                    "torchattacks": from_torchattacks("Square", "eps", n_queries=queries, loss="margin", resc_schedule=True),
                    "pyautoattack": square_of_autoattack,
                },
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
                **with_adv_lib(lambda network, x, y, eps: adv.df(network, x, y, steps=50, norm=2)),
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
                **with_adv_lib(
                    lambda network, x, y, eps: adv.carlini_wagner_l2(
                        network, x, y, learning_rate=0.02, initial_const=0.1, binary_search_steps=3, max_iterations=60
                    )
                ),
            },
            minimum_norm=True,
        ),
    ]


def measured(contest: Contest, request: Request, batch: int, rounds: int, given: str) -> list[list[object]]:
    """Return the rows of a contest's table; `given` is the images that the libraries get, "all" or "right", in such batches."""
    threads = request.threads or 1
    sides: dict[str, Callable[[], object]] = {}
    accuracies: dict[str, float] = {}
    executors: list[LocalExecutor] = []
    for name, settings in contest.variants.items():
        executor = LocalExecutor(_request_for(request, contest.attack, settings))
        executors.append(executor)
        sides[name] = _kwbench_run(executor, contest.attack, accuracies, name, given)
    local = LocalEvaluator(_request_for(request, contest.attack, next(iter(contest.variants.values()))))
    rows: Sequence[int] = range(len(local.facts.samples))
    if given == "right":
        rows = [row for row, outcome in enumerate(local.judge_clean(rows)) if outcome.status is Status.HELD]
    images, model, threat, n = local.batch.take(rows), local.model, local.facts.threat, len(local.facts.samples)

    def rival(name: str) -> Callable[[], object]:
        def attack() -> None:
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            parts = zip(images.x.split(batch), images.y.split(batch), strict=True)  # type: ignore[no-untyped-call]
            with torch_defaults():
                adversarials = torch.cat(
                    [contest.rivals[name](model.module, x.clone(), y, threat.radius).detach() for x, y in parts]
                )
            predicted = model.predict(adversarials.clamp(0, 1))[0]
            accuracies[name] = _robust(predicted, adversarials, images.x, images.y, threat) / n

        return attack

    for name in contest.rivals:
        sides[name] = rival(name)
    try:
        # With one thread all work is in this process. With several, only wall-clock time includes the other processes.
        seconds = alternate(sides, rounds, clock_for(threads, local.model.device))
    finally:
        for executor in executors:
            executor.close()
    table: list[list[object]] = []
    for name in sides:
        ratios: list[Spread | str] = [
            ratio(seconds[other], seconds[name]) if name in contest.variants else "" for other in contest.rivals
        ]
        table.append([contest.name, name, str(spread(seconds[name])), f"{100 * accuracies[name]:.1f}", *ratios])
    return table


def clock_for(threads: int, device: torch.device) -> Callable[[], float]:
    """Return the clock of a comparison: processor time where one thread of this process does everything, else wall time."""
    return time.process_time if threads == 1 and device.type == "cpu" else time.perf_counter


def _request_for(request: Request, attack: str, settings: Sequence[str]) -> Request:
    suite = override(suite_of((attack,)), tuple(f"{attack}.{setting}" for setting in settings))
    return replace(request, suite=suite)


def _kwbench_run(
    executor: LocalExecutor, attack: str, accuracies: dict[str, float], name: str, given: str
) -> Callable[[], object]:
    """Return a run of one attack in full tiles, as by the runner; with `given` "all", it predicts the images first."""
    facts = executor.facts
    torch.set_num_threads(facts.threads)
    n, tile = len(facts.samples), facts.identity["tile"]
    share = -(-n // (tile * facts.workers)) * tile
    batches = [list(range(start, min(start + share, n))) for start in range(0, n, share)]

    def predict() -> dict[int, Outcome]:
        results = executor.map([JudgeClean(rows) for rows in batches])
        return {outcome.index: outcome for _, outcomes in results for outcome in outcomes}

    clean_outcomes = predict()

    def run() -> None:
        torch.set_num_threads(facts.threads)
        clean = clean_outcomes if given == "right" else predict()
        tasks = [JudgeAttack(attack, rows, [clean[row] for row in rows], None) for rows in batches]
        outcomes = [outcome for _, batch in executor.map(tasks) for outcome in batch]
        accuracies[name] = sum(outcome.status is Status.HELD for outcome in outcomes) / n

    return run


def _robust(predicted: Tensor, adversarials: Tensor, x: Tensor, y: Tensor, threat: ThreatModel) -> int:
    """Return how many images the judge would call held: correctly classified, or outside the ball."""
    inside = distance(x, adversarials, threat.norm) <= threat.radius * (1 + 1e-5) + TOLERANCE
    return int(((predicted == y) | ~inside).sum())


def import_libraries() -> Libraries:
    """Return the modules of the libraries."""
    import_torchvision()
    # adv-lib imports visdom for plots only.
    sys.modules.setdefault("visdom", types.ModuleType("visdom"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox
        import pyautoattack.square
        import torchattacks

        try:
            from adv_lib import attacks as adv
        except ImportError:
            adv = None
    return Libraries(foolbox, torchattacks, pyautoattack, adv)


def main() -> None:
    """Run the benchmark and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--attacks", default="pgd,mim,square,deepfool,cw")
    parser.add_argument("--step-size", type=float, default=0.25, help="step size of PGD and MIM, in eps (default: 0.25)")
    parser.add_argument("--eps", help="radius in linf (default: that of the data set)")
    parser.add_argument("--eps-l2", default="0.5", help="radius in l2 for DeepFool and C&W (default: 0.5)")
    parser.add_argument("--registry", type=Path)
    parser.add_argument("--dataset")
    parser.add_argument("--data", type=Path, help="an npz file of test images")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--given", choices=("all", "right"), default="all", help="the images that the libraries get")
    parser.add_argument("--batch", type=int, default=128, help="images in a batch of a library (default: 128)")
    parser.add_argument("--queries", type=int, default=200, help="queries of Square (default: 200)")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = find_device(arguments.device)
    clock = "processor" if clock_for(arguments.threads, device) is time.process_time else "wall"
    about = f"{clock} time; batches of {arguments.batch} in libraries; {machine_line(arguments.threads, device)}"
    print(f"n = {arguments.n}; steps of {arguments.step_size:g} eps; {about}\n")
    modules = import_libraries()
    if modules.adv is None:
        print("adv-lib is not installed and takes no part.\n")
    for name in arguments.models:
        for norm in ("linf", "l2"):
            selected = arguments.attacks.split(",")
            known = contests(norm, arguments.step_size, arguments.queries, device, modules)
            chosen = [contest for contest in known if contest.attack in selected]
            for contest in chosen:
                request = Request(
                    name,
                    suite_of((contest.attack,)),
                    registry=arguments.registry,
                    dataset=arguments.dataset,
                    data=arguments.data,
                    data_dir=arguments.data_dir,
                    n=arguments.n,
                    norm=norm,
                    eps=arguments.eps if norm == "linf" else arguments.eps_l2,
                    threads=arguments.threads,
                    device=arguments.device,
                    examples=0,
                )
                header = [
                    "attack",
                    name,
                    "seconds",
                    "robust accuracy, %",
                    *(f"speed-up over {rival}" for rival in contest.rivals),
                ]
                rows = measured(contest, request, arguments.batch, arguments.rounds, arguments.given)
                print(markdown_table(header, rows), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
