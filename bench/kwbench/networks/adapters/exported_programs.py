"""Programs of torch.export: export:file.pt2."""

from pathlib import Path

import torch

from kwbench.errors import DamagedData, UsageError
from kwbench.networks.adapters.adapter import Adapted, Wanted, origin_of, sha256_of


def load(wanted: Wanted) -> Adapted:
    """Load a program, which must take pixels in [0, 1] and return logits. It keeps the mode in which it was exported."""
    if wanted.checkpoint is not None:
        raise UsageError(f"export:{wanted.name}: holds its weights; --checkpoint is for models of your own code and of timm")
    path = Path(wanted.name)
    digest = sha256_of(path)
    try:
        program = torch.export.load(str(path))
    except Exception as failure:  # noqa: BLE001 - damaged archives raise nearly anything
        raise DamagedData(f"{path}: not a program of torch.export ({type(failure).__name__}: {failure})") from None
    return Adapted(program.module(), origin_of("torch", file_sha256=digest))
