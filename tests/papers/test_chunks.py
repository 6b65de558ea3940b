"""Long scripts run in chunks: each call goes on where the last one stopped, and says whether work is left."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from chunks import FAILED, FINISHED, WORK_LEFT, Progress, State, Step, next_step, read_steps, run_chunk

SCRIPT = Path(__file__).resolve().parents[2] / "bench/chunks.py"
APPEND = "import sys; open(sys.argv[1], 'a').write('x')"
# Notes its start, and is not finished before it is interrupted for the first time.
RESUMABLE = """
import signal, sys, time
from pathlib import Path
# A shell lets its background processes ignore interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
state = Path(sys.argv[1])
if not state.exists():
    try:
        state.write_text("half")
        time.sleep(60)
    except KeyboardInterrupt:
        state.write_text("interrupted")
        raise SystemExit(130)
"""


def step(name: str, code: str, *arguments: Path, minutes: float | None = None) -> Step:
    return Step(name, minutes, (sys.executable, "-S", "-c", code, *map(str, arguments)))


def named(name: str, minutes: float | None = None) -> Step:
    return Step(name, minutes, (name,))


def chosen(steps: list[Step], progress: dict[str, Progress], seconds: float, *, first: bool = False) -> str | None:
    known = {one.name: progress.get(one.name, Progress()) for one in steps}
    found = next_step(steps, known, seconds, first)
    return None if found is None else found.name


def test_a_step_starts_only_if_it_fits_into_what_is_left() -> None:
    steps = [named("long", 7), named("short", 2), named("resumable")]
    assert chosen(steps, {}, 420) == "long"
    assert chosen(steps, {}, 419) == "short"
    assert chosen(steps, {}, 119) == "resumable"
    assert chosen(steps[:2], {}, 119) is None
    assert chosen(steps, {}, 10, first=True) == "long"


def test_finished_steps_are_left_out_and_failed_ones_come_last() -> None:
    steps = [named("a", 1), named("b", 1), named("c", 1)]
    progress = {"a": Progress(failures=2), "b": Progress(finished=True, failures=1)}
    assert chosen(steps, progress, 100) == "c"
    assert chosen(steps, progress | {"c": Progress(finished=True)}, 100) == "a"
    assert chosen(steps, {name: Progress(finished=True) for name in "abc"}, 100) is None


def test_a_second_call_runs_only_what_is_left(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    first = step("first", APPEND, tmp_path / "first", minutes=0)
    broken = step("second", "raise SystemExit(3)", minutes=0)
    third = step("third", APPEND, tmp_path / "third", minutes=0)
    assert run_chunk([first, broken, third], state, 30) == FAILED
    mended = step("second", APPEND, tmp_path / "second", minutes=0)
    assert run_chunk([first, mended, third], state, 30) == FINISHED
    assert [(tmp_path / name).read_text() for name in ("first", "second", "third")] == ["x", "x", "x"]
    changed = step("first", APPEND, tmp_path / "first again", minutes=0)
    assert run_chunk([changed, mended, third], state, 30) == FINISHED
    assert (tmp_path / "first again").exists()


def test_a_resumable_step_is_interrupted_in_time_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, file = State(tmp_path / "state"), tmp_path / "progress"
    steps = [step("train", RESUMABLE, file)]
    began = time.monotonic()
    assert run_chunk(steps, state, 3) == WORK_LEFT
    assert time.monotonic() - began < 10
    assert file.read_text() == "interrupted"
    assert "train: interrupted" in capsys.readouterr().out
    assert run_chunk(steps, state, 30) == FINISHED


def test_a_step_that_takes_longer_than_a_chunk_counts_as_failed(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    endless = step("endless", "import time; time.sleep(60)", minutes=1)
    assert run_chunk([endless], state, 1) == FAILED
    assert state.read(endless) == Progress(failures=1)
    other = step("other", APPEND, tmp_path / "other", minutes=0)
    assert run_chunk([endless, other], state, 1) in (FAILED, WORK_LEFT)
    assert (tmp_path / "other").exists()


def test_only_finished_tables_have_their_name(tmp_path: Path) -> None:
    steps = [step("whole", "print('table')", minutes=0), step("half", "print('half'); raise SystemExit(1)", minutes=0)]
    assert run_chunk(steps, State(tmp_path / "state"), 30, tmp_path / "tables") == FAILED
    assert (tmp_path / "tables/whole.md").read_text() == "table\n"
    assert not (tmp_path / "tables/half.md").exists()


def test_the_script_reads_steps_and_ends_with_the_status(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--state", str(tmp_path / "state"), "--minutes", "0.5"]
    lines = f"one\t-\t{sys.executable} -S -c 'print(1)'\ntwo\t0.1\t{sys.executable} -S -c 'raise SystemExit(2)'\n"
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == FAILED
    assert "one: finished" in done.stdout
    assert "1 of 2 steps are finished\nleft: two" in done.stdout


def test_lines_that_are_no_steps_are_refused() -> None:
    assert read_steps(["a\t-\tkwbench train 'x y'\n", "\n", "b\t2.5\tls\n"]) == [
        Step("a", None, ("kwbench", "train", "x y")),
        Step("b", 2.5, ("ls",)),
    ]
    with pytest.raises(ValueError, match="not a step"):
        read_steps(["a\tsoon\tls\n"])
    with pytest.raises(ValueError, match="same name: a"):
        read_steps(["a\t-\tls\n", "a\t1\tls\n"])
