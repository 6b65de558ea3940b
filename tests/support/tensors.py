"""Memory layouts of tensors, and their comparison bit for bit."""

from collections.abc import Callable

import torch
from torch import Tensor


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal in every bit, including the sign of zero."""
    as_integers = {4: torch.int32, 2: torch.int16, 8: torch.int64}[a.element_size()]
    return a.shape == b.shape and torch.equal(a.contiguous().view(as_integers), b.contiguous().view(as_integers))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every second of a larger tensor": lambda x: x.repeat_interleave(2, dim=3)[:, :, :, ::2],
    "an expanded batch": lambda x: x[:1].expand(3, -1, -1, -1),
}
