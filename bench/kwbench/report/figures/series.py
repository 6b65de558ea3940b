"""Figures of several evaluations: sweeps of a parameter, accuracy against gamma, and transfer between networks."""

from collections.abc import Mapping, Sequence

import numpy as np

from kwbench.record.measurement import Measurement
from kwbench.record.summary import Summary
from kwbench.report.figures.figure import Figure, Source, described, figure_of, short
from kwbench.report.leaderboard import Board
from kwbench.report.svg.lines import Curve, Panel, curves_svg, panels_svg
from kwbench.report.svg.matrix import Cell, matrix_svg
from kwbench.statistics import Interval


def sweeps(group: Sequence[Measurement], summaries: Mapping[str, Summary]) -> list[Figure]:
    """Return one figure of A_rob against the swept parameter. `summaries`: evaluations by identity, as for `sparsities`."""
    first = group[0]
    over_eps = first.spec["over"] == "eps"
    curves = []
    for sweep in group:
        evaluations = [summaries[identity] for identity in sweep.spec["evaluations"]]
        points = [
            (float(value), evaluation.a_rob) for value, evaluation in zip(sweep.arrays["place"], evaluations, strict=True)
        ]
        curves.append(Curve(sweep.model, tuple([(0.0, evaluations[0].a_std), *points] if over_eps else points)))
    example = summaries[first.spec["evaluations"][0]]
    threat = example.threat.norm if over_eps else example.threat
    title = f"{first.spec['suite']}: {first.dataset}, {threat}, n = {example.n}"
    caption = f"Robust accuracy (A_rob) of the suite {first.spec['suite']} against {first.spec['over']}, with 95 % intervals."
    svg = curves_svg(curves, title, first.spec["over"], described(group))
    return [figure_of(group, str(first.spec["over"]), title, caption, svg)]


def sparsities(group: Sequence[Measurement], summaries: Mapping[str, Summary]) -> list[Figure]:
    """Return a figure for each series: A_std and A_rob against γ, with incremental and with direct training."""
    drawn = []
    for series in group:
        evaluations = [summaries[identity] for identity in series.spec["evaluations"]]
        gamma, incremental = series.arrays["gamma"], series.arrays["incremental"].astype(bool)
        panels = []
        for name, accuracy_of in (("A_std", _a_std), ("A_rob", _a_rob)):
            lines = []
            for number, (training, chosen) in enumerate((("incremental", incremental), ("direct", ~incremental))):
                indices = np.flatnonzero(chosen)
                if len(indices):
                    points = tuple((float(gamma[index]), accuracy_of(evaluations[index])) for index in indices)
                    lines.append(Curve(f"{training} training", points).line(number))
            panels.append(Panel(name, "γ", "accuracy, %", tuple(lines), y_max=100.0))
        example = evaluations[0]
        model, suite = short(series.model), series.spec["suite"]
        title = f"Accuracy against γ under {suite}: {model}, {example.dataset}, {example.threat}, n = {example.n}"
        caption = (
            f"Networks like {series.model}, one for each γ and kind of training, all trained for the same number of epochs. "
            f"A_rob is under {suite}; bands are 95 % intervals. Compare figures 4 and 6 of xiao2020."
        )
        svg = panels_svg(title, panels, description=described([series]))
        drawn.append(figure_of([series], f"{model}-{suite}", title, caption, svg))
    return drawn


def _a_std(summary: Summary) -> Interval | None:
    return summary.a_std


def _a_rob(summary: Summary) -> Interval | None:
    return summary.a_rob


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
        identities = "; ".join(f"{summary.model} run {summary.evaluation.spec.identity}" for summary in used)
        svg = matrix_svg(
            title,
            [shorts[name] for name in ordered],
            [shorts[name] for name in sources],
            short_cells,
            key.n,
            description=f"kwbench; {identities}",
        )
        runs = tuple(
            Source(
                summary.model,
                summary.evaluation.spec.identity,
                {**summary.evaluation.spec.spec, "provenance": summary.evaluation.spec.provenance},
            )
            for summary in used
        )
        drawn.append(Figure(f"transfer-{key.suite}-{key.dataset}", "transfer", title, caption, svg, runs))
    return drawn


def _with_copies_on_diagonal(targets: Sequence[str], sources: Sequence[str]) -> list[str]:
    """The targets in the order of their copies among the sources, then the others."""
    column = {source.removesuffix("-copy"): number for number, source in enumerate(sources)}
    return sorted(targets, key=lambda target: (column.get(target.removesuffix("-copy"), len(sources)), target))
