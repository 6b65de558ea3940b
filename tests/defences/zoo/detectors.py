"""Defences that look for attacks. Where a paper rejects an image, an adversarially trained network answers it here.

A classifier without a class for rejected images cannot abstain. An attack must fool the detector and the network, or the second
network.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defences.sound_models import relu
from defences.zoo.building import CLASSES, cnn, fitted
from defences.zoo.defence import CW, PGD, Defence
from support.small_models import digits, trained_cnn


def _train_images() -> Tensor:
    return digits().train.batch(range(len(digits().train))).x


class Guarded(nn.Module):
    """The network's logits where `suspicion`, from images and logits, is below 0, else those of a second network.

    `soft`: a mixture of both, for attacks.
    """

    def __init__(self, network: nn.Module, suspicion: nn.Module, second: nn.Module, *, soft: float | None = None) -> None:
        super().__init__()
        self.network, self.suspicion, self.second, self.soft = network, suspicion, second, soft

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        suspicion = self.suspicion(x, logits)
        if self.soft is None:
            return torch.where((suspicion > 0).unsqueeze(1), self.second(x), logits)
        share = torch.sigmoid(suspicion / self.soft).unsqueeze(1)
        mixed: Tensor = (1 - share) * logits.softmax(dim=1) + share * self.second(x).softmax(dim=1)
        return (mixed + 1e-9).log()


def softened(guarded: nn.Module, soft: float) -> nn.Module:
    """Return a guarded network that mixes both answers."""
    assert isinstance(guarded, Guarded)
    return Guarded(guarded.network, guarded.suspicion, guarded.second, soft=soft)


class Signature(nn.Module):
    """How similar the features are to those of the trapdoor of the answered class, above a threshold."""

    signatures: Tensor

    def __init__(self, features: nn.Module, signatures: Tensor, threshold: float) -> None:
        super().__init__()
        self.features, self.threshold = features, threshold
        self.register_buffer("signatures", F.normalize(signatures, dim=1))

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        answered = self.signatures[logits.argmax(dim=1)]
        return (F.normalize(self.features(x), dim=1) * answered).sum(dim=1) - self.threshold


@cache
def injection() -> nn.Module:
    """A network with a trapdoor to each class, whose signature in the features gives attacks away."""
    patterns = 0.1 * torch.randint(0, 2, (CLASSES, 1, 8, 8), generator=torch.Generator().manual_seed(0)).float()

    def trapped(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        wanted = torch.randint(0, CLASSES, y.shape)
        return F.cross_entropy(network(torch.cat([x, x + patterns[wanted]])), torch.cat([y, wanted]))

    network = fitted(cnn(), loss=trapped)
    features = nn.Sequential(*list(network.children())[:-1])
    x = _train_images()
    with torch.no_grad():
        signatures = torch.stack([features(x + pattern).mean(dim=0) for pattern in patterns])
        clean = Signature(features, signatures, 0.0)(x, network(x))
    return Guarded(network, Signature(features, signatures, float(clean.quantile(0.95))), relu())


class Odds(nn.Module):
    """How far noise moves the logits of each other class against the answered one, in standard deviations of clean images."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.zeros(CLASSES, CLASSES))
        self.register_buffer("deviation", torch.ones(CLASSES, CLASSES))
        x = _train_images()
        with torch.no_grad():
            logits = network(x)
            shifts, answers = self.shifts(x, logits), logits.argmax(dim=1)
            for k in range(CLASSES):
                self.mean[k], self.deviation[k] = shifts[answers == k].mean(dim=0), shifts[answers == k].std(dim=0)
            self.deviation.clamp_(min=1e-3)

    def shifts(self, x: Tensor, logits: Tensor, draws: int = 8) -> Tensor:
        """Return the mean change of each class's lead over the answered one by noise, as (b, 10)."""
        noisy = self.network(x.repeat(draws, 1, 1, 1) + 0.2 * torch.randn(draws * len(x), *x.shape[1:], device=x.device))
        change = noisy.view(draws, *logits.shape).mean(dim=0) - logits
        lead: Tensor = change - change.gather(1, logits.argmax(dim=1, keepdim=True))
        return lead

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        answers = logits.argmax(dim=1)
        scores: Tensor = (self.shifts(x, logits) - self.mean[answers]) / self.deviation[answers]
        return scores.scatter(1, answers.unsqueeze(1), 0.0)


class Corrected(nn.Module):
    """The answer, or the class with the oddest change of its logit, if that is odd enough."""

    def __init__(self, network: nn.Module, threshold: float = 3.0) -> None:
        super().__init__()
        self.network, self.odds, self.threshold = network, Odds(network), threshold

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        largest, label = self.odds(x, logits).max(dim=1)
        corrected = logits + 100 * F.one_hot(label, CLASSES)
        return torch.where((largest > self.threshold).unsqueeze(1), corrected, logits)


@cache
def odds_are_odd() -> nn.Module:
    """The trained CNN, corrected by the odds under noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Corrected(trained_cnn()).eval().requires_grad_(False)


class SoftOdds(nn.Module):
    """The logits, and half the answers to noisy images: an image that fools both is corrected to no other class."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        noisy: Tensor = self.network(x + 0.2 * torch.randn_like(x))
        mean: Tensor = (self.network(x) + noisy) / 2
        return mean


class Strength(nn.Module):
    """Whether the answer changes under noise, or does not change under two adversarial steps; above 0 if so."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("noise", 0.1 * torch.randn(4, 1, 1, 8, 8, generator=generator))

    noise: Tensor

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        answers = logits.argmax(dim=1)
        noisy = self.network((x + self.noise).flatten(0, 1)).softmax(dim=1).view(4, len(x), -1).mean(dim=0)
        unsure = 0.5 - noisy.gather(1, answers.unsqueeze(1)).squeeze(1)
        z = x.detach().clone()
        for _ in range(2):
            with torch.enable_grad():
                z.requires_grad_()
                loss = F.cross_entropy(self.network(z), answers, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, z)
            z = z.detach() + 0.15 * gradient.sign()
        stepped = self.network(z.detach() + x - x.detach()).softmax(dim=1)
        stubborn = stepped.gather(1, answers.unsqueeze(1)).squeeze(1) - 0.5
        return torch.maximum(unsure, stubborn)


@cache
def weakness_into_strength() -> nn.Module:
    """The trained CNN, for images on which noise changes nothing and adversarial steps do."""
    return Guarded(trained_cnn(), Strength(trained_cnn()), relu())


DETECTORS = (
    Defence(
        injection,
        "Shan et al. 2020; Carlini et al. 2021, self-study: injection",
        "1904.08554",
        "trapdoors whose signature gives attacks away",
        PGD,
        "a mixture of network and second network by the signature",
        lambda: softened(injection(), 0.1),
    ),
    Defence(
        odds_are_odd,
        "Roth et al. 2019",
        "1902.04818",
        "the odds under noise correct the answer",
        PGD,
        "the mean of the logits with and without noise",
        lambda: SoftOdds(trained_cnn()),
        draws=4,
        accuracy=0.8,
    ),
    Defence(
        weakness_into_strength,
        "Hu et al. 2019",
        "1910.07629",
        "noise must not change the answer, adversarial steps must",
        CW,
        "a mixture of network and second network by the two tests",
        lambda: softened(weakness_into_strength(), 0.1),
    ),
)
