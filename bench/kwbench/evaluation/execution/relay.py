"""What a worker prints, passed on to stderr without what could control a terminal, and not without end."""

import codecs
import os
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection

from kwbench.formatting import printable

# Characters of a worker's output that are shown.
_MOST = 1 << 20
_REST = "\n(more was printed than is shown here)\n"


class Relay:
    """A thread that passes on what comes out of a pipe."""

    def __init__(self, output: Connection) -> None:
        """Start the thread, which closes the pipe at its end."""
        self._thread = threading.Thread(target=_pass_on, args=(output,), daemon=True)
        self._thread.start()

    def finish(self, seconds: float) -> None:
        """Wait until everything is passed on, at most so long."""
        self._thread.join(seconds)


def _pass_on(output: Connection) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    shown = 0
    with output:
        while True:
            try:
                content = os.read(output.fileno(), 1 << 16)
            except OSError:
                return
            if not content:
                return
            text = decoder.decode(content).replace("\r\n", "\n").replace("\r", "\n")
            if shown <= _MOST:
                shown += len(text)
                _write(printable(text, keep="\n\t") if shown <= _MOST else _REST)


def _write(text: str) -> None:
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()
