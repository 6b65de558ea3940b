"""Arguments of the Python API: check their types, and bring images and labels into the form of a data set."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from kwbench.data import DATA_SETS, DataSet, dataset_from_arrays
from kwbench.errors import CannotEvaluate, UsageError, did_you_mean


def check_names(options: Iterable[str], known: Iterable[str]) -> None:
    """Raise UsageError if an option is unknown."""
    known = list(known)
    for option in options:
        if option not in known:
            raise UsageError(
                f"option {option!r} is unknown; {did_you_mean(str(option), known, listed_by='help(kwbench.evaluate)')}"
            )


def check_numbers(*, n: Any, seed: Any, tile: Any, threads: Any, time_limit: Any, memory_limit: Any) -> None:
    """Raise UsageError if one of these is not a number of the right kind; None stands for a default where there is one."""
    whole = {"n": n, "seed": seed, "tile": tile, "threads": threads}
    for name, value in whole.items():
        optional = name in ("n", "tile", "threads")
        if not isinstance(value, int | np.integer) and not (optional and value is None):
            raise UsageError(f"{name}: {value!r}; it must be an integer" + (" or None" if optional else ""))
    if threads is not None and threads < 1:
        raise UsageError(f"threads: {threads}; it must be at least 1")
    if not isinstance(time_limit, int | float | None):
        raise UsageError(f"time_limit: {time_limit!r}; it must be a number of seconds or None")
    if not isinstance(memory_limit, int | float | None):
        raise UsageError(f"memory_limit: {memory_limit!r}; it must be a number of GB or None")


def attack_names(attacks: Any) -> list[str]:
    """Return the names of attacks given as one name or several. Raises UsageError if they are not strings."""
    if isinstance(attacks, str):
        return [attacks]
    if not isinstance(attacks, Iterable):
        raise UsageError(f"attacks: {attacks!r}; give the name of an attack, or a list of names")
    names = list(attacks)
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"attacks: {name!r} is not the name of an attack")
    return names


def attack_parameters(parameters: Any) -> dict[str, Any]:
    """Return a copy of the parameters; empty for None. Raises UsageError if they are not a mapping."""
    if not isinstance(parameters, Mapping | None):
        raise UsageError(f'parameters: {parameters!r}; give a mapping such as {{"pgd.steps": 100}}')
    return dict(parameters or {})


def samples_in_memory(x: Any, y: Any, n: int | None, name: str, dataset: str | None) -> DataSet:
    """Return images and labels in memory as a data set; float32 images are not copied.

    `dataset` names the data set that the images are like. Raises UsageError for unusable images or labels.
    """
    if y is None:
        x, y = _collected(x, n)
    elif isinstance(x, Dataset | DataLoader):
        raise UsageError(f"y: leave it out; x is a {type(x).__name__}, which yields the labels itself")
    if dataset is not None and dataset not in DATA_SETS:
        raise UsageError(f"dataset: {dataset!r} is unknown; it names the data set that the images are like")
    options = {} if dataset is None else {"threat": DATA_SETS[dataset].threat}
    try:
        return dataset_from_arrays(x, y, name if dataset is None else dataset, **options)
    except (ValueError, TypeError, RuntimeError) as failure:  # NumPy cannot make an array of it
        raise UsageError(f"x, y: cannot be made arrays ({failure}); give tensors or arrays, all images of one shape") from None


def _collected(samples: Any, n: int | None) -> tuple[Tensor, Tensor]:
    """Return images (n, c, h, w) and labels (n,) of a DataLoader or a Dataset; at most the first `n`."""
    loader = isinstance(samples, DataLoader)
    indexed = hasattr(samples, "__getitem__") and hasattr(samples, "__len__") and not isinstance(samples, Tensor)
    if not (loader or indexed or isinstance(samples, IterableDataset)):
        raise UsageError("y: labels are missing; give x and y, a Dataset of (image, label), or a DataLoader")
    images: list[Tensor] = []
    labels: list[Tensor] = []
    size = 0
    for batch in _read(samples, iterate=loader or not indexed):
        try:
            if isinstance(batch, Mapping):  # its keys would pass for image and label
                raise TypeError
            image, label = batch
        except (TypeError, ValueError):
            raise UsageError(
                f"x: {type(samples).__name__} yields {type(batch).__name__}; it must yield (image, label)"
            ) from None
        image, label = _as_tensor(image, "images", "; add transforms.ToTensor()"), _as_tensor(label, "labels", ", not integers")
        image = image if loader else image[None]
        if images and image.shape[1:] != images[0].shape[1:]:
            shapes = f"{tuple(images[0].shape[1:])} and {tuple(image.shape[1:])}"
            raise UsageError(f"x: {type(samples).__name__} yields images of shapes {shapes}; resize them to one shape")
        images.append(image)
        labels.append(label.reshape(-1))
        size += len(image)
        if n is not None and size >= n:
            break
    if not images:
        raise UsageError("x: holds no samples")
    return torch.cat(images)[:n], torch.cat(labels)[:n]


def _read(samples: Any, *, iterate: bool) -> Iterable[Any]:
    """Yield what a data set holds; by index unless `iterate`, since `__getitem__` need not raise IndexError at the end.

    Raises CannotEvaluate where the data set raises an exception.
    """
    try:
        yield from samples if iterate else (samples[index] for index in range(len(samples)))
    except Exception as failure:
        raise CannotEvaluate(f"x: {type(samples).__name__} raised {type(failure).__name__}: {failure}") from failure


def _as_tensor(value: Any, name: str, remedy: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(f"x: {name} are {type(value).__name__}{remedy}") from None
