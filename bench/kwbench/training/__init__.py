"""Training of checkpoints by the recipes of the registry. Equal seeds on equal machines give equal weights, resumed or not."""

from kwbench.training.checkpoint import accuracy, recipe_hash, save_checkpoint
from kwbench.training.curve import curve_path, read_curve, write_curve
from kwbench.training.loop import Epoch, train
from kwbench.training.progress import progress_path

__all__ = [
    "Epoch",
    "accuracy",
    "curve_path",
    "progress_path",
    "read_curve",
    "recipe_hash",
    "save_checkpoint",
    "train",
    "write_curve",
]
