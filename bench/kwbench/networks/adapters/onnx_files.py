"""Files of ONNX: onnx:file.onnx. They become modules of torch by onnx2torch, so that gradients flow."""

from pathlib import Path

import onnx2torch

from kwbench.errors import UsageError
from kwbench.networks.adapters.adapter import Adapted, Wanted, origin_of, sha256_of


def load(wanted: Wanted) -> Adapted:
    """Load a file, whose graph must take pixels in [0, 1] and return logits."""
    if wanted.checkpoint is not None:
        raise UsageError(f"onnx:{wanted.name}: holds its weights; --checkpoint is for models of your own code and of timm")
    path = Path(wanted.name)
    digest = sha256_of(path)
    return Adapted(onnx2torch.convert(str(path)), origin_of("onnx2torch", file_sha256=digest))
