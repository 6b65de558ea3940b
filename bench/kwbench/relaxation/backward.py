"""Values that keep what they are and get another gradient."""

from typing import Any

import torch
from torch import Tensor


class _Straight(torch.autograd.Function):
    """The value of the first, the gradients of both."""

    @staticmethod
    def forward(ctx: Any, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient


class _Finite(torch.autograd.Function):
    """The identity, whose backward pass lets nothing through that is not a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.nan_to_num(0.0, 0.0, 0.0)


def straight(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, and the gradient of `soft` besides that of `hard`."""
    if not soft.requires_grad:
        return hard
    if soft.shape != hard.shape:
        soft = soft.expand(hard.shape)
    straightened: Tensor = _Straight.apply(hard, soft if soft.dtype == hard.dtype else soft.to(hard.dtype))  # type: ignore[no-untyped-call]
    return straightened


def finite(x: Tensor) -> Tensor:
    """x, with whatever is not a number kept out of its gradient."""
    passed: Tensor = _Finite.apply(x)  # type: ignore[no-untyped-call]
    return passed
