"""Networks of registry entries: build them, and load their checkpoints by pinned hash."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from kwbench.config.registry import ModelEntry, Registry, dataset_of
from kwbench.data import DATA_SETS, DataSet
from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.files import read_file
from kwbench.networks.activations import activation_factory
from kwbench.networks.architectures import Normalised, Smoothed, build_network
from kwbench.networks.converting import convert_source
from kwbench.networks.loaded import Loaded
from kwbench.networks.weights import count_classes, describe_content, load_weights


def build_module(entry: ModelEntry, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build the entry's network, untrained, for images of shape (c, h, w).

    Raises UsageError for parameters, normalisation or image sizes that do not fit.
    """
    factory = activation_factory(entry.activation.name, entry.activation.parameters)
    network = build_network(entry.architecture.name, entry.architecture.parameters, factory, shape[0], classes)
    if entry.normalise:
        for statistic in ("mean", "std"):
            count = len(getattr(entry.normalise, statistic))
            if count != shape[0]:
                raise UsageError(f"normalise.{statistic}: has {count} values, the images have {shape[0]} channels")
        network = Normalised(network, entry.normalise.mean, entry.normalise.std)
    if entry.smoothing is not None:
        network = Smoothed(network, entry.smoothing)
    _require_forward_pass(network, shape)
    return network


def _require_forward_pass(network: nn.Module, shape: tuple[int, ...]) -> None:
    """Raise UsageError if the network does not accept such images. The global random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            network.eval()(torch.zeros(1, *shape))
        except (RuntimeError, TypeError, ValueError) as failure:
            reason = str(failure).splitlines()[0]
            raise UsageError(f"the network cannot take images of {' x '.join(map(str, shape))}: {reason}") from None
    network.train()


def load_entry(registry: Registry, name: str, entry: ModelEntry, dataset: DataSet, file: Path | None = None) -> Loaded:
    """Load the entry's network with its checkpoint, read from `file` if given. Its hash must be the pinned one either way.

    Raises CannotEvaluate if there is no checkpoint, DamagedData if its hash differs or its weights do not fit, UsageError if
    a user's own images differ in shape or classes from the data set in the model's name.
    """
    if entry.checkpoint is None:
        raise CannotEvaluate(f"model {name!r} has no checkpoint in {registry.path}; `kwbench train {name}` makes one")
    if not dataset.fixed_classes and "/" in name:
        _require_compatible(dataset, name)
    path = file or registry.checkpoint_path(name)
    source = entry.checkpoint.source
    try:
        in_package = file is None and source is not None and source.package is not None and not path.exists()
        content = convert_source(name, entry.checkpoint) if in_package else read_file(path)
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
        # A user's labels may miss the last classes; the checkpoint shows how many there are.
        classes = count_classes(content, module)
        if classes > dataset.classes:
            module = build_module(entry, dataset.shape, classes)
    try:
        load_weights(module, content, str(path))
    except DamagedData as failure:
        if dataset.fixed_classes:
            raise
        # The file is the pinned one, so it is the user's images or labels that do not fit.
        shape = " x ".join(map(str, dataset.shape))
        raise UsageError(
            f"{dataset.name}: {name!r} does not fit images of {shape} with labels up to {dataset.classes - 1} ({failure})"
        ) from None
    return Loaded(module.eval(), digest)


def _require_compatible(dataset: DataSet, name: str) -> None:
    """Raise UsageError if a user's images differ in shape from the data set that the model is for, or have more classes."""
    known = DATA_SETS.get(dataset_of(name))
    if known is None:
        return
    if dataset.shape != known.shape:
        actual, expected = (" x ".join(map(str, shape)) for shape in (dataset.shape, known.shape))
        raise UsageError(f"{dataset.name}: images are {actual}, those of {known.name}, which {name!r} takes, are {expected}")
    if dataset.classes > known.classes:
        raise UsageError(
            f"{dataset.name}: holds the label {dataset.classes - 1}, {name!r} knows the {known.classes} of {known.name}"
        )
