"""Relaxed backward passes for any module, found while it runs: no knowledge of the model, no change of its code.

Terms. The *hard* value is what the module computes. The result of a comparison, a rounding or a draw keeps its hard value
and gets the gradient of a *soft*, smooth function. A float that depends on the pixels has a *differentiable twin*, the same
values with a gradient (`dispatch`). Booleans and integers cannot have a gradient in PyTorch; they have a *relaxed version*
in floats until they meet a float again (`relaxed_tensors`). How soft a function is, is `softness` times a mean magnitude of
each sample's data, so that no backward pass is flat (`scales`). `rules` say what happens to each operation.
"""

import random

import numpy as np
import torch
from torch import Tensor, nn

from kwbench.relaxation.context import Context
from kwbench.relaxation.run import run
from kwbench.relaxation.survey import Relaxation, Survey, survey

# Raise it with any change that can change an outcome; see tests/golden.
REVISION = 3

__all__ = ["REVISION", "Relaxation", "Survey", "relaxed", "relaxed_pass", "survey"]


def relaxed(module: nn.Module, x: Tensor, softness: float = 1.0) -> Tensor:
    """Return the module's output for x (b, c, h, w), bit for bit, differentiable in x by a relaxed backward pass.

    `softness` multiplies every scale: near 0 the gradients are the hard ones, at large values nearly linear.
    """
    return relaxed_pass(module, x, softness)[0]


def relaxed_pass(module: nn.Module, x: Tensor, softness: float = 1.0) -> tuple[Tensor, int]:
    """Return the same, and the number of forward passes: one, or two if no gradient reaches x without guessing what came back
    from outside PyTorch."""
    generators = _Generators(x)
    output, differentiable = run(module, x, Context(softness, len(x)))
    if differentiable is not None or not x.requires_grad or not isinstance(output, Tensor):
        return output if differentiable is None else differentiable, 1
    generators.rewind()
    output, differentiable = run(module, x, Context(softness, len(x)), guess=True)
    return output if differentiable is None else differentiable, 2


class _Generators:
    """The states of the global random number generators."""

    def __init__(self, x: Tensor) -> None:
        self._torch, self._numpy, self._python = torch.get_rng_state(), np.random.get_state(), random.getstate()
        self._cuda = torch.cuda.get_rng_state(x.device) if x.is_cuda else None
        self._device = x.device

    def rewind(self) -> None:
        """Restore the states."""
        torch.set_rng_state(self._torch)
        np.random.set_state(self._numpy)
        random.setstate(self._python)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
