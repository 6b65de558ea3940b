"""Compare the strong suite, AutoAttack and PGD-40: robust accuracy against cost.

    python bench/speed/cost.py [--n 360] [--threads 2] [--rounds 1] [--data FILE.npz] [--device auto] [MODEL...]

Each cell is a whole command with an empty record; the commands take turns. The time of kwbench includes start-up, judging,
statistics and storage, and for strong the diagnosis. AutoAttack is its authors' own package alone, in one process on all
threads, without any of these, in batches of --batch images; on a GPU its convolutions use TF32, the default of torch. Of the
seconds, those in attacks are also given. Passes are per sample; a speed-up is the time of AutoAttack divided by that of the
row. Writes Markdown to stdout.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from measure import machine_line, markdown_table, ratio, spread
from torch import Tensor, nn

from kwbench.model import find_device

MODELS = ("resnet18-relu-at", "resnet18-relu", "resnet18-kwta0.1-at", "resnet18-lwta0.2-at", "resnet18-kwta0.1")
# AutoAttack neither searches completely nor certifies: a comparison of times leaves both out.
PROTOCOLS = {"PGD-40": ["--attack", "pgd", "--set", "pgd.steps=40"], "strong": ["--suite", "strong", "--budget", "0"]}
RIVAL = "AutoAttack"


@dataclass(frozen=True, slots=True)
class Cell:
    """Result and cost of a command: robust accuracy with its interval, as text; passes per sample; the verdict.

    `attacking` is the part of the seconds that attacks take.
    """

    a_rob: str
    forwards: float
    backwards: float
    seconds: float
    attacking: float
    verdict: str = ""


def kwbench_cell(model: str, options: list[str], shared: list[str]) -> Cell:
    """Run `kwbench evaluate` with an empty record."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "kwbench", "evaluate", model, *options]
        command += [*shared, "--db", f"{folder}/results.db", "--json", "--timings"]
        output, seconds = _timed(command)
    result = json.loads(output)
    accuracy = result["a_rob"]
    text = f"{100 * accuracy['value']:.1f} [{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]" if accuracy else "none"
    forwards, backwards = (
        sum(attack[kind] for attack in result["attacks"]) / result["n"] for kind in ("forwards", "backwards")
    )
    attacking = sum(sum(parts.values()) for parts in result["timings"]["attacks"].values())
    return Cell(text, forwards, backwards, seconds, attacking, (result.get("verdict") or {}).get("verdict", ""))


def rival_cell(model: str, shared: list[str], batch: int) -> Cell:
    """Run AutoAttack in a process of its own."""
    command = [sys.executable, __file__, model, *shared, "--batch", str(batch), "--rival"]
    output, seconds = _timed(command)
    result = json.loads(output.splitlines()[-1])
    return Cell(f"{100 * result['a_rob']:.1f}", result["forwards"], result["backwards"], seconds, result["seconds"])


def _timed(command: list[str]) -> tuple[str, float]:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout, time.perf_counter() - began


class Counted(nn.Module):
    """A network that counts the samples of its forward and backward passes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.forwards, self.backwards = network, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of x."""
        logits: Tensor = self.network(x)
        self.forwards += len(x)
        if logits.requires_grad:
            logits.register_hook(self._count)  # type: ignore[no-untyped-call]
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def run_rival(options: argparse.Namespace) -> None:
    """Run pyautoattack, version standard, or rand for a stochastic model.

    Prints robust accuracy, passes and the seconds of the attacks as JSON.
    """
    import pyautoattack

    from kwbench.config.registry import dataset_of, read_registry
    from kwbench.data import load_dataset
    from kwbench.networks.entries import load_entry

    torch.set_num_threads(options.threads)
    registry = read_registry(options.registry)
    name, entry = registry.find(options.models[0])
    dataset = load_dataset(dataset_of(name), data=options.data)
    device = find_device(options.device)
    batch = dataset.test.batch(range(min(options.n, len(dataset.test)))).to(device)
    network = Counted(load_entry(registry, name, entry, dataset).module.to(device).eval().requires_grad_(False))
    with torch.no_grad():
        stochastic = not torch.equal(network(batch.x[:8]), network(batch.x[:8]))
    network.forwards = 0
    attack = pyautoattack.AutoAttack(
        network,
        norm={"linf": "Linf", "l2": "L2", "l1": "L1"}[dataset.threat.norm],
        eps=dataset.threat.radius,
        version="rand" if stochastic else "standard",
        device=str(device),
        seed=0,
    )
    began = time.perf_counter()
    result: Tensor | tuple[Tensor, ...] = attack.run_standard_evaluation(batch.x, batch.y, batch_size=options.batch)
    images = result[0] if isinstance(result, tuple) else result
    forwards, backwards = network.forwards / len(batch), network.backwards / len(batch)
    with torch.no_grad():
        robust_accuracy = (network(images).argmax(1) == batch.y).float().mean().item()
    seconds = time.perf_counter() - began
    print(json.dumps({"a_rob": robust_accuracy, "forwards": forwards, "backwards": backwards, "seconds": seconds}))


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--n", type=int, default=360)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--data", type=Path, help="an npz file of test images (default: the models' own data set)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--registry", type=Path)
    parser.add_argument("--batch", type=int, default=250, help="images in a batch of AutoAttack (default: 250, its own)")
    parser.add_argument("--rival", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rival:
        run_rival(arguments)
        return
    shared = [
        "--n",
        str(arguments.n),
        "--threads",
        str(arguments.threads),
        "--device",
        arguments.device,
        *(["--data", str(arguments.data)] if arguments.data else []),
        *(["--registry", str(arguments.registry)] if arguments.registry else []),
    ]
    about = machine_line(arguments.threads, find_device(arguments.device))
    print(f"n = {arguments.n}, rounds {arguments.rounds}, batch of AutoAttack {arguments.batch}; {about}", end="\n\n")
    header = [
        *("model", "protocol", "A_rob, %", "forwards", "backwards", "seconds", "in attacks", "verdict"),
        *("speed-up over AutoAttack", "speed-up in attacks"),
    ]
    print(markdown_table(header, []), flush=True)
    for model in arguments.models:
        sides: dict[str, Callable[[], Cell]] = {RIVAL: partial(rival_cell, model, shared, arguments.batch)}
        for protocol, options in PROTOCOLS.items():
            sides[protocol] = partial(kwbench_cell, model, options, shared)
        cells: dict[str, list[Cell]] = {name: [] for name in sides}
        for _ in range(arguments.rounds):
            for name, side in sides.items():
                cells[name].append(side())
        rival = [cell.seconds for cell in cells[RIVAL]]
        rival_attacking = [cell.attacking for cell in cells[RIVAL]]
        for name, side_cells in cells.items():
            seconds = [cell.seconds for cell in side_cells]
            attacking = [cell.attacking for cell in side_cells]
            first = side_cells[0]
            row = (
                model,
                name,
                first.a_rob,
                f"{first.forwards:,.0f}",
                f"{first.backwards:,.0f}",
                f"{spread(seconds).median:.1f}",
                f"{spread(attacking).median:.1f}",
                first.verdict,
                ratio(rival, seconds),
                ratio(rival_attacking, attacking),
            )
            print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
