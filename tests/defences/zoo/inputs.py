"""Defences that transform the image, always alike: the transformation hides the gradient or removes the perturbation."""

from functools import cache
from math import cos, pi, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defences.zoo.building import Before, cnn, fitted, straight_through
from defences.zoo.defence import BIM, CW, FGSM, PGD, Defence
from support.small_models import trained_cnn


def detached() -> nn.Module:
    """The gradient is cut off although the graph reaches the pixels: every derivative is exactly 0."""
    return Before(lambda x: x.detach() + 0 * x, trained_cnn())


def numpy_detour() -> nn.Module:
    """The image passes through NumPy, unchanged and without a graph."""
    return Before(lambda x: torch.from_numpy(x.detach().cpu().numpy().copy()).to(x.device), trained_cnn())


def quantised_input() -> nn.Module:
    """The trained CNN behind pixels of eight levels."""
    return Before(lambda x: (x * 7.999).floor() / 7, trained_cnn())


def thermometer(x: Tensor) -> Tensor:
    """Encode each pixel as ten bits, one a channel: whether it is at least 0.05, 0.15, ..."""
    levels = torch.linspace(0.05, 0.95, 10).view(1, -1, 1, 1)
    return (x >= levels).float()


def soft_thermometer(x: Tensor) -> Tensor:
    """A smooth version of the thermometer code."""
    levels = torch.linspace(0.05, 0.95, 10).view(1, -1, 1, 1)
    return torch.sigmoid((x - levels) / 0.05)


@cache
def thermometer_code() -> nn.Module:
    """A network trained on the thermometer code; no graph leads to the pixels."""
    return fitted(Before(thermometer, cnn(channels=10)))


def blurred(x: Tensor) -> Tensor:
    """The mean over each pixel and its upper, left and upper left neighbours."""
    return F.avg_pool2d(F.pad(x, (1, 0, 1, 0)), 2, stride=1)


@cache
def blur() -> nn.Module:
    """A network trained on blurred images, which are blurred outside autograd."""
    return fitted(Before(lambda x: blurred(x.detach()), cnn()))


# The cosine transform of eight values.
DCT = torch.tensor([[cos(pi * (2 * j + 1) * i / 16) * sqrt((1 if i == 0 else 2) / 8) for j in range(8)] for i in range(8)])
# The luminance table of the standard (ITU-T T.81, K.1).
TABLE = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)


def compressed(x: Tensor) -> Tensor:
    """JPEG of quality 50: a digit is one block. Coefficients are rounded to multiples of the table's entries."""
    coefficients = DCT @ (255 * x - 128) @ DCT.T
    decoded = DCT.T @ ((coefficients / TABLE).round() * TABLE) @ DCT
    return ((decoded + 128) / 255).clamp(0, 1)


@cache
def jpeg() -> nn.Module:
    """A network trained on compressed images."""
    return fitted(Before(compressed, cnn()))


def sparse(x: Tensor, kept: int = 12) -> Tensor:
    """Keep the largest coefficients of the cosine transform."""
    coefficients = (DCT @ x @ DCT.T).flatten(1)
    smallest = coefficients.abs().topk(kept, dim=1).values[:, -1:]
    return DCT.T @ (coefficients * (coefficients.abs() >= smallest)).view(x.shape) @ DCT


@cache
def sparse_fourier() -> nn.Module:
    """A network trained on the twelve largest coefficients of 64."""
    return fitted(Before(sparse, cnn()))


def smoothest(x: Tensor) -> Tensor:
    """Lower the total variation plus the squared distance from the image, by six steps outside autograd."""
    x = x.detach()
    z = x
    for _ in range(6):
        down = F.pad(torch.tanh(z.diff(dim=2) / 0.05), (0, 0, 1, 1))
        right = F.pad(torch.tanh(z.diff(dim=3) / 0.05), (1, 1))
        z = z - 0.2 * (z - x) + 0.03 * (down.diff(dim=2) + right.diff(dim=3))
    return z


@cache
def total_variation() -> nn.Module:
    """A network trained on images of low total variation."""
    return fitted(Before(smoothest, cnn()))


INPUTS = (
    Defence(
        detached,
        "Athalye et al. 2018, shattered gradients",
        "1802.00420",
        "a graph whose derivatives are all 0",
        PGD,
        "the network inside",
        trained_cnn,
    ),
    Defence(
        numpy_detour,
        "Athalye et al. 2018, shattered gradients",
        "1802.00420",
        "the image passes through NumPy",
        PGD,
        "the network inside",
        trained_cnn,
    ),
    Defence(
        quantised_input,
        "Xu et al. 2018",
        "1704.01155",
        "pixels of eight levels",
        CW,
        "rounding with the identity's gradient",
        lambda: straight_through(quantised_input()),
    ),
    Defence(
        thermometer_code,
        "Buckman et al. 2018; Carlini et al. 2021, self-study: discretize",
        "",
        "pixels as bits above ten thresholds",
        PGD,
        "sigmoids in place of thresholds",
        lambda: Before(soft_thermometer, thermometer_code().get_submodule("network")),
    ),
    Defence(
        blur,
        "Carlini et al. 2021, self-study: blur",
        "",
        "a blur outside autograd",
        PGD,
        "the blur with its gradient",
        lambda: Before(blurred, blur().get_submodule("network")),
    ),
    Defence(
        jpeg,
        "Das et al. 2017",
        "1705.02900",
        "JPEG compression",
        FGSM,
        "compression with the identity's gradient",
        lambda: straight_through(jpeg()),
    ),
    Defence(
        sparse_fourier,
        "Bafna et al. 2018",
        "1812.05013",
        "the 12 largest of 64 Fourier coefficients",
        BIM,
        "all coefficients, and the sparse values",
        lambda: straight_through(sparse_fourier()),
    ),
    Defence(
        total_variation,
        "Guo et al. 2018",
        "1711.00117",
        "lower total variation, outside autograd",
        BIM,
        "the identity's gradient",
        lambda: straight_through(total_variation()),
    ),
)
