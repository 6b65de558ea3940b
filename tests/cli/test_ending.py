"""How the command ends: an exit code means one thing, whatever is raised and wherever output goes."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kwbench.cli import report
from kwbench.errors import DamagedData, UsageError
from kwbench.record.store import Store
from support.baselines import net
from support.command_line import Kwbench, refused
from support.records import deterministic

COMMAND = [sys.executable, "-m", "kwbench"]


@pytest.fixture
def db(tmp_path: Path) -> Path:
    store = Store.open(str(tmp_path / "results.db"), create=True)
    net(store, 0.5, checkpoint="c0")
    store.close()
    return tmp_path / "results.db"


@pytest.mark.parametrize(
    "raised",
    [RecursionError("deep"), MemoryError(), ValueError("embedded null byte"), AssertionError(), IndexError(1), OSError("no"),
     UnicodeEncodeError("ascii", "ü", 0, 1, "no"), SystemExit(1), SystemExit("no"), GeneratorExit()],
    ids=lambda raised: repr(raised)[:24],
)  # fmt: skip
def test_what_nobody_foresaw_ends_in_3_and_keeps_its_traceback(
    raised: BaseException, kwb: Kwbench, db: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(report, "print_summary_tables", fail)
    answer = kwb("show", "net", "--db", db)
    assert answer.code == 3
    assert f"kwbench: unforeseen {type(raised).__name__}" in answer.err
    (named,) = re.findall(r"the traceback is in (.*)", answer.err)
    assert "test_ending.py" in Path(named).read_text(encoding="utf-8")


@pytest.mark.parametrize(("raised", "code"), [(UsageError("x"), 2), (DamagedData("x"), 4), (KeyboardInterrupt(), 130)])
def test_what_was_foreseen_keeps_its_code(
    raised: BaseException, code: int, kwb: Kwbench, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(report, "print_summary_tables", fail)
    answer = kwb("show", "net", "--db", db)
    assert answer.code == code
    assert "traceback" not in answer.err.lower()


def _ends(words: list[str], folder: Path, redirection: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell, with a redirection of its output."""
    return subprocess.run(
        ["bash", "-c", f'"$@" {redirection}; exit $?', "bash", *COMMAND, *words],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        (">/dev/full", 3, "the output cannot be written (No space left on device)"),
        (">/dev/full 2>/dev/full", 3, ""),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("| true; exit ${PIPESTATUS[0]}", None, ""),
    ],
)
def test_output_that_nobody_takes_is_no_regression(db: Path, redirection: str, code: int | None, said: str) -> None:
    process = _ends(["show", "net"], db.parent, redirection)
    # A pipe may be closed before or after the output was written.
    assert process.returncode == code if code is not None else process.returncode in (0, 3)
    assert said in process.stderr
    assert "Traceback" not in process.stderr
    assert "Exception ignored" not in process.stderr


def test_an_ascii_terminal_gets_question_marks_and_the_same_exit_code(db: Path) -> None:
    process = _ends(["show", "net"], db.parent, "", PYTHONIOENCODING="ascii")
    assert process.returncode == 0
    assert "A_rob" in process.stdout
    assert process.stdout.isascii()


def _flipped(folder: Path) -> tuple[str, ...]:
    store = Store.open(str(folder / "own.db"), create=True)
    deterministic(store, {"clean": "hh", "pgd": "hb"})
    store.close()
    content = (folder / "own.db").read_bytes()
    (folder / "own.db").write_bytes(content.replace(b'{"origin"', b'{"origin\x01'))
    return "show", "net", "--db", "own.db"


def _deep_baseline(folder: Path) -> tuple[str, ...]:
    (folder / "deep.json").write_text("[" * 100_000)
    return "check", "--baseline", "deep.json", "--db", "results.db"


def _nul_in_checkpoint(folder: Path) -> tuple[str, ...]:
    text = (folder / "registry.yaml").read_text().replace("file: small.safetensors", 'file: "small\\0.safetensors"')
    (folder / "nul.yaml").write_text(text)
    return "evaluate", "small", "--registry", "nul.yaml", "--attack", "noop", "--n", "4"


@pytest.mark.parametrize(
    ("prepare", "code", "part"),
    [
        (_flipped, 4, "damaged"),
        (_deep_baseline, 4, "deep.json: damaged"),
        (_nul_in_checkpoint, 2, "NUL"),
        (lambda _: ("evaluate", "small", "--time-limit", "inf", "--attack", "noop"), 2, "--time-limit inf"),
        (lambda _: ("evaluate", "small", "--time-limit", "nan", "--attack", "noop"), 2, "--time-limit nan"),
        (lambda _: ("evaluate", "small", "--time-limit", "1e300", "--attack", "noop"), 2, "--time-limit 1e+300"),
        (lambda _: ("show", "net", "--db", "/dev/zero"), 3, "not a database file"),
    ],
)
def test_each_of_these_has_its_code_and_one_message(
    prepare: Callable[[Path], tuple[str, ...]], code: int, part: str, kwb: Kwbench, db: Path
) -> None:
    refused(kwb(*prepare(db.parent)), code, part)


@pytest.mark.parametrize("name", ["what?.db", "a%2Fb.db", "50% off.db", "#1;.db"])
def test_a_path_to_a_database_is_no_url(name: str, tmp_path: Path) -> None:
    with contextlib.closing(Store.open(str(tmp_path / name), create=True)) as store:
        net(store, 0.5, checkpoint="c0")
    assert os.listdir(tmp_path) == [name]
    with contextlib.closing(Store.open(str(tmp_path / name))) as store:
        assert len(store.evaluations()) == 1
