"""Counts what a GPU would be waited for: values of tensors that Python reads, or whose number it must know."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

# Methods that read values, or count those that are set.
_READING = ("item", "tolist", "numpy", "cpu", "nonzero", "masked_select", "__bool__", "__int__", "__float__", "__index__")


@contextmanager
def counting_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Let tensors of a CPU pass for those of a GPU, and count by method what a GPU would be waited for within the block.

    Tensors say that they are on no CPU (`is_cpu`), so that shortcuts that read them are not taken. Methods of the class are
    replaced, because modes of torch do not see what the hooks of a backward pass do. A masked assignment of a number waits for
    nothing, nor does a copy that does not block.
    """
    waits: Counter[str] = Counter()
    # What PyTorch itself calls within a counted method does not count again.
    inside = False

    def counted(name: str, method: Any, waits_for: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal inside
            if inside or hasattr(arguments[0], "was_waited_for") or not waits_for(*arguments, **options):
                return method(*arguments, **options)
            waits[name] += 1
            inside = True
            try:
                result = method(*arguments, **options)
                if name == "cpu":
                    result = result.clone()
                    result.was_waited_for = True
                return result
            finally:
                inside = False

        return call

    def moves(_: Tensor, *arguments: Any, non_blocking: bool = False, **options: Any) -> bool:
        to_device = any(isinstance(argument, torch.device | str) for argument in (*arguments, *options.values()))
        return to_device and not non_blocking

    with monkeypatch.context() as patch:
        for name in _READING:
            patch.setattr(Tensor, name, counted(name, getattr(Tensor, name), lambda *_, **__: True))
        patch.setattr(Tensor, "to", counted("to", Tensor.to, moves))
        patch.setattr(Tensor, "__getitem__", counted("x[mask]", Tensor.__getitem__, lambda _, key: _is_masked(key)))
        setting = counted("x[mask] =", Tensor.__setitem__, lambda _, key, value: _is_masked(key) and isinstance(value, Tensor))
        patch.setattr(Tensor, "__setitem__", setting)
        patch.setattr(Tensor, "is_cpu", property(lambda _: False))
        yield waits


def _is_masked(key: Any) -> bool:
    keys = key if isinstance(key, tuple) else (key,)
    return any(isinstance(one, Tensor) and one.dtype == torch.bool for one in keys)
