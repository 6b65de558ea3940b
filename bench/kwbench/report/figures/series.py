"""Figures about several evaluations at once: sweeps, gammas, and transfer between networks."""

from collections.abc import Mapping, Sequence

import numpy as np

from kwbench.record.measurement import Measurement
from kwbench.record.summary import Summary
from kwbench.report.figures.figure import Figure, Source, described, figure_of, short
from kwbench.report.leaderboard import Board
from kwbench.report.svg.lines import Curve, Panel, curves_svg, panels_svg
from kwbench.report.svg.matrix import Cell, matrix_svg
from kwbench.statistics import Interval


def sweeps(group: Sequence[Measurement], known: Mapping[str, Summary]) -> list[Figure]:
    first = group[0]
    of_eps = first.spec["over"] == "eps"
    curves = []
    for each in group:
        found = [known[identity] for identity in each.spec["evaluations"]]
        points = [(float(place), one.a_rob) for place, one in zip(each.arrays["place"], found, strict=True)]
        curves.append(Curve(each.model, tuple([(0.0, found[0].a_std), *points] if of_eps else points)))
    one = known[first.spec["evaluations"][0]]
    title = f"{first.spec['suite']}: {first.dataset}, {one.threat.norm if of_eps else one.threat}, n = {one.n}"
    caption = f"Robust accuracy (A_rob) of the suite {first.spec['suite']} against {first.spec['over']}, with 95 % intervals."
    svg = curves_svg(curves, title, first.spec["over"], described(group))
    return [figure_of(group, str(first.spec["over"]), title, caption, svg)]


def sparsities(group: Sequence[Measurement], known: Mapping[str, Summary]) -> list[Figure]:
    drawn = []
    for each in group:
        found = [known[identity] for identity in each.spec["evaluations"]]
        gamma, incremental = each.arrays["gamma"], each.arrays["incremental"].astype(bool)
        panels = []
        for name, pick in (("A_std", _a_std), ("A_rob", _a_rob)):
            lines = []
            for number, (way, chosen) in enumerate((("incremental", incremental), ("direct", ~incremental))):
                places = np.flatnonzero(chosen)
                if len(places):
                    points = tuple((float(gamma[at]), pick(found[at])) for at in places)
                    lines.append(Curve(f"{way} training", points).line(number))
            panels.append(Panel(name, "γ", "accuracy, %", tuple(lines), y_max=100.0))
        one = found[0]
        suite = each.spec["suite"]
        title = f"Accuracy against γ under {suite}: {short(each.model)}, {one.dataset}, {one.threat}, n = {one.n}"
        caption = (
            f"Networks like {each.model}, one for each γ and way of training, with equal numbers of epochs. A_rob is under "
            f"{suite}; bands are 95 % intervals. As figures 4 and 6 of xiao2020."
        )
        svg = panels_svg(title, panels, description=described([each]))
        drawn.append(figure_of([each], f"{short(each.model)}-{suite}", title, caption, svg))
    return drawn


def _a_std(standing: Summary) -> Interval | None:
    return standing.a_std


def _a_rob(standing: Summary) -> Interval | None:
    return standing.a_rob


def transfers(boards: Sequence[Board]) -> list[Figure]:
    """A matrix for each board whose suite has two sources of transferred images or more."""
    drawn = []
    for board in boards:
        cells: dict[tuple[str, str], Cell] = {}
        sources: dict[str, None] = {}
        used: list[Summary] = []
        for row in sorted(board.rows, key=lambda row: row.summary.model):
            standing = row.summary
            origin = standing.evaluation.spec.spec.get("origin", {})
            for attack in standing.attacks:
                source = attack.surrogate
                if source is None or source.startswith("swap:"):
                    continue
                sources[source] = None
                same = attack.spec.spec.get("surrogate_sha256") == origin.get("model_sha256")
                alike = source.removesuffix("-copy") == standing.model.removesuffix("-copy")
                copies = alike and not same and source != standing.model
                cells[standing.model, source] = Cell(attack.accuracy, copies, same)
            if any(target == standing.model for target, _ in cells):
                used.append(standing)
        if len(sources) < 2:
            continue
        ordered = _diagonal([each.model for each in used], list(sources))
        key = board.key
        title = f"Transfer: {key.suite}, {key.dataset}, {board.threat}, n = {key.n}"
        framed = (
            "Framed: source and target are independent copies, trained alike from different random numbers, which the paper "
            "calls the strongest transfer. "
        )
        caption = (
            "Accuracy of each target (row) on images made against each source (column). "
            f"{framed if any(cell.copies for cell in cells.values()) else ''}As table 3 of xiao2020."
        )
        shorts = {name: short(name) for name in (*ordered, *sources)}
        seen = {(shorts[target], shorts[source]): cell for (target, source), cell in cells.items()}
        identities = "; ".join(f"{each.model} run {each.evaluation.spec.identity}" for each in used)
        svg = matrix_svg(
            title,
            [shorts[name] for name in ordered],
            [shorts[name] for name in sources],
            seen,
            key.n,
            description=f"kwbench; {identities}",
        )
        runs = tuple(
            Source(
                each.model,
                each.evaluation.spec.identity,
                {**each.evaluation.spec.spec, "provenance": each.evaluation.spec.provenance},
            )
            for each in used
        )
        drawn.append(Figure(f"transfer-{key.suite}-{key.dataset}", "transfer", title, caption, svg, runs))
    return drawn


def _diagonal(targets: Sequence[str], sources: Sequence[str]) -> list[str]:
    """The targets in the order of their copies among the sources, then the others."""
    place = {source.removesuffix("-copy"): at for at, source in enumerate(sources)}
    return sorted(targets, key=lambda target: (place.get(target.removesuffix("-copy"), len(sources)), target))
