"""Sweeps: what changes and by how much; and the curves that are drawn of it."""

import io
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from kwbench.config.suite import suite_of
from kwbench.errors import UsageError
from kwbench.evaluation.studies.sweep import Sweep, parse_sweep
from kwbench.record.store import Store
from kwbench.record.summary import summaries
from kwbench.report.svg.lines import Curve, curves_svg
from kwbench.report.terminal import sweep_table
from kwbench.statistics import Interval
from support.records import deterministic

SVG = "{http://www.w3.org/2000/svg}"


def test_values_are_put_in_order_and_kept_as_written() -> None:
    assert parse_sweep("eps=8/255, 1/255,0.01") == Sweep("eps", ("1/255", "0.01", "8/255"))
    steps = parse_sweep("pgd.steps=10,1,100")
    assert (steps.values, steps.numbers, steps.over_eps) == (("1", "10", "100"), (1.0, 10.0, 100.0), False)


def test_a_parameter_is_set_in_the_suite_and_a_radius_is_not_a_parameter() -> None:
    suite = suite_of(["pgd"])
    changed = parse_sweep("pgd.steps=1,7").suite(suite, "7")
    assert (changed.name, changed.attacks[0].parameters) == ("pgd with pgd.steps=7", {"steps": 7})
    assert parse_sweep("eps=0.1,0.2").suite(suite, "0.1") is suite


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eps", "write eps=VALUE"),
        ("steps=1,2", "write eps=VALUE"),
        ("=1,2", "write eps=VALUE"),
        ("eps=0.1,", "write eps=VALUE"),
        ("eps=0.1", "at least two values"),
        ("eps=0.1,1/10", "at least two values, all positive and different"),
        ("eps=0,1", "at least two values, all positive"),
        ("pgd.steps=1,many", "--over pgd.steps=1,many: "),
        ("eps=1/0,1", "divides by zero"),
    ],
)
def test_sweeps_that_say_nothing_sensible_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_sweep(text)


def interval(value: float) -> Interval:
    return Interval(value, max(0.0, value - 0.1), min(1.0, value + 0.1))


def dots(svg: str) -> list[tuple[float, float]]:
    return [
        (float(each.get("cx", "nan")), float(each.get("cy", "nan")))
        for each in ElementTree.fromstring(svg).iter(f"{SVG}circle")
    ]


def test_a_picture_has_each_point_at_its_place_and_accuracy() -> None:
    svg = curves_svg([Curve("net", ((0.0, interval(1.0)), (0.1, interval(0.5)), (0.2, interval(0.0))))], "title", "eps")
    (x0, y0), (x1, y1), (x2, y2) = dots(svg)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert (x0 < x1 < x2, y0 < y1 < y2) == (True, True)
    assert "logarithmic" not in svg


def test_places_over_decades_are_drawn_on_a_logarithmic_axis() -> None:
    svg = curves_svg([Curve("net", tuple((place, interval(0.5)) for place in (1, 10, 100)))], "title", "steps")
    (x0, _), (x1, _), (x2, _) = dots(svg)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert "steps, logarithmic" in svg


def test_a_point_without_a_number_is_left_out_and_nothing_at_all_is_refused() -> None:
    assert len(dots(curves_svg([Curve("net", ((1, interval(0.5)), (2, None)))], "title", "steps"))) == 1
    with pytest.raises(ValueError, match="nothing to draw"):
        curves_svg([], "title", "steps")


def test_numbers_along_the_axis_leave_each_other_room() -> None:
    svg = curves_svg([Curve("net", tuple((place, interval(0.5)) for place in (0, 0.002, 0.004, 0.016, 0.031)))], "title", "eps")
    labels = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle"[^>]*>([\d.]+)</text>', svg)
    assert [name for _, name in labels] == ["0", "0.002", "0.016", "0.031"]
    many = curves_svg([Curve("net", tuple((place, interval(0.5)) for place in range(100)))], "title", "steps")
    across = [float(x) for x, _ in re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle"[^>]*>([\d.]+)</text>', many)]
    assert len(across) > 10
    assert min(later - x for x, later in pairwise(across)) > 16


def test_names_in_a_picture_are_text_and_many_curves_can_be_told_apart() -> None:
    names = ['<script>alert(1)</script>"', "a\x00b\u202ec", *(f"net {number}" for number in range(12))]
    svg = curves_svg([Curve(name, ((1, interval(0.5)), (2, interval(0.4)))) for name in names], "a < b", "eps & more")
    assert "<script" not in svg
    assert not re.search(r"(?:href|src|url\()", svg)
    root = ElementTree.fromstring(svg)
    legend = [each.text for each in root.iter(f"{SVG}text")][-len(names) :]
    assert legend[0] == names[0]
    lines = [each for each in root.iter(f"{SVG}path") if each.get("stroke-width") == "2"]
    assert len({(each.get("stroke"), each.get("stroke-dasharray")) for each in lines}) == len(names)


def test_the_terminal_shows_a_model_a_row_and_a_value_a_column(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "results.db"), create=True)
    for pgd, eps in (("hhhb", "0.1"), ("hhbb", "0.2")):
        deterministic(store, {"clean": "hhhh", "pgd": pgd}, eps=eps)
    out = io.StringIO()
    Console(width=120, file=out).print(sweep_table("eps", ["0.1", "0.2"], [summaries(store)]))
    store.close()
    assert re.search(r"net +100\.0 \[.*\] +75\.0 \[.*\] +50\.0 \[", out.getvalue())
