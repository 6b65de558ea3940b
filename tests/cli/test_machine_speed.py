"""The speed of a machine: measured in the time that is given, with the choices that follow."""

import time
from pathlib import Path

import pytest

from kwbench.cli import machine_speed
from kwbench.cli.doctor import Diagnosis
from kwbench.cli.machine_speed import measure_speed
from support.command_line import Kwbench


@pytest.mark.trial
def test_a_cpu_is_measured_in_each_precision_and_batch(tmp_path: Path) -> None:
    lines = measure_speed(0.1, device="cpu", folder=tmp_path, width=4)
    subjects = [line.subject for line in lines]
    assert {f"gradients, {kind}, batch {batch}" for kind in ("float32", "folded") for batch in (16, 64)} <= set(subjects)
    assert subjects[-4:] == ["launch", "disk", "choice", "choice"]
    assert not list(tmp_path.iterdir())
    for line in lines[:-4]:
        assert float(line.observation.removesuffix(" a second").replace(",", "")) > 0


def test_choices_follow_from_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {("float32", 64): 100.0, ("float32", 256): 200.0, ("bfloat16", 64): 300.0, ("bfloat16", 256): 310.0}
    monkeypatch.setattr(machine_speed, "_gradient_rates", lambda *_: rates)
    notes = [line.observation for line in measure_speed(0.01, device="cpu", folder=tmp_path) if line.level == "note"]
    assert notes[0] == "search in bfloat16: 1.6 times as many gradients as in exact float32"
    assert notes[1] == "batches of 64: larger ones gain less than 5 % an image"
    rates["bfloat16", 256] = 400.0
    assert measure_speed(0.01, device="cpu", folder=tmp_path)[-1].observation == "batches of 256: the largest tried"


def test_a_measurement_ends_in_time_and_runs_at_least_once() -> None:
    runs: list[int] = []

    def work() -> None:
        runs.append(len(runs))
        time.sleep(0.01)

    started = time.perf_counter()
    machine_speed._seconds_of(work, 0.1)
    assert 2 <= len(runs) <= 12
    assert time.perf_counter() - started < 5
    assert machine_speed._seconds_of(lambda: time.sleep(0.01), 0.0) >= 0.01


def test_the_command_measures_only_if_asked(kwb: Kwbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_speed, "measure_speed", lambda: [Diagnosis("launch", "ok", "4 us")])
    assert "launch" not in kwb("doctor").out
    assert "launch: 4 us" in kwb("doctor", "--speed").out
