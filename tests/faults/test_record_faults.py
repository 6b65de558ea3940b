"""Faults of the record that no other test has: death at every statement, lost power, a lost journal, writes that fail."""

import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from kwbench.errors import CannotEvaluate, DamagedData
from kwbench.files import write_whole
from kwbench.finding import Finding
from kwbench.outcome import Outcome
from kwbench.record.store import Store
from kwbench.record.verification import verify
from support.records import rows, specification

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# So many rows, each with a distance of its own, that they do not fit into the cache of one page that these tests leave SQLite.
_ROWS = 1500
_KILLED = 137
# `make faults` tries every moment; `make test` a few.
STRIDE = 1 if os.environ.get("KWBENCH_FAULTS") == "all" else 11


def distant(letter: str, start: int) -> list[Outcome]:
    """Return outcomes whose distances differ."""
    distances = np.random.default_rng(start).random(_ROWS).tolist()
    outcomes = rows(letter * _ROWS, start=start)
    return [replace(outcome, distance=distance) for outcome, distance in zip(outcomes, distances, strict=True)]


def steps(path: Path) -> Iterator[None]:
    """Write one of everything, and yield after each change."""
    store = Store.open(str(path), create=True)
    yield
    spec = specification(n=2 * _ROWS)
    # As every evaluation does, it lists its attacks.
    spec = replace(spec, spec={**spec.spec, "attacks": [attack.identity for attack in spec.attacks]})
    evaluation = store.register(spec)
    yield
    run = evaluation.attack_runs["pgd"]
    store.append(run, distant("h", 0))
    yield
    store.append(run, distant("b", _ROWS))
    yield
    store.record_findings(evaluation.id, [Finding("flat", 0.5, 0.01, True, "Half of it is zero.")])
    yield
    store.discard(run, [row.sample for row in rows("hh")])
    yield
    store.append(run, rows("hh"))
    store.close()
    yield


def state(path: Path) -> Any:
    """What is on record, verified; None if there is no record."""
    if not path.exists():
        return None
    store = Store.open(str(path))
    try:
        verify(store)
        return [
            (
                evaluation.spec.identity,
                store.findings(evaluation.id),
                [store.outcomes(run) for run in evaluation.attack_runs.values()],
            )
            for evaluation in store.evaluations()
        ]
    finally:
        store.close()


def killed_at(path: Path, moment: int, small_cache: bool = True) -> bool:
    """Write in a child process that dies before its statement or commit of this number; return whether there was one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child has one thread, and does not return
        child = os.fork()
    if child == 0:
        try:
            seen = 0

            def count(*_: object) -> None:
                nonlocal seen
                seen += 1
                if seen == moment:
                    os._exit(_KILLED)

            sa.event.listen(sa.Engine, "before_cursor_execute", count)
            sa.event.listen(sa.Engine, "commit", count)
            if small_cache:
                sa.event.listen(sa.Engine, "begin", lambda connection: connection.exec_driver_sql("PRAGMA cache_size = 1"))
            for _ in steps(path):
                pass
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, _KILLED)
    return code == _KILLED


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The states before and after each change of an undisturbed record."""
    path = tmp_path_factory.mktemp("whole") / "record.db"
    return [None, *(state(path) for _ in steps(path))]


def test_death_at_any_statement_leaves_the_state_before_or_after_a_change(tmp_path: Path, states: list[Any]) -> None:
    moment = 1
    while killed_at(tmp_path / f"{moment}.db", moment):
        path = tmp_path / f"{moment}.db"
        assert state(path) in states, f"statement {moment}"
        # The same writes again end in the same record, and nothing else is left in the folder.
        for _ in steps(path):
            pass
        assert state(path) == states[-1]
        assert os.listdir(tmp_path) == [path.name]
        path.unlink()
        moment += STRIDE
    assert moment > 60


def test_what_was_committed_is_on_the_disk_before_anything_else_happens(tmp_path: Path) -> None:
    with closing(Store.open(str(tmp_path / "record.db"), create=True)) as store, store._engine.connect() as connection:
        # 2 is FULL: https://www.sqlite.org/pragma.html#pragma_synchronous
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"


def test_a_lost_journal_is_noticed(tmp_path: Path, states: list[Any]) -> None:
    """Of a transaction that died half-way, part is in the file; only the journal could take it back."""
    torn, moment = 0, 1
    while killed_at(tmp_path / f"{moment}.db", moment):
        path, journal = tmp_path / f"{moment}.db", tmp_path / f"{moment}.db-journal"
        moment += STRIDE
        if not path.exists() or not journal.exists() or journal.stat().st_size < 512:
            continue
        journal.unlink()
        try:
            read = state(path)
        except DamagedData:
            torn += 1
        else:
            assert read in states, f"statement {moment}"
    assert torn >= 1


@pytest.mark.parametrize("operation", ["write", "fsync", "chmod", "replace"])
def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    path = tmp_path / "baseline.json"
    write_whole(path, "old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    targets: dict[str, tuple[Any, str]] = {
        "write": (tempfile, "NamedTemporaryFile"),
        "fsync": (os, "fsync"),
        "chmod": (Path, "chmod"),
        "replace": (Path, "replace"),
    }
    with monkeypatch.context() as failing:
        failing.setattr(*targets[operation], fail)
        with pytest.raises(CannotEvaluate, match=r"baseline.json: cannot be written \(Input/output error\)"):
            write_whole(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]


def test_a_file_is_on_the_disk_before_it_takes_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def noting(owner: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def note(*arguments: Any) -> Any:
            done.append(name)
            return function(*arguments)

        monkeypatch.setattr(owner, name, note)

    noting(os, "fsync")
    noting(Path, "replace")
    write_whole(tmp_path / "baseline.json", "new")
    assert done == ["fsync", "replace"]


def test_optimised_python_and_strange_surroundings_change_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "ä b" / ("x" * 100)
    folder.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "LANG")}
    environment |= {"LC_ALL": "C", "PYTHONOPTIMIZE": "1", "TZ": "Pacific/Apia"}
    command = [sys.executable, "-c", "import os; os.umask(0o077); from kwbench.__main__ import main; main()"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)

    answer = run("evaluate", "resnet18-relu", "--attack", "noop", "--n", "4", "--tile", "0", "--threads", "1")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "--tile 0: must be at least 1" in answer.stderr
    with closing(Store.open(str(folder / "results.db"), create=True)) as store:
        evaluation = store.register(specification(n=4))
        store.append(evaluation.attack_runs["clean"], rows("whhh"))
        store.append(evaluation.attack_runs["pgd"], rows("whbh"))
    answer = run("show", "net", "--json")
    assert answer.returncode == 0, answer.stderr
    assert '"value": 0.5' in answer.stdout
