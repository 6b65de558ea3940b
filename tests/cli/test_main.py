"""The command itself, mostly as a process of its own: help, exit codes, interruption."""

import json
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from kwbench.cli.main import app
from support.command_line import ENVIRONMENT, Kwbench
from support.small_registry import count, write_registry

COMMAND = [sys.executable, "-m", "kwbench"]


def test_without_a_command_help_is_printed_and_the_exit_code_is_2(kwb: Kwbench) -> None:
    answer = kwb()
    assert answer.code == 2
    assert "evaluate" in answer.out + answer.err


def test_help_imports_neither_torch_nor_the_database() -> None:
    code = (
        "import sys; sys.argv = ['kwbench', '--help']\n"
        "from kwbench.cli.main import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'pandas', 'sqlalchemy', 'numpy', 'ray'} & set(sys.modules)), file=sys.stderr)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "evaluate" in process.stdout
    assert process.stderr == "[]\n"


def test_every_command_has_help_with_an_example(kwb: Kwbench) -> None:
    commands = typer.main.get_group(app).commands
    assert {"evaluate", "diagnose", "sweep", "report", "check", "train", "doctor"} < commands.keys()
    for name in commands:
        answer = kwb(name, "-h")
        assert (answer.code, answer.err) == (0, "")
        assert f"Example: kwbench {name}" in answer.out
        assert answer.out == kwb(name, "--help").out


def test_help_is_as_wide_as_the_terminal(kwb: Kwbench, monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (100, 150):
        monkeypatch.setenv("COLUMNS", str(width))
        assert max(len(line) for line in kwb("evaluate", "-h").out.splitlines()) == width


def test_the_package_is_the_command(tmp_path: Path) -> None:
    process = subprocess.run([*COMMAND, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert process.stdout == f"kwbench {version('kwbench')}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate"], "Error: Missing argument 'MODEL'."),
        (["evaluate", "small", "--no-such-option"], "Error: No such option: --no-such-option"),
        (["evalute"], "Error: No such command 'evalute'. Did you mean 'evaluate'?"),
    ],
)
def test_wrong_usage_exits_with_2_and_one_message(words: list[str], message: str, tmp_path: Path) -> None:
    process = subprocess.run([*COMMAND, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (2, "")
    assert [line for line in process.stderr.splitlines() if line.startswith("Error")] == [message]
    assert "Try 'kwbench" in process.stderr


def test_the_installed_command_evaluates_a_shipped_model_in_any_folder(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("kwbench")
    words = ["evaluate", "resnet18-relu", "--attack", "fgsm", "--n", "16", "--tile", "16", "--json"]
    process = subprocess.run([command, *words], cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert json.loads(process.stdout)["a_std"]["value"] > 0.9
    assert process.stderr.splitlines()[-1].startswith("resnet18-relu: fgsm 16/16 (32/32 in all")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.db"]


def test_an_error_has_no_traceback(tmp_path: Path) -> None:
    process = subprocess.run([*COMMAND, "evaluate", "resnet18-rleu"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stdout == ""
    assert len(process.stderr.splitlines()) == 1
    assert "did you mean 'resnet18-relu'" in process.stderr


def test_ctrl_c_exits_with_130_keeps_finished_rows_and_gives_a_hint(tmp_path: Path) -> None:
    registry = write_registry(tmp_path)
    words = ["evaluate", "small", "--registry", str(registry), "--attack", "noop,pgd", "--set", "pgd.steps=30000"]
    words += ["--eps", "0.001", "--n", "32", "--tile", "16"]
    # A background job of a shell ignores Ctrl-C, and its children inherit that.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from kwbench.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    deadline = time.monotonic() + 60
    while not ((tmp_path / "results.db").exists() and count(tmp_path / "results.db") >= 64):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "kwbench: interrupted; the same command continues"
    assert count(tmp_path / "results.db") == 64


def test_a_message_cannot_control_the_terminal(kwb: Kwbench) -> None:
    answer = kwb("evaluate", "\x1b]0;title\x07small")
    assert answer.code == 2
    assert "\x1b" not in answer.err
