"""The fault kit: runs the tests of each fault, and again on a copy of the package whose guard is removed.

`make faults` writes reports/faults.md, and exits with 1 unless all tests pass and all mutants fail. With ids, such as
`PYTHONPATH=tests python tests/faults/kit.py F02 F41`, it does so for these faults alone and leaves the rows of others.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from faults.catalogue import FAULTS, Fault, Mutant

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "reports" / "faults.md"
# Seconds that a test may take, with the guard and without it, where it may hang.
_PATIENCE, _PATIENCE_WITH_MUTANT = 900, 120


@dataclass(frozen=True)
class Result:
    """Whether the tests of a fault passed, whether they failed on its mutant, and the seconds of both."""

    fault: Fault
    passed: bool
    killed: bool
    seconds: float

    @property
    def good(self) -> bool:
        """Whether the fault is guarded against, and the tests show it."""
        return self.passed and self.killed


def mutated(folder: Path, mutant: Mutant) -> Path:
    """Copy the package into a folder with the mutant's change, and return the folder to import it from."""
    source = folder / "bench"
    shutil.copytree(ROOT / "bench" / "kwbench", source / "kwbench", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("registry.yaml", "models"):
        (folder / name).symlink_to(ROOT / name)
    path = source / "kwbench" / mutant.file
    text = path.read_text(encoding="utf-8")
    assert text.count(mutant.guard) == 1, f"{mutant.file}: the guard occurs {text.count(mutant.guard)} times: {mutant.guard}"
    path.write_text(text.replace(mutant.guard, mutant.instead), encoding="utf-8")
    return source


def passes(fault: Fault, source: Path, *, every: bool = True, seconds: int = _PATIENCE) -> bool:
    """Run the tests of a fault with the package of this folder; `every` moment of those that try many."""
    path = os.pathsep.join(map(str, (source, ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"KWBENCH_FAULTS": "all"} if every else {}
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", f"pythonpath={source} bench/papers tests"]
    command = [sys.executable, "-m", "pytest", *options, "--timeout", str(seconds), "-m", "not trial", *fault.tests]
    # Tests that skip prove nothing.
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return run.returncode == 0 and " passed" in run.stdout


def rejects(fault: Fault, *, every: bool = True) -> bool:
    """Return whether the tests of a fault fail on its mutant."""
    assert fault.mutant is not None
    with tempfile.TemporaryDirectory(prefix="kwbench-mutant-") as folder:
        return not passes(fault, mutated(Path(folder), fault.mutant), every=every, seconds=_PATIENCE_WITH_MUTANT)


def examine(fault: Fault) -> Result:
    """Run the tests of a fault with the guard and without it."""
    started = time.monotonic()
    passed = passes(fault, ROOT / "bench")
    killed = rejects(fault)
    return Result(fault, passed, killed, time.monotonic() - started)


def table(results: Sequence[Result], before: str = "") -> str:
    """Return the results as Markdown, with those of other faults from an earlier report."""
    rows = {line[2:5]: line for line in before.splitlines() if line.startswith("| F")}
    for result in results:
        tests, mutant = ("pass" if result.passed else "FAIL"), ("fail" if result.killed else "PASS")
        rows[result.fault.id] = f"| {result.fault.id} | {result.fault.what} | {tests} | {mutant} |"
    rows |= {fault.id: f"| {fault.id} | {fault.what} | {fault.reason} | |" for fault in FAULTS if fault.mutant is None}
    good = sum(row.endswith("| pass | fail |") for row in rows.values())
    lines = [
        "# Faults",
        "",
        "Made by `make faults`: the tests of each fault, then the same tests on a copy of the package without the guard.",
        f"Of {len(FAULTS)} faults, {good} have tests that pass, and that fail without the guard; "
        f"{sum(fault.mutant is None for fault in FAULTS)} cannot be measured.",
        "",
        "| fault | what | tests | without the guard |",
        "|:--|:--|:--|:--|",
        *(rows[fault.id] for fault in FAULTS if fault.id in rows),
        "",
        "## Tests and guards",
        "",
    ]
    for fault in FAULTS:
        if fault.mutant is not None:
            names = ", ".join(f"`{test.rpartition('/')[2]}`" for test in fault.tests)
            lines.append(f"- {fault.id}: {names}; guard in `{fault.mutant.file}`")
    return "\n".join(lines) + "\n"


def main(ids: Sequence[str]) -> int:
    """Examine these faults, by default all, write the report, and return the exit code."""
    results = []
    for fault in FAULTS:
        if fault.mutant is not None and (not ids or fault.id in ids):
            results.append(result := examine(fault))
            print(
                f"{fault.id} {'good' if result.good else 'BAD '} tests {'pass' if result.passed else 'FAIL'}, "
                f"mutant {'fails' if result.killed else 'PASSES'} ({result.seconds:.0f} s) {fault.what}",
                flush=True,
            )
    before = REPORT.read_text(encoding="utf-8") if ids and REPORT.exists() else ""
    REPORT.write_text(table(results, before), encoding="utf-8")
    print(REPORT)
    return 0 if all(result.good for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
