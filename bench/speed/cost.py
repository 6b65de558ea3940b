"""Cost and accuracy of the strong suite, AutoAttack and PGD-40.

    python bench/speed/cost.py [--n 360] [--threads 2] [--rounds 1] [--data FILE.npz] [MODEL...]

Each row is a whole command, in turn. kwbench includes start-up, judging, statistics and storage, and for strong its diagnosis.
AutoAttack is its authors' package in one process on all threads, without any of that. Passes are per sample; the last column is
the time of AutoAttack divided by that of the row. Writes Markdown to stdout.
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
class Result:
    """The result of a command: robust accuracy with its interval, as text, passes per sample, seconds, and the verdict."""

    a_rob: str
    forwards: float
    backwards: float
    seconds: float
    verdict: str = ""


def run_kwbench(model: str, protocol: list[str], options: list[str]) -> Result:
    """Run `kwbench evaluate` into an empty record."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("kwbench")), "evaluate", model, *protocol]
        command += [*options, "--db", f"{folder}/results.db", "--json"]
        output, seconds = _timed(command)
    summary = json.loads(output)
    a_rob = summary["a_rob"]
    text = f"{100 * a_rob['value']:.1f} [{100 * a_rob['low']:.1f}, {100 * a_rob['high']:.1f}]" if a_rob else "none"
    attacks, n = summary["attacks"], summary["n"]
    forwards, backwards = (sum(attack[kind] for attack in attacks) / n for kind in ("forwards", "backwards"))
    return Result(text, forwards, backwards, seconds, (summary.get("verdict") or {}).get("verdict", ""))


def run_autoattack(model: str, options: list[str]) -> Result:
    """Run AutoAttack in a process of its own."""
    command = [sys.executable, __file__, model, *options, "--rival"]
    output, seconds = _timed(command)
    result = json.loads(output.splitlines()[-1])
    return Result(f"{100 * result['a_rob']:.1f}", result["forwards"], result["backwards"], seconds)


def _timed(command: list[str]) -> tuple[str, float]:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout, time.perf_counter() - started


class CountingNetwork(nn.Module):
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


def evaluate_with_autoattack(model: str, n: int, threads: int, data: Path | None) -> None:
    """Run pyautoattack as its authors do, standard or, for a stochastic model, rand; print accuracy and passes as JSON."""
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
    network = CountingNetwork(load_entry(registry, name, entry, dataset).module.to(device).eval().requires_grad_(False))
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
    output: Tensor | tuple[Tensor, ...] = attack.run_standard_evaluation(batch.x, batch.y)
    images = output[0] if isinstance(output, tuple) else output
    forwards, backwards = network.forwards / len(batch), network.backwards / len(batch)
    with torch.no_grad():
        accuracy = (network(images).argmax(1) == batch.y).float().mean().item()
    print(json.dumps({"a_rob": accuracy, "forwards": forwards, "backwards": backwards}))


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--n", type=int, default=360)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--data", type=Path, help="an npz file of test images; default: the models' own data set")
    parser.add_argument("--rival", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rival:
        evaluate_with_autoattack(options.models[0], options.n, options.threads, options.data)
        return
    shared = [
        "--n",
        str(options.n),
        "--threads",
        str(options.threads),
        *(["--data", str(options.data)] if options.data else []),
    ]
    print(f"n = {options.n}, rounds {options.rounds}; {machine_line(options.threads)}", end="\n\n")
    header = ("model", "protocol", "A_rob, %", "forwards", "backwards", "seconds", "verdict", "times as fast as AutoAttack")
    print(markdown_table(header, []), flush=True)
    for model in options.models:
        commands: dict[str, Callable[[], Result]] = {RIVAL: partial(run_autoattack, model, shared)}
        for name, protocol in PROTOCOLS.items():
            commands[name] = partial(run_kwbench, model, protocol, shared)
        results: dict[str, list[Result]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, command in commands.items():
                results[name].append(command())
        autoattack_seconds = [result.seconds for result in results[RIVAL]]
        for name, rounds in results.items():
            seconds = [result.seconds for result in rounds]
            first = rounds[0]
            row = (
                model,
                name,
                first.a_rob,
                f"{first.forwards:,.0f}",
                f"{first.backwards:,.0f}",
                f"{spread(seconds).median:.1f}",
                first.verdict,
                ratio(autoattack_seconds, seconds),
            )
            print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
