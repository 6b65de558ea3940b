"""Sweeps as curves: robust accuracy against eps, or against a parameter of an attack."""

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

from kwbench.record.measurement import Measurement
from kwbench.record.summary import Summary
from kwbench.report.figures.series import sweep_curves
from kwbench.report.html.charts import chart_image


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


def _chart(group: Sequence[Measurement], summaries: Mapping[str, Summary]) -> SimpleNamespace:
    spec = group[0].spec
    curves = [[summaries[identity] for identity in sweep.spec["evaluations"]] for sweep in group]
    example = curves[0][0]
    threat = example.threat.norm if spec["over"] == "eps" else str(example.threat)
    picture = sweep_curves(str(spec["suite"]), str(spec["over"]), group[0].arrays["place"], curves)
    title = f"{example.dataset}, {threat}: {spec['suite']} against {spec['over']}"
    return SimpleNamespace(title=title, n=example.n, chart=chart_image(picture))
