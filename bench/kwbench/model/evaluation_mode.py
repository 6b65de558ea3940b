"""Evaluation mode for modules whose `eval()` does not reach everything that they use, returns nothing or is refused."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

# What torch captures of layers that behave otherwise in training, with the position of the argument that says so.
_TRAINING_ARGUMENTS = {"aten.dropout.default": 2, "aten.batch_norm.default": 5, "aten.native_dropout.default": 2}
# Layers of torch.nn that behave otherwise in training. Classes of others are not known to be harmless.
_DIFFER_IN_TRAINING = (_DropoutNd, _NormBase, nn.RReLU)


@dataclass(frozen=True)
class Modes:
    """What `eval()` did not do by itself.

    Attributes:
        unreached: modules in training mode that it did not reach, and which are in evaluation mode now.
        training: modules that behave otherwise in training and stay in that mode, because they, or what holds them, refuse.
    """

    unreached: tuple[nn.Module, ...]
    training: tuple[nn.Module, ...]


def enter_evaluation_mode(module: nn.Module, reachable: Sequence[nn.Module] = ()) -> Modes:
    """Put a module and the modules that it can reach, `reachable`, into evaluation mode.

    What `eval()` returns does not matter. Modules exported by torch keep the mode in which they were exported.
    """
    found = {id(part): part for part in (*module.modules(), *reachable)}
    inside = {id(part) for outer in found.values() if _is_exported(outer) for part in outer.modules() if part is not outer}
    parts = [part for part in found.values() if id(part) not in inside]
    with _exported_left_alone(parts), _observed(parts) as untouched:
        module.eval()
        unreached = []
        for part in parts:
            if untouched(part) and _is_training(part):
                with suppress(Exception):  # foreign code may refuse; then it stays in training mode
                    part.eval()
                if not untouched(part) and not _is_training(part):
                    unreached.append(part)
    return Modes(tuple(unreached), tuple(part for part in parts if _trains(part)))


class _Untouched:
    """Stands for a module's mode while it is observed whether `eval()` sets it. True, if the module was in training."""

    def __init__(self, training: bool) -> None:
        self.training = training

    def __bool__(self) -> bool:
        return self.training


@contextmanager
def _observed(parts: Sequence[nn.Module]) -> Iterator[Any]:
    """Yield a function that tells whether nothing set a module's mode in this block; scripted modules always count as set."""
    for part in parts:
        if not isinstance(part, torch.jit.ScriptModule) and "training" in vars(part):
            vars(part)["training"] = _Untouched(vars(part)["training"])
    try:
        yield lambda part: isinstance(vars(part).get("training"), _Untouched)
    finally:
        for part in parts:
            if isinstance(mode := vars(part).get("training"), _Untouched):
                vars(part)["training"] = mode.training


@contextmanager
def _exported_left_alone(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Let `train` and `eval` of exported modules, which refuse, do nothing until the block ends."""
    exported = [(part, vars(part)["train"], vars(part)["eval"]) for part in parts if _is_exported(part)]
    for part, _, _ in exported:
        vars(part).update(train=lambda mode=True: None, eval=lambda: None)
    try:
        yield
    finally:
        for part, train, evaluate in exported:
            vars(part).update(train=train, eval=evaluate)


def _is_exported(part: nn.Module) -> bool:
    return isinstance(part, torch.fx.GraphModule) and {"train", "eval"} <= vars(part).keys()


def _is_training(part: nn.Module) -> bool:
    return bool(getattr(part, "training", False))


def _trains(part: nn.Module) -> bool:
    """Whether a module behaves as in training."""
    if _is_exported(part):
        return any(
            node.args[position] is True
            for node in part.graph.nodes  # type: ignore[union-attr]
            if (position := _TRAINING_ARGUMENTS.get(str(node.target))) is not None and len(node.args) > position
        )
    known = type(part).__module__.startswith("torch.nn.")
    return _is_training(part) and (not known or isinstance(part, _DIFFER_IN_TRAINING))
