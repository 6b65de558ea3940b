"""Figures: every experiment on record as a picture whose marks stand where its numbers say."""

import base64
import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from kwbench.config.suite import suite_of
from kwbench.evaluation.request import Request
from kwbench.evaluation.studies.experiment import measure, synthesize
from kwbench.evaluation.studies.series import record_series
from kwbench.experiments import build_experiment
from kwbench.record.measurement import Measurement
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.report import write_report
from kwbench.report.drawing.gallery import Example, Strip, gallery_picture
from kwbench.report.drawing.lines import Line, Panel, panels_picture
from kwbench.report.drawing.matrix import Cell, matrix_picture
from kwbench.report.drawing.picture import Picture, Style
from kwbench.report.drawing.surfaces import Surface, maps_picture, surfaces_picture
from kwbench.report.figures import figure_files, figures, figures_html
from kwbench.report.figures.conventions import class_name, class_names
from kwbench.report.leaderboard import boards
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
    """Return the texts of a picture, which are drawn as shapes and stand in comments."""
    return [html.unescape(text) for text in re.findall(r"<!-- (.*?) -->", svg)]


def canvas(picture: Picture, style: Style = Style.SCREEN) -> Figure:
    """Return a picture as matplotlib's figure."""
    figure = Figure(picture.size(style))
    picture.draw(figure, style)
    return figure


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


NAMES = (
    *("fit", "logits-image0-digits", "logits-image1-digits", "weights-digits", "layers", "patterns-digits"),
    *("landscape-image0-digits", "landscape-map-image0-digits", "landscape-image1-digits", "landscape-map-image1-digits"),
    *("answers-probabilities-small-digits", "answers-examples-small-digits"),
)


def test_the_report_draws_all_that_is_on_record_into_files_and_a_page_that_loads_nothing(store: Store, tmp_path: Path) -> None:
    files = write_report(store, tmp_path, {"figures"})
    page = files[0].read_text(encoding="utf-8")
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections == ["fit", "logits", "weights", "layers", "patterns", "landscape", "answers"]
    assert [path.name for path in files[1:]] == [f"{name}.{kind}" for name in NAMES for kind in ("svg", "pdf", "png")]
    for path in files[1:]:
        content = path.read_bytes()
        if path.suffix == ".svg":
            assert ElementTree.fromstring(content).tag == f"{SVG}svg"
            assert not re.search(rb'(?:href|src)="(?!data:image/png|#)|<script', content)
        else:
            assert content.startswith(b"%PDF" if path.suffix == ".pdf" else b"\x89PNG")
    embedded = [base64.b64decode(text) for text in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)]
    assert embedded == [path.read_bytes() for path in files if path.suffix == ".svg"]
    assert not re.search(r'(?:href|src)="(?!data:|#|figures/)|src="figures/', page)
    assert [tmp_path / address for address in re.findall('href="(figures/[^"]+)"', page)] == files[1:]


def test_equal_records_give_equal_bytes_without_dates(store: Store) -> None:
    wanted = [each for each in figures(store.experiments(), [], []) if each.name in ("fit", "landscape-image0-digits")]
    assert len(wanted) == 2
    first, second = figure_files(wanted), figure_files(wanted)
    assert first == second
    assert not any(re.search(rb"<dc:date>|/CreationDate|20\d\d-\d\d-\d\d", content) for content in first.values())


def test_a_paper_has_its_figures_as_wide_as_a_column_in_8_points_without_a_title(store: Store) -> None:
    (logits, *_) = [each for each in figures(store.experiments(), [], []) if each.section == "logits"]
    content = logits.picture.files(Style.PAPER, ["svg"])["svg"].decode()
    width = float(ElementTree.fromstring(content).get("width", "0pt").removesuffix("pt"))
    assert width == pytest.approx(3.3 * 72)
    assert logits.picture.title in words(logits.picture.svg())
    assert logits.picture.title not in words(content)
    sizes: list[float] = []
    Picture("", "", lambda _: (1.0, 1.0), lambda *_: sizes.append(mpl.rcParams["font.size"])).files(Style.PAPER)
    assert sizes == [8.0]


def test_every_figure_names_the_run_the_checkpoint_and_the_parameters_behind_it(store: Store) -> None:
    for figure in figures(store.experiments(), [], []):
        for source in figure.sources:
            assert source.identity in figure.picture.description
            assert source.record["parameters"]
            if source.model:
                assert len(source.record["origin"]["model_sha256"]) == 64
                assert len(source.record["origin"]["data_sha256"]) == 64
    (fit, *_) = drawn = figures(store.experiments(), [], [])
    assert fit.sources[0].identity in fit.picture.svg()
    assert "model_sha256" in figures_html(drawn, {f"figures/{figure.name}.svg": b"" for figure in drawn})


def test_attacks_keep_their_order_and_their_names(store: Store) -> None:
    (answers,) = [each for each in store.experiments() if each.experiment == "answers"]
    probabilities, examples = figures([answers], [], [])
    right = 100 * (answers.arrays["prediction"] == answers.arrays["label"]).mean(axis=1)
    titles = [axes.get_title() for axes in canvas(probabilities.picture).axes]
    assert titles == [f"{label}: {share:.1f} % right" for label, share in zip(("clean", "pgd", "fgsm"), right, strict=True)]
    texts = [text.get_text() for text in canvas(examples.picture).texts]
    assert texts[0] == "pgd: fooled"
    captions = [text.get_text() for axes in canvas(examples.picture).axes for text in axes.texts]
    assert re.fullmatch(r"\d\np = [\d.]+", captions[0])
    assert re.fullmatch(r"predicted \d\np = [\d.]+, 0\.2", captions[1])


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
    files = figure_files(drawn)
    ElementTree.fromstring(files[f"figures/{drawn[0].name}.svg"])
    page = figures_html(drawn, files)
    assert page.count("<script") == 0
    assert "<b>" not in page.replace("<b>kwbench", "")
    assert re.fullmatch(r"[a-z0-9.-]+", drawn[0].name)


def test_a_sweep_is_drawn_from_its_evaluations(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "results.db"), create=True)
    told = (("hhhb", "0.1"), ("hbbb", "0.2"))
    evaluations = [deterministic(store, {"clean": "hhhh", "pgd": rows}, eps=eps) for rows, eps in told]
    spec = {"over": "eps", "values": ["0.1", "0.2"], "suite": "papers"}
    record_series(store, "sweep", evaluations, spec, {"place": np.array([0.1, 0.2])}, model="net")
    (sweep,) = figures(store.experiments(), summaries(store), [])
    (line,) = canvas(sweep.picture).axes[0].lines
    np.testing.assert_allclose(np.asarray(line.get_xydata()), [(0.0, 100), (0.1, 75), (0.2, 25)])
    # Without the evaluations there is nothing to draw.
    assert figures(store.experiments(), [], []) == []
    store.close()


def test_networks_trained_both_ways_are_drawn_as_in_figures_4_and_6(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "results.db"), create=True)
    told = {"direct 0.2": "hhbb", "direct 0.1": "bbbb", "incremental 0.1": "hhhb"}
    arrays = {"gamma": np.array([0.2, 0.1, 0.1]), "incremental": np.array([0.0, 0.0, 1.0])}
    for model in ("resnet", "wide"):
        evaluations = [
            deterministic(store, {"clean": "hhhh", "pgd": rows}, model=f"{model} {kind}") for kind, rows in told.items()
        ]
        spec = {"suite": "papers", "values": ["1/5", "1/10", "1/10"]}
        record_series(store, "sparsity", evaluations, spec, arrays, model=model)
    gammas, training = figures(store.experiments(), summaries(store), [])
    std, rob = canvas(gammas.picture).axes
    assert [axes.get_ylabel() for axes in (std, rob)] == [r"$A_\mathrm{std}$, %", r"$A_\mathrm{rob}$, %"]
    # A line a network: where there is one, the network that was trained incrementally. Gamma falls from left to right.
    assert [np.asarray(line.get_xydata()).tolist() for line in rob.lines] == [[[0.2, 50], [0.1, 75]]] * 2
    assert rob.xaxis_inverted()
    assert [label.get_text() for label in rob.get_xticklabels()] == ["0.1", "0.2"]
    panels = canvas(training.picture).axes
    assert [panel.get_title() for panel in panels] == ["resnet", "wide"]
    lines = [np.asarray(line.get_xydata())[:, 1].tolist() for line in panels[1].lines]
    assert lines == [[100], [100, 100], [75], [50, 0]]
    # Where both kinds of training agree, the lower curve is seen between the dashes of the upper one.
    assert [line.get_linestyle() for line in panels[1].lines] == ["-", "--", "-", "--"]
    assert {"clean accuracy, incremental training", "robust accuracy, direct training"} <= set(words(training.picture.svg()))
    store.close()


def test_long_titles_break_after_their_subject_and_stay_above_the_pictures() -> None:
    line = Line("a", np.arange(2.0), np.arange(2.0), 0)
    panels = panels_picture(f"Accuracy: {'a long setting, ' * 6}n = 4", [Panel("", "x", "y", (line,))])
    first, *others = panels.figure(Style.SCREEN).get_suptitle().splitlines()
    assert first == "Accuracy:"
    assert "n\u00a0=\u00a04" in others[-1]
    image = np.zeros((3, 8, 8))
    strips = [Strip(f"attack {number}", (Example(image, image, ("a", "b"), wrong=True),)) for number in range(9)]
    figure = gallery_picture("Examples", strips).figure(Style.SCREEN)
    (title,) = (text for text in figure.findobj(Text) if text.get_text() == "Examples")
    (strip,) = (text for text in figure.findobj(Text) if text.get_text() == "attack 0")
    assert title.get_window_extent().y0 > strip.get_window_extent().y1


def test_a_line_goes_through_its_points_and_stops_where_there_is_none() -> None:
    y = np.array([0.0, 1.0, np.nan, 1.0, 0.0])
    figure = canvas(panels_picture("t", [Panel("p", "x", "y", (Line("a", np.arange(5.0), y, 0),))]))
    np.testing.assert_array_equal(np.asarray(figure.axes[0].lines[0].get_xydata()), np.stack([np.arange(5.0), y], axis=1))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a"]


def test_classes_have_the_names_on_record_or_the_words_of_cifar10() -> None:
    assert class_names("mine", {"classes": ["a", "b"]}) == ["a", "b"]
    assert class_names("cifar10-jpeg", {"classes": []})[3] == "cat"
    assert class_name("cifar10", 9, {}) == "truck"
    assert class_names("digits", {}) == []
    assert class_name("digits", 3, {}) == "3"


def test_points_have_their_intervals_as_bars_and_names_towards_the_middle() -> None:
    x, y = np.array([0.0, 1.0]), np.array([2.0, 4.0])
    line = Line("", x, y, 0, y - 1, y + 1, kind="points", labels=("left_$", ""))
    (axes,) = canvas(panels_picture("t", [Panel("", "x", "y", (line,))])).axes
    assert [text.get_text() for text in axes.texts] == [r"left_\$"]
    assert axes.texts[0].get_horizontalalignment() == "left"
    bars = [np.asarray(path.vertices).tolist() for collection in axes.collections for path in collection.get_paths()]
    assert bars == [[[0.0, 1.0], [0.0, 3.0]], [[1.0, 3.0], [1.0, 5.0]]]


def test_a_chart_of_a_page_has_no_background_and_no_title() -> None:
    picture = panels_picture("the title", [Panel("", "x", "y", (Line("a", np.arange(2.0), np.arange(2.0), 0),))])
    assert "the title" in words(picture.svg())
    assert "the title" not in words(picture.chart())
    assert "fill: #ffffff" in picture.svg()
    assert "fill: #ffffff" not in picture.chart()


def test_labels_of_ticks_do_not_touch_and_those_of_powers_of_ten_stay() -> None:
    gammas = (0.3, 0.2, 0.1, 0.05, 0.02)
    line = Line("a", np.array(gammas), np.zeros(5), 0)
    panel = Panel("", "x", "y", (line,), log_x=True, y_max=100.0, ticks_at_points=True, descending=True)
    narrow = panels_picture("t", [panel, replace(panel, y_label="z")])
    shown = [text for text in words(narrow.svg(Style.PAPER)) if text in {str(gamma) for gamma in gammas}]
    assert [shown.count(text) for text in ("0.3", "0.2", "0.1", "0.02")] == [2, 0, 2, 2]
    wide = [text for text in words(panels_picture("t", [panel]).svg()) if text in {str(gamma) for gamma in gammas}]
    assert len(wide) == 5


def test_the_page_of_figures_links_to_the_others(store: Store) -> None:
    (fit, *_) = figures(store.experiments(), [], [])
    page = figures_html([fit], figure_files([fit]), pages=("index.html", "figures.html"))
    assert 'href="index.html"' in page


def test_panels_of_one_quantity_share_its_axis_and_others_do_not() -> None:
    def panel(y_label: str, scale: float) -> Panel:
        return Panel("p", "x", y_label, (Line("a", np.arange(2.0), scale * np.arange(2.0), 0),))

    one, other = canvas(panels_picture("t", [panel("loss", 1.0), panel("loss", 5.0)])).axes
    assert one.get_ylim() == other.get_ylim()
    assert (one.get_ylabel(), other.get_ylabel()) == ("loss", "")
    one, other = canvas(panels_picture("t", [panel("loss", 1.0), panel("accuracy", 5.0)])).axes
    assert one.get_ylim() != other.get_ylim()


def test_surfaces_share_their_colours_and_a_map_has_a_line_around_where_the_model_is_right() -> None:
    e = np.linspace(-0.1, 0.1, 3)
    values, right = np.zeros((3, 3)), np.zeros((3, 3))
    values[2, 0] = 1.0  # ε₁ at its largest, ε₂ at its least: the lower right
    right[1, 1] = 1.0
    pair = [Surface("s", e, values, right), Surface("low", e, values / 4, right)]
    first, second, scale = canvas(maps_picture("t", pair, unit=", 1/255")).axes
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0, 1)
    assert scale.get_ylabel() == "loss"
    assert first.get_xlabel() == r"$\epsilon_1$, 1/255"
    pixels = np.asarray(first.images[0].get_array())
    assert first.images[0].origin == "lower"
    assert pixels[0, 2] == 1.0
    assert len(first.collections) == 1
    surface, other, _ = canvas(surfaces_picture("t", pair)).axes
    assert surface.collections[0].get_rasterized()
    assert surface.collections[0].norm.vmax == other.collections[0].norm.vmax == 1.0


def test_pixels_are_what_they_were() -> None:
    before, after = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 7)) / 255
    picture = gallery_picture("t", [Strip("fgsm", (Example(before, after, ("cat", "dog"), True),))])
    shown = [axes.images[0].get_array() for axes in canvas(picture).axes]
    np.testing.assert_array_equal(shown[0], before.transpose(1, 2, 0))
    np.testing.assert_array_equal(shown[1], after.transpose(1, 2, 0))
    picture = gallery_picture("t", [Strip("", (Example(before[:1], after[:1], ("", ""), False),))])
    grey = canvas(picture).axes[0].images[0].get_array()
    np.testing.assert_array_equal(grey, before[0])


def test_a_transfer_matrix_has_each_accuracy_in_its_place_and_marks_copies() -> None:
    half = Interval(0.5, 0.4, 0.6)
    cells = {
        ("a", "a-copy"): Cell(half, copies=True),
        ("a", "b"): Cell(Interval(0.25, 0.2, 0.3)),
        ("b", "b"): Cell(half, same=True),
    }
    axes = canvas(matrix_picture("t", ["a", "b"], ["a-copy", "b"], cells, 100)).axes[0]
    places = {text.get_position(): text.get_text() for text in axes.texts if "–" not in text.get_text()}
    assert places == {(0, 0): "50.0", (1, 0): "25.0", (1, 1): "50.0"}
    assert [(to_hex(patch.get_edgecolor()), patch.get_linestyle()) for patch in axes.patches] == [
        ("#d55e00", "-"),
        ("#d55e00", "--"),
    ]


def test_transfers_on_record_become_a_matrix_with_independent_copies_on_the_diagonal(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "results.db"), create=True)
    attacks = {"clean": {}, **{f"from-{name}": {"surrogate": f"cifar10/{name}-copy"} for name in "kr"}}
    for model, k, r in (("cifar10/r", "hhhb", "bbbb"), ("cifar10/k", "hbbb", "hhbb")):
        deterministic(store, {"clean": "hhhh", "from-k": k, "from-r": r}, model=model, dataset="cifar10", attacks=attacks)
    (figure,) = figures([], summaries(store), boards(summaries(store)))
    store.close()
    axes = canvas(figure.picture).axes[0]
    shown = {text.get_position(): text.get_text() for text in axes.texts if "–" not in text.get_text()}
    assert shown == {(0, 0): "25.0", (1, 0): "50.0", (0, 1): "75.0", (1, 1): "0.0"}
    assert len(axes.patches) == 2
    assert json.dumps([source.model for source in figure.sources]) == '["cifar10/k", "cifar10/r"]'


def test_networks_that_differ_only_in_gamma_become_curves(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "results.db"), create=True)
    for gamma, letters in ((0.1, "hhhb"), (0.2, "hbbb")):
        entry = {"activation": {"name": "kwta", "gamma": gamma}, "architecture": {"name": "net"}}
        told = {"clean": "hhhh", "pgd": letters}
        deterministic(store, told, model=f"cifar10/net-kwta{gamma:g}", dataset="cifar10", origin={"entry": entry})
    (figure,) = figures([], summaries(store), boards(summaries(store)))
    store.close()
    std, rob = canvas(figure.picture).axes
    np.testing.assert_allclose(np.asarray(std.lines[0].get_xydata()), [(0.1, 100), (0.2, 100)])
    np.testing.assert_allclose(np.asarray(rob.lines[0].get_xydata()), [(0.1, 75), (0.2, 25)])


def test_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        panels_picture("t", [])
    with pytest.raises(ValueError, match="nothing to draw"):
        surfaces_picture("t", [])
    with pytest.raises(ValueError, match="nothing to draw"):
        gallery_picture("t", [])
    assert "No experiment is on record" in figures_html([], {})
