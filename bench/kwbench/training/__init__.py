"""Making a checkpoint from the recipe in its registry entry: same seed, same machine, same weights, interrupted or not."""

from kwbench.training.checkpoint import accuracy, recipe_hash, save_checkpoint
from kwbench.training.loop import Epoch, train
from kwbench.training.progress import curve_of, progress_path, write_curve

__all__ = ["Epoch", "accuracy", "curve_of", "progress_path", "recipe_hash", "save_checkpoint", "train", "write_curve"]
