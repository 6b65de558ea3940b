"""All pages of a report, by file."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from kwbench.record.comparability import comparison_key
from kwbench.record.results import to_json
from kwbench.report.html.evaluation import evaluation_view
from kwbench.report.html.grouping import Table, run_file, tables
from kwbench.report.html.leaderboard import Entry, PaperClaim, Remark, board_view, table_view
from kwbench.report.html.model_facts import model_facts
from kwbench.report.html.samples import samples_script
from kwbench.report.html.sweeps import complete_series, series_charts
from kwbench.report.html.worst import worst_pictures
from kwbench.report.page import asset_files, rendered, rendered_in_folder
from kwbench.report.tables import csv_table
from kwbench.threat import exact_fraction
from kwbench.verdict import CAVEAT, verdict_json, verdict_on_record

if TYPE_CHECKING:
    from kwbench.record.measurement import Measurement
    from kwbench.record.store import Store
    from kwbench.record.summary import Summary
    from kwbench.report.data import ReportData

_TABLES = ("datatables.min.js", "leaderboard.js")
_COMPARE = ("samples.js", "compare.js")
_RUN = ("copy.js", "datatables.min.js", "uplot.min.js", "samples.js", "survival.js", "viewer.js")


def site(data: "ReportData") -> dict[str, str]:
    """Return the files of the pages by their path in the report's folder: pages, style, scripts, CSV and JSON."""
    pages = ("index.html", "compare.html", *(file for file in ("claims.html", "figures.html") if file in data.pages))
    entries = _entries(data, linked=True)
    series = _series(data)
    views = _views(data, entries, series)
    index = rendered_in_folder("leaderboard.html.j2", pages=pages, scripts=_TABLES, **views, single=False)
    groups = _comparable(data)
    compare = rendered_in_folder("compare.html.j2", pages=pages, scripts=_COMPARE, groups=groups)
    files = {"index.html": index, "compare.html": compare, **asset_files(tuple(dict.fromkeys((*_TABLES, *_RUN, *_COMPARE))))}
    compared = {run for _, rows in groups for _, run in rows}
    addresses = _table_addresses(data, series)
    for summary in data.summaries:
        entry = entries[summary.evaluation.id]
        name = run_file(summary)
        runs = summary.evaluation.attack_runs
        outcomes = {label: arrays for label, run in runs.items() if len(arrays := data.store.outcome_arrays(run))}
        view, run = evaluation_view(entry), name if name in compared else None
        files[f"runs/{name}.html"] = rendered_in_folder(
            "evaluation.html.j2",
            pages=pages,
            scripts=_RUN,
            below=True,
            data=[f"{name}.js"],
            it=view,
            caveat=CAVEAT,
            run=run,
            table=addresses.get(summary.evaluation.id, ""),
        )
        files[f"runs/{name}.js"] = samples_script(data.store, summary, outcomes)
    verdicts = {summary.evaluation.id: verdict_json(verdict_on_record(summary)) for summary in data.summaries}
    values = [{**to_json(summary), "verdict": verdicts[summary.evaluation.id]} for summary in data.summaries]
    return files | {"results.csv": csv_table(data.summaries), "results.json": json.dumps(values, indent=1) + "\n"}


def _table_addresses(data: "ReportData", series: Sequence["Measurement"]) -> dict[int, str]:
    """Return where the leaderboard shows each evaluation, by its id: in its table, or as part of a curve."""
    drawn = _identities(series)
    addresses = {summary.evaluation.id: "#sweeps" for summary in data.summaries if summary.evaluation.spec.identity in drawn}
    for table in tables(data.suite_boards, drawn):
        for number, tab in enumerate(table.tabs):
            for summary in (*(row.summary for row in tab.board.rows), *tab.board.earlier):
                addresses[summary.evaluation.id] = f"#{table.id}" + (f"?tab={tab.id}" if number else "")
    return addresses


def _identities(series: Sequence["Measurement"]) -> set[str]:
    """Return the identities of the evaluations of these series."""
    return {identity for measurement in series for identity in measurement.spec["evaluations"]}


def _series(data: "ReportData") -> list["Measurement"]:
    """Return the series of evaluations that are drawn as curves."""
    sparsities = [measurement for measurement in data.experiments if measurement.experiment == "sparsity"]
    return complete_series([*data.sweeps, *sparsities], data.summaries)


def _comparable(data: "ReportData") -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the models that can be compared with one another: the title of each board with several, and their runs."""
    groups = []
    for table in tables(data.suite_boards):
        for tab in table.tabs:
            rows = [(row.summary.model, run_file(row.summary)) for row in tab.board.rows if row.rank is not None]
            if len(rows) > 1:
                groups.append((f"{table.dataset}, {table.threat}, {tab.label}", rows))
    return groups


def leaderboard_page(data: "ReportData") -> str:
    """Return the leaderboards as one self-contained page, without the pages of the evaluations."""
    views = _views(data, _entries(data, linked=False), _series(data))
    return rendered("leaderboard.html.j2", scripts=_TABLES, **views, single=True)


def _views(data: "ReportData", entries: Mapping[int, Entry], series: Sequence["Measurement"]) -> dict[str, Any]:
    made = [_table(data.store, table, entries) for table in tables(data.suite_boards, _identities(series))]
    return {"tables": made, "sweeps": series_charts(series, list(entries.values())), "caveat": CAVEAT}


def _table(store: "Store", table: Table, entries: Mapping[int, Entry]) -> SimpleNamespace:
    boards = []
    for tab in table.tabs:
        rows = [entries[row.summary.evaluation.id] for row in tab.board.rows]
        view = board_view(table, tab, _with_remarks(rows))
        view.pictures = worst_pictures(store, rows[0].summary) if view.best else []
        boards.append(view)
    return table_view(table, boards)


def _with_remarks(entries: Sequence[Entry]) -> list[Entry]:
    """Mark evaluations that differ from most others of their board in the suite's attacks, or in the version of kwbench."""
    protocols = [comparison_key(entry.summary.evaluation).protocol for entry in entries]
    usual = Counter(protocols).most_common(1)[0][0]
    all_earlier = all(entry.summary.earlier_version for entry in entries)
    marked = []
    for entry, protocol in zip(entries, protocols, strict=True):
        remark: Remark | None = "other attacks" if protocol != usual else None
        if remark is None and entry.summary.earlier_version and not all_earlier:
            remark = "earlier version"
        marked.append(replace(entry, remark=remark))
    return marked


def _entries(data: "ReportData", *, linked: bool) -> dict[int, Entry]:
    """Return an entry for every evaluation, by its id."""
    from kwbench.config.registry import read_registry

    registry, claims = read_registry(), _claims(data)
    rows = {row.summary.evaluation.id: (row, board) for board in data.suite_boards for row in board.rows}
    entries = {}
    for summary in data.summaries:
        row, board = rows.get(summary.evaluation.id, (None, None))
        entries[summary.evaluation.id] = Entry(
            summary,
            row,
            board,
            model_facts(summary, registry),
            verdict_on_record(summary),
            claims.get(summary.evaluation.spec.identity) or _claimed_by_library(summary),
            f"runs/{run_file(summary)}.html" if linked else None,
        )
    return entries


def _claimed_by_library(summary: "Summary") -> PaperClaim | None:
    """Return what a library such as RobustBench states about a model at the radius of its evaluation."""
    claimed = summary.evaluation.spec.provenance.get("claimed")
    if not isinstance(claimed, dict) or claimed.get("autoattack") is None:
        return None
    try:
        same = exact_fraction(str(claimed.get("eps"))) == summary.threat.eps
    except ValueError:
        same = False
    percent = 100 * float(claimed["autoattack"])
    return PaperClaim(str(claimed["by"]), "AutoAttack", percent, f"{percent:.2f}") if same else None


def _claims(data: "ReportData") -> dict[str, PaperClaim]:
    """Return the lowest claimed robust accuracy about the network of each evaluation under `strong`, by its identity."""
    lowest: dict[str, PaperClaim] = {}
    if not any(summary.evaluation.spec.suite == "strong" for summary in data.summaries):
        return lowest
    for comparison in data.claims[0]:
        claim = comparison.claim
        if comparison.strong is None or not claim.attacked or _is_black_box(claim.attack):
            continue
        identity = comparison.strong.summary.evaluation.spec.identity
        if identity not in lowest or claim.percent < lowest[identity].percent:
            lowest[identity] = PaperClaim(claim.paper, claim.attack, claim.percent, claim.text)
    return lowest


def _is_black_box(attack: str) -> bool:
    return attack == "BB" or re.match("transfer", attack) is not None
