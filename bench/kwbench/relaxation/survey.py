"""What a module's forward pass hides: which operations were relaxed, where, and what no relaxation could see."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kwbench.randomness import seeded_globally
from kwbench.relaxation.rules import Context
from kwbench.relaxation.tape import Tape, record, replay, tensors_in


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
    with seeded_globally(seed):
        answer, tape = record(module, x, places=True)
    context = Context(1.0, len(x))
    root = x.detach().clone().requires_grad_()
    try:
        again = replay(tape, x, root, answer, context)
    except RuntimeError as failure:
        return Survey((), (f"the forward pass could not be computed again: {str(failure).splitlines()[0]}",))
    unseen = [*_lost(tape, context, answer), *_from_outside(module, tape, x, seed)]
    if not torch.equal(again.detach(), answer):
        unseen.append("computed again, operation by operation, the forward pass gave other logits")
    if not again.requires_grad:
        unseen.append("no gradient at all reaches the pixels")
    counted = sorted(context.relaxed.items(), key=lambda item: (-item[1], item[0]))
    return Survey(
        tuple(Relaxation(operation.partition(".")[0], where, times) for (operation, where), times in counted), tuple(unseen)
    )


def _lost(tape: Tape, context: Context, answer: Tensor) -> list[str]:
    """Operations behind which the gradient ends though the logits depend on their results."""
    needed = {_memory(answer)}
    lost: dict[tuple[str, str], int] = {}
    for node in reversed(tape.nodes):
        if not any(_memory(each) in needed for each in tensors_in(node.result)):
            continue
        needed.update(_memory(each) for each in tensors_in(node.args, node.kwargs))
        if id(node) in context.lost:
            key = str(node.operation).removeprefix("aten.").partition(".")[0], node.where
            lost[key] = lost.get(key, 0) + 1
    return [
        f"the gradient ends at {operation}{f' in {where}' if where else ''}{f', {times} times' if times > 1 else ''}"
        for (operation, where), times in sorted(lost.items())
    ]


def _from_outside(module: nn.Module, tape: Tape, x: Tensor, seed: int) -> list[str]:
    """Values that leave PyTorch and come back, or steer the program from Python, seen by how they change with the pixels."""
    with seeded_globally(seed):
        _, other = record(module, 1 - x, places=True)
    found: dict[str, int] = {}
    for (key, before), after in zip(tape.outside.items(), other.outside.values(), strict=False):
        if before.shape != after.shape or not torch.equal(before.nan_to_num(), after.nan_to_num()):
            where = next((node.where for node in tape.nodes if any(id(each) == key for each in tensors_in(node.args))), "")
            found[where] = found.get(where, 0) + 1
    unseen = [
        f"values leave PyTorch and come back{f' in {where}' if where else ''}{f', {times} times' if times > 1 else ''}, as through numpy"
        for where, times in sorted(found.items())
    ]
    if [node.operation for node in tape.nodes] != [node.operation for node in other.nodes]:
        unseen.append("which operations run depends on the pixels")
    return unseen


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
