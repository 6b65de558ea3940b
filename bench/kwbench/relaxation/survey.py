"""What a module's forward pass hides: which operations were relaxed, where, and what no relaxation could see."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kwbench.randomness import seeded_globally
from kwbench.relaxation.context import Context, storage
from kwbench.relaxation.running import Log, plain_attention, run


@dataclass(frozen=True, slots=True)
class Relaxation:
    """An operation whose gradient was softened: its name in PyTorch, the module it ran in, and how often in one pass."""

    operation: str
    where: str
    times: int


@dataclass(frozen=True, slots=True)
class Survey:
    """One forward pass as the relaxation sees it. `unseen`, one sentence each: ways from the pixels to the logits along which
    no gradient could be found; empty if all of them are covered."""

    relaxed: tuple[Relaxation, ...]
    unseen: tuple[str, ...]


def survey(module: nn.Module, x: Tensor, seed: int = 0) -> Survey:
    """Look at one pass over x (b, c, h, w), and at another over other pixels to see what depends on them.

    Raises what the module raises.
    """
    context, log, other = Context(1.0, len(x)), Log(), Log()
    with seeded_globally(seed):
        answer, shadow = run(module, x.detach().clone().requires_grad_(), context, log=log)
    with seeded_globally(seed), torch.no_grad(), plain_attention():
        plain = module(x.detach().clone())
    with seeded_globally(seed):
        run(module, (1 - x.detach()).requires_grad_(), Context(1.0, len(x)), log=other)
    unseen = [*_lost(log, answer), *_from_outside(log, other)]
    # On a GPU sums may round differently from pass to pass.
    slack = 1e-5 * float(plain.abs().nan_to_num().max()) if x.is_cuda else 0.0
    if not bool(((answer - plain).nan_to_num().abs() <= slack).all()):
        unseen.append("watched, operation by operation, the forward pass gave other logits")
    if shadow is None:
        unseen.append("no gradient at all reaches the pixels")
    counted = sorted(context.relaxed.items(), key=lambda item: (-item[1], item[0]))
    return Survey(
        tuple(Relaxation(operation.rpartition(".")[0], where, times) for (operation, where), times in counted), tuple(unseen)
    )


def _lost(log: Log, answer: Tensor) -> list[str]:
    """Operations behind which the gradient ends though the logits depend on their results."""
    needed = {storage(answer)}
    lost: Counter[tuple[str, str]] = Counter()
    for operation in reversed(log.operations):
        if operation.wrote & needed:
            needed |= operation.read
            if operation.lost:
                lost[operation.name.rpartition(".")[0], operation.where] += 1
    return [f"the gradient ends at {name}{_in(where)}{_often(times)}" for (name, where), times in sorted(lost.items())]


def _from_outside(log: Log, other: Log) -> list[str]:
    """Values that leave PyTorch and come back, or steer the program from Python, seen by how they change with the pixels."""
    found = Counter(
        where
        for (before, where), (after, _) in zip(log.outside, other.outside, strict=False)
        if before.shape != after.shape or not torch.equal(before.nan_to_num(), after.nan_to_num())
    )
    unseen = [
        f"values leave PyTorch and come back{_in(where)}{_often(times)}, as through numpy"
        for where, times in sorted(found.items())
    ]
    if [each.name for each in log.operations] != [each.name for each in other.operations]:
        unseen.append("which operations run depends on the pixels")
    return unseen


def _in(where: str) -> str:
    return f" in {where}" if where else ""


def _often(times: int) -> str:
    return f", {times} times" if times > 1 else ""
