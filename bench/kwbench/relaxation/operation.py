"""One call of a PyTorch operation, and whether autograd can differentiate it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.backward import with_finite_slopes
from kwbench.relaxation.tensors import detached, tensors_in

# Operations whose slope is infinite or undefined at some values, such as zero.
_UNBOUNDED_SLOPES = frozenset(
    {
        *("_cdist_forward", "_euclidean_dist", "_linalg_det", "_linalg_eigh", "_linalg_slogdet", "_linalg_svd"),
        *("acos", "acosh", "asin", "atan2", "atanh", "div", "erfinv", "hypot", "linalg_cholesky_ex", "linalg_inv_ex"),
        *("linalg_qr", "linalg_vector_norm", "log", "log10", "log1p", "log2", "logit", "norm", "pow", "reciprocal"),
        *("rsqrt", "sqrt", "std", "true_divide", "xlogy"),
    }
)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operation: its arguments, floats with their gradients, and the name of the module that it runs in."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    where: str = ""

    @property
    def name(self) -> str:
        """The name in PyTorch, such as `gt.Scalar`."""
        return str(self.operation).removeprefix("aten.")

    def option(self, position: int, name: str, default: Any = None) -> Any:
        """An argument that may have been given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def exact(self) -> Any:
        """The result of the operation, with the gradient that autograd gives it, where that is finite."""
        return self.operation(*self._with_finite_slopes(), **self.kwargs)

    def hard(self) -> Any:
        """The same values without a gradient."""
        return self.operation(*detached(self.args), **self.kwargs)

    def _with_finite_slopes(self) -> tuple[Any, ...]:
        """The arguments, those of an operation of unbounded slope with finite gradients."""
        if self.name.partition(".")[0] not in _UNBOUNDED_SLOPES:
            return self.args
        return tuple(
            with_finite_slopes(argument) if isinstance(argument, Tensor) and argument.requires_grad else argument
            for argument in self.args
        )


# Whether an operation can be differentiated in these of its tensors, by trial.
_DIFFERENTIABLE: dict[tuple[Any, tuple[bool, ...]], bool] = {}


def is_differentiable(call: Call, sources: list[Tensor], result: Any) -> bool:
    """Whether autograd's backward pass from the result to the sources runs: some operations raise only when it is called."""
    key = call.operation, tuple(tensor.requires_grad for tensor in tensors_in(call.args))
    if key not in _DIFFERENTIABLE:
        results = [tensor for tensor in tensors_in(result) if tensor.requires_grad]
        try:
            # Differentiate a scalar: passing `grad_outputs` would import sympy, which takes longer than many a pass.
            sums = [(torch.view_as_real(tensor) if tensor.is_complex() else tensor).sum().double() for tensor in results]
            torch.autograd.grad(torch.stack(sums).sum(), sources, retain_graph=True, allow_unused=True)
            _DIFFERENTIABLE[key] = True
        except (RuntimeError, NotImplementedError):
            _DIFFERENTIABLE[key] = False
    return _DIFFERENTIABLE[key]
