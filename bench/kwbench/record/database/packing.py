"""Packing columns of outcomes into bytes, exactly, in the fewest bytes a value that hold them all.

Integers are stored by their distance from the smallest, floats as float32 where that loses nothing, and a column whose values
are all equal as that value. The bytes of equal significance stand together, which compresses better.
"""

import json
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kwbench.record.arrays import MISSING

# Bytes of a value, 0 if all are equal; whether 0 stands for MISSING; what is added to each, or their bits if all are equal.
_HEADER = struct.Struct("<BBq")
MOST_BYTES = 1 << 26
"""Bytes before compression that are read; outcomes have a tenth of them, unless their notes are long."""

# A JSON list of so many texts.
_TEXTS = r'\[(?:"[^"\\]*+(?:\\.[^"\\]*+)*+",?+){%d}+\]'
# Level 4 takes twice the time for 6 % fewer bytes.
_LEVEL = 1


def pack(columns: Sequence[NDArray[Any]]) -> bytes:
    """Return columns of equal length: int64, float64, single bytes, or objects that are texts."""
    packed = [_PACK[column.dtype.kind](column) for column in columns]
    return b"".join([header for header, _ in packed] + [values for _, values in packed])


def unpack(content: bytes, kinds: str, n: int) -> list[NDArray[Any]]:
    """Return the columns of length `n` that `pack` packed; `kinds` has NumPy's letter for each. Raises ValueError."""
    columns, start = [], _HEADER.size * len(kinds)
    try:
        for position, kind in enumerate(kinds):
            width, flag, base = _HEADER.unpack_from(content, _HEADER.size * position)
            size = base if kind == "O" else width * n
            columns.append(_UNPACK[kind](content[start : start + size], width, flag, base, n))
            start += size
    except struct.error as failure:
        raise ValueError(str(failure)) from None
    if start != len(content):
        raise ValueError("its length does not fit its columns")
    return columns


def compress(content: bytes) -> bytes:
    """Return fewer bytes with the same content."""
    return zlib.compress(content, _LEVEL)


def decompress(packed: bytes) -> bytes:
    """Return what `compress` compressed. Raises ValueError for others, and before damaged bytes expand without bound."""
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(packed, MOST_BYTES)
    except zlib.error as failure:
        raise ValueError(str(failure)) from None
    if not stream.eof or stream.unused_data:
        raise ValueError("its length is not that of its content")
    return content


def _pack_integers(values: NDArray[np.int64]) -> tuple[bytes, bytes]:
    known = values[values != MISSING]
    missing = len(known) < len(values)
    low, high = (int(known.min()), int(known.max())) if len(known) else (MISSING, MISSING)
    if low == high and (not missing or low == MISSING):
        return _HEADER.pack(0, 0, low), b""
    base = low - missing
    width = next(width for width in (1, 2, 4, 8) if high - base < 1 << 8 * width)
    shifted = values - base
    if missing:
        shifted[values == MISSING] = 0
    return _HEADER.pack(width, missing, base), _shuffled(shifted.astype(f"<u{width}"), width)


def _unpack_integers(packed: bytes, width: int, flag: int, base: int, n: int) -> NDArray[np.int64]:
    if not width:
        return _repeated(base, n)
    shifted = _unshuffled(packed, f"<u{width}", width, n)
    values = shifted.astype(np.int64) + base
    if flag:
        values[shifted == 0] = MISSING
    return values


def _repeated(value: int, n: int) -> NDArray[np.int64]:
    """Return n equal values that share their memory, which takes no time."""
    return np.ndarray(n, dtype=np.int64, buffer=np.int64(value).tobytes(), strides=(0,))


def _pack_floats(values: NDArray[np.float64]) -> tuple[bytes, bytes]:
    bits = values.view(np.int64)
    if (bits == bits[0]).all():
        return _HEADER.pack(0, 0, int(bits[0])), b""
    with np.errstate(over="ignore"):
        halved = values.astype("<f4")
    if np.array_equal(halved.astype(np.float64).view(np.int64), bits):
        return _HEADER.pack(4, 0, 0), _shuffled(halved, 4)
    return _HEADER.pack(8, 0, 0), _shuffled(values.astype("<f8"), 8)


def _unpack_floats(packed: bytes, width: int, flag: int, base: int, n: int) -> NDArray[np.float64]:
    if not width:
        return _repeated(base, n).view(np.float64)
    return _unshuffled(packed, f"<f{width}", width, n).astype(np.float64)


def _pack_letters(values: NDArray[np.bytes_]) -> tuple[bytes, bytes]:
    codes = values.view(np.uint8)
    if (codes == codes[0]).all():
        return _HEADER.pack(0, 0, int(codes[0])), b""
    return _HEADER.pack(1, 0, 0), values.tobytes()


def _unpack_letters(packed: bytes, width: int, flag: int, base: int, n: int) -> NDArray[np.bytes_]:
    if width > 1 or not 0 <= base < 256:
        raise ValueError(f"{width} bytes a letter, or the letter {base}")
    codes = np.frombuffer(packed, dtype=np.uint8) if width else np.full(n, base, dtype=np.uint8)
    return codes.view("S1")


def _pack_texts(values: NDArray[np.object_]) -> tuple[bytes, bytes]:
    texts = values.tolist()
    content = json.dumps(texts, separators=(",", ":")).encode() if any(texts) else b""
    return _HEADER.pack(0, 0, len(content)), content


def _unpack_texts(packed: bytes, width: int, flag: int, base: int, n: int) -> NDArray[np.object_]:
    values = np.full(n, "", dtype=object)
    if base:
        # What a stranger wrote may nest without bound, or expand to many times its bytes.
        if re.fullmatch((_TEXTS % n).encode(), packed) is None:
            raise ValueError(f"it is no list of {n} texts")
        values[:] = json.loads(packed)
    return values


_PACK: dict[str, Callable[..., tuple[bytes, bytes]]] = {
    "i": _pack_integers,
    "f": _pack_floats,
    "S": _pack_letters,
    "O": _pack_texts,
}
_UNPACK: dict[str, Callable[..., NDArray[Any]]] = {
    "i": _unpack_integers,
    "f": _unpack_floats,
    "S": _unpack_letters,
    "O": _unpack_texts,
}


def _shuffled(values: NDArray[Any], width: int) -> bytes:
    return values.view(np.uint8).reshape(-1, width).T.tobytes()


def _unshuffled(packed: bytes, dtype: str, width: int, n: int) -> NDArray[Any]:
    if width not in (1, 2, 4, 8):
        raise ValueError(f"{width} bytes a value")
    by_significance = np.frombuffer(packed, dtype=np.uint8).reshape(width, n)
    return np.ascontiguousarray(by_significance.T).view(dtype).reshape(n)
