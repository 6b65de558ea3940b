"""What modules return, and the logits in it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from kwbench.randomness import globals_restored

_ADVICE = "wrap it in a module whose forward returns the logits alone"


class LogitsOf(nn.Module):
    """A module that returns the logits of another one's output."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        """Return the logits (b, k) of x (b, c, h, w); any output in which there are none as it is."""
        output = self.module(x)
        logits, _ = find_logits(output)
        return output if logits is None else logits


class TwoClasses(nn.Module):
    """A module of one logit z an image, (b,) or (b, 1), as two classes of logits 0 and z: sigmoid(z) is the second's share."""

    revision = 1

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        """Return logits (b, 2) of x (b, c, h, w); any other output as it is."""
        output = self.module(x)
        if not isinstance(output, Tensor) or tuple(output.shape) not in ((len(x),), (len(x), 1)):
            return output
        z = output.view(-1, 1)
        return torch.cat([torch.zeros_like(z), z], dim=1)


class OneHot(nn.Module):
    """A module that returns predicted classes (b,), as logits that are 1 for the class and 0 for others, without gradient.

    With `others`, all classes from `classes` on are one more class: the labels of a data set may not show all that there are.
    """

    revision = 1

    def __init__(self, module: nn.Module, classes: int, *, others: bool = False) -> None:
        super().__init__()
        self.module, self.classes, self.others = module, classes, others

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (b, k) of x (b, c, h, w). Raises ValueError for a class that the data set does not have."""
        labels = self.module(x).long()
        if self.others:
            return one_hot(labels.clamp(0, self.classes), self.classes + 1).to(x)
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise ValueError(f"the model predicted classes {int(labels.min())} to {int(labels.max())} of {self.classes}")
        return one_hot(labels, self.classes).to(x)


def returns_labels(module: nn.Module) -> bool:
    """Whether a module of `with_logits` returned predicted classes, not logits."""
    return isinstance(module, OneHot)


def find_logits(output: Any) -> tuple[Tensor | None, str]:
    """Return the logits in a module's output, and where they were; None and "" if the output holds none.

    They are its attribute `logits`, as in Hugging Face's outputs, its entry "logits", or the first element of a tuple or list.
    """
    kind = type(output).__name__
    candidates: list[tuple[Any, str]] = [(getattr(output, "logits", None), f".logits of {kind}")]
    if isinstance(output, Mapping):
        candidates.append((output.get("logits"), f'["logits"] of {kind}'))
    if isinstance(output, tuple | list) and output:
        candidates.append((output[0], f"the first of {len(output)} outputs"))
    for value, where in candidates:
        if isinstance(value, Tensor) and value.dim() == 2:
            return value, where
    return None, ""


def with_logits(
    module: nn.Module, images: Tensor, classes: int, *, binary: bool = False, others: bool = False
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a module that returns logits (b, k) for images (b, c, h, w), and a note on where it takes them from.

    With `binary`, one logit an image becomes two classes. Integers (b,) are predicted classes, of `classes` and, if `others`,
    of more. The module itself, and no note, if it returns another tensor, holds no logits, or raises: a real pass then says
    why.
    """
    try:
        with torch.no_grad(), globals_restored():
            output = module(images.clone())
    except Exception:  # noqa: BLE001 - foreign code may raise anything
        return module, ()
    if binary:
        return TwoClasses(module).train(module.training), ("one logit an image became two classes",)
    if isinstance(output, Tensor):
        if output.is_floating_point() or tuple(output.shape) != (len(images),):
            return module, ()
        note = "returns predicted classes alone, so that only attacks on labels apply"
        return OneHot(module, classes, others=others).train(module.training), (note,)
    logits, where = find_logits(output)
    return (module, ()) if logits is None else (LogitsOf(module).train(module.training), (f"took {where}",))


def refusal(output: Any, images: int) -> str | None:
    """Return why an output is no logits (b, k) for `images` images, with advice; None if it is."""
    if not isinstance(output, Tensor):
        keys = f" with {', '.join(map(repr, list(output)[:8]))}" if isinstance(output, Mapping) else ""
        return f"the model must return logits ({images}, classes), it returned {type(output).__name__}{keys}; {_ADVICE}"
    if tuple(output.shape) in ((images,), (images, 1)) and output.is_floating_point():
        join = "torch.stack([-z, z], dim=1)" if output.dim() == 1 else "torch.cat([-z, z], dim=1)"
        return (
            f"the model returned one logit z an image, {tuple(output.shape)}; --binary makes two classes of it, as does "
            f"{join}; of a probability p take the logarithms of 1 - p and p"
        )
    if output.dim() != 2 or len(output) != images:
        return f"the model must return logits ({images}, classes), it returned {tuple(output.shape)}; {_ADVICE}"
    if not output.is_floating_point():
        return f"logits must be floating point, they are {output.dtype}"
    return None


def are_answers(logits: Tensor) -> Tensor:
    """Return which logits (..., k) are an answer, as (...): the largest is finite and none is NaN.

    Minus infinity is a legitimate logit of other classes than the predicted one: it masks a class.
    """
    return logits.amax(dim=-1).isfinite()
