"""How many samples still stand after so many passes: a curve for each attack of an evaluation."""

from collections.abc import Mapping

import numpy as np
from markupsafe import Markup

from kwbench.formatting import count_text, percent, plain
from kwbench.outcome import CLEAN, Status
from kwbench.record.cascade import cascaded_attacks
from kwbench.record.database.samples import SampleColumns
from kwbench.record.summary import Summary
from kwbench.report.html.charts import Axis, Line, Point, lines_svg

# Points of a curve at most.
_POINTS = 100


def survival_chart(columns: Mapping[str, SampleColumns], summary: Summary) -> Markup | None:
    """Return the share of samples that stand against the passes spent on each, forward and backward, on a logarithmic axis.

    In a cascade, an attack goes on from the passes and the samples that the attacks before it left. Returns None without a
    deterministic model's clean accuracy, or if no attack declares passes.
    """
    if summary.a_std is None or summary.stochastic:
        return None
    cascaded = cascaded_attacks(summary.evaluation.spec)
    standing, spent = round(summary.a_std.value * summary.n), 0
    lines: list[Line] = []
    for attack in summary.attacks:
        rows = columns.get(attack.name)
        if rows is None or attack.name == CLEAN:
            continue
        passes = np.array(rows.passes.split(","), dtype=np.int64)
        broken = np.sort(passes[np.array(rows.status.split(",")) == Status.BROKEN.value])
        if passes.max() < 1:
            continue
        before, offset = (standing, spent) if attack.name in cascaded else (round(summary.a_std.value * summary.n), 0)
        lines.append(_line(attack.name, before, broken + offset, offset, int(passes.max()) + offset, summary.n))
        if attack.name in cascaded:
            standing, spent = standing - len(broken), spent + int(passes.max())
    if not lines:
        return None
    low = min(point.x for line in lines for point in line.points)
    high = max(point.x for line in lines for point in line.points)
    x = Axis("passes per sample, forward and backward", low, max(high, 10 * low), logarithmic=True)
    return lines_svg(lines, x, Axis("samples that stand, %", 0.0, 100.0), f"Samples of {plain(summary.model)} that stand")


def _line(name: str, before: int, broken: np.ndarray, start: int, end: int, n: int) -> Line:
    """The curve of one attack: `broken` are the passes, sorted, at which samples broke."""
    places, counts = np.unique(broken, return_counts=True)
    left = before - np.cumsum(counts)
    if len(places) > _POINTS:
        kept = np.unique(np.linspace(0, len(places) - 1, _POINTS).round().astype(int))
        places, left = places[kept], left[kept]
    steps = [(max(1, start), before), *zip(places.tolist(), left.tolist(), strict=True), (end, before - len(broken))]
    points = [
        Point(max(1, passes), 100 * stand / n, f"{name}: {percent(stand / n, n)} % after {count_text(passes)} passes")
        for passes, stand in steps
    ]
    return Line(name, tuple(points), step=True)
