"""What can go wrong, each with the exit code that the command line returns for it.

0 done and fine; 1 a regression; 2 wrong use or configuration; 3 could not evaluate or could not tell; 4 damaged data.
"""

import difflib
from collections.abc import Iterable


class KwbenchError(Exception):
    """A failure whose message names the culprit and what would be right; shown to users without a traceback."""

    exit_code = 3


class UsageError(KwbenchError):
    """Wrong use or configuration: an unknown name, a value out of range, a malformed file."""

    exit_code = 2


class CannotEvaluate(KwbenchError):
    """The evaluation could not be carried out, or its answer cannot be told."""

    exit_code = 3


class DamagedData(KwbenchError):
    """A checkpoint, data set or database is not what it should be."""

    exit_code = 4


class NotApplicable(Exception):
    """An attack cannot be made for this model; the message says why. A suite goes on without it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: a suggestion, or the list of what there is."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(names)}" if names else "there are none"
