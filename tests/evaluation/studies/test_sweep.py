"""Sweeps: what changes and by how much; and the curves that are drawn of it."""

import html
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from kwbench.config.suite import suite_of
from kwbench.errors import UsageError
from kwbench.evaluation.studies.sweep import Sweep, parse_sweep
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.report.drawing.lines import Curve, curves_picture
from kwbench.report.drawing.picture import Style
from kwbench.report.terminal import sweep_table
from kwbench.statistics import Interval
from support.records import deterministic

SVG = "{http://www.w3.org/2000/svg}"


def test_values_are_put_in_order_and_kept_as_written() -> None:
    assert parse_sweep("eps=8/255, 1/255,0.01") == Sweep("eps", ("1/255", "0.01", "8/255"))
    assert parse_sweep("eps") == Sweep("eps", ()), "every radius"
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
        ("epsilon", "write eps, eps=VALUE"),
        ("steps=1,2", "write eps, eps=VALUE"),
        ("=1,2", "write eps, eps=VALUE"),
        ("eps=0.1,", "write eps, eps=VALUE"),
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


def drawn(curves: list[Curve], label: str = "steps") -> Axes:
    """Return the axes of a picture of curves."""
    picture = curves_picture(curves, "title", label)
    figure = Figure()
    picture.draw(figure, Style.SCREEN)
    return figure.axes[0]


def test_a_picture_has_each_point_at_its_place_and_accuracy_and_a_band_around_it() -> None:
    axes = drawn([Curve("net", ((0.0, interval(1.0)), (0.1, interval(0.5)), (0.2, interval(0.0))))], "eps")
    (line,) = axes.lines
    np.testing.assert_allclose(np.asarray(line.get_xydata()), [(0.0, 100), (0.1, 50), (0.2, 0)])
    (band,) = axes.collections
    corners = band.get_paths()[0].get_extents()
    np.testing.assert_allclose(corners.extents, (0.0, 0.0, 0.2, 100.0))
    assert (axes.get_xscale(), axes.get_ylim()) == ("linear", (0, 100))


def test_places_over_decades_are_drawn_on_a_logarithmic_axis() -> None:
    axes = drawn([Curve("net", tuple((place, interval(0.5)) for place in (1, 10, 100)))])
    assert axes.get_xscale() == "log"
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert {"1", "2", "5", "10", "100"} <= set(labels)


def test_a_point_without_a_number_is_left_out_and_nothing_at_all_is_refused() -> None:
    (line,) = drawn([Curve("net", ((1, interval(0.5)), (2, None)))]).lines
    assert np.isnan(np.asarray(line.get_ydata())).tolist() == [False, True]
    with pytest.raises(ValueError, match="nothing to draw"):
        curves_picture([], "title", "steps")


def test_names_in_a_picture_are_text_and_many_curves_can_be_told_apart() -> None:
    names = ['<script>alert(1)</script>"', "a\x00b\u202ec", "_under", "$x^", *(f"net {number}" for number in range(12))]
    curves = [Curve(name, ((1, interval(0.5)), (2, interval(0.4)))) for name in names]
    svg = curves_picture(curves, "a < b", "eps").svg()
    assert "<script" not in svg
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    shown = [html.unescape(text) for text in re.findall(r"<!-- (.*?) -->", svg)]
    assert [name for name in names[:4] if name not in shown] == ["a\x00b\u202ec"]
    assert r"a\u0000b\u202ec" in shown
    lines = drawn(curves).lines
    assert len({(str(line.get_color()), line.get_linestyle()) for line in lines}) == len(names)


def test_the_terminal_shows_a_model_a_row_and_a_value_a_column(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "results.db"), create=True)
    for pgd, eps in (("hhhb", "0.1"), ("hhbb", "0.2")):
        deterministic(store, {"clean": "hhhh", "pgd": pgd}, eps=eps)
    out = io.StringIO()
    Console(width=120, file=out).print(sweep_table("eps", ["0.1", "0.2"], [summaries(store)]))
    store.close()
    assert re.search(r"net +100\.0 \[.*\] +75\.0 \[.*\] +50\.0 \[", out.getvalue())
