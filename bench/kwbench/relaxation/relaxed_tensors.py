"""Relaxed versions of tensors that cannot carry a gradient in PyTorch: booleans and integers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.backward import straight_through
from kwbench.relaxation.distributions import LARGEST, MOST_VALUES, certain, expectation, resized
from kwbench.relaxation.tensors import fills_storage, floats, geometry, is_dense, is_float, storage


@dataclass(slots=True)
class RelaxedTensor:
    """The relaxed version of a tensor of booleans or integers of shape s.

    `value` (s): the same numbers as floats, with a gradient. Whole numbers may have instead `choice` (s + (k,)), a soft
    distribution over the numbers 0 to k - 1: of indices, over the positions that each may point to. Indices of the best of
    many values have `members`, a soft mask over all positions of `dim`, `among`, the values at these positions, and `ranks`,
    which computes their `choice` where it is needed. `later` computes the fields on first use.
    """

    value: Tensor | None = None
    choice: Tensor | None = None
    members: Tensor | None = None
    among: Tensor | None = None
    dim: int = 0
    ranks: "Callable[[], Tensor | None] | None" = None
    later: "Callable[[], RelaxedTensor] | None" = None

    def distribution(self) -> Tensor | None:
        """The soft distribution, of ranked indices too; None if there is none."""
        if self.choice is None and self.ranks is not None:
            self.choice, self.ranks = self.ranks(), None
        return self.choice

    def resolve(self) -> None:
        """Compute the fields if that was put off."""
        if self.later is None:
            return
        made = self.later()
        self.value, self.choice, self.ranks = made.value, made.choice, made.ranks
        self.members, self.among, self.dim = made.members, made.among, made.dim
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
    # The same with soft distributions (n, k), where whole numbers that have one were written.
    _whole_choice: dict[int, Tensor] = field(default_factory=dict)
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
        if address in self._whole and (relaxed.value is not None or address in self._whole_choice):
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
            self._whole_choice.pop(address, None)
            for other, _ in self._by_storage.pop(address, []):
                self._by_id.pop(id(other), None)
                self._alive.append(other)
            return target if relaxed is None else self.attach(target, relaxed)
        if address not in self._whole:
            self._unite(target)
        self.dependent.add(address)
        choice = None if relaxed is None else relaxed.distribution()
        value = target if relaxed is None or relaxed.value is None else relaxed.value
        if relaxed is not None and choice is not None:
            value = straight_through(target.to(choice.dtype), expectation(choice))
        self._whole[address].as_strided(*geometry(target)).copy_(value)
        self._overwrite_choice(target, choice, keeps=relaxed is None)
        return target

    def forget(self) -> None:
        """Release all tensors when the pass is over."""
        self.dependent.clear()
        self._by_id.clear()
        self._by_storage.clear()
        self._whole.clear()
        self._whole_choice.clear()
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
        value, choice = self._whole[address].as_strided(*geometry(tensor)), self._whole_choice.get(address)
        return RelaxedTensor(value=value) if choice is None else RelaxedTensor(choice=_view_of_rows(choice, tensor))

    def _unite(self, tensor: Tensor) -> bool:
        """Make one relaxed version of a whole storage, which can be overwritten in part; return whether it has a gradient."""
        address = storage(tensor)
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        whole = floats(tensor.detach().as_strided((size,), (1,), 0))
        for other, _ in self._by_storage.pop(address, []):
            relaxed = self.find(other) if self.has(other) else None
            self._by_id.pop(id(other), None)
            self._alive.append(other)
            same_size = other.element_size() == tensor.element_size()
            if relaxed is not None and relaxed.value is not None and is_dense(other) and same_size:
                whole.as_strided(*geometry(other)).copy_(relaxed.value)
            elif relaxed is not None and relaxed.choice is not None and is_dense(other) and same_size:
                expected = straight_through(other.to(relaxed.choice.dtype), expectation(relaxed.choice))
                whole.as_strided(*geometry(other)).copy_(expected)
                self._overwrite_choice(other, relaxed.choice, keeps=False)
        self._whole[address] = whole
        return whole.requires_grad

    def _overwrite_choice(self, target: Tensor, choice: Tensor | None, *, keeps: bool) -> None:
        """Write a soft distribution (s, k) into that of the storage; with `keeps` the numbers are known for certain."""
        address = storage(target)
        whole = self._whole_choice.pop(address, None)
        if target.dtype == torch.bool or (choice is None and (whole is None or not keeps)):
            return
        size = target.untyped_storage().nbytes() // target.element_size()
        numbers = target.detach().as_strided((size,), (1,), 0)
        k = max(int(numbers.max()) + 1, *(one.shape[-1] for one in (whole, choice) if one is not None))
        if int(numbers.min()) < 0 or k > MOST_VALUES or size * k > LARGEST:
            return
        whole = certain(numbers, k) if whole is None else resized(whole, k).clone()
        written = certain(target, k) if choice is None else resized(choice, k).to(whole.dtype)
        _view_of_rows(whole, target).copy_(written)
        self._whole_choice[address] = whole


def _view_of_rows(rows: Tensor, tensor: Tensor) -> Tensor:
    """Return a view of rows (n, k), one for each element of a storage, that shows those of a tensor: its shape plus (k,)."""
    k = rows.shape[-1]
    shape, strides, offset = geometry(tensor)
    return rows.as_strided((*shape, k), (*(stride * k for stride in strides), 1), offset * k)
