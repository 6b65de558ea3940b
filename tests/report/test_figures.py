"""Figures: every experiment on record as a picture whose marks stand where its numbers say."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from kwbench.config.suite import suite_of
from kwbench.evaluation.request import Request
from kwbench.evaluation.studies.experiment import measure, synthesize
from kwbench.evaluation.studies.series import record_series
from kwbench.experiments import build_experiment
from kwbench.record.measurement import Measurement
from kwbench.record.store import Store
from kwbench.record.summary import summaries
from kwbench.report import write_report
from kwbench.report.figures import figures, figures_html
from kwbench.report.leaderboard import boards
from kwbench.report.svg.axis import Axis, tick_text
from kwbench.report.svg.drawing import viridis
from kwbench.report.svg.lines import Line, Panel, panels_svg
from kwbench.report.svg.matrix import Cell, matrix_svg
from kwbench.report.svg.pixels import png
from kwbench.report.svg.surfaces import Surface, maps_svg, surfaces_svg
from kwbench.statistics import Interval
from support.records import deterministic
from support.small_registry import write_registry

SVG = "{http://www.w3.org/2000/svg}"
SMALL: dict[str, dict[str, Any]] = {
    "landscape": {"points": 6},
    "logits": {"steps": 5},
    "patterns": {"directions": 2},
    "answers": {"examples": 2},
    "weights": {"steps": 3},
}


def words(svg: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def paths(svg: str, **attributes: str) -> list[str]:
    found = ElementTree.fromstring(svg).iter(f"{SVG}path")
    return [each.get("d", "") for each in found if all(each.get(name) == value for name, value in attributes.items())]


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A record with one of every experiment on models."""
    folder = tmp_path_factory.mktemp("figures")
    registry = write_registry(folder)
    opened = Store.open(str(folder / "results.db"), create=True)
    for name, parameters in SMALL.items():
        suite = suite_of(["pgd", "fgsm"] if name == "answers" else ["noop"])
        request = Request("small", suite, registry=registry, n=12 if name == "answers" else 2)
        measure(request, name, build_experiment(name, parameters), opened)
    synthesize("fit", build_experiment("fit", {"steps": 20, "grid": 50}), 0, opened)
    synthesize("layers", build_experiment("layers", {"widths": [16, 32], "draws": 2, "gammas": [0.1, 0.2]}), 0, opened)
    return opened


def test_the_report_draws_all_that_is_on_record_into_files_and_a_page_that_loads_nothing(store: Store, tmp_path: Path) -> None:
    files = write_report(store, tmp_path, {"figures"})
    page, *pictures = [path.read_text(encoding="utf-8") for path in files]
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections == ["fit", "logits", "weights", "layers", "patterns", "landscape", "answers"]
    assert [path.name for path in files[1:]] == [
        *(
            "fit.svg",
            "logits-image0-digits.svg",
            "logits-image1-digits.svg",
            "weights-digits.svg",
            "layers.svg",
            "patterns-digits.svg",
        ),
        *("landscape-image0-digits.svg", "landscape-map-image0-digits.svg"),
        *("landscape-image1-digits.svg", "landscape-map-image1-digits.svg"),
        *("answers-probabilities-small-digits.svg", "answers-examples-small-digits.svg"),
    ]
    for svg in pictures:
        assert ElementTree.fromstring(svg).tag == f"{SVG}svg"
        assert not re.search(r'(?:href|src)="(?!data:image/png)|url\(|<script|style=', svg)
        assert svg in page
    assert not re.search(r'(?:href|src)="(?!data:|#)', page)
    again = write_report(store, tmp_path / "again", {"figures"})
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in again]


def test_every_figure_names_the_run_the_checkpoint_and_the_parameters_behind_it(store: Store) -> None:
    for figure in figures(store.experiments(), [], []):
        for source in figure.sources:
            assert source.identity in (ElementTree.fromstring(figure.svg).findtext(f"{SVG}desc") or "")
            assert source.record["parameters"]
            if source.model:
                assert len(source.record["origin"]["model_sha256"]) == 64
                assert len(source.record["origin"]["data_sha256"]) == 64
    assert "model_sha256" in figures_html(figures(store.experiments(), [], []))


def test_attacks_keep_their_order_and_their_names(store: Store) -> None:
    (answers,) = [each for each in store.experiments() if each.experiment == "answers"]
    probabilities, examples = figures([answers], [], [])
    right = 100 * (answers.arrays["prediction"] == answers.arrays["label"]).mean(axis=1)
    titles = [each for each in words(probabilities.svg) if each.endswith("% right")]
    assert titles == [f"{label}: {share:.1f} % right" for label, share in zip(("clean", "pgd", "fgsm"), right, strict=True)]
    strips = [each for each in words(examples.svg) if each.endswith("fooled")]
    assert strips[0] == "pgd: fooled"


def test_the_same_again_is_not_measured_again(store: Store) -> None:
    before = store.experiments()

    found = synthesize("fit", build_experiment("fit", {"steps": 20, "grid": 50}), 0, store, command="again")
    assert len(store.experiments()) == len(before)
    assert store.experiments()[-1].identity == found.identity
    other = synthesize("fit", build_experiment("fit", {"steps": 20, "grid": 50}), 1, store)
    assert other.identity != found.identity


def test_the_newest_of_a_network_stands_beside_others_on_equal_terms_only() -> None:
    arrays = {"epoch": np.arange(3.0), "loss": np.ones(3), "accuracy": np.ones(3)}

    def learned(model: str, identity: str, dataset: str = "digits") -> Measurement:
        return Measurement(identity, "learning", model, dataset, {"recipe": {}}, {}, arrays)

    one, other = figures([learned("a", "1"), learned("b", "2"), learned("a", "3"), learned("a", "4", "mnist")], [], [])
    assert [source.identity for source in one.sources] == ["2", "3"]
    assert [source.identity for source in other.sources] == ["4"]


def test_hostile_names_are_only_text() -> None:
    arrays = {"epoch": np.arange(3.0), "loss": np.ones(3), "accuracy": np.ones(3)}
    name = '<script>alert(1)</script>"\x00\u202e'
    drawn = figures([Measurement("1", "learning", name, "<b>", {"recipe": {}, "note": "</pre><script>"}, {}, arrays)], [], [])
    ElementTree.fromstring(drawn[0].svg)
    page = figures_html(drawn)
    assert page.count("<script") == 0
    assert "<b>" not in page.replace("<b>kwbench", "")
    assert re.fullmatch(r"[a-z0-9.-]+", drawn[0].name)


def test_a_sweep_and_a_series_of_gammas_are_drawn_from_their_evaluations(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "results.db"), create=True)
    told = (("hhhb", "0.1"), ("hbbb", "0.2"))
    evaluations = [deterministic(store, {"clean": "hhhh", "pgd": rows}, eps=eps) for rows, eps in told]
    spec = {"over": "eps", "values": ["0.1", "0.2"], "suite": "papers"}
    record_series(store, "sweep", evaluations, spec, {"place": np.array([0.1, 0.2])}, model="net")
    arrays = {"gamma": np.array([0.2, 0.1]), "incremental": np.array([0.0, 1.0])}
    record_series(store, "sparsity", evaluations, {"suite": "papers", "values": ["1/5", "1/10"]}, arrays, model="net")
    known = summaries(store)
    gammas, sweep = figures(store.experiments(), known, [])
    assert (gammas.section, sweep.section) == ("sparsity", "sweep")
    heights = [float(each.get("cy", "nan")) for each in ElementTree.fromstring(sweep.svg).iter(f"{SVG}circle")]
    assert heights[1] - heights[0] == pytest.approx((heights[2] - heights[0]) / 3, abs=0.2)
    assert {"A_std", "A_rob", "incremental training", "direct training"} <= set(words(gammas.svg))
    # Without the evaluations there is nothing to draw.
    assert figures(store.experiments(), [], []) == []
    store.close()


def test_a_line_goes_through_its_points_and_stops_where_there_is_none() -> None:
    y = np.array([0.0, 1.0, np.nan, 1.0, 0.0])
    svg = panels_svg("t", [Panel("p", "x", "y", (Line("a", np.arange(5.0), y, 0),))])
    (path, sample) = paths(svg, stroke="#0072b2")
    assert path.count("M") == 2
    (x0, y0), (x1, y1), (x3, y3), (x4, y4) = points(path)
    assert x1 - x0 == pytest.approx(x4 - x3)
    assert (y0, y1) == (y4, y3)
    assert y1 < y0
    assert sample


def test_a_logarithmic_axis_leaves_out_what_is_not_positive() -> None:
    x = np.array([1.0, 10.0, 100.0, 1000.0])
    svg = panels_svg("t", [Panel("p", "x", "y", (Line("a", x, np.array([1.0, 0.1, 0.0, 0.001]), 0),), log_x=True, log_y=True)])
    drawn = points(paths(svg, stroke="#0072b2")[0])
    assert len(drawn) == 3
    assert drawn[1][0] - drawn[0][0] == pytest.approx((drawn[2][0] - drawn[0][0]) / 3, abs=0.1)
    assert drawn[1][1] - drawn[0][1] == pytest.approx((drawn[2][1] - drawn[0][1]) / 3, abs=0.1)


@pytest.mark.parametrize(
    ("low", "high", "logarithmic", "expected"),
    [
        (0.0, 1.0, False, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-0.04, 0.04, False, [-0.04, -0.02, 0.0, 0.02, 0.04]),
        (3.0, 17.0, False, [5.0, 10.0, 15.0]),
        (0.9, 1100.0, True, [1.0, 10.0, 100.0, 1000.0]),
        (60.0, 300.0, True, [100.0, 200.0]),
    ],
)
def test_ticks_are_round_and_within_the_axis(low: float, high: float, logarithmic: bool, expected: list[float]) -> None:
    np.testing.assert_allclose(Axis(low, high, logarithmic).ticks(), expected, atol=1e-12)


def test_axes_hold_single_values_and_ticks_read_well() -> None:
    for axis in (Axis.around([2.0]), Axis.around([0.0]), Axis.around([]), Axis.around([3.0], logarithmic=True)):
        assert axis.low < axis.high
        assert axis.ticks()
    assert [tick_text(each) for each in (0, 0.05, 200, 1e-7, 2.5e-9, 1e6)] == ["0", "0.05", "200", "10⁻⁷", "2.5·10⁻⁹", "10⁶"]


def test_a_surface_is_drawn_from_back_to_front_and_high_values_stand_higher() -> None:
    e = np.linspace(-1, 1, 4)
    flat = np.zeros((4, 4))
    peak = flat.copy()
    peak[1, 1] = 1.0
    drawn = {
        name: [points(path) for path in re.findall(r'<path d="(M[^"]+)Z" fill="#', surfaces_svg("t", [Surface("s", e, z, z)]))]
        for name, z in (("flat", flat), ("peak", peak))
    }
    assert len(drawn["flat"]) == 9
    # What is nearer stands lower on the page.
    bottoms = [max(y for _, y in polygon) for polygon in drawn["flat"]]
    assert bottoms[0] < bottoms[-1]
    assert min(y for polygon in drawn["peak"] for _, y in polygon) < min(y for polygon in drawn["flat"] for _, y in polygon)


def test_a_map_has_its_highest_value_bright_and_a_line_around_where_the_model_is_right() -> None:
    e = np.linspace(-0.1, 0.1, 3)
    values, right = np.zeros((3, 3)), np.zeros((3, 3))
    values[2, 0] = 1.0  # ε₁ at its largest, ε₂ at its least: the lower right
    right[1, 1] = 1.0
    svg = maps_svg("t", [Surface("s", e, values, right)])
    content = re.findall(r"data:image/png;base64,([^\"]+)", svg)[0]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert tuple(picture[2, 2]) == viridis(1.0)
    assert tuple(picture[0, 0]) == viridis(0.0)
    (border,) = paths(svg, stroke="#ffffff")
    assert border.count("M") == 4


def test_pixels_are_what_they_were() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))), pixels)


def test_a_transfer_matrix_has_each_accuracy_in_its_place_and_marks_copies() -> None:
    half = Interval(0.5, 0.4, 0.6)
    cells = {
        ("a", "a-copy"): Cell(half, copies=True),
        ("a", "b"): Cell(Interval(0.25, 0.2, 0.3)),
        ("b", "b"): Cell(half, same=True),
    }
    svg = matrix_svg("t", ["a", "b"], ["a-copy", "b"], cells, 100)
    shown = words(svg)
    assert [each for each in shown if re.fullmatch(r"\d+\.\d", each)] == ["50.0", "25.0", "50.0"]
    frames = [each for each in ElementTree.fromstring(svg).iter(f"{SVG}rect") if each.get("stroke") == "#d55e00"]
    assert [each.get("stroke-dasharray") for each in frames] == [None, "5 3"]


def test_transfers_on_record_become_a_matrix_with_independent_copies_on_the_diagonal(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "results.db"), create=True)
    attacks = {"clean": {}, **{f"from-{name}": {"surrogate": f"cifar10/{name}-copy"} for name in "kr"}}
    for model, k, r in (("cifar10/r", "hhhb", "bbbb"), ("cifar10/k", "hbbb", "hhbb")):
        deterministic(store, {"clean": "hhhh", "from-k": k, "from-r": r}, model=model, dataset="cifar10", attacks=attacks)
    (figure,) = figures([], summaries(store), boards(summaries(store)))
    store.close()
    shown = words(figure.svg)
    assert [each for each in shown if re.fullmatch(r"\d+\.\d", each)] == ["25.0", "50.0", "75.0", "0.0"]
    frames = [each for each in ElementTree.fromstring(figure.svg).iter(f"{SVG}rect") if each.get("stroke") == "#d55e00"]
    assert len(frames) == 2
    assert json.dumps([source.model for source in figure.sources]) == '["cifar10/k", "cifar10/r"]'


def test_a_picture_is_as_wide_as_its_title() -> None:
    panels = [Panel("p", "x", "y", (Line("a", np.arange(2.0), np.arange(2.0), 0),))]
    narrow, wide = (float(ElementTree.fromstring(panels_svg(title, panels)).get("width", "0")) for title in ("t", "t" * 100))
    assert narrow < 800 < wide


def test_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        panels_svg("t", [])
    with pytest.raises(ValueError, match="nothing to draw"):
        surfaces_svg("t", [])
    assert "No experiment is on record" in figures_html([])
