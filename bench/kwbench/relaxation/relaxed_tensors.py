"""Relaxed versions of tensors that cannot carry a gradient in PyTorch: booleans and integers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.tensors import fills_storage, geometry, is_dense, is_float, storage


@dataclass(slots=True)
class RelaxedTensor:
    """The relaxed version of a tensor of booleans or integers of shape s.

    `value` (s): the same numbers as floats, with a gradient. Indices have instead either `choice` (s + (k,)), a soft
    distribution over the k positions that each may point to, or `members`, a soft mask over all positions of `dim`, of which
    the indices name the best; `among` holds the values at these positions. `later` computes the fields on first use.
    """

    value: Tensor | None = None
    choice: Tensor | None = None
    members: Tensor | None = None
    among: Tensor | None = None
    dim: int = 0
    later: "Callable[[], RelaxedTensor] | None" = None

    def resolve(self) -> None:
        """Compute the fields if that was put off."""
        if self.later is None:
            return
        made = self.later()
        self.value, self.choice, self.members, self.among, self.dim = (
            made.value,
            made.choice,
            made.members,
            made.among,
            made.dim,
        )
        self.later = None


@dataclass(slots=True)
class RelaxedTensors:
    """The relaxed tensors of one pass, and the storages whose tensors depend on the pixels (`dependent`, by address)."""

    dependent: set[int] = field(default_factory=set)
    _by_id: dict[int, RelaxedTensor] = field(default_factory=dict)
    # The tensors with a relaxed version in each storage, by address.
    _by_storage: dict[int, list[tuple[Tensor, RelaxedTensor]]] = field(default_factory=dict)
    # The relaxed version of a whole storage, flat, once a part of it was overwritten.
    _whole: dict[int, Tensor] = field(default_factory=dict)
    # Tensors known by their ids are kept alive, so that no other tensor gets the same id.
    _alive: list[Tensor] = field(default_factory=list)

    def find(self, tensor: Any) -> RelaxedTensor | None:
        """The relaxed version of a tensor, or of another one that shows the same memory; None if there is none.

        Floats have none, since they carry their gradients themselves.
        """
        if not isinstance(tensor, Tensor) or is_float(tensor):
            return None
        relaxed = self._by_id.get(id(tensor))
        if relaxed is None:
            relaxed = self._find_in_storage(tensor)
        if relaxed is not None:
            relaxed.resolve()
        return relaxed

    def has(self, tensor: Tensor) -> bool:
        """Whether a relaxed version is attached to this very tensor."""
        return id(tensor) in self._by_id

    def attach(self, tensor: Tensor, relaxed: RelaxedTensor) -> Tensor:
        """Attach a relaxed version to a tensor, and return the tensor."""
        address = storage(tensor)
        if address in self._whole and relaxed.value is not None:
            return tensor  # a view, whose relaxed version is a view of that of the storage
        self._by_id[id(tensor)] = relaxed
        self._by_storage.setdefault(address, []).append((tensor, relaxed))
        self.dependent.add(address)
        return tensor

    def copy(self, tensor: Tensor, alias: Tensor) -> None:
        """Attach to an alias or copy what is attached to a tensor."""
        relaxed = self._by_id.get(id(tensor))
        if relaxed is not None:
            self.attach(alias, relaxed)

    def overwrite(self, target: Tensor, relaxed: RelaxedTensor | None) -> Tensor:
        """Replace the relaxed version of the memory that a target shows; its values were overwritten already."""
        address = storage(target)
        if relaxed is None and address not in self.dependent:
            return target
        if fills_storage(target):
            self._whole.pop(address, None)
            for other, _ in self._by_storage.pop(address, []):
                self._by_id.pop(id(other), None)
                self._alive.append(other)
            return target if relaxed is None else self.attach(target, relaxed)
        if address not in self._whole:
            self._unite(target)
        self.dependent.add(address)
        value = target if relaxed is None or relaxed.value is None else relaxed.value
        self._whole[address].as_strided(*geometry(target)).copy_(value)
        return target

    def forget(self) -> None:
        """Release all tensors when the pass is over."""
        self.dependent.clear()
        self._by_id.clear()
        self._by_storage.clear()
        self._whole.clear()
        self._alive.clear()

    def _find_in_storage(self, tensor: Tensor) -> RelaxedTensor | None:
        address = storage(tensor)
        if address not in self._whole:
            others = self._by_storage.get(address)
            if others is None:
                return None
            for other, relaxed in others:
                if geometry(other) == geometry(tensor):
                    self._by_id[id(tensor)] = relaxed
                    others.append((tensor, relaxed))
                    return relaxed
            if not self._unite(tensor):
                return None
        return RelaxedTensor(value=self._whole[address].as_strided(*geometry(tensor)))

    def _unite(self, tensor: Tensor) -> bool:
        """Make one relaxed version of a whole storage, which can be overwritten in part; return whether it has a gradient."""
        address = storage(tensor)
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        whole = tensor.detach().as_strided((size,), (1,), 0).to(torch.float32, copy=True)
        for other, _ in self._by_storage.pop(address, []):
            relaxed = self.find(other) if self.has(other) else None
            self._by_id.pop(id(other), None)
            self._alive.append(other)
            same_size = other.element_size() == tensor.element_size()
            if relaxed is not None and relaxed.value is not None and is_dense(other) and same_size:
                whole.as_strided(*geometry(other)).copy_(relaxed.value)
        self._whole[address] = whole
        return whole.requires_grad
