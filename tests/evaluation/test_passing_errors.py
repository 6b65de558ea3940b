"""Errors that have passed: the next command tries them again, and ends with the rows that it would always have had."""

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from kwbench.attacks import ATTACKS
from kwbench.checks import CHECKS, Case
from kwbench.cli.progress import progress_display
from kwbench.evaluation.runner import Progress
from kwbench.finding import Finding
from kwbench.model import Model
from kwbench.outcome import Status
from kwbench.randomness import SampleRandom
from kwbench.record.store import Store
from kwbench.threat import ThreatModel
from support.cascades import Corners, falling, falling_request, run, summary_of
from support.small_registry import fast_suite, request, write_registry
from support.small_registry import rows as recorded

# Attacks fail while it is set.
_FAULT: list[str] = []


@dataclass(frozen=True)
class Fragile(Corners):
    """Fails on bright images while there is a fault, with three tries."""

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        if _FAULT and self.tries == 3 and bool((x.flatten(1).mean(dim=1) > 0.33).any()):
            raise RuntimeError(_FAULT[0])
        return super().__call__(model, x, y, threat, rng)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture(autouse=True)
def _fragile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTACKS, "corners", Fragile)
    _FAULT.clear()


def _errors(db: Path, label: str) -> int:
    return sum(row["status"] == Status.ERROR for row in recorded(db)[label])


@pytest.mark.parametrize(("model", "cascade", "n"), [("small", True, 32), ("small", False, 32), ("small-random", True, 18)])
def test_a_run_whose_errors_have_passed_equals_one_without_any(
    registry: Path, tmp_path: Path, model: str, cascade: bool, n: int
) -> None:
    what: Any = {"suite": falling(cascade=cascade), "n": n}
    _FAULT.append("CUDA error")
    run(falling_request(registry, model, **what), tmp_path / "results.db")
    errors = _errors(tmp_path / "results.db", "corners")
    assert errors
    assert not summary_of(tmp_path / "results.db").complete
    _FAULT.clear()
    seen: list[Progress] = []
    run(falling_request(registry, model, **what), tmp_path / "results.db", report=seen.append)
    assert {progress.label for progress in seen if progress.retried} == {"corners"}
    assert sum(progress.retried for progress in seen) == errors
    run(falling_request(registry, model, **what), tmp_path / "fresh.db")
    assert recorded(tmp_path / "results.db") == recorded(tmp_path / "fresh.db")
    assert summary_of(tmp_path / "results.db").complete


def test_errors_that_stay_are_tried_once_a_command_and_cost_no_other_row(registry: Path, tmp_path: Path) -> None:
    _FAULT.append("CUDA error")
    run(falling_request(registry, n=32), tmp_path / "results.db")
    before = recorded(tmp_path / "results.db")
    _FAULT[0] = "another one"
    seen: list[Progress] = []
    run(falling_request(registry, n=32), tmp_path / "results.db", report=seen.append)
    assert {progress.label for progress in seen if progress.retried} == {"corners"}
    assert sum(progress.retried for progress in seen) == _errors(tmp_path / "results.db", "corners")
    after = recorded(tmp_path / "results.db")
    assert {row["note"] for row in after["corners"]} == {"", "RuntimeError: another one"}
    assert {label: len(rows) for label, rows in after.items()} == {label: len(rows) for label, rows in before.items()}
    assert after["fgsm"] == before["fgsm"]


def test_what_interrupts_the_second_try_loses_nothing(registry: Path, tmp_path: Path) -> None:
    _FAULT.append("CUDA error")
    run(falling_request(registry, n=32), tmp_path / "results.db")
    _FAULT.clear()

    def interrupt(progress: Progress) -> None:
        if progress.label == "corners" and not progress.retried:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(falling_request(registry, n=32), tmp_path / "results.db", report=interrupt)
    run(falling_request(registry, n=32), tmp_path / "results.db")
    run(falling_request(registry, n=32), tmp_path / "fresh.db")
    assert recorded(tmp_path / "results.db") == recorded(tmp_path / "fresh.db")


def test_a_check_that_raised_is_carried_out_again(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diagnosed = request(registry, n=8, tile=8, suite=replace(fast_suite("fgsm"), diagnose=True))

    def fail(_: Case) -> list[Finding]:
        raise RuntimeError("CUDA error")

    with monkeypatch.context() as patch:
        patch.setitem(CHECKS, "outputs", replace(CHECKS["outputs"], examine=fail))
        run(diagnosed, tmp_path / "results.db")
    store = Store.open(str(tmp_path / "results.db"))
    (failed,) = [finding for finding in store.findings(1) if finding.check == "outputs"]
    assert failed.statement == "could not be carried out: RuntimeError: CUDA error"
    run(diagnosed, tmp_path / "results.db")
    checks = [finding.check for finding in store.findings(1)]
    assert "outputs" not in checks
    assert {criterion.name for criterion in CHECKS["outputs"].criteria} & set(checks)
    store.close()


def test_the_display_says_what_is_tried_again() -> None:
    stream = io.StringIO()
    with progress_display(stream) as show:
        show(Progress("net", "pgd", 0, 16, 16, 32, retried=16))
        show(Progress("net", "pgd", 15, 16, 31, 32, retried=1))
    assert "net: pgd: 16 rows of errors from an earlier run are tried again\n" in stream.getvalue()
    assert "net: pgd: 1 row of errors from an earlier run is tried again\n" in stream.getvalue()
