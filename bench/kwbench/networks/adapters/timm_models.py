"""timm's models: timm:resnet18.a1_in1k, timm:hf-hub:user/model, or timm:folder with config.json and weights."""

from pathlib import Path
from typing import Any

import timm
import timm.models
import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from kwbench.errors import UsageError, did_you_mean
from kwbench.networks.adapters.adapter import Adapted, Wanted, missing, origin_of
from kwbench.networks.adapters.hub import WEIGHTS, allow_downloads, cached, details
from kwbench.networks.adapters.preprocessing import Preprocessed, preprocessing_notes


def load(wanted: Wanted) -> Adapted:
    """Load a model with timm's weights, or with a checkpoint of the user's own for the data set's classes and channels.

    Preprocessing is that of the model's configuration.
    """
    allow_downloads(wanted.download)
    name = _full_name(wanted.name)
    if wanted.checkpoint is not None:
        model = timm.create_model(name, pretrained=False, num_classes=wanted.classes, in_chans=wanted.shape[0])
        origin = wanted.load_checkpoint(model)
    else:
        model, origin = _pretrained(wanted, name)
    config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    # A model that was made for other images takes them as they are.
    size = None if wanted.checkpoint is not None else (int(config["input_size"][1]), int(config["input_size"][2]))
    channels = wanted.shape[0] if wanted.checkpoint is not None else len(config["mean"])
    mean, std = (_for_channels(config[key], channels) for key in ("mean", "std"))
    return Adapted(
        Preprocessed(model, mean, std, size, config["interpolation"]),
        origin_of("timm", model=Path(wanted.name).name, **origin),
        preprocessing_notes(wanted.shape, size),
    )


def _full_name(name: str) -> str:
    if Path(name).is_dir():
        return f"local-dir:{name}"
    if ":" not in name and not timm.is_model(name):
        known = [*timm.list_models(), *timm.list_pretrained()]
        raise UsageError(f"timm:{name}: timm {timm.__version__} has no such model; {did_you_mean(name, known)}")
    return name


def _pretrained(wanted: Wanted, name: str) -> tuple[nn.Module, dict[str, str]]:
    where, address = _weights(wanted, name)
    if where is None and not wanted.download:
        raise missing(f"timm:{wanted.name}", "its weights are", address)
    model = timm.create_model(name, pretrained=True)
    return model, details(where or _weights(wanted, name)[0])


def _weights(wanted: Wanted, name: str) -> tuple[Path | None, str]:
    """Return the file of a model's weights on this machine, None if there is none, and the address of the weights."""
    if name.startswith("local-dir:"):
        folder = name.removeprefix("local-dir:")
        return cached(folder), folder
    if name.startswith("hf-hub:"):
        repository = name.removeprefix("hf-hub:")
        return cached(repository), f"https://huggingface.co/{repository}"
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url or config.file):
        tags = [f"timm:{tag}" for tag in timm.list_pretrained(f"{name}.*")]
        raise UsageError(
            f"timm:{wanted.name}: timm has no weights for it; --checkpoint names yours"
            + (f", or take one of {', '.join(tags[:5])}" if tags else "")
        )
    if config.file:
        return Path(config.file), config.file
    if config.hf_hub_id:
        repository = str(config.hf_hub_id)
        files = [config.hf_hub_filename] if config.hf_hub_filename else []
        return cached(repository, [*files, *WEIGHTS]), f"https://huggingface.co/{repository}"
    file = Path(torch.hub.get_dir()) / "checkpoints" / str(config.url).rpartition("/")[2]
    return (file if file.is_file() else None), str(config.url)


def _for_channels(values: tuple[float, ...], channels: int) -> list[float]:
    """Return a statistic of each channel; their mean where the images have another number of channels."""
    return list(values) if len(values) == channels else [sum(values) / len(values)] * channels
