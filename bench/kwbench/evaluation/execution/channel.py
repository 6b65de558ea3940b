"""Messages between two processes, over a socket. Foreign code may write to the other end, or never finish a message.

A message is the length of its content, in 8 bytes, and the content.
"""

import pickle
import select
import socket
import struct
import time
from multiprocessing.reduction import ForkingPickler
from typing import Any

_LENGTH = struct.Struct("!Q")
# Bytes by which memory for a message grows: what it says of its length may be wrong.
_CHUNK = 1 << 24


class NoAnswer(Exception):
    """The other process says nothing, does not finish a message, or takes none."""


class Channel:
    """One end of a stream of messages; a process that is being started may be given the other one.

    Attributes:
        patience: seconds without a byte after which a message that has begun, here or there, is given up; None for no limit.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.patience: float | None = None

    @classmethod
    def pair(cls) -> tuple["Channel", "Channel"]:
        """Return the two ends of a new stream."""
        one, other = socket.socketpair()
        return cls(one), cls(other)

    def fileno(self) -> int:
        """Return the number of the file."""
        return self._end.fileno()

    def close(self) -> None:
        """Close this end."""
        self._end.close()

    def send(self, message: Any) -> None:
        """Send a message that `recv` returns there. Raises OSError if that process ended, and NoAnswer."""
        self.send_bytes(bytes(ForkingPickler.dumps(message)))

    def recv(self, limit: float | None = None) -> Any:
        """Return what `send` sent. Raises as `recv_bytes` does, and anything else if the message is no pickle."""
        content = self.recv_bytes(limit=limit)
        try:
            return pickle.loads(content)
        except EOFError:
            raise pickle.UnpicklingError("a part of it is missing") from None

    def send_bytes(self, content: bytes) -> None:
        """Send bytes that `recv_bytes` returns there. Raises OSError if that process ended, and NoAnswer."""
        length = _LENGTH.pack(len(content))
        parts = [memoryview(length), memoryview(content)]
        while any(parts):
            try:
                sent = self._end.sendmsg(parts, [], socket.MSG_DONTWAIT)
            except BlockingIOError:
                if not self._ready(select.POLLOUT, self.patience):
                    raise NoAnswer(f"took nothing of a message for {self.patience:g} s") from None
                continue
            for index, part in enumerate(parts):
                parts[index] = part[sent:]
                sent = max(0, sent - len(part))

    def recv_bytes(self, most: int | None = None, limit: float | None = None) -> bytes:
        """Return the next message, of at most so many bytes, within so many seconds.

        Raises:
            EOFError: the other process ended.
            OSError: the message is longer, or the connection failed.
            NoAnswer: the message did not begin, or did not end, in time.
        """
        deadline = None if limit is None else time.monotonic() + limit
        try:
            (length,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline, begun=False))
            if most is not None and length > most:
                raise OSError(f"a message of {length} bytes")
            return self._read(length, deadline, begun=True)
        except TimeoutError:
            late = deadline is not None and time.monotonic() >= deadline
            raise NoAnswer(
                f"no answer within {limit:g} s" if late else f"began an answer, and sent no more of it for {self.patience:g} s"
            ) from None

    def _read(self, size: int, deadline: float | None, *, begun: bool) -> bytes:
        """Return so many bytes; `begun` says whether a part of the message was read before. Raises TimeoutError, too."""
        content, filled = bytearray(min(size, _CHUNK)), 0
        while filled < size:
            if filled == len(content):
                content += bytes(min(size - filled, _CHUNK))
            try:
                read = self._end.recv_into(memoryview(content)[filled:], 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                read = -1
            if read == 0:
                raise EOFError
            left = None if deadline is None else deadline - time.monotonic()
            if read > 0:
                filled, begun = filled + read, True
                if left is not None and left < 0:
                    raise TimeoutError
            elif not self._ready(select.POLLIN, left, self.patience if begun else None):
                raise TimeoutError
        return bytes(content)

    def _ready(self, event: int, *limits: float | None) -> bool:
        """Wait until the socket is ready, at most for the smallest limit; return whether it is."""
        poll = select.poll()
        poll.register(self._end, event)
        seconds = min((limit for limit in limits if limit is not None), default=None)
        return bool(poll.poll(None if seconds is None else max(0.0, 1000 * seconds)))
