"""Augmentation of training images."""

import torch

from kwbench.config.recipe import Recipe
from kwbench.config.strict_yaml import validate
from kwbench.data import DataSet
from kwbench.training.augmentation import augment
from support.training import RECIPE


def test_images_are_mirrored_every_other_time(few: DataSet) -> None:
    recipe = validate(Recipe, RECIPE | {"shift": 0, "flip": True}, "recipe")
    x = few.train.batch(range(200)).x
    z = augment(x, recipe, torch.Generator().manual_seed(0))
    same = (z == x).flatten(1).all(dim=1)
    assert bool((same | (z == x.flip(3)).flatten(1).all(dim=1)).all())
    assert 70 < int(same.sum()) < 130
