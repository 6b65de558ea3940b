"""Decode image files."""

import io
from pathlib import Path

import numpy as np

from kwbench.data.dataset import Array
from kwbench.errors import DamagedData
from kwbench.files import open_file

# The formats of the names that a folder's images may have. Pillow knows others, which it hands to other programs.
_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")


def read_image(file: Path | io.BytesIO, name: str) -> Array:
    """Return an image (c, h, w) as uint8: one channel if the file is greyscale, otherwise three; transparency is dropped.

    Raises DamagedData that calls the image `name` if it cannot be decoded or has more than 8 bits a channel.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with open_file(file) if isinstance(file, Path) else file as content, Image.open(content, formats=_FORMATS) as image:
            if image.mode in ("1", "L"):
                return np.asarray(image.convert("L"), dtype=np.uint8)[None]
            if image.mode in ("P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"):
                return np.asarray(image.convert("RGB"), dtype=np.uint8).transpose(2, 0, 1)
            mode = image.mode
    except UnidentifiedImageError:
        raise DamagedData(f"{name}: not a readable image of the formats {', '.join(_FORMATS)}") from None
    except Exception as failure:  # noqa: BLE001 - image readers raise nearly anything on damaged files
        raise DamagedData(f"{name}: not a readable image ({failure})") from None
    raise DamagedData(f"{name}: has pixels of mode {mode}; they must have 8 bits")
