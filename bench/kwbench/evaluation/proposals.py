"""Read images that were made elsewhere: an npz or npy file, or one of torch.save, as AutoAttack writes it."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from torch import Tensor

from kwbench.attacks.external import EXTERNAL, Proposals
from kwbench.config.suite import Suite, SuiteAttack
from kwbench.data import Array
from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.networks.converting import convert

# Keys under which files hold adversarial images, labels and positions; the first that a file has counts.
_IMAGES = ("adv_complete", "x_adv", "adversarials", "adv", "x")
_LABELS = ("y", "labels", "y_test")
_INDEX = ("index", "indices")
# The name of a tensor that is a file's only content.
_ONLY = "the only array"


def read_proposals(path: Path, *, key: str | None = None, paper: str = "") -> Proposals:
    """Read adversarial images.

    Args:
        path: an npz, npy, or torch.save file. AutoAttack saves the key `adv_complete`; `kwbench export` saves `x`, `y` and
            `index`.
        key: the key of the images, where it is not one of the usual ones.
        paper: the address of the paper that describes the attack.

    Raises:
        CannotEvaluate: the file cannot be read.
        UsageError: it has no such key, or several arrays may be meant.
        DamagedData: it does not hold plain arrays, or they are no images.
    """
    arrays = _arrays(path)
    chosen = _chosen(path, arrays, key)
    labels = next((arrays[name] for name in _LABELS if name in arrays and name != chosen), None)
    index = next((arrays[name] for name in _INDEX if name in arrays and name != chosen), None)
    where = f"{path}: {chosen}" if chosen != _ONLY else str(path)
    return proposals_from_arrays(arrays[chosen], where, labels=labels, index=index, paper=paper)


def proposals_from_arrays(
    images: Any, where: str, *, labels: Array | None = None, index: Array | None = None, paper: str = ""
) -> Proposals:
    """Return images (m, c, h, w), uint8 or float in [0, 1], as proposals. Raises DamagedData for another type or shape."""
    array: Array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.ndim != 4 or not len(array):
        raise DamagedData(f"{where}: has shape {array.shape}; images have the shape (n, channels, height, width)")
    if array.dtype == np.uint8:
        array = array.astype(np.float32) / np.float32(255)
    elif not np.issubdtype(array.dtype, np.floating):
        raise DamagedData(f"{where}: is {array.dtype}; images are uint8, or floats in [0, 1]")
    for name, beside in (("labels", labels), ("index", index)):
        if beside is not None and (beside.shape != (len(array),) or not np.issubdtype(beside.dtype, np.integer)):
            raise DamagedData(
                f"{where}: its {name} are {beside.dtype} of shape {beside.shape}; there must be one integer an image"
            )
    array = np.ascontiguousarray(array, dtype=np.float32)
    digest = hashlib.sha256(array.astype("<f4", copy=False).tobytes())
    digest.update(b"" if index is None else index.astype("<i8").tobytes())
    return Proposals(where, array, digest.hexdigest(), index, labels, paper)


def suite_with(suite: Suite | None, name: str, *, worst_case: bool) -> tuple[Suite, str]:
    """Return a suite with an external attack, which comes last and sees all samples, and the label of the attack.

    Args:
        suite: the other attacks; None for none.
        name: the name of the attack.
        worst_case: whether the worst case includes it. If it is the only attack, it is the worst case.
    """
    label = f"{name} (external)"
    attack = SuiteAttack(label, EXTERNAL)
    if suite is None:
        return Suite(name=label, attacks=(attack,), by_name=True), label
    if any(other.label == label for other in suite.attacks):
        raise UsageError(f"--name {name}: the suite has an attack of this name")
    beside = () if worst_case else (label,)
    both = f"{suite.name} + {name}" + ("" if worst_case else " beside")
    variants = {key: suite_with(one, name, worst_case=worst_case)[0] for key, one in suite.datasets.items()}
    external = replace(suite, name=both, attacks=(*suite.attacks, attack), apart=(label,), beside=beside, datasets=variants)
    return external, label


def _arrays(path: Path) -> dict[str, Array]:
    try:
        content = path.read_bytes()
    except OSError as failure:
        raise CannotEvaluate(f"{path}: cannot be read ({failure.strerror})") from None
    if path.suffix in (".npz", ".npy"):
        try:
            loaded = np.load(io.BytesIO(content), allow_pickle=False)
            return {_ONLY: loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
        except Exception as failure:  # noqa: BLE001 - numpy and zipfile raise nearly anything on damaged files
            raise DamagedData(f"{path}: not a readable file of plain arrays ({failure})") from None
    return dict(safetensors.numpy.load(convert(content, str(path), single=_ONLY)))


def _chosen(path: Path, arrays: dict[str, Array], key: str | None) -> str:
    """Return the key of the images."""
    names = ", ".join(arrays)
    if key is not None:
        if key not in arrays:
            raise UsageError(f"{path}: has no key {key!r}; it holds {names}")
        return key
    images = [name for name, array in arrays.items() if array.ndim == 4]
    known = [name for name in (*_IMAGES, _ONLY) if name in images]
    if not (known or len(images) == 1):
        raise UsageError(f"{path}: --key must say which array holds the adversarial images; it holds {names or 'nothing'}")
    return known[0] if known else images[0]
