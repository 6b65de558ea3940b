"""Survey a module's forward pass: which operations were relaxed, where, and what no relaxation could follow."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kwbench.randomness import seeded_globally
from kwbench.relaxation.context import Context
from kwbench.relaxation.dispatch import Log
from kwbench.relaxation.run import plain_attention, run
from kwbench.relaxation.tensors import storage

# Two forward passes on a GPU that differ by less than this, relative to the largest logit, count as equal.
_GPU_ROUNDING = 1e-5


@dataclass(frozen=True, slots=True)
class Relaxation:
    """A relaxed operation: its name in PyTorch, the module `where` it ran, and how many times in one pass."""

    operation: str
    where: str
    times: int


@dataclass(frozen=True, slots=True)
class Survey:
    """The relaxed operations of one forward pass.

    `unseen` describes, in one sentence each, the paths from the pixels to the logits along which no gradient could be found;
    it is empty if all paths are covered.
    """

    relaxed: tuple[Relaxation, ...]
    unseen: tuple[str, ...]


def survey(module: nn.Module, x: Tensor, seed: int = 0) -> Survey:
    """Survey one pass over x (b, c, h, w), and another over other pixels to see which values depend on them.

    Raises what the module raises.
    """
    context, log, other_log = Context(1.0, len(x)), Log(), Log()
    with seeded_globally(seed):
        output, differentiable = run(module, x.detach().clone().requires_grad_(), context, log=log)
    with seeded_globally(seed), torch.no_grad(), plain_attention():
        expected = module(x.detach().clone())
    with seeded_globally(seed):
        run(module, (1 - x.detach()).requires_grad_(), Context(1.0, len(x)), log=other_log)
    unseen = [*_lost_gradients(log, output), *_detours(log, other_log)]
    slack = _GPU_ROUNDING * float(expected.abs().nan_to_num().max()) if x.is_cuda else 0.0
    if not bool(((output - expected).nan_to_num().abs() <= slack).all()):
        unseen.append("watched, operation by operation, the forward pass gave other logits")
    if differentiable is None:
        unseen.append("no gradient at all reaches the pixels")
    counts = sorted(context.relaxed.items(), key=lambda item: (-item[1], item[0]))
    return Survey(
        tuple(Relaxation(operation.rpartition(".")[0], where, times) for (operation, where), times in counts), tuple(unseen)
    )


def _lost_gradients(log: Log, output: Tensor) -> list[str]:
    """Describe the operations at which the gradient ends though the logits depend on their results."""
    needed = {storage(output)}
    lost: Counter[tuple[str, str]] = Counter()
    for operation in reversed(log.operations):
        if operation.wrote & needed:
            needed |= operation.read
            if operation.lost:
                lost[operation.name.rpartition(".")[0], operation.where] += 1
    return [f"the gradient ends at {name}{_in(where)}{_times(times)}" for (name, where), times in sorted(lost.items())]


def _detours(log: Log, other_log: Log) -> list[str]:
    """Describe values that leave PyTorch and come back changed with the pixels, and operations that depend on the pixels."""
    changed = Counter(
        where
        for (before, where), (after, _) in zip(log.outside, other_log.outside, strict=False)
        if before.shape != after.shape or not torch.equal(before.nan_to_num(), after.nan_to_num())
    )
    unseen = [
        f"values leave PyTorch and come back{_in(where)}{_times(times)}, as through numpy"
        for where, times in sorted(changed.items())
    ]
    if [operation.name for operation in log.operations] != [operation.name for operation in other_log.operations]:
        unseen.append("which operations run depends on the pixels")
    return unseen


def _in(where: str) -> str:
    return f" in {where}" if where else ""


def _times(times: int) -> str:
    return f", {times} times" if times > 1 else ""
