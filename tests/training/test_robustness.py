"""Adversarial training makes a network more robust than natural training."""

from typing import Any

import pytest
import torch

from kwbench.config.recipe import TrainingAttack
from kwbench.data import DataSet
from kwbench.training import train
from kwbench.training.adversaries import pgd_examples
from support.training import ADVERSARY, entry, quiet


def test_adversarial_training_makes_the_network_more_robust(few: DataSet) -> None:
    attack = TrainingAttack.model_validate({"eps": "0.2", "steps": 10, "step_size": "0.05"})
    batch = few.validation.batch(range(len(few.validation)))
    robust_accuracies = []
    for recipe in ({}, {"adversarial": ADVERSARY}):
        module = train(entry(epochs=15, **recipe), few, quiet)
        torch.manual_seed(0)
        z = pgd_examples(module, batch.x, batch.y, attack, 0)
        robust_accuracies.append((module(z).argmax(dim=1) == batch.y).float().mean().item())
    assert robust_accuracies[1] > robust_accuracies[0] + 0.1


@pytest.mark.parametrize("kind", ["trades", "free", "fast"])
def test_each_adversarial_training_makes_the_network_more_robust(kind: str, few: DataSet) -> None:
    attack = TrainingAttack.model_validate({"eps": "0.2", "steps": 10, "step_size": "0.05"})
    batch = few.validation.batch(range(len(few.validation)))
    recipe: dict[str, Any] = {"trades": ADVERSARY, "free": {"eps": 0.2, "replays": 4}, "fast": {"eps": 0.2}}[kind]
    robust_accuracies = []
    for training in ({}, {kind: recipe}):
        module = train(entry(epochs=15, **training), few, quiet)
        torch.manual_seed(0)
        z = pgd_examples(module, batch.x, batch.y, attack, 0)
        robust_accuracies.append((module(z).argmax(dim=1) == batch.y).float().mean().item())
    assert robust_accuracies[1] > robust_accuracies[0] + 0.05
