"""Networks whose code is known here: layers of torch, and kwbench's own architectures and activations."""

from types import FunctionType, MethodType

import torch
from torch import Tensor, nn

_KNOWN = ("torch.nn.modules.", "kwbench.networks.architectures.", "kwbench.networks.activations.")


def is_known_code(module: nn.Module) -> bool:
    """Whether a pass runs known code only: no class, hook or function of somebody else, no tensor of a special type.

    Such a network has no state, and draws only from the global generators of torch.
    """
    # A global hook is a hook of every module.
    hooked = torch.nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    return not hooked and all(map(_is_known, module.modules()))


def _is_known(part: nn.Module) -> bool:
    if not f"{type(part).__module__}.".startswith(_KNOWN):
        return False
    own = vars(part)
    tensors = [*own["_parameters"].values(), *own["_buffers"].values()]
    return (
        not (own["_forward_hooks"] or own["_forward_pre_hooks"])
        and not any(isinstance(value, FunctionType | MethodType) for value in own.values())
        and {type(tensor) for tensor in tensors} <= {type(None), Tensor, nn.Parameter}
    )
