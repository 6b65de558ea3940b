"""The record at scale: writing it, reporting it, resuming an evaluation in it, start-up, and the memory an evaluation takes.

    python bench/speed/record.py [--models 1000] [--attacks 20] [--samples 512] [--db FILE] [--output FILE]

Makes a record up, 10 million outcomes by default, through the same interface as an evaluation, in a temporary folder, or in
`--db`, which is kept and used again. Every figure but the writing is of a whole command in a process of its own, start-up
included; those of a finished evaluation follow the evaluation itself. Writes a page of Markdown to stdout, or to `--output`.
"""

import argparse
import hashlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from measure import machine_line, markdown_table, spread

from kwbench.outcome import CLEAN, Outcome, Status
from kwbench.record.evaluation import AttackSpec, EvaluationSpec
from kwbench.record.provenance import machine, versions
from kwbench.record.store import Store
from kwbench.threat import ThreatModel

T = TypeVar("T")

KWBENCH = str(Path(sys.executable).with_name("kwbench"))
# One model in so many answers at random, and has draws on record.
STOCHASTIC_EVERY = 10
FRESH, SELECTION = 100, 50


@dataclass(frozen=True, slots=True)
class Took:
    """A command's time on the clock and on the cores, in seconds, and the most memory that its first process held, in MiB."""

    wall: float
    cpu: float
    memory: float


def run(*command: str) -> Took:
    """Run a kwbench command to its end; raises CalledProcessError if it fails."""
    began = time.perf_counter()
    with subprocess.Popen([KWBENCH, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - began
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Took(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def timed(name: str, target: str, *command: str, rounds: int) -> list[str]:
    """A line of the table of commands."""
    found = [run(*command) for _ in range(rounds)]
    wall, cpu = spread(each.wall for each in found), spread(each.cpu for each in found)
    memory = max(each.memory for each in found)
    return [name, str(wall), f"{min(each.wall for each in found):.2f}", str(cpu), f"{memory:.0f}", target]


def digest(*parts: object) -> str:
    """The name of something made up."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def specification(model: str, attacks: int, n: int, stochastic: bool) -> EvaluationSpec:
    """An evaluation as an evaluation of real networks has it: with every parameter, version and hash."""
    from kwbench.attacks import ATTACKS, default_parameters

    names = [name for name in ATTACKS if name not in ("foolbox", "autoattack-part")]
    labels = [names[at] if at < len(names) else f"{names[at % len(names)]}-{at // len(names)}" for at in range(attacks)]
    origin = {
        "model_sha256": digest(model),
        "data_sha256": digest("data"),
        "prediction": {"kind": "draw", "draws": 1},
        "seed": 0,
        "versions": versions(),
        "code_sha256": digest("code"),
    }
    specs = [AttackSpec(CLEAN, digest(model, CLEAN), {"attack": CLEAN, "parameters": {}})]
    for at, label in enumerate(labels):
        name = names[at % len(names)]
        specs.append(AttackSpec(label, digest(model, label), {"attack": name, "parameters": default_parameters(name)}))
    protocol = [{"label": label, "attack": names[at % len(names)], "when": "always"} for at, label in enumerate(labels)]
    return EvaluationSpec(
        identity=digest(model),
        model=model,
        dataset="digits",
        suite="made-up",
        threat=ThreatModel.of("linf", "0.2"),
        n=n,
        stochastic=stochastic,
        attacks=tuple(specs),
        spec={"origin": origin, "suite": "made-up", "attacks": [each.identity for each in specs], "protocol": protocol},
        provenance={**machine(), "device": "cpu", "threads": 1, "command": "kwbench evaluate"},
    )


def outcomes(rng: np.random.Generator, samples: Sequence[str], robust: float, stochastic: bool) -> Iterator[list[Outcome]]:
    """What the clean images and then ever other attacks find on one model, an attack at a time: hard samples fall first."""
    n = len(samples)
    order = (np.random.default_rng(99).random(n) * 0.8 + rng.random(n) * 0.2).argsort().argsort() / n
    right = order < 0.95
    left = np.ones(n, dtype=bool)
    while True:
        held = right & left
        status = np.where(held, Status.HELD, np.where(right, Status.BROKEN, Status.WRONG)).tolist()
        chance = np.where(held, 0.9, 0.1)
        selected = rng.binomial(SELECTION, chance) if stochastic else np.zeros(n, dtype=int)
        fresh = rng.binomial(FRESH, chance) if stochastic else np.zeros(n, dtype=int)
        distances, seconds = rng.random(n) * 0.2, rng.random(n) * 0.1
        yield [
            Outcome(
                sample=sample,
                index=at,
                label=at % 10,
                status=Status(word),
                clean_prediction=at % 10,
                prediction=at % 10,
                distance=distance,
                selection_correct=chosen,
                selection_draws=SELECTION if stochastic else 0,
                fresh_correct=scored,
                fresh_draws=FRESH if stochastic else 0,
                forwards=40,
                backwards=40,
                seconds=took,
            )
            for at, (sample, word, distance, chosen, scored, took) in enumerate(
                zip(samples, status, distances.tolist(), selected.tolist(), fresh.tolist(), seconds.tolist(), strict=True)
            )
        ]
        left = order < robust + (0.95 - robust) * rng.random()


def make(path: Path, models: int, attacks: int, n: int) -> tuple[float, float]:
    """Put a record of made-up models into a new database; the seconds that the store took of it, and those of a core in all."""
    started = time.process_time()
    rng = np.random.default_rng(0)
    samples = [digest("sample", at)[:32] for at in range(n)]
    store = Store.open(str(path), create=True)
    writing = 0.0
    for number in range(models):
        stochastic = number % STOCHASTIC_EVERY == STOCHASTIC_EVERY - 1
        found = outcomes(rng, samples, robust=rng.random() * 0.7, stochastic=stochastic)
        spec = specification(f"network-{number}", attacks, n, stochastic)
        began = time.perf_counter()
        evaluation = store.register(spec)
        writing += time.perf_counter() - began
        for attack_run in evaluation.attack_runs.values():
            rows = next(found)
            began = time.perf_counter()
            store.append(attack_run, rows)
            writing += time.perf_counter() - began
    store.close()
    return writing, time.process_time() - started


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """What a function returns in a process of its own. A command counts as its own the memory of the process that starts it,
    so this one must not load torch."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def repeated_digits(path: Path, repeats: int) -> int:
    """Write the test digits so many times, each time with other noise, as an npz file; returns their number."""
    from kwbench.data import load_dataset

    images = load_dataset("digits").test
    rng = np.random.default_rng(0)
    x = np.concatenate([images.images] * repeats)
    x = np.clip(x + rng.normal(0, 0.01, x.shape), 0, 1).astype(np.float32)
    np.savez(path, x_test=x, y_test=np.concatenate([images.labels] * repeats))
    return len(x)


def memory(folder: Path, repeats: int) -> list[str]:
    """A line of the table of memory: the digits under FGSM in tiles of 16."""
    samples = apart(repeated_digits, folder / "digits.npz", repeats)
    command = ["evaluate", "resnet18-relu", "--data", str(folder / "digits.npz"), "--attack", "fgsm", "--eps", "0.2"]
    took = run(*command, "--tile", "16", "--threads", "1", "--db", str(folder / f"{repeats}.db"), "--json")
    return [f"{samples:,}", f"{took.memory:.0f}", f"{took.cpu:.1f}"]


def main() -> None:
    """Make the record, time what reads it, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--attacks", type=int, default=20)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--db", type=Path)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        page = "\n".join(measured(asked, folder, asked.db or folder / "results.db"))
    if asked.output is not None:
        asked.output.write_text(page, encoding="utf-8")
    else:
        print(page, end="")


def measured(asked: argparse.Namespace, folder: Path, db: Path) -> Iterator[str]:
    """The parts of the page."""
    rows = asked.models * (asked.attacks + 1) * asked.samples
    yield "# The record at scale\n"
    yield "Made by `python bench/speed/record.py`.\n"
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    yield f"{machine_line(os.cpu_count() or 1)}. Load of the machine before, by others: {load}.\n"
    yield (
        "Seconds on the clock are those of this load; seconds of cores are nearer to what a machine without it would take, "
        "where a report reads the record on all cores.\n"
    )
    # A record that is there already leaves the writing to be measured on a twentieth of it.
    fresh, models = (folder / "written.db", -(-asked.models // 20)) if db.exists() else (db, asked.models)
    writing, cpu = apart(make, fresh, models, asked.attacks, asked.samples)
    os.sync()  # what is read next need not wait for what was written
    size, written = db.stat().st_size, models * (asked.attacks + 1) * asked.samples
    yield (
        f"{asked.models:,} models x {asked.attacks} attacks and the clean images x {asked.samples} samples: {rows:,} outcomes, "
        f"{size / 2**20:,.0f} MiB, {size / rows:.0f} bytes an outcome."
    )
    yield (
        f"{written:,} of them written in {models * (asked.attacks + 1):,} transactions: {writing:,.0f} s, "
        f"{written / writing:,.0f} a second; {cpu:,.0f} s of a core, their making included.\n"
    )
    header = ["command", "seconds, median [quartiles]", "least", "seconds of cores", "MiB", "target, s"]
    record, rounds = ["--db", str(db)], asked.rounds
    output = ["--output", str(folder / "reports")]
    lines = [timed("`kwbench --help`", "0.5", "--help", rounds=rounds)]
    for flag, target in (("html", "5"), ("markdown", ""), ("csv", ""), ("latex", "")):
        lines.append(timed(f"`kwbench report --{flag}`", target, "report", f"--{flag}", *output, *record, rounds=rounds))
    lines.append(timed("`kwbench show network-0`", "", "show", "network-0", *record, rounds=rounds))
    lines.append(
        timed("`kwbench compare network-0 network-1`", "", "compare", "network-0", "network-1", *record, rounds=rounds)
    )
    for options in (["--attack", "fgsm,pgd,transfer"], ["--suite", "strong", "--n", "64"]):
        command = ["evaluate", "resnet18-relu", *options, *record, "--json"]
        run(*command)
        lines.append(timed(f"`kwbench {' '.join(command[:-3])}`, finished", "3", *command, rounds=rounds))
    yield markdown_table(header, lines) + "\n"
    yield "The memory of an evaluation, which must not grow with the samples:\n"
    yield (
        markdown_table(["samples", "MiB at most", "seconds of cores"], [memory(folder, repeats) for repeats in (1, 4, 16)])
        + "\n"
    )


if __name__ == "__main__":
    main()
