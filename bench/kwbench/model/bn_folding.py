"""Batch norms folded into the convolutions before them: the same function but for rounding, in less time."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(module: nn.Module, images: Tensor) -> nn.Module | None:
    """A copy of a module in evaluation mode, with each batch norm that comes right after a convolution folded into it; None if
    there is none. Other weights are those of the module.

    A pass over images (b, c, h, w) shows what comes after what. It does not show whether somebody else asks for what the
    convolution says, whether it is changed in between, or what the copy still shares with the module: compare the answers to
    other images. Raises what the module raises.
    """
    pairs = _pairs(module, images)
    if not pairs:
        return None
    # What stays as it is need not be there twice.
    copy = deepcopy(module, {id(weights): weights for weights in module.parameters()})
    others: dict[nn.Module, nn.Module] = {}
    for before, after in pairs:
        convolution, norm = copy.get_submodule(before), copy.get_submodule(after)
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        others |= {convolution: fuse_conv_bn_eval(convolution, norm), norm: nn.Identity()}
    for name, part in list(copy.named_modules(remove_duplicate=False)):
        if part in others:
            copy.set_submodule(name, others[part])
    return copy


def _pairs(module: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """The names of convolutions, and of the batch norms that were given just what each of them said."""
    said: list[tuple[Tensor, str]] = []
    heard: list[tuple[Tensor, str]] = []
    hooks = []
    for name, part in module.named_modules():
        # What inherits from these may do something else.
        if type(part) is nn.Conv2d:
            hooks.append(part.register_forward_hook(lambda _, __, answer, name=name: said.append((answer, name))))
        elif type(part) is nn.BatchNorm2d and part.running_mean is not None:
            hooks.append(part.register_forward_pre_hook(lambda _, given, name=name: heard.append((given[0], name))))
    try:
        with torch.no_grad():
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = [(before, after) for answer, before in said for given, after in heard if given is answer]
    # Who is asked more than once has more than one successor, or predecessor.
    befores, afters = [before for _, before in said], [after for _, after in heard]
    return [(before, after) for before, after in pairs if befores.count(before) == 1 and afters.count(after) == 1]
