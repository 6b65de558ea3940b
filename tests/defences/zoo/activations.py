"""Defences that change the activations: they jump, are rounded, saturate, or are random."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defences.zoo.building import Before, cnn, deeper_cnn, fitted, through, with_weights_of
from defences.zoo.defence import BIM, FGSM, PGD, SQUARE, Defence
from support.small_models import trained_cnn


def activation(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """Return a factory of modules that apply a function."""
    return lambda: _Activation(function)


class _Activation(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _jump(x: Tensor) -> Tensor:
    return torch.where(x < 0, 0.0, 5 + x)


def _soft_jump(x: Tensor) -> Tensor:
    return (5 + F.softplus(x, beta=4)) * torch.sigmoid(4 * x)


@cache
def jump() -> nn.Module:
    """A network of discontinuous units, 0 below zero and 5 + x above, trained as such."""
    return fitted(deeper_cnn(activation(_jump)), learning_rate=1e-3)


def _winners(x: Tensor, share: float) -> Tensor:
    """Return the smallest of each sample's winners (b, 1, 1, 1): the given share of its values."""
    values = x.flatten(1)
    return values.topk(int(share * values.shape[1]), dim=1).values[:, -1].view(-1, 1, 1, 1)


def _kwta(x: Tensor) -> Tensor:
    return x * (x >= _winners(x, 0.1))


def _soft_kwta(x: Tensor) -> Tensor:
    threshold = _winners(x, 0.1).detach()
    return x * torch.sigmoid((x - threshold) / (0.2 * x.detach().std() + 1e-6))


@cache
def kwta() -> nn.Module:
    """A network in which a tenth of the units of each layer win."""
    return fitted(deeper_cnn(activation(_kwta)))


def _soft_winner(x: Tensor) -> Tensor:
    blocks = x.view(len(x), -1, 2, *x.shape[2:])
    return (blocks * blocks.softmax(dim=2)).view(x.shape)


class StochasticWinner(nn.Module):
    """Of each two channels one wins, by chance; relaxed in training."""

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.view(len(x), -1, 2, *x.shape[2:])
        winner = F.gumbel_softmax(blocks, tau=0.67 if self.training else 0.01, dim=2)
        return (blocks * winner).view(x.shape)


@cache
def stochastic_lwta() -> nn.Module:
    """A network of pairs of units of which one wins by chance."""
    return fitted(cnn(StochasticWinner))


def _rounded(x: Tensor) -> Tensor:
    return torch.round(16 * F.relu(x)) / 16


def rounded_features() -> nn.Module:
    """The trained CNN with features rounded to multiples of 1/16 after every convolution."""
    first, _, second, _, *rest = trained_cnn().children()
    return nn.Sequential(first, _Activation(_rounded), second, _Activation(_rounded), *rest)


class _SignThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        passed: Tensor = gradient * (x.abs() < 1)
        return passed


class Sign(nn.Module):
    """The sign of each feature; its gradient in training is that of a clipped identity."""

    def forward(self, x: Tensor) -> Tensor:
        return _SignThrough.apply(x) if self.training else torch.sign(x)  # type: ignore[no-untyped-call]


@cache
def sign_features() -> nn.Module:
    """A network of binary features."""
    return fitted(cnn(Sign))


def soft_sign_features() -> nn.Module:
    """The network of binary features with tanh in place of the sign."""
    return with_weights_of(cnn(activation(lambda x: torch.tanh(3 * x))), sign_features())


def _two_bits(x: Tensor) -> Tensor:
    return torch.round(3 * x.clamp(0, 1)) / 3


def quantised(activations: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return an untrained network of four-bit weights, once trained, and the given activations."""
    return cnn(activation(activations))


@cache
def low_precision() -> nn.Module:
    """A network of two-bit activations, with weights rounded to four bits after training."""
    trained = fitted(quantised(lambda x: through(_two_bits(x), x.clamp(0, 1))))
    network = with_weights_of(quantised(_two_bits), trained)
    with torch.no_grad():
        for weight in network.parameters():
            step = weight.abs().amax() / 7
            weight.copy_((weight / step).round() * step)
    return network


def soft_low_precision() -> nn.Module:
    """The network of few bits, rounding with the gradient of the clipped identity."""
    return with_weights_of(quantised(lambda x: through(_two_bits(x), x.clamp(0, 1))), low_precision())


class Spiking(nn.Module):
    """Integrate-and-fire units: the share of five steps in which a unit fires; a sigmoid's slope in training."""

    STEPS = 5

    def forward(self, x: Tensor) -> Tensor:
        potential = torch.full_like(x, 0.5)
        fired = torch.zeros_like(x)
        for _ in range(self.STEPS):
            potential = potential + x
            spikes = (potential >= 1).float()
            if self.training:
                spikes = through(spikes, torch.sigmoid(4 * (potential - 1)))
            potential = potential - spikes
            fired = fired + spikes
        return fired / self.STEPS


@cache
def spiking() -> nn.Module:
    """A spiking network of constant input currents."""
    return fitted(cnn(Spiking), epochs=8)


def _steep(x: Tensor) -> Tensor:
    return torch.sigmoid(40 * x)


def _flatter(x: Tensor) -> Tensor:
    return through(_steep(x), torch.sigmoid(4 * x))


@cache
def saturated() -> nn.Module:
    """A network of steep sigmoids, trained with the gradient of flatter ones."""
    return with_weights_of(deeper_cnn(activation(_steep)), fitted(deeper_cnn(activation(_flatter))))


class RandomNeuron(nn.Module):
    """ReLU of a noisy input."""

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.sigma * torch.randn_like(x))


@cache
def random_neurons() -> nn.Module:
    """Noise on the pixels and on every activation, also in training."""
    return fitted(Before(lambda x: x + 0.1 * torch.randn_like(x), deeper_cnn(RandomNeuron)), epochs=20)


def _pruned(x: Tensor) -> Tensor:
    """Keep the units that as many draws as there are units pick, by their share of the sum; divide by the chance of that."""
    units = F.relu(x).flatten(1)
    chance = units / units.sum(dim=1, keepdim=True).clamp(min=1e-12)
    kept = 1 - (1 - chance).clamp(min=1e-12) ** units.shape[1]
    picked = torch.rand_like(kept) < kept
    return (units * picked / kept.clamp(min=1e-6)).view(x.shape)


def activation_pruning() -> nn.Module:
    """The trained CNN with activations pruned by chance."""
    first, _, second, _, *rest = trained_cnn().children()
    return nn.Sequential(first, _Activation(_pruned), second, _Activation(_pruned), *rest)


ACTIVATIONS = (
    Defence(
        jump,
        "Carlini et al. 2021, self-study: jump",
        "",
        "units that jump at zero",
        PGD,
        "a smooth jump",
        lambda: with_weights_of(deeper_cnn(activation(_soft_jump)), jump()),
    ),
    Defence(
        kwta,
        "Xiao et al. 2020",
        "1905.10510",
        "a tenth of the units win",
        PGD,
        "a soft threshold between winners and losers",
        lambda: with_weights_of(
            deeper_cnn(activation(lambda x: through(_kwta(x), _soft_kwta(x)))),
            kwta(),
        ),
    ),
    Defence(
        stochastic_lwta,
        "Panousis et al. 2021",
        "2112.02671",
        "one of each two units wins, by chance",
        PGD,
        "the mean over the winners of each layer",
        lambda: with_weights_of(cnn(activation(_soft_winner)), stochastic_lwta()),
        draws=2,
    ),
    Defence(
        rounded_features,
        "Lin et al. 2019",
        "1904.08444",
        "features rounded to multiples of 1/16",
        PGD,
        "the network before rounding",
        trained_cnn,
    ),
    Defence(
        sign_features,
        "Galloway et al. 2018",
        "1711.00449",
        "binary features",
        PGD,
        "tanh in place of the sign",
        soft_sign_features,
    ),
    Defence(
        low_precision,
        "Panda et al. 2019",
        "1902.03151",
        "two-bit activations, four-bit weights",
        BIM,
        "rounding with the identity's gradient",
        soft_low_precision,
    ),
    Defence(
        spiking,
        "Sharmin et al. 2019",
        "1905.02704",
        "integrate-and-fire units, five steps",
        SQUARE,
        "spikes with a sigmoid's gradient",
        lambda: with_weights_of(cnn(Spiking), spiking()).train(),
    ),
    Defence(
        saturated,
        "Nayebi and Ganguli 2017",
        "1703.09202",
        "sigmoids that saturate",
        FGSM,
        "the gradient of flatter sigmoids",
        lambda: with_weights_of(deeper_cnn(activation(_flatter)), saturated()),
    ),
    Defence(
        random_neurons,
        "Carlini et al. 2021, self-study: randomneuron",
        "",
        "noise on pixels and units",
        PGD,
        "gradients averaged over draws",
        random_neurons,
        draws=4,
    ),
    Defence(
        activation_pruning,
        "Dhillon et al. 2018",
        "1803.01442",
        "units pruned by chance",
        FGSM,
        "the network before pruning",
        trained_cnn,
        draws=2,
    ),
)
