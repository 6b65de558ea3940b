"""Image classifiers of Hugging Face's transformers: hf:google/vit-base-patch16-224, hf:name@revision, or hf:folder."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification

from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.networks.adapters.adapter import Adapted, Wanted, missing, origin_of
from kwbench.networks.adapters.hub import WEIGHTS, allow_downloads, cached, details
from kwbench.networks.adapters.preprocessing import Preprocessed, preprocessing_notes

_PREPROCESSOR = "preprocessor_config.json"
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# PIL's numbers of interpolations.
_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def load(wanted: Wanted) -> Adapted:
    """Load an image classifier with its weights and the preprocessing that its preprocessor_config.json states."""
    if wanted.checkpoint is not None:
        raise UsageError(f"hf:{wanted.name}: comes with its weights; --checkpoint is for models of your own code and of timm")
    name, _, revision = wanted.name.partition("@")
    options: dict[str, Any] = {"revision": revision or "main", "local_files_only": not wanted.download}
    allow_downloads(wanted.download)
    if cached(name, [*WEIGHTS, *_INDICES], revision or None) is None:
        if Path(name).is_dir():
            raise CannotEvaluate(f"hf:{name}: holds no weights; it must hold one of {', '.join(WEIGHTS)}")
        if not wanted.download:
            raise missing(f"hf:{wanted.name}", "its weights are", f"https://huggingface.co/{name}")
    # Code of the repository is never run.
    config = AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
    model = AutoModelForImageClassification.from_pretrained(name, config=config, trust_remote_code=False, **options)
    preprocessor = _preprocessor(name, revision or None, wanted)
    size = _size(preprocessor)
    mean = preprocessor.get("image_mean") if preprocessor.get("do_normalize", True) else None
    std = preprocessor.get("image_std") if preprocessor.get("do_normalize", True) else None
    channels = int(getattr(config, "num_channels", 3))
    return Adapted(
        Preprocessed(
            _Logits(model),
            mean or [0.0] * channels,
            std or [1.0] * channels,
            size,
            _INTERPOLATIONS.get(preprocessor.get("resample", 2), "bilinear"),
        ),
        origin_of("transformers", model=Path(name).name, **details(cached(name, [*WEIGHTS, *_INDICES], revision or None))),
        preprocessing_notes(wanted.shape, size),
    )


class _Logits(nn.Module):
    """A classifier of transformers that returns its logits alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        """Return logits (b, classes) of x (b, c, h, w)."""
        return self.model(pixel_values=x).logits


def _preprocessor(name: str, revision: str | None, wanted: Wanted) -> dict[str, Any]:
    path = cached(name, [_PREPROCESSOR], revision)
    if path is None and wanted.download and not Path(name).is_dir():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(name, _PREPROCESSOR, revision=revision))
    if path is None:
        raise CannotEvaluate(
            f"hf:{wanted.name}: {_PREPROCESSOR} is not beside the weights, so its mean, deviation and size are unknown"
        )
    try:
        preprocessor: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as failure:
        raise DamagedData(f"{path}: {failure}") from None
    return preprocessor


def _size(preprocessor: dict[str, Any]) -> tuple[int, int] | None:
    """Return the size (h, w) of what the model gets: that of the crop, if images are cropped; None where it takes any."""
    crop = preprocessor.get("do_center_crop", False) and preprocessor.get("crop_size")
    value = crop or (preprocessor.get("size") if preprocessor.get("do_resize", True) else None)
    if isinstance(value, int):
        return value, value
    if isinstance(value, dict) and "height" in value:
        return int(value["height"]), int(value["width"])
    if isinstance(value, dict) and "shortest_edge" in value:
        return int(value["shortest_edge"]), int(value["shortest_edge"])
    return None
