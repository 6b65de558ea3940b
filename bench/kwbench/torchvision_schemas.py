"""Import torchvision although its compiled extension does not match the installed CPU build of torch.

In that case torchvision 0.28.0 fails to import: it registers fake kernels for the operators `torchvision::nms` and
`torchvision::qnms`, which only the extension defines. Models, transforms and data sets need neither, so that bare schemas of
the operators suffice. Where the extension loads, nothing is defined.
"""

from types import ModuleType

import torch

# Kept alive for the whole process, because the definitions of a library vanish with it.
_fragments: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Import and return torchvision. Raises ImportError if it is not installed."""
    try:
        import torchvision
    except RuntimeError as failure:
        if "torchvision::nms" not in str(failure):
            raise
        fragment = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            fragment.define(schema)  # type: ignore[no-untyped-call]
        _fragments.append(fragment)
        import torchvision
    return torchvision  # type: ignore[no-any-return]
