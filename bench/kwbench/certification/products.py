"""Products with the matrices of a system, which are sparse where layers are convolutions."""

import warnings
from typing import Any

import torch
from torch import Tensor

# Above this share of non-zero values a dense product is faster.
_DENSE = 0.2


class Matrix:
    """A constant matrix (n, m), to be multiplied from the left by (p, n), differentiable in the latter.

    `multiply_adds` is the cost of one row.
    """

    def __init__(self, values: Tensor) -> None:
        self._sparse = values.numel() > 0 and float((values != 0).float().mean()) < _DENSE
        # A sparse multiply-add takes several times as long as a dense one.
        self.multiply_adds = 5 * int((values != 0).sum()) if self._sparse else values.numel()
        self._values = _compressed(values.T) if self._sparse else values
        self._transposed = _compressed(values) if self._sparse else values.T

    def __call__(self, rows: Tensor) -> Tensor:
        """Return rows (p, n) times the matrix, (p, m)."""
        return _Product.apply(rows, self) if self._sparse else rows @ self._values  # type: ignore[no-untyped-call]

    def multiply(self, rows: Tensor) -> Tensor:
        """Return rows (p, n) times the matrix."""
        return (self._values @ rows.T).T

    def multiply_transposed(self, rows: Tensor) -> Tensor:
        """Return rows (p, m) times the transpose."""
        return (self._transposed @ rows.T).T


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Matrix) -> Tensor:
        ctx.matrix = matrix
        return matrix.multiply(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.matrix.multiply_transposed(gradient), None


def _compressed(values: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # "Sparse CSR tensor support is in beta state."
        warnings.simplefilter("ignore", UserWarning)
        return values.contiguous().to_sparse_csr()
