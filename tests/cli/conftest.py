"""The fixture that runs command lines."""

import sys
from pathlib import Path

import pytest

from kwbench.cli.main import main
from support.command_line import Answer, Kwbench
from support.small_registry import write_registry


@pytest.fixture
def kwb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kwbench:
    """Run command lines in this process, in an empty folder that has only a registry of small models."""
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    write_registry(tmp_path)

    def call(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["kwbench", *(str(word) for word in words)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    return call
