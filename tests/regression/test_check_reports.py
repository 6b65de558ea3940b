"""JUnit, Markdown and JSON of a check."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kwbench.errors import CannotEvaluate
from kwbench.record.store import Store
from kwbench.regression.baseline import update_baseline
from kwbench.regression.gate import check, check_json
from kwbench.regression.job_summary import append_summary, markdown_summary
from kwbench.regression.junit import write_junit
from support.baselines import net
from support.records import deterministic

HOSTILE = "</testcase>|<b>`x`\x00\u202e=1+1 @all [a](javascript:b)\n"


def test_junit_summary_and_json_hold_the_decisions_and_stay_well_formed(store: Store, baseline: Path, tmp_path: Path) -> None:
    for name in ("fine", "worse", HOSTILE):
        net(store, 0.6, checkpoint="old", model=name)
    update_baseline(store, baseline)
    net(store, 0.5, checkpoint="new", model="worse")
    deterministic(store, {"clean": "h" * 360, "pgd": "", "autoattack": ""}, model=HOSTILE, checkpoint="new")
    result = check(store, baseline)
    assert result.exit_code == 1

    write_junit(result, tmp_path / "out" / "junit.xml")
    suite = ElementTree.parse(tmp_path / "out" / "junit.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    assert [[child.tag for child in case] for case in suite] == [["error"], [], ["failure"]]

    append_summary(result, tmp_path / "summary.md")
    append_summary(result, tmp_path / "summary.md")
    text = (tmp_path / "summary.md").read_text()
    assert text == 2 * markdown_summary(result)
    table = [line for line in markdown_summary(result).splitlines() if line.startswith("|")]
    assert len(table) == 5
    # Only unescaped bars separate columns.
    assert {line.replace("\\|", "").count("|") for line in table} == {8}
    assert "<b>" not in text
    assert "@all" not in text
    assert "\x00" not in text
    assert "\u202e" not in text

    shown = json.loads(json.dumps(check_json(result), allow_nan=False))
    assert shown["exit_code"] == 1
    assert [model["verdict"] for model in shown["models"]] == ["could not tell", "fine", "regression"]


def test_a_summary_that_cannot_be_written_is_named(store: Store, baseline: Path, tmp_path: Path) -> None:
    net(store, 0.6, checkpoint="old")
    update_baseline(store, baseline)
    with pytest.raises(CannotEvaluate, match="summary"):
        append_summary(check(store, baseline), tmp_path)


def test_the_radius_is_written_as_in_all_tables(store: Store, tmp_path: Path) -> None:
    net(store, 0.6, checkpoint="a", eps="0.05")
    update_baseline(store, tmp_path / "baseline.json")
    assert [model.threat for model in check(store, tmp_path / "baseline.json").models] == ["linf 0.05"]
