"""The record at scale: its size, writing, reports, checks, start-up, and the memory of an evaluation.

    python bench/speed/record.py [--models 100] [--attacks 20] [--samples 10000] [--postgres-models 10] [--output FILE]

Generates records that grow up to `--models`, 21 million outcomes by default, through the same interface as an evaluation, in
SQLite files and on a PostgreSQL server that it starts. `--models 1000` makes 210 million. All figures but those of writing are
of a whole command in a process of its own, start-up included. Writes a page of Markdown to stdout, or to `--output`.
"""

import argparse
import hashlib
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np
import sqlalchemy as sa
from measure import machine_line, markdown_table, spread

from kwbench.outcome import CLEAN
from kwbench.record.arrays import FIELDS, MISSING, Letters, OutcomeArrays
from kwbench.record.database.packing import compress, pack
from kwbench.record.evaluation import AttackSpec, EvaluationSpec
from kwbench.record.provenance import machine, versions
from kwbench.record.store import Store
from kwbench.threat import ThreatModel

# The PostgreSQL server is that of the tests.
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

if TYPE_CHECKING:
    from support.postgres import Server

P = ParamSpec("P")
T = TypeVar("T")

KWBENCH = str(Path(sys.executable).with_name("kwbench"))
# One model in ten is stochastic, and has draws on record.
STOCHASTIC_EVERY = 10
FRESH, SELECTION = 100, 50
# Outcomes that an evaluation writes at once, by default.
BATCH = 256


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


def outcomes(rng: np.random.Generator, samples: Letters, robust: float, stochastic: bool) -> Iterator[OutcomeArrays]:
    """Yield the outcomes of the clean images, then of one attack after the other, on one model. Hard samples break first.

    Values are distributed as on record: most distances lie at the radius, within rounding; attacks on broken samples end
    early; predictions of broken samples are another class; times are those of batches.
    """
    n = len(samples)
    order = (np.random.default_rng(99).random(n) * 0.8 + rng.random(n) * 0.2).argsort().argsort() / n
    index, none = np.arange(n, dtype=np.int64), np.full(n, MISSING)
    label = np.random.default_rng(98).integers(0, 10, n)
    right, robust_samples, zeros = order < 0.95, np.ones(n, dtype=bool), np.zeros(n, dtype=np.int64)
    clean_prediction = np.where(right, label, (label + rng.integers(1, 10, n)) % 10)
    clean = True
    while True:
        held = right & robust_samples
        broken = right & ~held
        chance = np.where(held, 0.9, 0.1)
        inside = np.where(rng.random(n) < 0.3, rng.random(n, dtype=np.float32) * np.float32(0.031), np.float32(0.031))
        distance = np.where(clean, 0.0, np.abs(inside.astype(np.float64) + rng.integers(-2, 3, n) * 2.0**-29))
        steps = np.where(clean | ~right, 0, np.where(broken, rng.geometric(0.1, n).clip(1, 40), 40))
        yield OutcomeArrays(
            sample=samples,
            index=index,
            label=label,
            status=np.where(held, b"h", np.where(right, b"b", b"w")).astype("S1"),
            clean_prediction=clean_prediction,
            prediction=np.where(broken, (label + rng.integers(1, 10, n)) % 10, clean_prediction),
            distance=np.where(right, distance, np.nan),
            other_status=np.full(n, b"", dtype="S1"),
            surrogate_prediction=none,
            selection_correct=rng.binomial(SELECTION, chance) if stochastic else zeros,
            selection_draws=np.full(n, SELECTION) if stochastic else zeros,
            fresh_correct=rng.binomial(FRESH, chance) if stochastic else zeros,
            fresh_draws=np.full(n, FRESH) if stochastic else zeros,
            forwards=steps + clean,
            backwards=steps,
            seconds=np.repeat(rng.random(-(-n // BATCH)) * 0.1, BATCH)[:n],
            note=np.full(n, "", dtype=object),
        )
        clean, robust_samples = False, order < robust + (0.95 - robust) * rng.random()


@dataclass(frozen=True, slots=True)
class Written:
    """Outcomes written, the seconds in the store, the processor seconds of the process, and its peak memory in MiB."""

    outcomes: int
    wall: float
    cpu: float
    memory: float


def make(url: str, models: range, attacks: int, n: int, batch: int, as_objects: bool = False) -> Written:
    """Write invented models to a database, new or not, in transactions of `batch` outcomes."""
    samples = np.array([digest("sample", index)[:32] for index in range(n)], dtype=np.bytes_)
    store = Store.open(url, create=True)
    wall, written, cpu = 0.0, 0, 0.0
    for number in models:
        rng = np.random.default_rng(number)
        stochastic = number % STOCHASTIC_EVERY == STOCHASTIC_EVERY - 1
        generated = outcomes(rng, samples, robust=rng.random() * 0.7, stochastic=stochastic)
        spec = specification(f"network-{number}", attacks, n, stochastic)
        began, began_cpu = time.perf_counter(), time.process_time()
        evaluation = store.register(spec)
        wall, cpu = wall + time.perf_counter() - began, cpu + time.process_time() - began_cpu
        for attack_run in evaluation.attack_runs.values():
            arrays = next(generated)
            parts = [arrays.take(np.arange(start, min(start + batch, n))) for start in range(0, n, batch)]
            rows = [part.outcomes() if as_objects else part for part in parts]
            began, began_cpu = time.perf_counter(), time.process_time()
            for part in rows:
                store.append(attack_run, part)
            wall, cpu = wall + time.perf_counter() - began, cpu + time.process_time() - began_cpu
            written += n
    store.close()
    return Written(written, wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def bytes_an_outcome(attacks: int, n: int) -> tuple[float, float]:
    """Return the bytes an outcome that status and prediction take alone, and that all its fields take, in full shards."""
    samples = np.array([digest("sample", index)[:32] for index in range(n)], dtype=np.bytes_)
    generated = outcomes(np.random.default_rng(0), samples, 0.4, stochastic=False)
    two = every = 0
    for _ in range(attacks + 1):
        arrays = next(generated)
        two += len(compress(pack([arrays.status, arrays.prediction])))
        every += len(compress(pack([getattr(arrays, name) for name in FIELDS if name not in ("sample", "index", "label")])))
    return two / n / (attacks + 1), every / n / (attacks + 1)


def in_new_process(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Return what a function returns in a process of its own.

    The memory of a command includes that of the process that starts it, so this process must not load torch.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments, **named).result()


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
    """Generate the records, time the commands that read them, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--attacks", type=int, default=20)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--postgres-models", type=int, default=10, help="models of the record on PostgreSQL; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        page = "\n".join(paragraphs(arguments, Path(name)))
    if arguments.output is not None:
        arguments.output.write_text(page, encoding="utf-8")
    else:
        print(page, end="")


def paragraphs(arguments: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Yield the paragraphs of the page."""
    attacks, n = arguments.attacks, arguments.samples
    yield "# The record at scale\n"
    yield "Measured by `python bench/speed/record.py`.\n"
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    yield f"{machine_line(os.cpu_count() or 1)}. Load averages before the run: {load}.\n"
    yield (
        "Wall-clock times depend on this load. Processor times depend on it less; a report reads the record on all cores, "
        "so its processor time may exceed its wall-clock time.\n"
    )
    two, every = in_new_process(bytes_an_outcome, attacks, n)
    yield (
        f"Status and prediction take {two:.2f} bytes an outcome, and all fields of an outcome {every:.2f} "
        "(targets: 2 and 12). Values are invented, and distributed as on record.\n"
    )
    yield "Writing, one attack run after the other (target: 1,000,000 outcomes a second on SQLite):\n"
    yield markdown_table(WRITING, list(writing(arguments, folder))) + "\n"
    yield (
        f"The record grows, each model with {attacks} attacks and the clean images on {n:,} samples. Wall-clock seconds, of "
        f"commands that were repeated the median of {arguments.rounds}; targets: 60 for the first report, 5 for later ones, "
        "1 for opening (`show`), 2 for `check` of one model:\n"
    )
    yield markdown_table(GROWTH, list(growth(arguments, folder))) + "\n"
    if arguments.postgres_models:
        yield "The same on PostgreSQL:\n"
        with postgres() as server:
            yield markdown_table(GROWTH, list(growth(arguments, folder, server))) + "\n"
    yield "The memory of an evaluation must not grow with the number of samples:\n"
    yield (
        markdown_table(["samples", "peak MiB", "processor seconds"], [memory(folder, repeats) for repeats in (1, 4, 16)]) + "\n"
    )


WRITING = ["outcomes a transaction", "as", "outcomes a second", "of processor time", "peak MiB"]
GROWTH = [
    "models",
    "outcomes",
    "MiB",
    "bytes an outcome",
    "written a second",
    "first report",
    "later reports",
    "its processor time",
    "its peak MiB",
    "open",
    "check",
]


def writing(arguments: argparse.Namespace, folder: Path) -> Iterator[list[str]]:
    """Yield the rows of the table of writing: whole attack runs, and the batches of an evaluation."""
    for batch, as_objects in ((arguments.samples, False), (arguments.samples, True), (BATCH, True)):
        url = str(folder / f"writing-{batch}-{as_objects}.db")
        done = in_new_process(
            make, url, range(5 if batch > BATCH else 1), arguments.attacks, arguments.samples, batch, as_objects
        )
        kind = "`Outcome` objects" if as_objects else "arrays"
        yield [
            f"{batch:,}",
            kind,
            f"{done.outcomes / done.wall:,.0f}",
            f"{done.outcomes / done.cpu:,.0f}",
            f"{done.memory:.0f}",
        ]
        Path(url).unlink()


def growth(arguments: argparse.Namespace, folder: Path, server: "Server | None" = None) -> Iterator[list[str]]:
    """Yield a row for each size of a record that grows."""
    url = server.database("record") if server else str(folder / "record.db")
    largest = arguments.postgres_models if server else arguments.models
    sizes = sorted({max(1, largest // 10), max(1, largest // 3), largest})
    before, attacks, n = 0, arguments.attacks, arguments.samples
    for models in sizes:
        done = in_new_process(make, url, range(before, models), attacks, n, n)
        before = models
        os.sync()  # later reads must not wait for these writes
        record, output = ["--db", url], ["--output", str(folder / "reports")]
        # Summaries that earlier reports kept would make the first report a later one.
        os.environ["XDG_CACHE_HOME"] = str(folder / f"cache-{models}")
        reports = [run("report", "--markdown", *output, *record) for _ in range(arguments.rounds + 1)]
        baseline = ["--baseline", str(folder / "baseline.json")]
        run("check", "network-0", "--update", *baseline, *record)
        later = reports[1:]
        total = models * (attacks + 1) * n
        size = _size(server, url)
        yield [
            f"{models:,}",
            f"{total:,}",
            f"{size / 2**20:,.0f}",
            f"{size / total:.1f}",
            f"{done.outcomes / done.wall:,.0f}",
            f"{reports[0].wall:.1f}",
            f"{spread(cost.wall for cost in later).median:.1f}",
            f"{spread(cost.cpu for cost in later).median:.1f}",
            f"{max(cost.memory for cost in reports):.0f}",
            _median(["show", "network-0", *record], arguments.rounds),
            _median(["check", "network-0", *baseline, *record], arguments.rounds),
        ]


def _median(command: list[str], rounds: int) -> str:
    return f"{spread(run(*command).wall for _ in range(rounds)).median:.2f}"


def _size(server: "Server | None", url: str) -> int:
    if server is None:
        return Path(url).stat().st_size
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        size = int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())
    engine.dispose()
    return size


@contextmanager
def postgres() -> "Iterator[Server]":
    """Yield a PostgreSQL server, which runs while the block does."""
    from support.postgres import Server, find_programs

    server = Server(find_programs())
    try:
        yield server
    finally:
        server.close()


if __name__ == "__main__":
    main()
