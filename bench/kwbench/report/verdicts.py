"""The verdicts with their evidence, as a Markdown page."""

from collections.abc import Sequence

from kwbench.formatting import interval_text, markdown
from kwbench.record.summary import Summary
from kwbench.report.leaderboard import Board
from kwbench.verdict import CAVEAT, Verdict, verdict_on_record

# A statement may quote several operations.
_STATEMENT = 1000


def verdicts_page(tables: Sequence[Board]) -> str:
    """One row for each diagnosed evaluation, the newest of each model under each suite and threat, and its findings."""
    found = [(row.standing, one) for board in tables for row in board.rows if (one := verdict_on_record(row.standing))]
    parts = [
        "# Verdicts\n",
        "A verdict is about a pair: a model, and the protocol by which it is usually evaluated. Overestimated: the protocol "
        "leaves over a point more than the strongest attacks, with 99 % confidence. Degenerate: the model is constant or at "
        "chance. Confirmed: twice the budget finds no more than a point, and no check casts doubt on A\\_rob. Inconclusive: "
        f"otherwise. {CAVEAT}\n",
    ]
    if not found:
        return "\n".join([*parts, "Nothing has been diagnosed yet; `kwbench diagnose MODEL` does.\n"])
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
        *(_cells(standing, one) for standing, one in found),
    ]
    parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    for standing, one in found:
        parts.append(f"## {markdown(standing.model)}, {markdown(standing.dataset)}, {markdown(standing.threat)}\n")
        parts.append(f"{markdown(one.sentence(), 2 * _STATEMENT)}\n")
        parts.append("\n".join(_evidence(standing)) + "\n")
    return "\n".join(parts)


def _cells(standing: Summary, verdict: Verdict) -> list[str]:
    n, each = standing.n, verdict.overestimate
    return [
        markdown(standing.model) + (" (stochastic)" if standing.stochastic else ""),
        markdown(f"{standing.dataset}, {standing.threat}"),
        str(n),
        markdown(standing.evaluation.spec.suite),
        interval_text(standing.a_std, n),
        interval_text(standing.a_protocol, n),
        interval_text(standing.a_rob, n),
        "–" if each is None else f"{100 * each.value:.1f} [{100 * each.low:.1f}, {100 * each.high:.1f}]",
        verdict.conclusion,
        markdown(", ".join(finding.check for finding in standing.findings if finding.fires), _STATEMENT) or "–",
    ]


def _evidence(standing: Summary) -> list[str]:
    lines = ["| Check | Figure | Threshold | Fires | What was found |", "| :-- | --: | --: | :-- | :-- |"]
    for each in standing.findings:
        figure = "–" if each.figure is None else f"{each.figure:.3g}"
        fires = each.kind if each.fires else "not done" if each.figure is None else ""
        statement = markdown(each.statement, _STATEMENT)
        lines.append(f"| {markdown(each.check)} | {figure} | {each.threshold:.3g} | {fires} | {statement} |")
    return lines
