"""The verdicts with their evidence, as a Markdown page."""

from collections.abc import Sequence

from kwbench.formatting import interval_text, markdown
from kwbench.record.summary import Summary
from kwbench.report.leaderboard import Board
from kwbench.statistics import Interval
from kwbench.verdict import CAVEAT, Verdict, verdict_on_record

# The length of a statement, which may quote several operations.
_STATEMENT = 1000


def verdicts_page(tables: Sequence[Board]) -> str:
    """Return a row and the findings of each diagnosed evaluation: the newest of each model under each suite and threat."""
    diagnosed = [
        (row.summary, verdict) for board in tables for row in board.rows if (verdict := verdict_on_record(row.summary))
    ]
    parts = [
        "# Verdicts\n",
        "A verdict is about a model and the protocol by which it is usually evaluated. Overestimated: the accuracy under the "
        "protocol is more than one point above that under the strongest attacks, with 99 % confidence. Degenerate: the model "
        "is constant or at chance level. Confirmed: twice the budget lowers the accuracy by at most one point, and no check "
        f"casts doubt on A\\_rob. Inconclusive: all other cases. {CAVEAT}\n",
    ]
    if not diagnosed:
        return "\n".join([*parts, "No model has been diagnosed yet; run `kwbench diagnose MODEL`.\n"])
    lines = [
        [
            "Model",
            "Data, threat",
            "n",
            "Suite",
            "A\\_std",
            "Protocol",
            "A\\_rob",
            "Overestimate, points",
            "Verdict",
            "What fires",
        ],
        [":--", ":--", "--:", ":--", "--:", "--:", "--:", "--:", ":--", ":--"],
        *(_cells(summary, verdict) for summary, verdict in diagnosed),
    ]
    parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    for summary, verdict in diagnosed:
        parts.append(f"## {markdown(summary.model)}, {markdown(summary.dataset)}, {markdown(summary.threat)}\n")
        parts.append(f"{markdown(verdict.sentence(), 2 * _STATEMENT)}\n")
        parts.append("\n".join(_evidence(summary)) + "\n")
    return "\n".join(parts)


def _cells(summary: Summary, verdict: Verdict) -> list[str]:
    n, overestimate = summary.n, verdict.overestimate
    return [
        markdown(summary.model) + (" (stochastic)" if summary.stochastic else ""),
        markdown(f"{summary.dataset}, {summary.threat}"),
        str(n),
        markdown(summary.evaluation.spec.suite),
        interval_text(summary.a_std, n),
        interval_text(summary.a_protocol, n),
        interval_text(summary.a_rob, n),
        "–" if overestimate is None else _points(overestimate),
        verdict.conclusion,
        markdown(", ".join(finding.check for finding in summary.findings if finding.fires), _STATEMENT) or "–",
    ]


def _points(difference: Interval) -> str:
    return f"{100 * difference.value:.1f} [{100 * difference.low:.1f}, {100 * difference.high:.1f}]"


def _evidence(summary: Summary) -> list[str]:
    lines = ["| Check | Figure | Threshold | Fires | What was found |", "| :-- | --: | --: | :-- | :-- |"]
    for finding in summary.findings:
        figure = "–" if finding.figure is None else f"{finding.figure:.3g}"
        fires = finding.kind if finding.fires else "not done" if finding.figure is None else ""
        statement = markdown(finding.statement, _STATEMENT)
        lines.append(f"| {markdown(finding.check)} | {figure} | {finding.threshold:.3g} | {fires} | {statement} |")
    return lines
