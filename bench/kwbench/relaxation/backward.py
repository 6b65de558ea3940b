"""Functions that keep a value and change its gradient."""

from typing import Any

import torch
from torch import Tensor

from kwbench.geometry import finite_slopes


class _StraightThrough(torch.autograd.Function):
    """The value of the first argument, the gradients of both."""

    @staticmethod
    def forward(ctx: Any, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient


class _FiniteGradient(torch.autograd.Function):
    """The identity, whose backward pass replaces non-finite values by zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.nan_to_num(0.0, 0.0, 0.0)


class _FiniteSlopes(torch.autograd.Function):
    """The identity, whose backward pass replaces NaN and infinite slopes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return finite_slopes(gradient)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return the value of `hard` with the gradients of `soft` and of `hard`; `soft` broadcasts against `hard`."""
    if not soft.requires_grad:
        return hard
    if soft.shape != hard.shape:
        soft = soft.expand(hard.shape)
    result: Tensor = _StraightThrough.apply(hard, soft if soft.dtype == hard.dtype else soft.to(hard.dtype))  # type: ignore[no-untyped-call]
    return result


def finite_gradient(x: Tensor) -> Tensor:
    """Return x, and replace non-finite values of its gradient by zero."""
    result: Tensor = _FiniteGradient.apply(x)  # type: ignore[no-untyped-call]
    return result


def with_finite_slopes(x: Tensor) -> Tensor:
    """Return x, and make its gradient finite by `geometry.finite_slopes`."""
    result: Tensor = _FiniteSlopes.apply(x)  # type: ignore[no-untyped-call]
    return result
