"""The result of a check as a table for the terminal."""

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from kwbench.formatting import interval_text, percent, plain
from kwbench.regression.gate import CheckResult, Decision

_COLOURS = {Decision.FINE: "green", Decision.REGRESSION: "red", Decision.UNDECIDED: "yellow"}


def check_table(result: CheckResult) -> Group:
    """Return one row per model and, below, the reasons for those that are not fine."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("model", "where", "baseline", "now [95 %]", "drop, points [95 %]", "p", "verdict"):
        table.add_column(name, justify="left" if name in ("model", "where", "verdict") else "right")
    reasons = []
    for model in result.models:
        drop, p = "–", "–"
        if model.drop is not None and model.test is not None:
            drop = f"{100 * model.drop.value:.1f} [{100 * model.drop.low:.1f}, {100 * model.drop.high:.1f}]"
            p = f"{model.test.p:.2g}"
        table.add_row(
            Text(plain(model.model)),
            Text(plain(", ".join(part for part in (model.dataset, model.threat, model.suite) if part))),
            "–" if model.baseline is None else percent(model.baseline, model.n),
            Text(interval_text(model.now, model.n)),
            Text(drop),
            p,
            Text(str(model.decision), _COLOURS[model.decision]),
        )
        if model.decision is not Decision.FINE:
            reasons.append(Text(f"  {plain(model.model)}: {plain(model.reason, 1000)}", _COLOURS[model.decision]))
    if result.new:
        reasons.append(Text(f"  not in the baseline: {', '.join(map(plain, result.new))}", "dim"))
    return Group(table, *reasons)
