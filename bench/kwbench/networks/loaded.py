"""A loaded network, and what enters its hash."""

import site
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Loaded:
    """A network in evaluation mode, and the SHA-256 of its source: the checkpoint, or code and all values the module holds.

    `notes` are what a reader of its numbers must know about how it was loaded, one clause each, without a final full stop.
    """

    module: nn.Module
    sha256: str
    notes: tuple[str, ...] = ()


def is_installed(file: Path) -> bool:
    """Return whether a file belongs to Python, to an installed library or to kwbench."""
    libraries = [sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders = [*libraries, *site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parents[1])]
    return any(file.resolve().is_relative_to(Path(folder).resolve()) for folder in folders)


def held_values(module: nn.Module) -> Iterator[tuple[str, bytes]]:
    """Yield the address and bytes of every tensor, array and plain value that a module and its parts hold."""
    # A scripted module holds its weights in its state dict only; other modules may hold more in attributes.
    attributes = {
        name: {key: value for key, value in vars(part).items() if key != "_parameters"} for name, part in module.named_modules()
    }
    yield from plain_values("state", module.state_dict())
    yield from plain_values("beside", attributes)


def plain_values(address: str, held: Any) -> Iterator[tuple[str, bytes]]:
    """Yield the tensors, arrays and plain values inside a value as bytes, each with its address."""
    if isinstance(held, Tensor):
        values = held.detach().cpu().contiguous().flatten()
        yield f"{address} {held.dtype} {tuple(held.shape)}", values.view(torch.uint8).numpy().tobytes()
    elif isinstance(held, np.ndarray) and held.dtype != object:
        yield f"{address} {held.dtype} {held.shape}", held.tobytes()
    elif isinstance(held, bool | int | float | complex | str | bytes | np.generic):
        yield address, repr(held).encode()
    elif isinstance(held, Mapping):
        for key in held:
            yield from plain_values(f"{address}[{key!r}]" if isinstance(key, str | int) else address, held[key])
    elif isinstance(held, list | tuple):
        for index, item in enumerate(held):
            yield from plain_values(f"{address}[{index}]", item)
