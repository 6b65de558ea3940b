"""Messages between two processes, over a socket. Foreign code may write to the other end, or never finish a message.

A message is the length of its content, in 8 bytes, and the content.
"""

import pickle
import socket
import struct
import time
from multiprocessing.reduction import ForkingPickler
from typing import Any

_LENGTH = struct.Struct("!Q")
# Bytes that are read at once.
_CHUNK = 1 << 20


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
        self._end.settimeout(self.patience)
        rest = memoryview(_LENGTH.pack(len(content)) + content)
        while rest:
            try:
                rest = rest[self._end.send(rest) :]
            except TimeoutError:
                raise NoAnswer(f"took nothing of a message for {self.patience:g} s") from None

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
        content = bytearray()
        while len(content) < size:
            limits = [self.patience if begun else None, None if deadline is None else max(1e-3, deadline - time.monotonic())]
            self._end.settimeout(min((limit for limit in limits if limit is not None), default=None))
            chunk = self._end.recv(min(size - len(content), _CHUNK))
            if not chunk:
                raise EOFError
            content += chunk
            begun = True
        return bytes(content)
