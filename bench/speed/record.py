"""Measure the record at scale: writing, reporting, resuming an evaluation, start-up, and the memory of an evaluation.

    python bench/speed/record.py [--models 1000] [--attacks 20] [--samples 512] [--db FILE] [--output FILE]

Generates a record, 10 million outcomes by default, through the same interface as an evaluation. It lies in a temporary folder,
or in `--db`, which is kept and reused. All figures but those of writing are of a whole command in a process of its own,
start-up included. Writes a page of Markdown to stdout, or to `--output`.
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
# One model in ten is stochastic, and has draws on record.
STOCHASTIC_EVERY = 10
FRESH, SELECTION = 100, 50


@dataclass(frozen=True, slots=True)
class Cost:
    """Wall-clock and processor time of a command in seconds, and the peak memory of its first process in MiB."""

    wall: float
    cpu: float
    memory: float


def run(*command: str) -> Cost:
    """Run a kwbench command. Raises CalledProcessError if it fails."""
    began = time.perf_counter()
    with subprocess.Popen([KWBENCH, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - began
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def timed(name: str, target: str, *command: str, rounds: int) -> list[str]:
    """Return a row of the table of commands."""
    costs = [run(*command) for _ in range(rounds)]
    wall, cpu = spread(cost.wall for cost in costs), spread(cost.cpu for cost in costs)
    memory = max(cost.memory for cost in costs)
    return [name, str(wall), f"{min(cost.wall for cost in costs):.2f}", str(cpu), f"{memory:.0f}", target]


def digest(*parts: object) -> str:
    """Return the hash of something that does not exist."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def specification(model: str, attacks: int, n: int, stochastic: bool) -> EvaluationSpec:
    """Return a specification as large as that of a real evaluation: with every parameter, version and hash."""
    from kwbench.attacks import ATTACKS, default_parameters

    names = [name for name in ATTACKS if name not in ("foolbox", "autoattack-part")]
    labels = [names[i] if i < len(names) else f"{names[i % len(names)]}-{i // len(names)}" for i in range(attacks)]
    origin = {
        "model_sha256": digest(model),
        "data_sha256": digest("data"),
        "prediction": {"kind": "draw", "draws": 1},
        "seed": 0,
        "engine": {"judge": 1},
        "versions": versions(),
        "code_sha256": digest("code"),
    }
    specs = [AttackSpec(CLEAN, digest(model, CLEAN), {"attack": CLEAN, "parameters": {}})]
    for i, label in enumerate(labels):
        name = names[i % len(names)]
        specs.append(AttackSpec(label, digest(model, label), {"attack": name, "parameters": default_parameters(name)}))
    protocol = [{"label": label, "attack": names[i % len(names)], "when": "always"} for i, label in enumerate(labels)]
    return EvaluationSpec(
        identity=digest(model),
        model=model,
        dataset="digits",
        suite="made-up",
        threat=ThreatModel.of("linf", "0.2"),
        n=n,
        stochastic=stochastic,
        attacks=tuple(specs),
        spec={"origin": origin, "suite": "made-up", "attacks": [attack.identity for attack in specs], "protocol": protocol},
        provenance={**machine(), "device": "cpu", "threads": 1, "command": "kwbench evaluate"},
    )


def outcomes(rng: np.random.Generator, samples: Sequence[str], robust: float, stochastic: bool) -> Iterator[list[Outcome]]:
    """Yield the outcomes of the clean images, then of one attack after the other, on one model. Hard samples break first."""
    n = len(samples)
    order = (np.random.default_rng(99).random(n) * 0.8 + rng.random(n) * 0.2).argsort().argsort() / n
    right = order < 0.95
    robust_samples = np.ones(n, dtype=bool)
    while True:
        held = right & robust_samples
        status = np.where(held, Status.HELD, np.where(right, Status.BROKEN, Status.WRONG)).tolist()
        chance = np.where(held, 0.9, 0.1)
        selected = rng.binomial(SELECTION, chance) if stochastic else np.zeros(n, dtype=int)
        fresh = rng.binomial(FRESH, chance) if stochastic else np.zeros(n, dtype=int)
        distances, seconds = rng.random(n) * 0.2, rng.random(n) * 0.1
        yield [
            Outcome(
                sample=sample,
                index=index,
                label=index % 10,
                status=Status(word),
                clean_prediction=index % 10,
                prediction=index % 10,
                distance=distance,
                selection_correct=chosen,
                selection_draws=SELECTION if stochastic else 0,
                fresh_correct=scored,
                fresh_draws=FRESH if stochastic else 0,
                forwards=40,
                backwards=40,
                seconds=time_taken,
            )
            for index, (sample, word, distance, chosen, scored, time_taken) in enumerate(
                zip(samples, status, distances.tolist(), selected.tolist(), fresh.tolist(), seconds.tolist(), strict=True)
            )
        ]
        robust_samples = order < robust + (0.95 - robust) * rng.random()


def make(path: Path, models: int, attacks: int, n: int) -> tuple[float, float]:
    """Write invented models to a new database, and return the seconds spent in the store and the processor seconds in total."""
    started = time.process_time()
    rng = np.random.default_rng(0)
    samples = [digest("sample", index)[:32] for index in range(n)]
    store = Store.open(str(path), create=True)
    writing = 0.0
    for number in range(models):
        stochastic = number % STOCHASTIC_EVERY == STOCHASTIC_EVERY - 1
        generated = outcomes(rng, samples, robust=rng.random() * 0.7, stochastic=stochastic)
        spec = specification(f"network-{number}", attacks, n, stochastic)
        began = time.perf_counter()
        evaluation = store.register(spec)
        writing += time.perf_counter() - began
        for attack_run in evaluation.attack_runs.values():
            rows = next(generated)
            began = time.perf_counter()
            store.append(attack_run, rows)
            writing += time.perf_counter() - began
    store.close()
    return writing, time.process_time() - started


def in_new_process(function: Callable[..., T], *arguments: Any) -> T:
    """Return what a function returns in a process of its own.

    The memory of a command includes that of the process that starts it, so this process must not load torch.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def repeated_digits(path: Path, repeats: int) -> int:
    """Write `repeats` copies of the test digits with different noise to an npz file, and return the number of images."""
    from kwbench.data import load_dataset

    images = load_dataset("digits").test
    rng = np.random.default_rng(0)
    x = np.concatenate([images.images] * repeats)
    x = np.clip(x + rng.normal(0, 0.01, x.shape), 0, 1).astype(np.float32)
    np.savez(path, x_test=x, y_test=np.concatenate([images.labels] * repeats))
    return len(x)


def memory(folder: Path, repeats: int) -> list[str]:
    """Return a row of the table of memory: the digits under FGSM in tiles of 16."""
    samples = in_new_process(repeated_digits, folder / "digits.npz", repeats)
    command = ["evaluate", "resnet18-relu", "--data", str(folder / "digits.npz"), "--attack", "fgsm", "--eps", "0.2"]
    cost = run(*command, "--tile", "16", "--threads", "1", "--db", str(folder / f"{repeats}.db"), "--json")
    return [f"{samples:,}", f"{cost.memory:.0f}", f"{cost.cpu:.1f}"]


def main() -> None:
    """Generate the record, time the commands that read it, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--attacks", type=int, default=20)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--db", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        page = "\n".join(paragraphs(arguments, folder, arguments.db or folder / "results.db"))
    if arguments.output is not None:
        arguments.output.write_text(page, encoding="utf-8")
    else:
        print(page, end="")


def paragraphs(arguments: argparse.Namespace, folder: Path, db: Path) -> Iterator[str]:
    """Yield the paragraphs of the page."""
    rows = arguments.models * (arguments.attacks + 1) * arguments.samples
    yield "# The record at scale\n"
    yield "Measured by `python bench/speed/record.py`.\n"
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    yield f"{machine_line(os.cpu_count() or 1)}. Load averages before the run: {load}.\n"
    yield (
        "Wall-clock times depend on this load. Processor times depend on it less; a report reads the record on all cores, "
        "so its processor time exceeds its wall-clock time.\n"
    )
    # If the record exists already, writing is measured on a twentieth of it.
    fresh, models = (folder / "written.db", -(-arguments.models // 20)) if db.exists() else (db, arguments.models)
    writing, cpu = in_new_process(make, fresh, models, arguments.attacks, arguments.samples)
    os.sync()  # later reads must not wait for these writes
    size, written = db.stat().st_size, models * (arguments.attacks + 1) * arguments.samples
    yield (
        f"{arguments.models:,} models x {arguments.attacks} attacks and the clean images x {arguments.samples} samples: "
        f"{rows:,} outcomes, {size / 2**20:,.0f} MiB, {size / rows:.0f} bytes an outcome."
    )
    yield (
        f"{written:,} outcomes written in {models * (arguments.attacks + 1):,} transactions: {writing:,.0f} s, "
        f"{written / writing:,.0f} a second; {cpu:,.0f} s of processor time, including their generation.\n"
    )
    header = ["command", "seconds, median [quartiles]", "minimum", "processor seconds", "peak MiB", "target, s"]
    record, rounds = ["--db", str(db)], arguments.rounds
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
    yield "The memory of an evaluation must not grow with the number of samples:\n"
    yield (
        markdown_table(["samples", "peak MiB", "processor seconds"], [memory(folder, repeats) for repeats in (1, 4, 16)]) + "\n"
    )


if __name__ == "__main__":
    main()
