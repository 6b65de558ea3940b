"""Submodules of a model that are classifiers themselves: networks inside a defence."""

from typing import Any

import torch
from torch import Tensor, nn

from kwbench.model import Model, fill_tile


class Within(nn.Module):
    """Runs a module, and returns the first output of one of its submodules."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module, self.name = module, name

    def forward(self, x: Tensor) -> Tensor:
        """Return the submodule's answers (b, k) to x (b, c, h, w)."""
        outputs: list[Tensor] = []

        def keep(_: nn.Module, __: Any, output: Tensor) -> None:
            outputs.append(output)

        handle = self.module.get_submodule(self.name).register_forward_hook(keep)
        try:
            self.module(x)
        finally:
            handle.remove()
        return outputs[0]


def classifiers_within(model: Model, x: Tensor) -> tuple[str, ...]:
    """Return the names of the submodules that answer images x (n, c, h, w) with (n, classes), in the order of their answers.

    They must predict the model's class of most images. Those are left out whose answers are the model's own up to the scale
    and the offset of a row, or another submodule's.
    """
    x = fill_tile(x, model.tile)
    answers: dict[str, Tensor] = {}
    handles = []
    for name, part in model.module.named_modules():
        if name and not isinstance(part, torch.jit.ScriptModule):

            def keep(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor) and output.shape == (len(x), model.classes) and output.is_floating_point():
                    answers.setdefault(name, output.detach().float())

            handles.append(part.register_forward_hook(keep))
    try:
        with model.aside("submodules"), torch.no_grad(), model.raising_by_name():
            known = [model.module(x).detach().float()]
    finally:
        for handle in handles:
            handle.remove()
    different = []
    for name, output in answers.items():
        agree = (output.argmax(dim=1) == known[0].argmax(dim=1)).float().mean() > 0.5
        if agree and not any(_same(output, other) for other in known):
            known.append(output)
            different.append(name)
    return tuple(different)


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether logits (b, k) are equal up to the scale and the offset of each row."""
    shapes = []
    for logits in (one, other):
        centred = logits - logits.mean(dim=1, keepdim=True)
        shapes.append(centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-30))
    return torch.allclose(shapes[0], shapes[1], rtol=0, atol=1e-4)
