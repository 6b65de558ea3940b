"""Find where a forward pass reads the pixels in Python: `item()`, `tolist()`, `bool()`, `numpy()`, a tensor as an index."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from kwbench.relaxation.tensors import storage

# Functions that read values only to check that their arguments are valid.
_CHECKING = (F.one_hot,)
# Functions that copy a whole tensor into Python; dispatch modes do not see them.
_COPYING = {Tensor.tolist: "tolist", Tensor.numpy: "numpy", Tensor.__array__: "numpy"}


@dataclass(frozen=True, slots=True)
class PythonRead:
    """Values (as a tensor) that Python read, the name of the function that read them, and of the module that ran it."""

    values: Tensor
    how: str
    where: str


class PythonReads(TorchFunctionMode):
    """Record which tensors that depend on the pixels are read in Python.

    `dependent` holds the addresses of the storages that do, `modules` the names of the running modules, the innermost last.
    """

    def __init__(self, dependent: set[int], modules: list[str]) -> None:
        super().__init__()
        self.reads: list[PythonRead] = []
        self._dependent, self._modules = dependent, modules
        self._function: Any = None

    def record(self, tensor: Tensor, how: str = "item") -> None:
        """Record a read, unless it checks arguments only, or the tensor does not depend on the pixels."""
        if self._function not in _CHECKING and storage(tensor) in self._dependent:
            self.reads.append(PythonRead(tensor.detach().clone(), how, self._modules[-1]))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _COPYING and isinstance(args[0], Tensor):
            with torch._C.DisableTorchFunction():
                self.record(args[0], _COPYING[func])
        outer, self._function = self._function, func
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._function = outer
