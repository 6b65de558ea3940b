"""Formats of the report: each is one record, and the registry is the only list of them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from kwbench.errors import UsageError
from kwbench.record.store import Store
from kwbench.report import FORMATS, Format, write_report
from support.records import deterministic


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(str(tmp_path / "results.db"), create=True)
    deterministic(opened, {"clean": "hhhh", "pgd": "hhbb"})
    yield opened
    opened.close()


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_writes_the_files_that_it_declares(store: Store, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "reports"
    written = [path.relative_to(folder).as_posix() for path in write_report(store, folder, {name})]
    declared = FORMATS[name].files
    assert all(any(fnmatch(file, pattern) for pattern in declared) for file in written)
    assert {pattern for pattern in declared if "*" not in pattern} <= set(written)


def test_a_format_is_listed_under_its_own_name_and_its_help_names_its_files() -> None:
    for name, report_format in FORMATS.items():
        assert report_format.name == name
        assert all(file in report_format.option_help for file in report_format.files)


def test_a_format_added_from_outside_is_written(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Format(
        "names",
        "The names of the models",
        ("names.txt",),
        lambda data: {"names.txt": "\n".join(summary.model for summary in data.summaries)},
    )
    monkeypatch.setitem(FORMATS, "names", names)
    files = write_report(store, tmp_path / "reports", {"names", "csv"})
    assert [path.name for path in files] == ["results.csv", "names.txt"]
    assert files[1].read_text() == "net"


def test_an_unknown_format_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'html'"):
        write_report(store, tmp_path, {"htlm"})


def test_listing_the_formats_imports_no_slow_library() -> None:
    slow = ("numpy", "pandas", "jinja2", "sqlalchemy", "rich", "torch")
    code = f"import sys, kwbench.report; print({{*{slow}}} & {{*sys.modules}})"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "bench")}
    result = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert result.stdout == "set()\n"
