"""JUnit, Markdown and JSON of a check."""

import io
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from kwbench.errors import CannotEvaluate, UsageError
from kwbench.record.store import Store
from kwbench.regression.annotations import annotations
from kwbench.regression.badge import write_badge
from kwbench.regression.baseline import update_baseline
from kwbench.regression.gate import CheckResult, Decision, check, check_json
from kwbench.regression.job_summary import append_summary, markdown_summary
from kwbench.regression.junit import write_junit
from kwbench.regression.terminal import check_table
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
    tags = [[child.tag for child in case] for case in suite]
    assert tags == [["properties", "error"], ["properties"], ["properties", "failure"]]
    figures = {figure.get("name"): figure.get("value") for figure in suite[2][0]}
    assert (figures["n"], figures["baseline"], figures["a_rob"], figures["lost"]) == ("360", "0.6", "0.5", "36")
    assert figures["lost_to autoattack"] == "36"
    assert float(figures["drop_low"] or 0) < float(figures["drop"] or 0) < float(figures["drop_high"] or 0)

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


@pytest.fixture
def regressed(store: Store, baseline: Path) -> CheckResult:
    net(store, 0.6, checkpoint="old", model=HOSTILE)
    net(store, 0.6, checkpoint="old", model="fine")
    update_baseline(store, baseline)
    net(store, 0.5, checkpoint="new", model=HOSTILE)
    return check(store, baseline)


def test_the_attacks_that_broke_the_lost_samples_are_named(regressed: CheckResult) -> None:
    worse, fine = regressed.models
    assert dict(worse.broken_by) == {"autoattack": 36}
    assert worse.reason.endswith("; lost to autoattack 36")
    assert fine.broken_by == ()
    assert "lost to autoattack 36" in markdown_summary(regressed)


def test_annotations_are_one_line_each_whatever_the_names_hold(regressed: CheckResult) -> None:
    (line,) = annotations(regressed)
    command, _, rest = line[2:].partition(" ")
    properties, _, message = rest.partition("::")
    assert command == "error"
    assert properties.startswith("title=")
    assert not set("\n,:") & set(properties)
    assert "10.0 points less" in message
    undecided = replace(regressed, models=(replace(regressed.models[0], decision=Decision.UNDECIDED),))
    assert annotations(undecided)[0].startswith("::warning title=")
    assert annotations(replace(regressed, models=regressed.models[1:])) == []


@pytest.mark.parametrize(
    ("first", "last", "message", "colour"),
    [(1, 2, "60.0 %", "brightgreen"), (0, 1, "50.0 %, regression", "red"), (0, 2, "1 of 2 fine", "red")],
)
def test_a_badge_is_json_for_shields_or_svg(
    first: int, last: int, message: str, colour: str, regressed: CheckResult, tmp_path: Path
) -> None:
    result = replace(regressed, models=regressed.models[first:last])
    write_badge(result, tmp_path / "badge.json")
    shown = json.loads((tmp_path / "badge.json").read_text())
    assert shown == {"schemaVersion": 1, "label": "robust accuracy", "message": message, "color": colour}
    write_badge(result, tmp_path / "badge.svg")
    svg = ElementTree.parse(tmp_path / "badge.svg").getroot()
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["robust accuracy", message]
    with pytest.raises(UsageError, match=r"badge\.png: must end in \.svg"):
        write_badge(result, tmp_path / "badge.png")


def test_on_a_terminal_there_is_a_table_with_the_reasons(regressed: CheckResult) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(check_table(regressed))
    text = console.export_text()
    assert "regression" in text
    assert "60.0" in text
    assert "lost to autoattack 36" in text
    assert "\u202e" not in text
