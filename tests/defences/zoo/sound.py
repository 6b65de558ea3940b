"""Sound models on digits, plain, noisy, rounded or smoothed: nothing hides their gradients, so no alarm may be raised."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defences.sound_models import adversarially_fitted, linear, mlp, noisy_linear, relu, softplus
from defences.zoo.activations import activation
from defences.zoo.building import Before, Mean, Several, cnn, deeper_cnn, through
from support.small_models import trained_cnn


@dataclass(frozen=True)
class SoundModel:
    """A model that hides nothing: its factory, how it answers, the radius in linf, and the draws of an attack's gradients."""

    factory: Callable[[], nn.Module]
    how: str
    eps: str = "0.1"
    draws: int = 1

    @property
    def name(self) -> str:
        return self.factory.__name__


def natural() -> nn.Module:
    """The trained CNN."""
    return trained_cnn()


@cache
def adversarial_cnn() -> nn.Module:
    """A CNN, adversarially trained."""
    return adversarially_fitted(cnn(), eps=0.15, epochs=6)


@cache
def batch_norm() -> nn.Module:
    """Three convolutions with batch norm, adversarially trained."""
    return adversarially_fitted(deeper_cnn(nn.ReLU), eps=0.15, epochs=4)


@cache
def dropout() -> nn.Module:
    """Dropout in adversarial training, none afterwards."""
    return adversarially_fitted(mlp(lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.3))), eps=0.1, epochs=20)


@cache
def tanh() -> nn.Module:
    """Units that saturate a little, adversarially trained."""
    return adversarially_fitted(mlp(nn.Tanh), eps=0.1, epochs=20)


@cache
def leaky() -> nn.Module:
    """Leaky units, adversarially trained."""
    return adversarially_fitted(mlp(lambda: nn.LeakyReLU(0.2)), eps=0.1, epochs=20)


def noisy_input() -> nn.Module:
    """Gaussian noise of 0.1 on the pixels of an adversarially trained network."""
    return Before(lambda x: x + 0.1 * torch.randn_like(x), relu())


@cache
def noisy_units() -> nn.Module:
    """Gaussian noise on the hidden units, also in adversarial training."""
    return adversarially_fitted(mlp(activation(lambda x: F.relu(x + 0.3 * torch.randn_like(x)))), eps=0.1, epochs=20)


class Smoothed(nn.Module):
    """The mean of the probabilities at 16 fixed shifts of the pixels."""

    shifts: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("shifts", 0.1 * torch.randn(16, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network((x + self.shifts).flatten(0, 1)).view(len(self.shifts), len(x), -1)
        mean: Tensor = (logits.softmax(dim=2).mean(dim=0) + 1e-9).log()
        return mean


def smoothed() -> nn.Module:
    """An adversarially trained network, smoothed by fixed noise."""
    return Smoothed(relu()).eval().requires_grad_(False)


@cache
def quantised_weights() -> nn.Module:
    """Weights rounded to six bits after adversarial training."""
    network = adversarially_fitted(mlp(nn.ReLU), eps=0.1, epochs=20)
    with torch.no_grad():
        for weight in network.parameters():
            step = weight.abs().amax() / 31
            weight.copy_((weight / step).round() * step)
    return network


@cache
def quantised_units() -> nn.Module:
    """Units rounded to multiples of 1/8, with the gradient that quantised networks are trained with."""
    return adversarially_fitted(mlp(activation(lambda x: through((8 * F.relu(x)).round() / 8, F.relu(x)))), eps=0.1, epochs=20)


def quantised_pixels() -> nn.Module:
    """Pixels rounded to 256 levels with the identity's gradient, before an adversarially trained network."""
    return Before(lambda x: through((255 * x).round() / 255, x), relu())


def mean_of_two() -> nn.Module:
    """The mean of two adversarially trained networks."""
    return Mean(Several(relu(), tanh()))


SOUND_MODELS = (
    SoundModel(natural, "a CNN, not adversarially trained", "0.05"),
    SoundModel(adversarial_cnn, "a CNN"),
    SoundModel(batch_norm, "three convolutions with batch norm"),
    SoundModel(relu, "one hidden layer"),
    SoundModel(softplus, "smooth units"),
    SoundModel(tanh, "units that saturate a little"),
    SoundModel(leaky, "leaky units"),
    SoundModel(dropout, "dropout in training"),
    SoundModel(linear, "logistic regression"),
    SoundModel(noisy_linear, "noise on the logits", draws=4),
    SoundModel(noisy_input, "noise on the pixels", draws=4),
    SoundModel(noisy_units, "noise on the units", draws=4),
    SoundModel(smoothed, "smoothed by fixed noise"),
    SoundModel(quantised_weights, "weights of six bits"),
    SoundModel(quantised_units, "units rounded to 1/8"),
    SoundModel(quantised_pixels, "pixels of 8 bits"),
    SoundModel(mean_of_two, "the mean of two networks"),
)
