"""torchvision's classifiers: torchvision:resnet50, or torchvision:resnet50.IMAGENET1K_V1."""

from pathlib import Path

import torch

from kwbench.errors import UsageError, did_you_mean
from kwbench.networks.adapters.adapter import Adapted, Wanted, missing, origin_of, sha256_of
from kwbench.networks.adapters.preprocessing import Preprocessed, preprocessing_notes
from kwbench.networks.converting import convert_pretrained
from kwbench.networks.weights import load_weights
from kwbench.torchvision_schemas import import_torchvision


def load(wanted: Wanted) -> Adapted:
    """Load a classifier with torchvision's weights, or with a checkpoint of the user's own for the data set's classes.

    Preprocessing is that of the weights. With a checkpoint, images of any size are normalised as for torchvision's weights.
    """
    models = import_torchvision().models
    name, _, tag = wanted.name.partition(".")
    known = models.list_models(module=models)
    if name not in known:
        raise UsageError(f"torchvision:{wanted.name}: torchvision has no classifier {name!r}; {did_you_mean(name, known)}")
    weights = models.get_model_weights(name)
    if tag and tag not in weights.__members__:
        raise UsageError(f"torchvision:{wanted.name}: has no weights {tag!r}; {did_you_mean(tag, weights.__members__)}")
    chosen = weights[tag] if tag else weights.DEFAULT
    preset = chosen.transforms()
    if wanted.checkpoint is not None:
        model = models.get_model(name, weights=None, num_classes=wanted.classes)
        origin, size = dict(wanted.load_checkpoint(model)), None
    else:
        file = Path(torch.hub.get_dir()) / "checkpoints" / chosen.url.rpartition("/")[2]
        if not file.is_file():
            if not wanted.download:
                raise missing(f"torchvision:{wanted.name}", f"its weights are ({file})", chosen.url)
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(chosen.url, str(file), progress=False)
        model = models.get_model(name, weights=None)
        load_weights(model, convert_pretrained(chosen.url, file=file), str(file))
        origin, size = {"weights": chosen.name, "weights_sha256": sha256_of(file)}, _square(preset.crop_size)
    return Adapted(
        Preprocessed(model, preset.mean, preset.std, size, preset.interpolation.value),
        origin_of("torchvision", model=wanted.name, **origin),
        preprocessing_notes(wanted.shape, size),
    )


def _square(size: list[int]) -> tuple[int, int]:
    return size[0], size[-1]
