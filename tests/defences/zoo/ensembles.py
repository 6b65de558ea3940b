"""Defences of several networks: they vote, differ, or take turns."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defences.zoo.activations import low_precision, random_neurons, sign_features, soft_low_precision, soft_sign_features
from defences.zoo.building import CLASSES, Mean, Several, cnn, fitted, votes
from defences.zoo.defence import BIM, MIM, PGD, Defence
from support.small_models import trained_cnn


class Vote(nn.Module):
    """The number of `draws` predictions of a noisy network for each class: counts, without a graph."""

    def __init__(self, network: nn.Module, draws: int) -> None:
        super().__init__()
        self.network, self.draws = network, draws

    def forward(self, x: Tensor) -> Tensor:
        return votes(torch.stack([self.network(x) for _ in range(self.draws)]))


def majority_vote() -> nn.Module:
    """The majority vote of five draws of the random neurons."""
    return Vote(random_neurons(), 5)


class Majority(nn.Module):
    """The votes of several networks, without a graph."""

    def __init__(self, several: nn.Module) -> None:
        super().__init__()
        self.several = several

    def forward(self, x: Tensor) -> Tensor:
        return votes(self.several(x))


@cache
def three() -> nn.Module:
    """Three networks of other weights and other orders of training."""
    return Several(trained_cnn(), *(fitted(cnn(seed=seed), seed=seed) for seed in (2, 3)))


def majority() -> nn.Module:
    """The majority vote of three networks."""
    return Majority(three())


def empir() -> nn.Module:
    """The majority vote of networks of full precision, of few bits, and of one."""
    return Majority(Several(trained_cnn(), low_precision(), sign_features()))


def _diverse(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Reward the volume that the networks' probabilities of wrong classes span, and their entropy."""
    assert isinstance(network, Mean)
    logits = network.several(x)
    probabilities = logits.softmax(dim=2)
    wrong = ~F.one_hot(y, CLASSES).bool()
    others = F.normalize(probabilities[:, wrong].view(len(logits), len(x), -1), dim=2).transpose(0, 1)
    volume = torch.linalg.slogdet(others @ others.transpose(1, 2) + 1e-3 * torch.eye(len(logits))).logabsdet.mean()
    mean = probabilities.mean(dim=0)
    entropy = -(mean * (mean + 1e-12).log()).sum(dim=1).mean()
    each = F.cross_entropy(logits.flatten(0, 1), y.repeat(len(logits)))
    loss: Tensor = each - 0.2 * entropy - 0.1 * volume
    return loss


@cache
def ensemble_diversity() -> nn.Module:
    """The mean of three networks, trained to differ in the wrong classes."""
    return fitted(Mean(Several(*(cnn(seed=seed) for seed in range(3)))), loss=_diverse)


class Switching(nn.Module):
    """For each image one of several networks answers, by chance."""

    def __init__(self, several: nn.Module) -> None:
        super().__init__()
        self.several = several

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.several(x)
        return logits[torch.randint(len(logits), (len(x),)), torch.arange(len(x))]


def random_switching() -> nn.Module:
    """One of three networks, by chance."""
    return Switching(three())


ENSEMBLES = (
    Defence(
        majority_vote,
        "Carlini et al. 2021, self-study: majority and randomneuron",
        "",
        "the votes of five draws of random neurons",
        PGD,
        "one draw's logits, averaged",
        random_neurons,
        draws=4,
    ),
    Defence(
        majority,
        "Carlini et al. 2021, self-study: majority",
        "",
        "the votes of three networks",
        PGD,
        "the mean of the networks",
        lambda: Mean(three()),
    ),
    Defence(
        empir,
        "Sen et al. 2020",
        "2004.10162",
        "the votes of networks of 32, 2 and 1 bits",
        BIM,
        "the mean of the networks, rounding with another gradient",
        lambda: Mean(Several(trained_cnn(), soft_low_precision(), soft_sign_features())),
    ),
    Defence(
        ensemble_diversity,
        "Pang et al. 2019",
        "1901.08846",
        "the mean of networks trained to differ",
        MIM,
        "the margin's gradient, towards each class",
        ensemble_diversity,
    ),
    Defence(
        random_switching,
        "Wang et al. 2019",
        "1908.07116",
        "one of three networks, by chance",
        PGD,
        "the mean of the networks",
        lambda: Mean(three()),
        draws=2,
    ),
)
