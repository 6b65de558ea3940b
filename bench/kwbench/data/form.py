"""How images of the user's own are read: names of arrays, resizing and cropping."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kwbench.data.dataset import Array
from kwbench.errors import UsageError


@dataclass(frozen=True)
class DataForm:
    """How a file or folder of images is read.

    Attributes:
        resize: length of the shorter side to which images are resized, as torchvision's `Resize`; None to keep their size.
        center_crop: side of the square that is cut out of the centre afterwards; None for none.
        keys: names of images and labels, in place of the usual ones.
        severity: from 1 to 5: the block of 10,000 images in a file of CIFAR-10-C; None for all.
    """

    resize: int | None = None
    center_crop: int | None = None
    keys: tuple[str, str] | None = None
    severity: int | None = None

    def __post_init__(self) -> None:
        for option, value in (("--resize", self.resize), ("--center-crop", self.center_crop)):
            if value is not None and value < 1:
                raise UsageError(f"{option} {value}: must be at least 1")
        if self.severity is not None and not 1 <= self.severity <= 5:
            raise UsageError(f"--severity {self.severity}: must be from 1 to 5")

    @property
    def resizes(self) -> bool:
        """Whether images change their size."""
        return self.resize is not None or self.center_crop is not None

    def shaped(self, image: Array, name: str) -> Array:
        """Return an image (c, h, w), uint8, resized and cropped. Raises UsageError that calls it `name` if it is too small."""
        if self.resize is not None:
            image = _resized(image, self.resize)
        if self.center_crop is None:
            return image
        height, width = image.shape[1:]
        if min(height, width) < self.center_crop:
            size = f"{name} has {height} x {width} pixels; --resize {self.center_crop} enlarges it"
            raise UsageError(f"--center-crop {self.center_crop}: {size}")
        # Rounded as by torchvision's CenterCrop.
        top, left = (round((size - self.center_crop) / 2) for size in (height, width))
        return image[:, top : top + self.center_crop, left : left + self.center_crop]

    def shaped_all(self, images: Array, name: str) -> Array:
        """Return images (n, c, h, w) resized and cropped. Raises UsageError if they are not uint8."""
        if not self.resizes:
            return images
        if images.dtype != np.uint8 or images.ndim != 4:
            raise UsageError(f"--resize, --center-crop: {name} is {images.dtype}; only uint8 images (n, c, h, w) are resized")
        return np.stack([self.shaped(image, f"image {number} of {name}") for number, image in enumerate(images)])


# Images as they are, under the usual names.
AS_IT_IS = DataForm()


def _resized(image: Array, shorter: int) -> Array:
    """Return an image whose shorter side has this length, by PIL's bilinear interpolation."""
    from PIL import Image

    channels, height, width = image.shape
    scale = shorter / min(height, width)
    size = (shorter, int(height * scale)) if width <= height else (int(width * scale), shorter)
    picture: Any = Image.fromarray(image[0] if channels == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR), dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
