"""Affine operations of a network in float64, with what a bound on their float32 rounding needs."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The unit roundoff of float32.
_ROUNDOFF = 2.0**-24

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Affine:
    """An affine function of one tensor.

    `forward` maps (b, ...) to (b, ...) in float64. `magnitude` does the same with the absolute values of the coefficients and
    of the constant. `terms` bounds the number of float32 operations behind a value; 0 for a copy.
    """

    forward: Function
    magnitude: Function
    terms: int

    def adjoint(self, coefficients: Tensor, shape: torch.Size) -> Tensor:
        """Return the coefficients (r, *shape) of the argument from those (r, ...) of the result."""
        argument = torch.zeros((len(coefficients), *shape), dtype=coefficients.dtype, requires_grad=True)
        with torch.enable_grad():
            result = self.forward(argument)
        gradient: Tensor = torch.autograd.grad(result, argument, coefficients.view_as(result))[0]
        return gradient

    def rounding(self, largest: Tensor) -> Tensor:
        """Bound the float32 rounding errors of the result, given the largest absolute values of the argument."""
        return gamma(self.terms) * self.magnitude(largest)


def gamma(terms: int) -> float:
    """Bound the float32 rounding error of a sum of so many products, relative to the sum of their absolute values.

    For few terms this is the worst case n u / (1 - n u), in whatever order they are summed (Higham 2002, section 3.1). For
    many it is 8 sqrt(n) u, which rounding errors of mean zero exceed with a probability below 2 exp(-32) (Higham and Mary
    2019, theorem 2.4), and which is the worst case if a sum is split into sqrt(n) / 8 partial sums, as vector units do.
    """
    roundings = min(float(terms), 8 * math.sqrt(terms))
    return roundings * _ROUNDOFF / (1 - roundings * _ROUNDOFF)


def copied(function: Function) -> Affine:
    """Return an operation that moves or drops values without rounding."""
    return Affine(function, function, 0)


def of_module(module: nn.Module) -> Affine | None:
    """Return the affine operation of a module in evaluation mode; None if it is no such module."""
    for kinds, operation in _MODULES:
        if isinstance(module, kinds):
            return operation(module)
    return None


def _twice(module: nn.Module, terms: int) -> Affine:
    """Return the operation of a module whose coefficients are its parameters."""
    forward = copy.deepcopy(module).double().requires_grad_(False)
    magnitude = copy.deepcopy(forward)
    for parameter in magnitude.parameters():
        parameter.abs_()
    return Affine(forward, magnitude, terms)


def _batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d) -> Affine | None:
    if module.running_mean is None or module.running_var is None:
        return None
    scale = (module.running_var.double() + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * module.weight.double()
    shift = -module.running_mean.double() * scale
    constant = module.bias.double() if module.bias is not None else torch.zeros_like(shift)

    def per_channel(values: Tensor, x: Tensor) -> Tensor:
        return values.view(1, -1, *([1] * (x.dim() - 2)))

    return Affine(
        lambda x: x * per_channel(scale, x) + per_channel(shift + constant, x),
        lambda x: x * per_channel(scale.abs(), x) + per_channel(shift.abs() + constant.abs(), x),
        # The square root, its inverse, the scale, the shift and two sums.
        8,
    )


def scaled(factor: Tensor | float) -> Affine:
    """Return the multiplication by a constant."""
    constant = torch.as_tensor(factor).double()
    return Affine(lambda x: x * constant, lambda x: x * constant.abs(), 1)


def divided(divisor: Tensor | float) -> Affine:
    """Return the division by a constant."""
    constant = torch.as_tensor(divisor).double()
    return Affine(lambda x: x / constant, lambda x: x / constant.abs(), 1)


def shifted(constant: Tensor | float, sign: float = 1.0) -> Affine:
    """Return the sum of `sign` times the argument and a constant."""
    added = torch.as_tensor(constant).double()
    return Affine(lambda x: sign * x + added, lambda x: x + added.abs(), 1)


def averaged(sizes: tuple[int, int]) -> Affine:
    """Return adaptive average pooling to these sizes. The number of terms is that of any pool of at most 2^12 values."""
    return Affine(lambda x: F.adaptive_avg_pool2d(x, sizes), lambda x: F.adaptive_avg_pool2d(x, sizes), 2**12)


def reshaped(shape: torch.Size) -> Affine:
    """Return the change of shape to (b, *shape)."""
    return copied(lambda x: x.reshape(len(x), *shape))


def _convolution(module: nn.Conv2d) -> Affine | None:
    if module.padding_mode != "zeros":
        return None
    return _twice(module, module.in_channels // module.groups * module.weight[0, 0].numel() + 1)


def _average_pool(module: nn.AvgPool2d) -> Affine:
    size = module.kernel_size if isinstance(module.kernel_size, tuple) else (module.kernel_size, module.kernel_size)
    return Affine(module, module, size[0] * size[1] + 1)


_MODULES: list[tuple[type[nn.Module] | tuple[type[nn.Module], ...], Callable[[Any], Affine | None]]] = [
    ((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), lambda _: copied(lambda x: x)),
    ((nn.Flatten, nn.ZeroPad2d), copied),
    (nn.Linear, lambda module: _twice(module, module.in_features + 1)),
    (nn.Conv2d, _convolution),
    ((nn.BatchNorm1d, nn.BatchNorm2d), _batch_norm),
    (nn.AvgPool2d, _average_pool),
]
