"""Errors, each with the exit code that the command line returns for it.

0: success. 1: a regression. 2: wrong use or configuration. 3: no evaluation or no answer, or a failure that nobody foresaw.
4: damaged data.
"""

import difflib
from collections.abc import Iterable


class KwbenchError(Exception):
    """A failure that is shown to users without a traceback. Its message names the cause and the remedy."""

    exit_code = 3


class UsageError(KwbenchError):
    """Wrong use or configuration: an unknown name, a value out of range, a malformed file."""

    exit_code = 2


class CannotEvaluate(KwbenchError):
    """The evaluation could not be carried out, or it has no definite answer."""

    exit_code = 3


class TimeIsUp(CannotEvaluate):
    """The time that the user granted has passed; the same command continues."""


class DamagedData(KwbenchError):
    """A checkpoint, data set or database has unexpected content."""

    exit_code = 4


class NotApplicable(Exception):
    """An attack cannot be applied to this model. The message says why, and the suite continues without the attack."""


# How many names an error message lists at most.
_LISTED = 5
# The similarity, of at most 1, from which on a name is worth suggesting; the default of difflib is 0.6.
_SIMILAR = 0.5


def did_you_mean(name: str, known: Iterable[str], *, listed_by: str | None = None) -> str:
    """Return the end of an error message about an unknown name: up to five names like it, else up to five of all.

    Args:
        name: the unknown name.
        known: the names that exist.
        listed_by: the command that lists them all, such as "kwbench models"; named where the list here is cut.
    """
    names = sorted(set(known))
    similar = difflib.get_close_matches(name, names, n=_LISTED, cutoff=_SIMILAR)
    if similar:
        *others, last = [f"'{suggestion}'" for suggestion in similar]
        return f"did you mean {', '.join(others)} or {last}?" if others else f"did you mean {last}?"
    if not names:
        return "there are none"
    if len(names) <= _LISTED + 1:  # "and 1 more" is no shorter than the name
        return f"known: {', '.join(names)}"
    where = f"; `{listed_by}` lists them" if listed_by else ""
    return f"known: {', '.join(names[:_LISTED])} and {len(names) - _LISTED} more{where}"
