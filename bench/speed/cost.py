"""Cost against accuracy: what the strong suite, AutoAttack and PGD-40 find, and what they take to find it.

    python bench/speed/cost.py [--n 360] [--threads 2] [--rounds 1] [--data FILE.npz] [MODEL...]

Each cell is a whole command from nothing, in turn: kwbench with start-up, judging, statistics and storage, strong with its
diagnosis too; AutoAttack as its authors' own package runs alone, in one process on all threads, without any of that. Writes
Markdown to stdout. Passes are per sample; the last column is the time of AutoAttack over that of the row.
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

MODELS = ("resnet18-relu-at", "resnet18-relu", "resnet18-kwta0.1-at", "resnet18-lwta0.2-at", "resnet18-kwta0.1")
PROTOCOLS = {"PGD-40": ["--attack", "pgd", "--set", "pgd.steps=40"], "strong": ["--suite", "strong"]}
RIVAL = "AutoAttack"


@dataclass(frozen=True, slots=True)
class Cell:
    """What a command found and took: robust accuracy with its interval, as text; passes per sample; seconds; the verdict."""

    a_rob: str
    forwards: float
    backwards: float
    seconds: float
    verdict: str = ""


def ours(model: str, options: list[str], asked: list[str]) -> Cell:
    """`kwbench evaluate` into an empty record."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("kwbench")), "evaluate", model, *options]
        command += [*asked, "--db", f"{folder}/results.db", "--json"]
        answer, seconds = _timed(command)
    found = json.loads(answer)
    each = found["a_rob"]
    text = f"{100 * each['value']:.1f} [{100 * each['low']:.1f}, {100 * each['high']:.1f}]" if each else "none"
    forwards, backwards = (sum(attack[kind] for attack in found["attacks"]) / found["n"] for kind in ("forwards", "backwards"))
    return Cell(text, forwards, backwards, seconds, (found.get("verdict") or {}).get("verdict", ""))


def theirs(model: str, asked: list[str]) -> Cell:
    """The rival in a process of its own."""
    command = [sys.executable, __file__, model, *asked, "--rival"]
    answer, seconds = _timed(command)
    found = json.loads(answer.splitlines()[-1])
    return Cell(f"{100 * found['a_rob']:.1f}", found["forwards"], found["backwards"], seconds)


def _timed(command: list[str]) -> tuple[str, float]:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout, time.perf_counter() - began


class Counted(nn.Module):
    """A network that counts the samples that go through it, there and back."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.forwards, self.backwards = network, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits of x."""
        logits: Tensor = self.network(x)
        self.forwards += len(x)
        if logits.requires_grad:
            logits.register_hook(self._count)  # type: ignore[no-untyped-call]
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def alone(model: str, n: int, threads: int, data: Path | None) -> None:
    """Run pyautoattack as its authors do, standard, or rand for a stochastic model, and print what it found."""
    import pyautoattack

    from kwbench.config.registry import dataset_of, read_registry
    from kwbench.data import load_dataset
    from kwbench.model import find_device
    from kwbench.networks.entries import load_entry

    torch.set_num_threads(threads)
    registry = read_registry()
    name, entry = registry.find(model)
    dataset = load_dataset(dataset_of(name), data=data)
    device = find_device("auto")
    batch = dataset.test.batch(range(min(n, len(dataset.test)))).to(device)
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
    found: Tensor | tuple[Tensor, ...] = attack.run_standard_evaluation(batch.x, batch.y)
    images = found[0] if isinstance(found, tuple) else found
    forwards, backwards = network.forwards / len(batch), network.backwards / len(batch)
    with torch.no_grad():
        left = (network(images).argmax(1) == batch.y).float().mean().item()
    print(json.dumps({"a_rob": left, "forwards": forwards, "backwards": backwards}))


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--n", type=int, default=360)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--data", type=Path, help="an npz file of test images; default: the models' own data set")
    parser.add_argument("--rival", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.rival:
        alone(asked.models[0], asked.n, asked.threads, asked.data)
        return
    same = ["--n", str(asked.n), "--threads", str(asked.threads), *(["--data", str(asked.data)] if asked.data else [])]
    print(f"n = {asked.n}, rounds {asked.rounds}; {machine_line(asked.threads)}", end="\n\n")
    header = ("model", "protocol", "A_rob, %", "forwards", "backwards", "seconds", "verdict", "times as fast as AutoAttack")
    print(markdown_table(header, []), flush=True)
    for model in asked.models:
        sides: dict[str, Callable[[], Cell]] = {RIVAL: partial(theirs, model, same)}
        for protocol, options in PROTOCOLS.items():
            sides[protocol] = partial(ours, model, options, same)
        cells: dict[str, list[Cell]] = {name: [] for name in sides}
        for _ in range(asked.rounds):
            for name, side in sides.items():
                cells[name].append(side())
        rival = [each.seconds for each in cells[RIVAL]]
        for name, found in cells.items():
            took = [each.seconds for each in found]
            first = found[0]
            row = (
                model,
                name,
                first.a_rob,
                f"{first.forwards:,.0f}",
                f"{first.backwards:,.0f}",
                f"{spread(took).median:.1f}",
                first.verdict,
                ratio(rival, took),
            )
            print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
