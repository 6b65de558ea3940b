"""Soft backward passes for any module, found while it runs: no knowledge of the model, no edit of its code."""

import random

import numpy as np
import torch
from torch import Tensor, nn

from kwbench.relaxation.context import Context
from kwbench.relaxation.running import run
from kwbench.relaxation.survey import Relaxation, Survey, survey

__all__ = ["Relaxation", "Survey", "relaxed", "relaxed_pass", "survey"]


# Raise it with any change that can change an outcome; see tests/golden.
REVISION = 1


def relaxed(module: nn.Module, x: Tensor, softness: float = 1.0) -> Tensor:
    """What the module answers to x (b, c, h, w), bit for bit, differentiable in x through a softened backward pass.

    `softness` multiplies every scale: near 0 the gradients are the hard ones, at large values nearly linear.
    """
    return relaxed_pass(module, x, softness)[0]


def relaxed_pass(module: nn.Module, x: Tensor, softness: float = 1.0) -> tuple[Tensor, int]:
    """The same, and how many forward passes it took: one, or two where all ways lead outside PyTorch and must be guessed."""
    generators = _Generators(x)
    answer, shadow = run(module, x, Context(softness, len(x)))
    if shadow is not None or not x.requires_grad or not isinstance(answer, Tensor):
        return answer if shadow is None else shadow, 1
    generators.rewind()
    answer, shadow = run(module, x, Context(softness, len(x)), guess=True)
    return answer if shadow is None else shadow, 2


class _Generators:
    """The global generators as they stood."""

    def __init__(self, x: Tensor) -> None:
        self._torch, self._numpy, self._python = torch.get_rng_state(), np.random.get_state(), random.getstate()
        self._cuda = torch.cuda.get_rng_state(x.device) if x.is_cuda else None
        self._device = x.device

    def rewind(self) -> None:
        """Put them back."""
        torch.set_rng_state(self._torch)
        np.random.set_state(self._numpy)
        random.setstate(self._python)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
