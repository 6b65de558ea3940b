"""What stands above a table: its best model, and the best accuracy known from elsewhere."""

from collections.abc import Sequence
from fractions import Fraction
from types import SimpleNamespace
from typing import TYPE_CHECKING

from kwbench.formatting import percent
from kwbench.report.html.grouping import Table
from kwbench.report.leaderboard import LEVEL
from kwbench.statistics import Interval
from kwbench.verdict import best_known

if TYPE_CHECKING:
    from kwbench.report.html.leaderboard import Entry

# A published radius is close to that of a table if it differs by at most this share: 8/255 and 0.031.
_CLOSE = Fraction(1, 20)


def known_elsewhere(table: Table) -> str | None:
    """Return the best published accuracy at the table's radius or one close to it; else the bound that a smaller ball gives."""
    known = best_known(table.dataset, table.tabs[0].board.rows[0].summary.model, table.threat, _CLOSE)
    if known is None:
        return None
    text = f"{100 * known.accuracy:.2f} % at {known.norm} {known.eps} (RobustBench)"
    return text if table.threat.eps <= known.eps * (1 + _CLOSE) else f"{text}, a smaller ball; in this one it is at most that"


def best_model(ranked: Sequence["Entry"]) -> SimpleNamespace | None:
    """Return what the sentences above a table say about its best model."""
    if not ranked:
        return None
    first = ranked[0]
    summary, others = first.summary, [entry for entry in ranked[1:] if entry.row is not None and entry.row.tied]
    gap = first.verdict.overestimate if first.verdict else None
    rob = None if summary.a_rob is None else percent(summary.a_rob.value, summary.n)
    return SimpleNamespace(
        model=summary.model,
        href=first.href,
        rob=rob,
        span=None if summary.a_rob is None else span_text(summary.a_rob, summary.n),
        protocol=None if summary.a_protocol is None else percent(summary.a_protocol.value, summary.n),
        protocol_attacks=", ".join(summary.protocol),
        overestimate=None if gap is None else _gap_text(gap),
        verdict=first.verdict.conclusion if first.verdict else None,
        # As far as the page shows it: means of probabilities are hardly ever 0.
        none_held=len(ranked) > 1 and rob is not None and float(rob) == 0,
        models=len(ranked),
        compared=_compared(len(others), len(ranked) - 1),
    )


def _compared(tied: int, others: int) -> str | None:
    """Return how many models the tests tell apart from the best one."""
    if not others:
        return None
    if not tied:
        sentence = f"It differs significantly from {'the other model' if others == 1 else f'all {others} others'}"
    elif tied == others:
        sentence = "The other model does" if others == 1 else f"All {others} others do"
        sentence += " not differ significantly from it"
    else:
        sentence = f"{tied} of the {others} others {'does' if tied == 1 else 'do'} not differ significantly from it"
    return f"{sentence} (paired tests, {100 * LEVEL:g} %, Holm)."


def _gap_text(gap: Interval) -> str:
    return "{} points ({} to {})".format(*map(points_text, (gap.value, gap.low, gap.high)))


def span_text(interval: Interval, n: int) -> str:
    """Return the ends of an interval in percent."""
    return f"{percent(interval.low, n)}–{percent(interval.high, n)}"


def points_text(share: float) -> str:
    """Return a share in percent, with a minus that is as wide as a digit."""
    return f"{100 * share:.1f}".replace("-", "−")
