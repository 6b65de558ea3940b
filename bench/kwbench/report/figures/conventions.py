"""How figures name classes and measure distances."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kwbench.formatting import plain
from kwbench.record.measurement import Array

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Data sets whose pixels are in 8 bits, and their variants such as cifar10-jpeg.
_EIGHT_BITS = ("mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "imagenet")


def _is_among(dataset: str, names: Iterable[str]) -> bool:
    return any(dataset == name or dataset.startswith(f"{name}-") for name in names)


def class_names(dataset: str, provenance: Mapping[str, Any]) -> list[str]:
    """Return the names of all classes: as on record, or the words of CIFAR-10; an empty list if there are none."""
    names = provenance.get("classes")
    if isinstance(names, list) and names:
        return [plain(name, 40) for name in names]
    return list(_CIFAR10) if _is_among(dataset, ["cifar10"]) else []


def class_name(dataset: str, label: int, provenance: Mapping[str, Any]) -> str:
    """Return the name of a class, or its number if it has none."""
    names = class_names(dataset, provenance)
    return names[label] if 0 <= label < len(names) else str(label)


def distance_scale(dataset: str, norm: str) -> tuple[float, str]:
    """Return by how much distances are multiplied, and their unit: linf distances of 8-bit images are in steps of 1/255."""
    return (255.0, ", 1/255") if norm == "linf" and _is_among(dataset, _EIGHT_BITS) else (1.0, "")


def distance_text(value: float, dataset: str, norm: str) -> str:
    """Return a distance in its usual unit: `7.9/255`, or `0.2`."""
    scale, unit = distance_scale(dataset, norm)
    return f"{value * scale:.3g}{unit.removeprefix(', 1')}"


def place_of(over: str, values: Array, dataset: str, norm: str) -> tuple[Array, str]:
    """Return the values of a swept quantity and the label of their axis; a radius is in the unit of `distance_scale`."""
    if over != "eps":
        return values, plain(over).replace("$", r"\$")
    scale, unit = distance_scale(dataset, norm)
    return np.asarray(values) * scale, rf"$\epsilon${unit}"
