"""A model as it is right after loading: each question is asked in a process of its own, before which nothing was asked.

A process is forked from this one before the model's first pass. It forks again for each question, so that no answer can depend
on earlier ones, wherever the model keeps its state: in its module, in classes, in globals, in generators of its own.
"""

import os
import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kwbench.errors import CannotEvaluate


class Pristine:
    """A forked process that answers for a module on the CPU. It ends when this object is closed, or with this process."""

    def __init__(self, module: nn.Module) -> None:
        self._pipe, other = Pipe()
        self._process = os.fork()
        if not self._process:
            self._pipe.close()
            _serve(module, other)
        other.close()

    @classmethod
    def of(cls, module: nn.Module, device: torch.device) -> "Pristine | None":
        """Return the process for a module that has not been called yet; None where processes cannot be forked."""
        return cls(module) if device.type == "cpu" and hasattr(os, "fork") else None

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the module returns for x (b, c, h, w) as its first question, differentiable in x.

        The global generators have their current states. Raises CannotEvaluate if the module raises.
        """
        answer: Tensor = _Question.apply(x, self)  # type: ignore[no-untyped-call]
        return answer

    def ask(self, x: Tensor, weights: Tensor | None, states: tuple[Any, ...]) -> Tensor:
        """Return the answer, or with `weights` (like the answer) the gradient in x of its weighted sum, which may be zero."""
        try:
            self._pipe.send_bytes(pickle.dumps((_array(x), None if weights is None else _array(weights), states)))
            answer = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError) as failure:
            raise CannotEvaluate(f"the process of the unused model died ({type(failure).__name__})") from None
        if isinstance(answer, str):
            raise CannotEvaluate(f"asked first, the model raised {answer}")
        return torch.from_numpy(answer)

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        with suppress(ChildProcessError):
            os.waitpid(self._process, 0)


class AskedFirst(nn.Module):
    """Answers every question as an unused model would. `warm` is the module in this process, which remembers questions."""

    def __init__(self, warm: nn.Module, pristine: Pristine) -> None:
        super().__init__()
        self.warm, self._pristine = warm, pristine

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (b, k) of x (b, c, h, w)."""
        return self._pristine(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> "AskedFirst":
        # It keeps no state that a copy could have of its own.
        return self


class _Question(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pristine: Pristine) -> Tensor:
        ctx.pristine, ctx.states = pristine, _states()
        ctx.save_for_backward(x)
        return pristine.ask(x, None, ctx.states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.pristine.ask(x, gradient, ctx.states), None


def _array(x: Tensor) -> Any:
    return x.detach().contiguous().numpy()


def _states() -> tuple[Any, ...]:
    return torch.get_rng_state().numpy(), np.random.get_state(), random.getstate()


def _serve(module: nn.Module, pipe: Connection) -> None:
    """Answer questions, each in a process forked from this one, until the pipe is closed; never return."""
    # A pool of threads does not survive a fork.
    torch.set_num_threads(1)
    with _ending():
        while True:
            question = pipe.recv_bytes()
            child = os.fork()
            if not child:
                with _ending():
                    pipe.send_bytes(pickle.dumps(_answer(module, *pickle.loads(question))))
            if os.waitpid(child, 0)[1]:
                pipe.send_bytes(pickle.dumps("nothing, but its process died"))


@contextmanager
def _ending() -> Iterator[None]:
    """End this process with the block, without the exit handlers of the process that it was forked from."""
    code = 1
    try:
        yield
        code = 0
    except EOFError:
        code = 0
    finally:
        os._exit(code)


def _answer(module: nn.Module, x: Any, weights: Any, states: tuple[Any, ...]) -> Any:
    """Return the answer or gradient as an array, or what the module raised as text."""
    try:
        torch.set_rng_state(torch.from_numpy(states[0]))
        np.random.set_state(states[1])
        random.setstate(states[2])
        images = torch.from_numpy(x)
        if weights is None:
            with torch.no_grad():
                return module(images).numpy()
        with torch.enable_grad():
            images.requires_grad_()
            logits = module(images)
            if not logits.requires_grad:
                return np.zeros_like(x)
            (gradient,) = torch.autograd.grad(logits, images, torch.from_numpy(weights), allow_unused=True)
        return np.zeros_like(x) if gradient is None else gradient.numpy()
    except Exception as failure:  # noqa: BLE001 - foreign code may raise anything
        return f"{type(failure).__name__}: {failure}"[:500]
