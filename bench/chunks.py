"""Run the steps of a long script in chunks of limited time; each call goes on where the last one stopped.

    ... | python bench/chunks.py --state FOLDER [--minutes 8] [--output FOLDER]

Each line of stdin is a step: its name, its minutes and its command, separated by tabs. A step with minutes cannot be resumed:
it starts only if so much time is left, or first in a chunk, and begins anew if it is interrupted. A step with `-` for its
minutes continues by itself where it was interrupted, and starts at any time. With --output, the output of a finished step is
FOLDER/NAME.md. The last step that ran is interrupted when the time is over.

Exit status: 0 if all steps are finished, 75 if work is left, 1 if all steps that are left have failed; the next call tries
them again. A step whose command has changed counts as new.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kwbench.files import write_whole

FINISHED, FAILED, WORK_LEFT = 0, 1, 75
# Seconds that an interrupted step has to save its state, and at most this share of a chunk.
_GRACE, _GRACE_SHARE = 20.0, 0.1


@dataclass(frozen=True, slots=True)
class Step:
    """A command; `minutes` is how long it takes at most, or None if it can be interrupted and continues."""

    name: str
    minutes: float | None
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """Whether a step is finished, and how many times it has failed."""

    finished: bool = False
    failures: int = 0


def read_steps(lines: Iterable[str]) -> list[Step]:
    """Return the steps of a script. Raises ValueError for a line that is none, or a name that comes twice."""
    steps: list[Step] = []
    for line in filter(str.strip, lines):
        try:
            name, minutes, command = line.rstrip("\n").split("\t")
            steps.append(Step(name, None if minutes == "-" else float(minutes), tuple(shlex.split(command))))
        except ValueError:
            raise ValueError(f"not a step, NAME<tab>MINUTES<tab>COMMAND: {line!r}") from None
    names = [step.name for step in steps]
    if len(set(names)) < len(names):
        raise ValueError(f"two steps have the same name: {', '.join(sorted({n for n in names if names.count(n) > 1}))}")
    return steps


def next_step(steps: Sequence[Step], progress: Mapping[str, Progress], seconds: float, first: bool) -> Step | None:
    """Return the step to start with so many seconds left, or None.

    Args:
        steps: Those that may start, in order. Steps that have failed come after all others.
        progress: By name of the step.
        first: Whether nothing has run in this chunk; then a step starts however long it takes.
    """
    unfinished = sorted((step for step in steps if not progress[step.name].finished), key=lambda s: progress[s.name].failures)
    fitting = (step for step in unfinished if first or step.minutes is None or 60 * step.minutes <= seconds)
    return next(fitting, None)


class State:
    """What is known about steps, in a folder with a file for each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, step: Step) -> Progress:
        """Return the progress of a step; a step with another command is new."""
        path = self._folder / f"{step.name}.json"
        if not path.exists():
            return Progress()
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["command"] != list(step.command):
            return Progress()
        return Progress(known["finished"], known["failures"])

    def write(self, step: Step, progress: Progress) -> None:
        """Keep the progress of a step."""
        content = {"command": step.command, "finished": progress.finished, "failures": progress.failures}
        write_whole(self._folder / f"{step.name}.json", json.dumps(content).encode())


def run_chunk(steps: Sequence[Step], state: State, seconds: float, output: Path | None = None) -> int:
    """Run steps for about so many seconds, and return the exit status."""
    grace = min(_GRACE, _GRACE_SHARE * seconds)
    ends = time.monotonic() + seconds - grace
    tried: set[str] = set()
    while (left := ends - time.monotonic()) > 0:
        progress = {step.name: state.read(step) for step in steps}
        step = next_step([step for step in steps if step.name not in tried], progress, left, not tried)
        if step is None:
            break
        first = not tried
        tried.add(step.name)
        print(f"{step.name}: started", flush=True)
        began = time.monotonic()
        code = _run(step, left, grace, output)
        took = f"{time.monotonic() - began:.0f} s"
        if code == 0:
            state.write(step, Progress(True, progress[step.name].failures))
            print(f"{step.name}: finished after {took}", flush=True)
        elif code is None and (step.minutes is None or not first):
            print(f"{step.name}: interrupted after {took}", flush=True)
        else:
            state.write(step, Progress(False, progress[step.name].failures + 1))
            reason = "takes longer than a chunk" if code is None else f"failed with {code}"
            print(f"{step.name}: {reason}, after {took}", flush=True)
    unfinished = {step.name: known for step in steps if not (known := state.read(step)).finished}
    print(f"{len(steps) - len(unfinished)} of {len(steps)} steps are finished", flush=True)
    if not unfinished:
        return FINISHED
    print(f"left: {', '.join(unfinished)}", flush=True)
    return FAILED if all(known.failures for known in unfinished.values()) else WORK_LEFT


def _run(step: Step, seconds: float, grace: float, output: Path | None) -> int | None:
    """Run a step for so many seconds; return its exit status, or None if it was interrupted."""
    if output is None:
        return _wait(subprocess.Popen(step.command, stdin=subprocess.DEVNULL, start_new_session=True), seconds, grace)
    output.mkdir(parents=True, exist_ok=True)
    part = output / f"{step.name}.md.part"
    with part.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(step.command, stdin=subprocess.DEVNULL, stdout=file, start_new_session=True)
        code = _wait(process, seconds, grace)
    if code == 0:
        part.rename(output / f"{step.name}.md")
    return code


def _wait(process: "subprocess.Popen[bytes]", seconds: float, grace: float) -> int | None:
    """Wait for a process, which leads a group of its own; interrupt the group when the time is over or this process ends."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main() -> int:
    """Run one chunk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    # A shell lets its background processes ignore interrupts, and steps would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    steps = read_steps(sys.stdin)
    try:
        return run_chunk(steps, State(arguments.state), 60 * arguments.minutes, arguments.output)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
