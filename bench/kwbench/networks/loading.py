"""From a registry entry, or a user's own file, to a frozen network whose weights are the ones that were hashed."""

import hashlib
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from kwbench.config.registry import ModelEntry, Registry, dataset_of
from kwbench.data import DATA_SETS, DataSet
from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.networks.activations import activation_factory
from kwbench.networks.architectures import Normalised, Smoothed, build_network


@dataclass(frozen=True)
class Loaded:
    """A network in evaluation mode, and the SHA-256 of what made it: its checkpoint, or the user's file."""

    module: nn.Module
    sha256: str


def build_module(entry: ModelEntry, shape: tuple[int, ...], classes: int) -> nn.Module:
    """The entry's network, untrained, for images (c, h, w). Raises UsageError for impossible parameters and image sizes."""
    factory = activation_factory(entry.activation.name, entry.activation.parameters)
    network = build_network(entry.architecture.name, entry.architecture.parameters, factory, shape[0], classes)
    if entry.normalise:
        for statistic in ("mean", "std"):
            given = len(getattr(entry.normalise, statistic))
            if given != shape[0]:
                raise UsageError(f"normalise.{statistic}: has {given} values, the images have {shape[0]} channels")
        network = Normalised(network, entry.normalise.mean, entry.normalise.std)
    if entry.smoothing is not None:
        network = Smoothed(network, entry.smoothing)
    _require_answer(network, shape)
    return network


def _require_answer(network: nn.Module, shape: tuple[int, ...]) -> None:
    """Sizes that do not fit each other show only when an image passes. Leaves the random numbers as they were."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            network.eval()(torch.zeros(1, *shape))
        except (RuntimeError, TypeError, ValueError) as failure:
            reason = str(failure).splitlines()[0]
            raise UsageError(f"the network cannot take images of {' x '.join(map(str, shape))}: {reason}") from None
    network.train()


def load_entry(registry: Registry, name: str, entry: ModelEntry, dataset: DataSet, file: Path | None = None) -> Loaded:
    """The entry's network with its checkpoint, read from `file` if given; the pinned hash holds either way.

    Raises CannotEvaluate if there is no checkpoint, DamagedData if it is not the pinned one or does not fit, UsageError for
    images of one's own that are not like those of the data set in the model's name.
    """
    if entry.checkpoint is None:
        raise CannotEvaluate(f"model {name!r} has no checkpoint in {registry.path}; `kwbench train {name}` makes one")
    if not dataset.fixed_classes and "/" in name:
        _require_like(dataset, name)
    path = file or registry.checkpoint_path(name)
    try:
        content = path.read_bytes()
    except OSError as failure:
        make = f"`kwbench convert {name} --download` fetches" if entry.checkpoint.source else f"`kwbench train {name}` makes"
        raise CannotEvaluate(
            f"{path}: the checkpoint of {name!r} cannot be read ({failure.strerror}); "
            f"{make} it, --checkpoint reads it from elsewhere"
        ) from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry.checkpoint.sha256:
        raise DamagedData(
            f"{path}: {describe_content(content)} with sha256 {digest}, but {registry.owner_of(name).path} pins "
            f"{entry.checkpoint.sha256} for {name!r}; restore the file, or pin the new hash if the change is meant"
        )
    module = build_module(entry, dataset.shape, dataset.classes)
    if not dataset.fixed_classes:
        # The labels at hand may miss the last classes; the checkpoint knows how many there are.
        classes = _classes_in(content, module)
        if classes > dataset.classes:
            module = build_module(entry, dataset.shape, classes)
    load_weights(module, content, str(path))
    return Loaded(module.eval(), digest)


def _require_like(dataset: DataSet, name: str) -> None:
    """Refuse a user's own images for a model whose name says that it knows others, by size or number of classes."""
    known = DATA_SETS.get(dataset_of(name))
    if known is None:
        return
    if dataset.shape != known.shape:
        found, expected = (" x ".join(map(str, shape)) for shape in (dataset.shape, known.shape))
        raise UsageError(f"{dataset.name}: images are {found}, those of {known.name}, which {name!r} takes, are {expected}")
    if dataset.classes > known.classes:
        raise UsageError(
            f"{dataset.name}: holds the label {dataset.classes - 1}, {name!r} knows the {known.classes} of {known.name}"
        )


def load_weights(module: nn.Module, content: bytes, name: str) -> None:
    """Put the bytes of a safetensors file into a module, strictly: same keys, shapes and types, finite values.

    Floating point weights may be stored in half precision. Raises DamagedData that names the keys at fault.
    """
    tensors = _tensors_in(content, name)
    own = module.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or extra:
        raise DamagedData(
            f"{name}: keys do not fit the network; missing: {', '.join(missing[:5]) or 'none'}, "
            f"unexpected: {', '.join(extra[:5]) or 'none'}"
        )
    for key, tensor in tensors.items():
        if tensor.shape != own[key].shape:
            raise DamagedData(f"{name}: {key} has shape {tuple(tensor.shape)}, the network needs {tuple(own[key].shape)}")
        if tensor.is_floating_point() != own[key].is_floating_point():
            raise DamagedData(f"{name}: {key} is {tensor.dtype}, the network needs {own[key].dtype}")
        # As they will be: a finite double may be infinite as a float.
        if tensor.is_floating_point() and not bool(tensor.to(own[key].dtype).isfinite().all()):
            raise DamagedData(f"{name}: {key} holds NaN or infinity")
    module.load_state_dict(tensors, strict=True)


def _tensors_in(content: bytes, name: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except Exception as failure:  # noqa: BLE001 - the parser raises nearly anything on damaged bytes
        raise DamagedData(f"{name}: not a safetensors file ({failure})") from None


def _classes_in(content: bytes, module: nn.Module) -> int:
    """How many logits a checkpoint gives; the last weights of every network here are its logits' biases."""
    last = list(module.state_dict())[-1]
    bias = _tensors_in(content, "checkpoint").get(last)
    return len(bias) if bias is not None and bias.dim() == 1 else 0


def describe_content(content: bytes) -> str:
    """What a file seems to be, for error messages."""
    if not content:
        return "an empty file"
    if content[:100].lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page"
    if content.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer"
    if content.startswith(b"PK\x03\x04"):
        return "a zip archive (perhaps a torch.save file)"
    return f"{len(content)} bytes"


def is_file_model(name: str) -> bool:
    """Whether a model's name means a user's own file, path/to/file.py:factory."""
    return name.rpartition(":")[0].endswith(".py")


def load_file_model(name: str) -> Loaded:
    """The module that `factory()` of path/to/file.py:factory returns, in evaluation mode and in its own precision. Its folder
    comes first on the import path.

    The hash covers the file, the modules that it imported other than installed ones, and whatever the module and its parts hold
    of tensors, arrays and plain values. What `forward` alone reads or imports it does not.
    Runs the user's code: call it in a process of its own. Raises UsageError if there is no such file or factory, or it does
    not return a module, CannotEvaluate if it raises.
    """
    path, factory_name = Path(name.rpartition(":")[0]), name.rpartition(":")[2]
    if not path.is_file():
        raise UsageError(f"{path}: no such file; a model of your own is written path/to/file.py:factory")
    content = path.read_bytes()
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: Python cannot import it")
    namespace = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.modules.setdefault(path.stem, namespace)
    try:
        spec.loader.exec_module(namespace)
    except (Exception, SystemExit) as failure:  # noqa: BLE001 - foreign code
        raise CannotEvaluate(f"{path}: importing it raised {type(failure).__name__}: {failure}") from None
    factory = getattr(namespace, factory_name, None)
    if not callable(factory):
        found = ", ".join(sorted(each for each in vars(namespace) if callable(getattr(namespace, each)) and each[0] != "_"))
        raise UsageError(f"{path}: has no factory {factory_name!r}; it defines: {found or 'nothing callable'}")
    try:
        module = factory()
    except (Exception, SystemExit) as failure:  # noqa: BLE001 - foreign code
        raise CannotEvaluate(f"{path}:{factory_name} raised {type(failure).__name__}: {failure}") from None
    if not isinstance(module, nn.Module):
        raise UsageError(f"{path}:{factory_name} returned {type(module).__name__}; it must return a torch.nn.Module")
    module = module.eval()
    digest = hashlib.sha256(content)
    for imported, source in sorted(_sources(path.resolve().parent, set(sys.modules) - before)):
        digest.update(imported.encode() + source)
    # The file alone does not determine the weights.
    for address, value in held_values(module):
        digest.update(address.encode() + value)
    return Loaded(module, digest.hexdigest())


def _sources(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of those of these modules that come from the folder, or from elsewhere but are not installed."""
    for name in names:
        file = Path(getattr(sys.modules.get(name), "__file__", None) or folder).resolve()
        if file.is_file() and (file.is_relative_to(folder) or not is_installed(file)):
            yield name, file.read_bytes()


def is_installed(file: Path) -> bool:
    """Return whether a file belongs to Python, to an installed library or to kwbench."""
    libraries = [sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders = [*libraries, *site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parents[1])]
    return any(file.resolve().is_relative_to(Path(folder).resolve()) for folder in folders)


def held_values(module: nn.Module) -> Iterator[tuple[str, bytes]]:
    """Yield the address and bytes of every tensor, array and plain value that a module and its parts hold."""
    parts = dict(module.named_modules())
    # A scripted module has its weights in its state alone.
    beside = {name: {key: held for key, held in vars(part).items() if key != "_parameters"} for name, part in parts.items()}
    yield from _plain("state", module.state_dict())
    yield from _plain("beside", beside)


def _plain(place: str, held: Any) -> Iterator[tuple[str, bytes]]:
    """The tensors, arrays and plain values in what a module holds, as bytes, each with its place."""
    if isinstance(held, Tensor):
        values = held.detach().cpu().contiguous().flatten()
        yield f"{place} {held.dtype} {tuple(held.shape)}", values.view(torch.uint8).numpy().tobytes()
    elif isinstance(held, np.ndarray) and held.dtype != object:
        yield f"{place} {held.dtype} {held.shape}", held.tobytes()
    elif isinstance(held, bool | int | float | complex | str | bytes | np.generic):
        yield place, repr(held).encode()
    elif isinstance(held, Mapping):
        for key in held:
            yield from _plain(f"{place}[{key!r}]" if isinstance(key, str | int) else place, held[key])
    elif isinstance(held, list | tuple):
        for number, each in enumerate(held):
            yield from _plain(f"{place}[{number}]", each)
