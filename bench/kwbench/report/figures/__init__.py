"""Figures of the experiments on record, with the source of their numbers."""

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from markupsafe import Markup, escape

from kwbench.formatting import plain
from kwbench.record.measurement import Measurement
from kwbench.record.summary import Summary
from kwbench.report.drawing.picture import Style
from kwbench.report.figures.attacks import answers, landscapes, logits
from kwbench.report.figures.figure import Figure
from kwbench.report.figures.networks import fits, layers, learning, patterns, weights
from kwbench.report.figures.series import gammas, sparsities, sweeps, transfers
from kwbench.report.leaderboard import Board
from kwbench.report.page import rendered

__all__ = ["Figure", "figure_files", "figures", "figures_html"]

# The sections of the page in order, with their titles.
_SECTIONS = {
    "transfer": "Transfer between networks",
    "gamma": "Accuracy against gamma",
    "sparsity": "Accuracy against gamma and incremental training",
    "sweep": "Accuracy against the radius and an attack's parameters",
    "fit": "Fitting a one-dimensional function",
    "logits": "Logits along an attack",
    "learning": "Loss during training",
    "weights": "Loss as weights and images move",
    "layers": "Theorem 1 and appendix B on random layers",
    "patterns": "Activation patterns of trained networks",
    "landscape": "Loss landscapes",
    "answers": "True-class probabilities and examples",
}

# Figures that need only the measurements.
_DRAW: dict[str, Callable[[Sequence[Measurement]], list[Figure]]] = {
    "fit": fits,
    "logits": logits,
    "learning": learning,
    "weights": weights,
    "layers": layers,
    "patterns": patterns,
    "landscape": landscapes,
    "answers": answers,
}
# Figures that also need the summaries of the evaluations that a series names.
_DRAW_SERIES: dict[str, Callable[[Sequence[Measurement], Mapping[str, Summary]], list[Figure]]] = {
    "sweep": sweeps,
    "sparsity": sparsities,
}


def figures(measurements: Sequence[Measurement], summaries: Sequence[Summary], boards: Sequence[Board]) -> list[Figure]:
    """Draw all figures of a record, in the order of the page. Comparable measurements share a figure.

    A series is drawn only if `summaries` has all of its evaluations.
    """
    by_identity = {summary.evaluation.spec.identity: summary for summary in summaries}
    drawn = [*transfers(boards), *gammas(boards)]
    for group in _groups(measurements):
        kind = group[0].experiment
        if kind in _DRAW_SERIES:
            complete = [series for series in group if by_identity.keys() >= set(series.spec["evaluations"])]
            drawn += _DRAW_SERIES[kind](complete, by_identity) if complete else []
        elif kind in _DRAW:
            drawn += _DRAW[kind](group)
    order = list(_SECTIONS)
    drawn.sort(key=lambda figure: order.index(figure.section))
    return _with_unique_names(drawn)


def figures_html(drawn: Sequence[Figure], files: Mapping[str, bytes], pages: Sequence[str] = ()) -> str:
    """Return the figures as one self-contained HTML page with links to `pages`. `files` are those of `figure_files`."""
    sections = [
        {
            "id": section,
            "title": title,
            "figures": [
                {
                    "name": figure.name,
                    "caption": _whole(figure.caption),
                    "title": figure.picture.title,
                    "source": _embedded(files[f"figures/{figure.name}.svg"]),
                    "sources": [
                        {
                            "model": source.model or "a network built by the experiment",
                            "identity": source.identity[:12],
                            "record": escape(json.dumps(source.record, indent=1, sort_keys=True, default=str)),
                        }
                        for source in figure.sources
                    ],
                }
                for figure in drawn
                if figure.section == section
            ],
        }
        for section, title in _SECTIONS.items()
        if any(figure.section == section for figure in drawn)
    ]
    return rendered("figures.html.j2", pages=pages, sections=sections)


def figure_files(drawn: Sequence[Figure], style: Style = Style.SCREEN) -> dict[str, bytes]:
    """Return the SVG, PDF and PNG files by path, relative to the folder of the report."""
    return {
        f"figures/{figure.name}.{kind}": content for figure in drawn for kind, content in figure.picture.files(style).items()
    }


def _embedded(svg: bytes) -> Markup:
    return Markup("data:image/svg+xml;base64," + base64.b64encode(svg).decode())


def _whole(caption: str) -> Markup:
    """Escape a caption without cutting it at the usual length."""
    return escape(plain(caption, 2000))


def _groups(measurements: Sequence[Measurement]) -> list[list[Measurement]]:
    """The newest measurement of each model and configuration, comparable ones together, in the order of the record."""
    newest: dict[tuple[str, str], Measurement] = {}
    for measurement in measurements:
        key = (_shared_settings(measurement), measurement.model)
        newest.pop(key, None)
        newest[key] = measurement
    groups: dict[str, list[Measurement]] = {}
    for (settings, _), measurement in newest.items():
        groups.setdefault(settings, []).append(measurement)
    return list(groups.values())


def _shared_settings(measurement: Measurement) -> str:
    """The settings that the measurements of one figure share, as JSON: all but the network and the versions."""
    spec, origin = measurement.spec, measurement.spec.get("origin", {})
    shared = {
        name: spec.get(name) for name in ("parameters", "samples", "over", "values", "suite", "seed", "labels", "attacks")
    }
    shared["origin"] = {name: origin.get(name) for name in ("data_sha256", "norm", "eps", "seed")}
    if measurement.experiment == "answers":
        shared["model"] = measurement.model
    return json.dumps([measurement.experiment, measurement.dataset, shared], sort_keys=True)


def _with_unique_names(drawn: Sequence[Figure]) -> list[Figure]:
    """The figures with names that are valid in paths; from the second of the same name on, a number is added."""
    uses: dict[str, int] = {}
    named = []
    for figure in drawn:
        slug = re.sub(r"[^a-z0-9.]+", "-", figure.name.lower()).strip("-.")[:80] or figure.section
        uses[slug] = uses.get(slug, 0) + 1
        named.append(replace(figure, name=slug if uses[slug] == 1 else f"{slug}-{uses[slug]}"))
    return named
