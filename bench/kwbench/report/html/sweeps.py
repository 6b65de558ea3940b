"""Sweeps as curves: robust accuracy against eps, or against a parameter of an attack."""

import json
from collections.abc import Sequence
from types import SimpleNamespace

from kwbench.formatting import percent
from kwbench.record.measurement import Measurement
from kwbench.record.summary import Summary
from kwbench.report.figures.conventions import distance_scale
from kwbench.report.html.charts import Axis, Line, Point, lines_svg


def sweep_charts(sweeps: Sequence[Measurement], summaries: Sequence[Summary]) -> list[SimpleNamespace]:
    """Return a chart for each swept parameter, with a line for each model. Sweeps with missing evaluations are left out."""
    by_identity = {summary.evaluation.spec.identity: summary for summary in summaries}
    groups: dict[str, dict[str, Measurement]] = {}
    for sweep in sweeps:
        if by_identity.keys() >= set(sweep.spec["evaluations"]):
            key = json.dumps([sweep.dataset, sweep.spec["suite"], sweep.spec["over"], sweep.spec["values"]])
            # Of two sweeps of one model the newer one is last.
            groups.setdefault(key, {})[sweep.model] = sweep
    return [_chart(list(group.values()), by_identity) for group in groups.values()]


def _chart(group: Sequence[Measurement], summaries: dict[str, Summary]) -> SimpleNamespace:
    first = group[0]
    over = str(first.spec["over"])
    example = summaries[first.spec["evaluations"][0]]
    scale, unit = distance_scale(first.dataset, example.threat.norm) if over == "eps" else (1.0, "")
    lines = []
    for sweep in group:
        evaluations = [summaries[identity] for identity in sweep.spec["evaluations"]]
        points = [
            Point(
                scale * value,
                100 * summary.a_rob.value,
                f"{sweep.model} at {over} = {value:g}: {percent(summary.a_rob.value, summary.n)} %",
                100 * summary.a_rob.low,
                100 * summary.a_rob.high,
            )
            for value, summary in zip(sweep.arrays["place"].tolist(), evaluations, strict=True)
            if summary.a_rob is not None
        ]
        start = evaluations[0].a_std
        if over == "eps" and start is not None:
            points.insert(0, Point(0.0, 100 * start.value, f"{sweep.model}, clean: {percent(start.value, evaluations[0].n)} %"))
        lines.append(Line(sweep.model, tuple(points)))
    threat = example.threat.norm if over == "eps" else str(example.threat)
    highest = max((point.x for line in lines for point in line.points), default=1.0)
    title = f"{first.dataset}, {threat}: {first.spec['suite']} against {over}"
    svg = lines_svg(lines, Axis(f"{over}{unit}", 0.0, highest), Axis("robust accuracy, %", 0.0, 100.0), title)
    return SimpleNamespace(title=title, n=example.n, chart=svg)
