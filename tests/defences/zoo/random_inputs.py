"""Defences that transform the image by chance, anew in each pass."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defences.zoo.building import Before, cnn, fitted, straight_through
from defences.zoo.defence import BIM, EOT, FGSM, PGD, Defence
from kwbench.randomness import seeded_globally
from support.small_models import digits, trained_cnn


def resized(x: Tensor) -> Tensor:
    """Resize x to a random side of 8 to 15 pixels, at a random position in a black square of 16."""
    side = int(torch.randint(8, 16, ()))
    top, left = torch.randint(0, 17 - side, (2,)).tolist()
    larger = F.interpolate(x, size=(side, side), mode="nearest")
    return F.pad(larger, (left, 16 - side - left, top, 16 - side - top))


@cache
def random_resizing() -> nn.Module:
    """One random size and position per pass, also in training."""
    with seeded_globally(0):
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
    return fitted(Before(resized, network), epochs=20)


def barrage(x: Tensor) -> Tensor:
    """Change each image's gain, gamma and brightness, add noise, and set pixels to grey, all by chance."""
    gain, power, light = torch.rand(3, len(x), 1, 1, 1)
    x = (0.7 + 0.6 * gain) * x.clamp(1e-3, 1) ** (0.7 + 0.6 * power) + 0.3 * (light - 0.5)
    x = x + 0.1 * torch.randn_like(x)
    return torch.where(torch.rand_like(x) < 0.1, 0.5, x)


@cache
def transform() -> nn.Module:
    """A network trained on randomly transformed images, which are transformed outside autograd."""
    return fitted(Before(lambda x: barrage(x.detach()), cnn()))


def deflected(x: Tensor, pixels: int = 20) -> Tensor:
    """Replace randomly chosen pixels by random neighbours, then smooth them a little."""
    b, _, height, width = x.shape
    place = torch.randint(0, height * width, (b, pixels))
    offset = torch.randint(-1, 2, (2, b, pixels))
    row = (place // width + offset[0]).clamp(0, height - 1)
    column = (place % width + offset[1]).clamp(0, width - 1)
    flat = x.flatten(1)
    moved = flat.scatter(1, place, flat.gather(1, row * width + column)).view(x.shape)
    return 0.7 * moved + 0.3 * F.avg_pool2d(moved, 3, stride=1, padding=1)


@cache
def pixel_deflection() -> nn.Module:
    """A network trained on images with pixels replaced by neighbours."""
    return fitted(Before(deflected, cnn()))


def completed(x: Tensor) -> Tensor:
    """Drop half of the pixels and take twice the others as a matrix of rank 4 at most, outside autograd."""
    with torch.no_grad():
        mask = (torch.rand_like(x) < 0.5).float()
        u, s, v = torch.linalg.svd(2 * mask * x.nan_to_num())
        restored: Tensor = (u[..., :4] * s[..., None, :4]) @ v[..., :4, :]
        return restored


@cache
def me_net() -> nn.Module:
    """A network trained on images restored from half of their pixels."""
    return fitted(Before(completed, cnn()))


class MixupInference(nn.Module):
    """The mean of the logits of mixtures with four random training images."""

    others: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("others", digits().train.batch(range(200)).x)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.randint(0, len(self.others), (4, len(x)))
        mixed = 0.6 * x + 0.4 * self.others[rows.flatten()].view(4, *x.shape)
        logits: Tensor = self.network(mixed.flatten(0, 1))
        return logits.view(4, len(x), -1).mean(dim=0)


def _mixup(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    share, order = torch.rand(()), torch.randperm(len(x))
    logits = network(share * x + (1 - share) * x[order])
    return share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, y[order])


@cache
def mixup_inference() -> nn.Module:
    """A network trained on mixtures, and asked about mixtures."""
    return MixupInference(fitted(cnn(), loss=_mixup)).eval().requires_grad_(False)


def random_discretization() -> nn.Module:
    """The trained CNN behind noise on the pixels, which are then rounded to eight levels."""
    return Before(lambda x: (7 * (x + 0.15 * torch.randn_like(x)).clamp(0, 1)).round() / 7, trained_cnn())


RANDOM_INPUTS = (
    Defence(
        random_resizing,
        "Xie et al. 2018",
        "1711.01991",
        "random size and position",
        FGSM,
        "gradients averaged over draws",
        random_resizing,
        draws=4,
        accuracy=0.7,
    ),
    Defence(
        transform,
        "Carlini et al. 2021, self-study: transform; Raff et al. 2019",
        "",
        "random gain, gamma, brightness, noise and gaps, outside autograd",
        PGD,
        "the transformations with their gradient, averaged over draws",
        lambda: Before(barrage, transform().get_submodule("network")),
        draws=4,
        accuracy=0.8,
    ),
    Defence(
        pixel_deflection,
        "Prakash et al. 2018",
        "1801.08926",
        "pixels replaced by random neighbours",
        BIM,
        "the identity's gradient, averaged over draws",
        lambda: straight_through(pixel_deflection()),
        draws=4,
        accuracy=0.7,
    ),
    Defence(
        me_net,
        "Yang et al. 2019, ME-Net",
        "1905.11971",
        "half of the pixels, and matrix completion",
        BIM,
        "the identity's gradient, averaged over draws",
        lambda: straight_through(me_net()),
        draws=4,
        accuracy=0.6,
    ),
    Defence(
        mixup_inference,
        "Pang et al. 2020, mixup inference",
        "1909.11515",
        "mixtures with random training images",
        PGD,
        "gradients averaged over draws",
        mixup_inference,
        draws=4,
        accuracy=0.8,
    ),
    Defence(
        random_discretization,
        "Zhang and Liang 2019",
        "1903.10586",
        "pixels with noise, rounded to eight levels",
        EOT,
        "the network without noise",
        trained_cnn,
        draws=4,
        accuracy=0.6,
    ),
)
