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
    """Survey one pass over x (b, c, h, w), and others over other pixels to see which values depend on them.

    Raises what the module raises.
    """
    context, log = Context(1.0, len(x)), Log()
    with seeded_globally(seed):
        output, differentiable = run(module, x.detach().clone().requires_grad_(), context, log=log)
    with seeded_globally(seed), torch.no_grad(), plain_attention():
        expected = module(x.detach().clone())
    other_log = _log(module, 1 - x.detach(), seed)
    # A condition may hold for an image and its negative alike, so that what Python reads is compared with noise as well.
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).to(x) if log.reads else None
    logs = (
        [other_log] if noise is None else [other_log, _log(module, noise, seed), _log(module, (x.detach() + noise) / 2, seed)]
    )
    unseen = [*_lost_gradients(log, output), *_detours(log, other_log), *_python_reads(log, other_log, logs)]
    slack = _GPU_ROUNDING * float(expected.abs().nan_to_num().max()) if x.is_cuda else 0.0
    if not bool(((output - expected).nan_to_num().abs() <= slack).all()):
        unseen.append("watched, operation by operation, the forward pass gave other logits")
    if differentiable is None:
        unseen.append("no gradient at all reaches the pixels")
    counts = sorted(context.relaxed.items(), key=lambda item: (-item[1], item[0]))
    return Survey(
        tuple(Relaxation(operation.rpartition(".")[0], where, times) for (operation, where), times in counts), tuple(unseen)
    )


def _log(module: nn.Module, x: Tensor, seed: int) -> Log:
    """Return the log of a pass over x."""
    log = Log()
    with seeded_globally(seed):
        run(module, x.requires_grad_(), Context(1.0, len(x)), log=log)
    return log


def _python_reads(log: Log, other_log: Log, logs: list[Log]) -> list[str]:
    """Describe what Python reads and what changes with the pixels, unless it is seen to come back in a tensor."""
    returns = {where for _, where in _changed(log.outside, other_log.outside)}
    changed: Counter[tuple[str, str]] = Counter()
    for position, read in enumerate(log.reads):
        others = [other.reads[position].values if position < len(other.reads) else None for other in logs]
        differs = any(other is None or not _equal(read.values, other) for other in others)
        if differs and not (read.how == "numpy" and read.where in returns):
            changed[read.how, read.where] += 1
    return [
        f"Python reads values that depend on the pixels ({how}){_in(where)}{_times(times)}"
        for (how, where), times in sorted(changed.items())
    ]


def _changed(before: list[tuple[Tensor, str]], after: list[tuple[Tensor, str]]) -> list[tuple[Tensor, str]]:
    """Return the values of the first list, with their modules, that differ from those of the second."""
    return [one for one, other in zip(before, after, strict=False) if not _equal(one[0], other[0])]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


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
    changed = Counter(where for _, where in _changed(log.outside, other_log.outside))
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
