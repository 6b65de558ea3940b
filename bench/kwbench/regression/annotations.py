"""The result of a check as workflow commands of GitHub Actions, which appear beside a pull request."""

from kwbench.formatting import plain
from kwbench.regression.gate import CheckResult, Decision

_COMMANDS = {Decision.REGRESSION: "error", Decision.UNDECIDED: "warning"}


def annotations(result: CheckResult) -> list[str]:
    """Return a command for each model that is not fine: `::error` for a regression, `::warning` if undecided."""
    lines = [
        f"::{_COMMANDS[model.decision]} title={_escaped(f'{plain(model.model)}: {model.decision}', ':,')}"
        f"::{_escaped(plain(model.reason, 1000))}"
        for model in result.models
        if model.decision in _COMMANDS
    ]
    return lines if result.models else ["::warning title=kwbench check::the baseline names no model"]


def _escaped(text: str, more: str = "") -> str:
    """Return text without the characters that end a command or a property."""
    for character in f"%\r\n{more}":
        text = text.replace(character, f"%{ord(character):02X}")
    return text
