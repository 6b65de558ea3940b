"""Models of other libraries, by names such as timm:resnet18.a1_in1k. A new library is a file here and a line in ADAPTERS."""

import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import replace

from kwbench.errors import CannotEvaluate, KwbenchError
from kwbench.networks.adapters.adapter import Adapted, Adapter, Wanted
from kwbench.networks.loaded import Loaded
from kwbench.networks.user_files import loaded
from kwbench.torchvision_schemas import make_torchvision_importable

__all__ = ["ADAPTERS", "Adapted", "Adapter", "Wanted", "is_adapted", "load_adapted"]

ADAPTERS: dict[str, Adapter] = {
    adapter.prefix: adapter
    for adapter in (
        Adapter("robustbench", "robustbench_zoo", "robustbench", "robustbench:Carmon2019Unlabeled"),
        Adapter("timm", "timm_models", "timm", "timm:resnet18.a1_in1k"),
        Adapter("hf", "hugging_face", "hf", "hf:google/vit-base-patch16-224"),
        Adapter("torchvision", "torchvision_models", None, "torchvision:resnet50"),
        Adapter("onnx", "onnx_files", "onnx", "onnx:file.onnx"),
        Adapter("export", "exported_programs", None, "export:file.pt2"),
    )
}


def is_adapted(name: str) -> bool:
    """Whether a model's name is that of a model of another library."""
    prefix, colon, rest = name.partition(":")
    return bool(colon and rest) and prefix in ADAPTERS


def load_adapted(name: str, wanted: Wanted) -> Loaded:
    """Load a model of another library in evaluation mode, its own preprocessing inside.

    Its hash covers library, revision and files, and everything that the module can reach.

    Raises:
        CannotEvaluate: the library is not installed, the weights are not on this machine and may not be fetched, or the
            library raises.
        UsageError: the library does not know the model, or the checkpoint does not fit.
        DamagedData: a file is damaged.
    """
    adapter = ADAPTERS[name.partition(":")[0]]
    # Most of these libraries import torchvision.
    make_torchvision_importable()
    try:
        load: Callable[[Wanted], Adapted] = importlib.import_module(f"{__name__}.{adapter.module}").load
        adapted = load(wanted)
    except KwbenchError:
        raise
    except ModuleNotFoundError as failure:
        # RobustBench and others import what newer versions of setuptools no longer bring.
        hint = "; pip install 'setuptools<81'" if failure.name == "pkg_resources" else adapter.remedy
        raise CannotEvaluate(f"{name}: {failure}{hint}") from None
    except Exception as failure:
        raise CannotEvaluate(f"{name}: {adapter.prefix} raised {type(failure).__name__}: {failure}") from failure
    digest = hashlib.sha256(json.dumps(adapted.origin, sort_keys=True).encode())
    result = loaded(adapted.module, digest)
    return replace(result, notes=(*result.notes, *adapted.notes), origin=adapted.origin, claimed=adapted.claimed)
