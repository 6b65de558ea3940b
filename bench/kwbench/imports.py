"""Imports at their own pace: what they make stays to the end, and to look for garbage in it costs a third of their time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Nobody looks for garbage while this block imports, nor ever after in what it leaves: on leaving Python, too, that
    takes as long."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
