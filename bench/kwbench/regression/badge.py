"""The result of a check as a badge: JSON for an endpoint of shields.io, or SVG."""

import json
from html import escape
from pathlib import Path

from kwbench.errors import UsageError
from kwbench.files import write_whole
from kwbench.formatting import percent, plain
from kwbench.regression.gate import CheckResult, Decision

_LABEL = "robust accuracy"
_COLOURS = {0: ("brightgreen", "#4c1"), 1: ("red", "#e05d44"), 3: ("lightgrey", "#9f9f9f")}
# The mean width of a character of the font, and the space around a text, in pixels.
_CHARACTER, _SPACE = 6.5, 10


def write_badge(result: CheckResult, path: Path) -> None:
    """Write a badge, as SVG or as JSON by the file's ending.

    Raises UsageError for another ending, CannotEvaluate if the file cannot be written.
    """
    renderers = {".svg": _svg, ".json": _shields}
    if path.suffix not in renderers:
        raise UsageError(f"--badge {path}: must end in .svg, or in .json for shields.io")
    write_whole(path, renderers[path.suffix](result))


def badge_message(result: CheckResult) -> str:
    """Return the accuracy of a single model, or how many of several are fine, with the decision unless all is fine."""
    if len(result.models) == 1:
        (model,) = result.models
        accuracy = "unknown" if model.now is None else f"{percent(model.now.value, model.n)} %"
        return accuracy if model.decision is Decision.FINE else f"{accuracy}, {model.decision}"
    fine = sum(model.decision is Decision.FINE for model in result.models)
    return f"{fine} of {len(result.models)} fine"


def _shields(result: CheckResult) -> str:
    message, colour = plain(badge_message(result)), _COLOURS[result.exit_code][0]
    return json.dumps({"schemaVersion": 1, "label": _LABEL, "message": message, "color": colour}, indent=2) + "\n"


def _svg(result: CheckResult) -> str:
    message = escape(plain(badge_message(result)))
    left, right = (round(_CHARACTER * len(text)) + _SPACE for text in (_LABEL, message))
    colour = _COLOURS[result.exit_code][1]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f'aria-label="{_LABEL}: {message}"><title>{_LABEL}: {message}</title>'
        f'<rect width="{left}" height="20" fill="#555"/><rect x="{left}" width="{right}" height="20" fill="{colour}"/>'
        '<g fill="#fff" text-anchor="middle" font-family="Verdana,Geneva,DejaVu Sans,sans-serif" font-size="11">'
        f'<text x="{left / 2:g}" y="14">{_LABEL}</text><text x="{left + right / 2:g}" y="14">{message}</text></g></svg>\n'
    )
