"""Series of evaluations as curves: A_rob against eps or a parameter of an attack, and against γ of k-WTA."""

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

from kwbench.formatting import interval_text
from kwbench.record.measurement import Measurement
from kwbench.record.summary import Summary
from kwbench.report.drawing.picture import Picture
from kwbench.report.figures.series import sparsities, sweep_curves
from kwbench.report.html.charts import chart_image
from kwbench.report.html.leaderboard import Entry


def complete_series(series: Sequence[Measurement], summaries: Sequence[Summary]) -> list[Measurement]:
    """Return the series all of whose evaluations are on record; of several of one model, with equal settings, the newest."""
    identities = {summary.evaluation.spec.identity for summary in summaries}
    newest: dict[tuple[str, str], Measurement] = {}
    for measurement in series:
        if identities >= set(measurement.spec["evaluations"]):
            # In the order of the newest ones.
            newest.pop((_settings(measurement), measurement.model), None)
            newest[_settings(measurement), measurement.model] = measurement
    return list(newest.values())


def series_charts(series: Sequence[Measurement], entries: Sequence[Entry]) -> list[SimpleNamespace]:
    """Return the charts of complete series, a line for each model: one of each sweep, and those of each comparison of γ."""
    by_identity = {entry.summary.evaluation.spec.identity: entry for entry in entries}
    groups: dict[str, list[Measurement]] = {}
    for measurement in series:
        groups.setdefault(_settings(measurement), []).append(measurement)
    charts = []
    for group in groups.values():
        used = [by_identity[identity] for measurement in group for identity in measurement.spec["evaluations"]]
        summaries = {entry.summary.evaluation.spec.identity: entry.summary for entry in used}
        if group[0].experiment == "sweep":
            charts.append(_chart(*_sweep(group, summaries), used))
        else:
            pictures = [figure.picture for figure in sparsities(group, summaries)]
            charts += [_chart(picture.title, picture, used) for picture in pictures]
    return charts


def _settings(measurement: Measurement) -> str:
    """What the series in one chart share, as JSON. The values of γ may differ."""
    spec = measurement.spec
    values = spec["values"] if measurement.experiment == "sweep" else None
    return json.dumps([measurement.experiment, measurement.dataset, spec["suite"], spec.get("over"), values])


def _sweep(group: Sequence[Measurement], summaries: Mapping[str, Summary]) -> tuple[str, Picture]:
    """Return the chart of a sweep, after its title."""
    spec = group[0].spec
    curves = [[summaries[identity] for identity in sweep.spec["evaluations"]] for sweep in group]
    example = curves[0][0]
    threat = example.threat.norm if spec["over"] == "eps" else str(example.threat)
    picture = sweep_curves(str(spec["suite"]), str(spec["over"]), group[0].arrays["place"], curves)
    return f"Accuracy against {spec['over']} under {spec['suite']}: {example.dataset}, {threat}, n = {example.n}", picture


def _chart(title: str, picture: Picture, used: Sequence[Entry]) -> SimpleNamespace:
    return SimpleNamespace(title=title, chart=chart_image(picture), evaluations=[_evaluation(entry) for entry in used])


def _evaluation(entry: Entry) -> SimpleNamespace:
    summary = entry.summary
    return SimpleNamespace(
        model=summary.model,
        href=entry.href,
        threat=str(summary.threat),
        robust="incomplete" if summary.a_rob is None else f"{interval_text(summary.a_rob, summary.n)} %",
        verdict=entry.verdict.conclusion if entry.verdict else None,
    )
