"""Import torchvision although its compiled extension does not match the installed CPU build of torch.

In that case torchvision 0.28.0 fails to import: it registers fake kernels for the operators `torchvision::nms` and
`torchvision::qnms`, which only the extension defines. Models, transforms and data sets need neither, so that bare schemas of
the operators suffice. Where the extension loads, nothing is defined.
"""

import importlib.util
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import torch

_OPERATORS = ("nms", "qnms")
# Kept alive for the whole process, because the definitions of a library vanish with it.
_fragments: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Import and return torchvision. Raises ImportError if it is not installed."""
    make_torchvision_importable()
    import torchvision

    return torchvision  # type: ignore[no-any-return]


def make_torchvision_importable() -> None:
    """Define the schemas that torchvision needs if its extension does not load, without importing it.

    Afterwards any code of this process can import torchvision, and libraries that do, such as timm and onnx2torch.
    """
    if hasattr(torch.ops.torchvision, _OPERATORS[0]):
        return
    for extension in _extensions():
        with suppress(OSError):
            torch.ops.load_library(str(extension))  # type: ignore[no-untyped-call]
            return
    fragment = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in _OPERATORS:
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        fragment.define(schema)  # type: ignore[no-untyped-call]
    _fragments.append(fragment)


def _extensions() -> list[Path]:
    """Return the files of torchvision's extension; empty where torchvision is not installed."""
    spec = importlib.util.find_spec("torchvision")
    folders = (spec.submodule_search_locations if spec is not None else None) or []
    return [file for folder in folders for file in sorted(Path(folder).glob("_C*.so")) + sorted(Path(folder).glob("_C*.pyd"))]
