"""What commands print: tables, JSON, and text that cannot control a terminal."""

import json

import pytest

from kwbench.cli.output import finite, print_json, print_table
from kwbench.formatting import printable


def test_a_piped_table_is_plain_text_with_headings(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"model": "a", "n": 3}, {"model": "[red]b\x1b[31m", "n": None}], headings={"n": "samples"})
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert lines[0] == ["model", "samples"]
    assert lines[2:] == [["a", "3"], ["[red]b?[31m"]]
    assert "\x1b" not in out


def test_a_table_without_rows_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([])
    assert capsys.readouterr().out == ""


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(finite([1.0, [float("nan"), float("inf")]]))
    assert json.loads(capsys.readouterr().out) == [1.0, [None, None]]
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json(float("nan"))


def test_printable_text_stays_as_it_is() -> None:
    assert printable("net-γ0.1 ✓") == "net-γ0.1 ✓"
    assert printable("a\x1b[31m\r\nb\u202e") == "a?[31m??b?"


def test_a_narrow_terminal_gets_fewer_columns_rather_than_cut_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"model": "m" * 20, "epochs": 30, "description": "adversarially trained"}]
    for width, headings in ((60, ["model", "epochs", "description"]), (40, ["model", "description"]), (30, ["model"])):
        monkeypatch.setattr("kwbench.cli.output._PIPED_WIDTH", width)
        print_table(rows, optional=("epochs", "description"))
        assert capsys.readouterr().out.split("\n")[1].split() == headings
