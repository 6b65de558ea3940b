"""Figures of several evaluations: sweeps of a parameter, accuracy against gamma, and transfer between networks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kwbench.record.measurement import Array, Measurement
from kwbench.record.minimum_norm import DistanceCurve
from kwbench.record.summary import Summary
from kwbench.report.drawing.lines import Curve, Line, Panel, curves_picture, panels_picture
from kwbench.report.drawing.matrix import Cell, matrix_picture
from kwbench.report.drawing.picture import COLOURS, Picture
from kwbench.report.figures.conventions import distance_scale, place_of
from kwbench.report.figures.figure import Figure, Source, described, figure_of, short
from kwbench.report.leaderboard import Board, is_natural
from kwbench.statistics import Interval
from kwbench.threat import ThreatModel


def sweeps(group: Sequence[Measurement], summaries: Mapping[str, Summary]) -> list[Figure]:
    """Return one figure of A_rob against the swept parameter. `summaries`: evaluations by identity, as for `sparsities`."""
    spec = group[0].spec
    curves = [[summaries[identity] for identity in sweep.spec["evaluations"]] for sweep in group]
    over, suite = str(spec["over"]), str(spec["suite"])
    caption = f"Robust accuracy (A_rob) of the suite {suite} against {over}, with 95 % intervals."
    return [figure_of(group, over, caption, sweep_curves(suite, over, group[0].arrays["place"], curves, described(group)))]


def sweep_curves(suite: str, over: str, values: Array, curves: Sequence[Sequence[Summary]], description: str = "") -> Picture:
    """Return a curve for each model: A_rob at each of the values of `over`, beginning with A_std where that is eps."""
    example = curves[0][0]
    places, label = place_of(over, values, example.dataset, example.threat.norm)
    drawn = []
    for curve in curves:
        points = [(float(place), point.a_rob) for place, point in zip(places, curve, strict=True)]
        drawn.append(Curve(short(curve[0].model), ((0.0, curve[0].a_std), *points) if over == "eps" else tuple(points)))
    threat = example.threat.norm if over == "eps" else example.threat
    title = f"{suite}: {example.dataset}, {threat}, n = {example.n}"
    return curves_picture(drawn, title, label, description)


def distance_curves(suite: str, curves: Sequence[DistanceCurve]) -> Picture:
    """Return A_rob at every radius, a curve for each model; it falls at the distance of each nearest adversarial image."""
    example = curves[0].summary
    scale, unit = distance_scale(example.dataset, example.threat.norm)
    lines = []
    for style, curve in enumerate(curves):
        radii = np.array([0.0, *curve.radii])
        accuracies = [curve.accuracy(radius) for radius in radii]
        low, y, high = (
            np.repeat([100 * getattr(accuracy, end) for accuracy in accuracies], 2)[:-1] for end in ("low", "value", "high")
        )
        lines.append(Line(short(curve.summary.model), np.repeat(scale * radii, 2)[1:], y, style, low, high))
    title = f"{suite}: {example.dataset}, {example.threat.norm}, n = {example.n}"
    panel = Panel("", rf"$\epsilon${unit}", r"$A_\mathrm{rob}$, %", tuple(lines), y_max=100.0)
    return panels_picture(title, [panel])


def sparsities(group: Sequence[Measurement], summaries: Mapping[str, Summary]) -> list[Figure]:
    """Return two figures of each threat model: networks against γ, and each with incremental and with direct training.

    They are laid out as figures 4 and 6 of xiao2020. `summaries`: evaluations by identity.
    """
    drawn = []
    alike: dict[tuple[ThreatModel, int], list[_Series]] = {}
    for measurement in group:
        series = _Series(measurement, [summaries[identity] for identity in measurement.spec["evaluations"]])
        alike.setdefault((series.evaluations[0].threat, series.evaluations[0].n), []).append(series)
    for (threat, n), members in alike.items():
        suite, dataset = members[0].measurement.spec["suite"], members[0].measurement.dataset
        setting = f"{dataset}, {threat}, n = {n}"
        used = [series.measurement for series in members]
        networks = (
            f"Networks like {', '.join(series.measurement.model for series in members)}, one for each γ and kind of training. "
            "Incremental training starts at a larger γ, and lowers it step by step."
        )
        bands = f"A_rob is under {suite}, {threat}; bands are 95 % intervals."
        panels = [
            _against_gamma(
                "",
                rf"$A_\mathrm{{{name}}}$, %",
                [
                    Curve(short(series.measurement.model), series.points(accuracy_of)).line(number)
                    for number, series in enumerate(members)
                ],
            )
            for name, accuracy_of in (("std", _a_std), ("rob", _a_rob))
        ]
        caption = f"{networks} Below that γ the networks shown are trained incrementally. {bands} Compare figure 4 of xiao2020."
        picture = panels_picture(f"Accuracy against γ under {suite}: {setting}", panels, description=described(used))
        drawn.append(figure_of(used, f"gamma-{suite}", caption, picture))
        if not any(series.incremental.any() for series in members):
            continue
        panels = [
            _against_gamma(
                short(series.measurement.model),
                "accuracy, %",
                [
                    # Direct training is dashed, so that the other curve is seen below it where they agree.
                    Curve(f"{kind}, {training} training", series.points(accuracy_of, chosen)).line(
                        number + dashed * (len(COLOURS))
                    )
                    for number, (kind, accuracy_of) in enumerate((("clean accuracy", _a_std), ("robust accuracy", _a_rob)))
                    for dashed, (training, chosen) in enumerate(
                        (("incremental", series.incremental), ("direct", ~series.incremental))
                    )
                ],
            )
            for series in members
        ]
        caption = f"{networks} Both kinds of training of one γ last equally long. {bands} Compare figure 6 of xiao2020."
        picture = panels_picture(
            f"Incremental and direct training under {suite}: {setting}", panels, description=described(used)
        )
        drawn.append(figure_of(used, f"training-{suite}", caption, picture))
    return drawn


@dataclass(frozen=True, slots=True)
class _Series:
    """A network at several values of γ, with the evaluation of each."""

    measurement: Measurement
    evaluations: Sequence[Summary]

    @property
    def incremental(self) -> NDArray[np.bool_]:
        return self.measurement.arrays["incremental"].astype(bool)

    def points(
        self, accuracy_of: Callable[[Summary], Interval | None], chosen: NDArray[np.bool_] | None = None
    ) -> tuple[tuple[float, Interval | None], ...]:
        """Return γ and accuracy of the networks chosen; by default at each γ the one trained incrementally, if there is one."""
        gamma = self.measurement.arrays["gamma"]
        if chosen is None:
            chosen = self.incremental | ~np.isin(gamma, gamma[self.incremental])
        return tuple((float(gamma[index]), accuracy_of(self.evaluations[index])) for index in np.flatnonzero(chosen).tolist())


def _against_gamma(title: str, y_label: str, lines: Sequence[Line]) -> Panel:
    """Return a panel in which γ falls from left to right, on a logarithmic axis over more than three octaves."""
    lines = [line for line in lines if len(line.x)]
    places = np.concatenate([line.x for line in lines])
    logarithmic = bool(places.max() >= 8 * places.min())
    return Panel(
        title, r"$\gamma$", y_label, tuple(lines), log_x=logarithmic, y_max=100.0, ticks_at_points=True, descending=True
    )


def _a_std(summary: Summary) -> Interval | None:
    return summary.a_std


def _a_rob(summary: Summary) -> Interval | None:
    return summary.a_rob


def gammas(boards: Sequence[Board]) -> list[Figure]:
    """Return a figure for each board with networks that differ only in γ: A_std and A_rob against γ, a line a network.

    Boards of transfers and of natural perturbations are left out.
    """
    drawn = []
    for board in boards:
        if is_natural(board):
            continue
        families = {family: members for family, members in _families(board).items() if len(members) > 1}
        if not families:
            continue
        panels = []
        for name, accuracy_of in (("std", _a_std), ("rob", _a_rob)):
            lines = []
            for number, (family, members) in enumerate(sorted(families.items())):
                points = tuple((gamma, accuracy_of(members[gamma])) for gamma in sorted(members))
                lines.append(Curve(short(family), points).line(number))
            panels.append(_against_gamma("", rf"$A_\mathrm{{{name}}}$, %", lines))
        key = board.key
        title = f"Accuracy against γ under {key.suite}: {key.dataset}, {board.threat}, n = {key.n}"
        caption = (
            f"Accuracy of networks that differ only in γ, on {key.dataset} under {key.suite}, {board.threat}; bands are 95 % "
            "intervals. Compare figure 4 of xiao2020."
        )
        used = [members[gamma] for _, members in sorted(families.items()) for gamma in sorted(members)]
        picture = panels_picture(title, panels, description=_described(used))
        drawn.append(Figure(f"gamma-{key.suite}-{key.dataset}", "gamma", caption, picture, _sources(used)))
    return drawn


def _families(board: Board) -> dict[str, dict[float, Summary]]:
    """Group a board's complete evaluations by the model's name without its γ; each group by γ."""
    families: dict[str, dict[float, Summary]] = {}
    for row in board.rows:
        if any(attack.surrogate for attack in row.summary.attacks):
            continue
        entry = row.summary.evaluation.origin.get("entry")
        activation = entry.get("activation") if isinstance(entry, Mapping) else None
        gamma = activation.get("gamma") if isinstance(activation, Mapping) else None
        if isinstance(gamma, int | float) and row.summary.complete and f"{gamma:g}" in row.summary.model:
            families.setdefault(row.summary.model.replace(f"{gamma:g}", "-γ", 1), {}).setdefault(float(gamma), row.summary)
    return families


def _described(used: Sequence[Summary]) -> str:
    return "kwbench; " + "; ".join(f"{summary.model} run {summary.evaluation.spec.identity}" for summary in used)


def transfers(boards: Sequence[Board]) -> list[Figure]:
    """Return a matrix for each board whose suite has at least two surrogates."""
    drawn = []
    for board in boards:
        cells: dict[tuple[str, str], Cell] = {}
        sources: dict[str, None] = {}
        used: list[Summary] = []
        for row in sorted(board.rows, key=lambda row: row.summary.model):
            summary = row.summary
            origin = summary.evaluation.spec.spec.get("origin", {})
            for attack in summary.attacks:
                source = attack.surrogate
                if source is None or source.startswith("swap:"):
                    continue
                sources[source] = None
                same = attack.spec.spec.get("surrogate_sha256") == origin.get("model_sha256")
                same_recipe = source.removesuffix("-copy") == summary.model.removesuffix("-copy")
                copies = same_recipe and not same and source != summary.model
                cells[summary.model, source] = Cell(attack.accuracy, copies, same)
            if any(target == summary.model for target, _ in cells):
                used.append(summary)
        if len(sources) < 2:
            continue
        ordered = _with_copies_on_diagonal([summary.model for summary in used], list(sources))
        key = board.key
        title = f"Transfer: {key.suite}, {key.dataset}, {board.threat}, n = {key.n}"
        framed = (
            "Framed: source and target are independent copies, trained by the same recipe with different seeds, which the "
            "paper calls the strongest transfer. "
        )
        caption = (
            "Accuracy of each target (row) on adversarial examples made on each source (column). "
            f"{framed if any(cell.copies for cell in cells.values()) else ''}Compare table 3 of xiao2020."
        )
        shorts = {name: short(name) for name in (*ordered, *sources)}
        short_cells = {(shorts[target], shorts[source]): cell for (target, source), cell in cells.items()}
        picture = matrix_picture(
            title,
            [shorts[name] for name in ordered],
            [shorts[name] for name in sources],
            short_cells,
            key.n,
            description=_described(used),
        )
        drawn.append(Figure(f"transfer-{key.suite}-{key.dataset}", "transfer", caption, picture, _sources(used)))
    return drawn


def _sources(used: Sequence[Summary]) -> tuple[Source, ...]:
    return tuple(
        Source(
            summary.model,
            summary.evaluation.spec.identity,
            {**summary.evaluation.spec.spec, "provenance": summary.evaluation.spec.provenance},
        )
        for summary in used
    )


def _with_copies_on_diagonal(targets: Sequence[str], sources: Sequence[str]) -> list[str]:
    """The targets in the order of their copies among the sources, then the others."""
    column = {source.removesuffix("-copy"): number for number, source in enumerate(sources)}
    return sorted(targets, key=lambda target: (column.get(target.removesuffix("-copy"), len(sources)), target))
