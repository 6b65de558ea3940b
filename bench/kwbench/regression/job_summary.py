"""The result of a check as Markdown, for the summary of a CI job or a comment."""

from pathlib import Path

from kwbench.errors import CannotEvaluate
from kwbench.formatting import interval_text, markdown, percent
from kwbench.regression.gate import CheckResult, Decision, ModelCheck

_TITLES = {0: "Robustness check: fine", 1: "Robustness check: regression", 3: "Robustness check: could not tell"}


def markdown_summary(result: CheckResult) -> str:
    """Return the result as Markdown with one table row per model."""
    lines = [
        f"## {_TITLES[result.exit_code]}",
        "",
        f"A drop of A\\_rob counts if it exceeds {result.max_drop:g} points and is significant at {result.alpha:g} "
        "(paired, one-sided).",
        "",
        "| Model | Where | Baseline | Now [95 %] | Drop, points [95 %] | p | Verdict |",
        "| :-- | :-- | --: | --: | --: | --: | :-- |",
    ]
    lines += [f"| {' | '.join(_cells(model))} |" for model in result.models]
    if not result.models:
        lines += ["", "The baseline names no model."]
    if result.new:
        lines += ["", f"Not in the baseline: {', '.join(map(markdown, result.new))}."]
    return "\n".join(lines) + "\n"


def append_summary(result: CheckResult, path: Path) -> None:
    """Append `markdown_summary` to a file such as GITHUB_STEP_SUMMARY names. Raises CannotEvaluate if it cannot be written."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(markdown_summary(result))
    except OSError as failure:
        raise CannotEvaluate(f"{path}: the summary cannot be written ({failure.strerror})") from None


def _cells(model: ModelCheck) -> tuple[str, ...]:
    protocol = ", ".join(part for part in (model.dataset, model.threat, model.suite) if part)
    baseline = "–" if model.baseline is None else percent(model.baseline, model.n)
    drop, p = "–", "–"
    if model.drop is not None and model.test is not None:
        drop = f"{100 * model.drop.value:.1f} [{100 * model.drop.low:.1f}, {100 * model.drop.high:.1f}]"
        p = f"{model.test.p:.2g}"
    decision = str(model.decision)
    if model.decision is not Decision.FINE:
        decision = f"**{decision}**: {markdown(model.reason)}"
    return markdown(model.model), markdown(protocol), baseline, interval_text(model.now, model.n), drop, p, decision
