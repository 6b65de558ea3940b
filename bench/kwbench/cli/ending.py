"""How the command ends: output that cannot be written, failures that nobody foresaw, and the exit code of each."""

import errno
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from typing import TextIO

from kwbench.errors import CannotEvaluate
from kwbench.formatting import printable

INTERRUPTED = 130
# Longest part of a foreign message that is shown.
_LONGEST = 300


def say(text: str) -> None:
    """Print a line to stderr, if that can be written."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def prepare_streams() -> None:
    """Let stdout and stderr take every text: closed ones go nowhere, and `?` stands for what their encoding lacks."""
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - it lives as long as the process
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="replace")


def close_streams(code: int) -> int:
    """Write what is left in stdout and stderr, and return the exit code: that of a failure if stdout takes no more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as failure:
            _discard(stream)
            if stream is sys.stdout:
                code = exit_code_of(failure)
    return code


def exit_code_of(failure: BaseException) -> int:
    """Return the exit code for something that was raised, say what it is, and keep its traceback in a file."""
    if isinstance(failure, KeyboardInterrupt):
        say("kwbench: interrupted; the same command continues")
        return INTERRUPTED
    if isinstance(failure, SystemExit) and failure.code in (None, 0, 2):
        return int(failure.code or 0)
    cause = failure.__context__ if isinstance(failure, SystemExit) else failure
    if isinstance(cause, OSError) and cause.filename is None and cause.errno in (errno.EPIPE, errno.ENOSPC, errno.EIO):
        # A reader such as `head` needs no message.
        if cause.errno != errno.EPIPE:
            say(f"kwbench: the output cannot be written ({cause.strerror})")
        return CannotEvaluate.exit_code
    message = printable(str(failure))
    message = f": {message[:_LONGEST]}" if message else ""
    say(f"kwbench: unforeseen {type(failure).__name__}{message}{_kept_traceback(failure)}")
    return CannotEvaluate.exit_code


def _kept_traceback(failure: BaseException) -> str:
    """Write the traceback to a file, and return the end of a message that names it."""
    text = "".join(traceback.format_exception(failure))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="kwbench-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return f"\n{text}"
    return f"; the traceback is in {file.name}"


def _discard(stream: TextIO) -> None:
    """Send what the stream still holds nowhere, or Python would try again, and end with an exit code of its own."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
