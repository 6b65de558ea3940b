"""Defences that change the last layer or the training: what is answered, and what is learned."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defences.zoo.building import CLASSES, Before, Scaled, cnn, cross_entropy, fitted
from defences.zoo.defence import BIM, CW, FGSM, MIM, PGD, Defence
from kwbench.randomness import seeded_globally
from support.small_models import digits, trained_cnn


def scaled_logits() -> nn.Module:
    """Logits so large that a float32 softmax has a gradient of zero, as after distillation."""
    return Scaled(trained_cnn(), 5_000)


def _smooth_labels(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(network(x), y, label_smoothing=0.5)


@cache
def label_smoothing() -> nn.Module:
    """A network trained on smoothed labels."""
    return fitted(cnn(), loss=_smooth_labels)


def _squeezed(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Pair each image with a noisy one, and keep the logits small."""
    logits, noisy = network(x), network((x + 0.3 * torch.randn_like(x)).clamp(0, 1))
    loss: Tensor = F.cross_entropy(noisy, y) + 0.5 * (logits - noisy).square().mean() + 0.05 * logits.square().mean()
    return loss


@cache
def logit_pairing() -> nn.Module:
    """A network trained by clean logit pairing and logit squeezing on noisy images."""
    return fitted(cnn(), loss=_squeezed)


def _single_step(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Train on images of one step of random length along the gradient, as in the course."""
    z = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(network, z, y), z)
    length = 0.2 * torch.rand(len(x), 1, 1, 1)
    return cross_entropy(network, x, y) + cross_entropy(network, (x + length * gradient.sign()).clamp(0, 1), y)


@cache
def advtrain() -> nn.Module:
    """A network trained on images of a single step."""
    return fitted(cnn(), loss=_single_step)


def _flat(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    z = x.clone().requires_grad_()
    loss = cross_entropy(network, z, y)
    (gradient,) = torch.autograd.grad(len(x) * loss, z, create_graph=True)
    return loss + 0.2 * gradient.square().flatten(1).sum(dim=1).mean()


@cache
def gradient_regularisation() -> nn.Module:
    """A network trained for small gradients."""
    return fitted(cnn(), loss=_flat, epochs=8)


def hadamard(bits: int) -> Tensor:
    """Return Sylvester's matrix of -1 and 1, as (bits, bits)."""
    matrix = torch.ones(1, 1)
    while len(matrix) < bits:
        matrix = torch.cat([torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)])
    return matrix


class Codes(nn.Module):
    """Four networks of four bits each; a class is as probable as its code word agrees with them."""

    words: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList(cnn(outputs=4, seed=seed) for seed in range(4))
        self.register_buffer("words", hadamard(16)[1 : CLASSES + 1])

    def bits(self, x: Tensor) -> Tensor:
        """Return the bits of x before tanh (b, 16)."""
        return torch.cat([network(x) for network in self.networks], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        agreement = F.relu(torch.tanh(self.bits(x)) @ self.words.T)
        return (agreement + 1e-9).log()


def _learn_bits(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    assert isinstance(network, Codes)
    return F.relu(1 - torch.tanh(network.bits(x)) * network.words[y]).mean() * 4


@cache
def error_correcting_codes() -> nn.Module:
    """An ensemble of bits, decoded by Hadamard code words."""
    return fitted(Codes(), loss=_learn_bits)


def _decoded_by_bits() -> nn.Module:
    codes = error_correcting_codes()
    assert isinstance(codes, Codes)
    return Before(codes.bits, _Words(codes.words))


class _Words(nn.Module):
    words: Tensor

    def __init__(self, words: Tensor) -> None:
        super().__init__()
        self.register_buffer("words", words)

    def forward(self, bits: Tensor) -> Tensor:
        return torch.tanh(bits / 4) @ self.words.T


class Centres(nn.Module):
    """The negative squared distance of the features from each class's centre; the centres are as far apart as possible."""

    centres: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = cnn(outputs=16)
        simplex = torch.eye(CLASSES) - 1 / CLASSES
        self.register_buffer("centres", F.pad(10 * F.normalize(simplex, dim=1), (0, 6)))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = -(self.features(x).unsqueeze(1) - self.centres).square().sum(dim=2)
        return logits


def _to_centre(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss: Tensor = -network(x).gather(1, y.unsqueeze(1)).mean() / 10
    return loss


@cache
def max_mahalanobis() -> nn.Module:
    """A network that draws features to fixed centres."""
    return fitted(Centres(), loss=_to_centre)


class Binary(nn.Module):
    """Ten networks of one hidden layer, each of which knows one class, as (b, 10) scores."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        with seeded_globally(0):
            self.first = nn.Linear(64, CLASSES * hidden)
            self.second = nn.Conv1d(CLASSES * hidden, CLASSES, 1, groups=CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x.flatten(1))).unsqueeze(2)
        scores: Tensor = self.second(hidden).squeeze(2)
        return scores


def _one_against_all(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return 10 * F.binary_cross_entropy_with_logits(network(x), F.one_hot(y, CLASSES).float())


class Merged(nn.Module):
    """Probabilities of steep sigmoids, as the course merges binary classifiers."""

    def __init__(self, scores: nn.Module) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, x: Tensor) -> Tensor:
        return (5 * torch.sigmoid(5 * self.scores(x))).softmax(dim=1)


@cache
def merged_binary() -> nn.Module:
    """Ten binary classifiers, merged by steep sigmoids."""
    return Merged(fitted(Binary(), loss=_one_against_all))


def _asymmetrical(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Train each detector on its class and on images of others that were moved to fool it."""
    own = F.one_hot(y, CLASSES)
    target = (y + torch.randint(1, CLASSES, y.shape)) % CLASSES
    z = x.clone()
    for _ in range(5):
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(network(z).gather(1, target.unsqueeze(1)).sum(), z)
        z = (x + (z.detach() + 0.08 * gradient.sign() - x).clamp(-0.2, 0.2)).clamp(0, 1)
    fooled = network(z.detach()).gather(1, target.unsqueeze(1))
    return 10 * F.binary_cross_entropy_with_logits(network(x), own.float()) + F.softplus(fooled).mean()


@cache
def asymmetrical_training() -> nn.Module:
    """Ten detectors trained against moved images of other classes; the largest score is the answer."""
    return fitted(Binary(64), loss=_asymmetrical)


class Neighbours(nn.Module):
    """The votes of the eight training images with the most similar features."""

    known: Tensor
    labels: Tensor

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features
        train = digits().train.batch(range(len(digits().train)))
        with torch.no_grad():
            self.register_buffer("known", F.normalize(features(train.x), dim=1))
        self.register_buffer("labels", F.one_hot(train.y, CLASSES).float())

    def similarities(self, x: Tensor) -> Tensor:
        """Return the cosines of the features of x (b, c, h, w) and of each training image, as (b, n)."""
        return F.normalize(self.features(x), dim=1) @ self.known.T

    def forward(self, x: Tensor) -> Tensor:
        nearest = self.similarities(x).topk(8, dim=1).indices
        return self.labels[nearest].sum(dim=1)


class SoftNeighbours(nn.Module):
    """All training images vote, the more similar ones with more weight."""

    def __init__(self, neighbours: Neighbours) -> None:
        super().__init__()
        self.neighbours = neighbours

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.neighbours.similarities(x) / 0.05).softmax(dim=1)
        return (weight @ self.neighbours.labels + 1e-9).log()


@cache
def knn() -> Neighbours:
    """Nearest neighbours on the features of the trained CNN."""
    return Neighbours(nn.Sequential(*list(trained_cnn().children())[:-1])).eval()


class ClassAutoencoders(nn.Module):
    """For each class the likelihood of the image by a variational autoencoder of that class, at the mean code."""

    def __init__(self, code: int = 8, hidden: int = 64) -> None:
        super().__init__()
        with seeded_globally(0):
            self.encoder = nn.Sequential(nn.Linear(64 + CLASSES, hidden), nn.ReLU(), nn.Linear(hidden, 2 * code))
            self.decoder = nn.Sequential(nn.Linear(code + CLASSES, hidden), nn.ReLU(), nn.Linear(hidden, 64), nn.Sigmoid())

    def bound(self, x: Tensor, own: Tensor, noise: float) -> Tensor:
        """Return the evidence lower bound (b,) of images x (b, 64) of the classes `own` (b, 10), one-hot."""
        mean, log_variance = self.encoder(torch.cat([x, own], dim=1)).chunk(2, dim=1)
        code = mean + noise * torch.randn_like(mean) * (log_variance / 2).exp()
        error = (self.decoder(torch.cat([code, own], dim=1)) - x).square().sum(dim=1) / (2 * 0.1**2)
        divergence = (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1) / 2
        bound: Tensor = -error - divergence
        return bound

    def forward(self, x: Tensor) -> Tensor:
        b = len(x)
        own = torch.eye(CLASSES, device=x.device).repeat(b, 1)
        return self.bound(x.flatten(1).repeat_interleave(CLASSES, dim=0), own, 0.0).view(b, CLASSES)


def _likelihood(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    assert isinstance(network, ClassAutoencoders)
    return -network.bound(x.flatten(1), F.one_hot(y, CLASSES).float(), 1.0).mean() / 10


@cache
def generative() -> nn.Module:
    """A deep Bayes classifier: the class whose autoencoder makes the image most likely."""
    return fitted(ClassAutoencoders(), loss=_likelihood, epochs=40)


OUTPUTS = (
    Defence(
        scaled_logits,
        "Papernot et al. 2016; Carlini et al. 2021, self-study: temperature",
        "1511.04508",
        "logits of a large scale",
        FGSM,
        "a margin that no scale changes",
        trained_cnn,
    ),
    Defence(
        label_smoothing,
        "Warde-Farley and Goodfellow 2016; Carlini et al. 2021, self-study: labelsmooth",
        "",
        "trained on smoothed labels",
        FGSM,
        "the margin's gradient",
        label_smoothing,
    ),
    Defence(
        logit_pairing,
        "Kannan et al. 2018",
        "1803.06373",
        "trained for small and like logits",
        PGD,
        "the margin's gradient",
        logit_pairing,
    ),
    Defence(
        advtrain,
        "Carlini et al. 2021, self-study: advtrain",
        "1412.6572",
        "trained on images of a single step",
        FGSM,
        "the margin's gradient, towards each class",
        advtrain,
    ),
    Defence(
        gradient_regularisation,
        "Ross and Doshi-Velez 2018",
        "1711.09404",
        "trained for small gradients",
        FGSM,
        "the margin's gradient, towards each class",
        gradient_regularisation,
    ),
    Defence(
        error_correcting_codes,
        "Verma and Swami 2019",
        "",
        "bits of four networks, decoded by code words",
        CW,
        "the bits without saturation or clipping",
        _decoded_by_bits,
    ),
    Defence(
        max_mahalanobis,
        "Pang et al. 2020, max-Mahalanobis centres",
        "1905.10626",
        "distances from fixed centres",
        PGD,
        "the margin's gradient",
        max_mahalanobis,
    ),
    Defence(
        merged_binary,
        "Carlini et al. 2021, self-study: mergebinary",
        "",
        "ten binary classifiers, merged by steep sigmoids",
        PGD,
        "the scores before the sigmoids",
        lambda: merged_binary().get_submodule("scores"),
    ),
    Defence(
        asymmetrical_training,
        "Yin et al. 2020",
        "1905.11475",
        "ten detectors, adversarially trained",
        MIM,
        "the margin's gradient, towards each class",
        asymmetrical_training,
    ),
    Defence(
        knn,
        "Papernot and McDaniel 2018; Carlini et al. 2021, self-study: knn",
        "1803.04765",
        "the votes of eight neighbours in feature space",
        BIM,
        "all neighbours' votes, weighted by similarity",
        lambda: SoftNeighbours(knn()),
    ),
    Defence(
        generative,
        "Li et al. 2019",
        "1802.06552",
        "the most likely class of ten autoencoders",
        MIM,
        "the margin's gradient, towards each class",
        generative,
    ),
)
