"""Write the images on which `gpu.sh --smoke` trains: two batches of four, and two to evaluate.

    python bench/papers/smoke_images.py FILE.npz

Classes differ in the brightness of two channels, so that networks learn them and attacks have something to break.
"""

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt


def images(count: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return seeded images (count, 3, 32, 32) and their labels, which alternate between 0 and 1."""
    labels = np.arange(count) % 2
    pixels = np.random.default_rng(seed).integers(0, 128, (count, 3, 32, 32), dtype=np.uint8)
    pixels[np.arange(count), labels] += 24
    return pixels, labels


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.parent.mkdir(parents=True, exist_ok=True)
    x_train, y_train = images(8, seed=0)
    x_test, y_test = images(2, seed=1)
    np.savez(file, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
