"""Import torchvision beside a CPU build of torch whose operators its compiled extension does not match.

torchvision 0.28.0 then fails to import, because it registers a fake kernel for `torchvision::nms` and `torchvision::qnms`,
operators that only the extension defines. Models, transforms and data sets need neither, so their bare schemas suffice.
Nothing is defined where the extension loads.
"""

from types import ModuleType

import torch

# Kept for the life of the process: a library's definitions vanish with it.
_fragments: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """The torchvision package, imported. Raises ImportError if it is not installed."""
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
