"""Defences that draw the image to those of a generative model before it is classified."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defences.zoo.building import Before, cnn, fitted, straight_through
from defences.zoo.defence import CW, PGD, Defence
from kwbench.randomness import seeded_globally
from support.small_models import trained_cnn


class Autoencoder(nn.Module):
    """A small autoencoder of images (b, 1, 8, 8)."""

    def __init__(self, code: int = 12) -> None:
        super().__init__()
        with seeded_globally(0):
            self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, code))
            self.decoder = nn.Sequential(
                nn.Linear(code, 96), nn.ReLU(), nn.Linear(96, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8))
            )

    def forward(self, x: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(self.encoder(x))
        return decoded


def _restored(network: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    return 64 * F.mse_loss(network(x + 0.1 * torch.randn_like(x)), x)


@cache
def autoencoder() -> Autoencoder:
    """An autoencoder trained to restore noisy digits."""
    network = fitted(Autoencoder(), loss=_restored, epochs=40)
    assert isinstance(network, Autoencoder)
    return network


def magnet() -> nn.Module:
    """The trained CNN behind an autoencoder that is outside autograd."""
    restoring = autoencoder()
    return Before(lambda x: restoring(x.detach()).detach(), trained_cnn())


def _coded(network: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    """Train a Wasserstein autoencoder: codes are noisy, and of mean 0 and variance 1 over a batch."""
    assert isinstance(network, Autoencoder)
    code = network.encoder(x)
    spread = (code.mean(dim=0).square() + (code.var(dim=0) - 1).square()).sum()
    loss: Tensor = 64 * F.mse_loss(network.decoder(code + 0.1 * torch.randn_like(code)), x) + spread
    return loss


class Projection(nn.Module):
    """The generator's image nearest to x: ten steps from each of two fixed codes, without a gradient to the pixels."""

    starts: Tensor

    def __init__(self, generator: nn.Module, code: int) -> None:
        super().__init__()
        self.generator = generator
        self.register_buffer("starts", torch.randn(2, code, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        wanted = x.detach().repeat(len(self.starts), 1, 1, 1)
        code = self.starts.repeat_interleave(len(x), dim=0)
        momentum = torch.zeros_like(code)
        for _ in range(10):
            with torch.enable_grad():
                code.requires_grad_()
                error = (self.generator(code) - wanted).square().flatten(1).sum(dim=1)
                (gradient,) = torch.autograd.grad(error.sum(), code)
            momentum = 0.7 * momentum + gradient
            code = code.detach() - 0.1 * momentum
        with torch.no_grad():
            images = self.generator(code)
            error = (images - wanted).square().flatten(1).sum(dim=1).view(len(self.starts), len(x))
            best: Tensor = images.view(len(self.starts), *x.shape)[error.argmin(dim=0), torch.arange(len(x))]
        return best


@cache
def defense_gan() -> nn.Module:
    """A network trained on generated images, behind the nearest image of the generator."""
    trained = fitted(Autoencoder(), loss=_coded, epochs=40)
    assert isinstance(trained, Autoencoder)
    projection = Projection(trained.decoder, 12).requires_grad_(False)
    return Before(projection, fitted(Before(lambda x: trained(x).detach(), cnn())).get_submodule("network"))


class Denoiser(nn.Module):
    """Predicts the clean image from one with noise of a known standard deviation."""

    def __init__(self) -> None:
        super().__init__()
        with seeded_globally(0):
            self.layers = nn.Sequential(nn.Linear(65, 192), nn.ReLU(), nn.Linear(192, 192), nn.ReLU(), nn.Linear(192, 64))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise x (b, 1, 8, 8) of noise `sigma` (b, 1)."""
        scale = 1 / (1 + sigma.square()).sqrt()
        denoised: Tensor = self.layers(torch.cat([scale * x.flatten(1), sigma], dim=1))
        return denoised.view(x.shape)


def _denoise(network: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    sigma = torch.rand(len(x), 1)
    return 64 * F.mse_loss(network(x + sigma.view(-1, 1, 1, 1) * torch.randn_like(x), sigma), x)


class Diffusion(nn.Module):
    """Noise of 0.3, denoised, then twice less noise, denoised again."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor) -> Tensor:
        for sigma in (0.3, 0.2, 0.1):
            noisy = x + sigma * torch.randn_like(x)
            x = self.denoiser(noisy, torch.full((len(x), 1), sigma, device=x.device))
        return x.clamp(0, 1)


@cache
def diffusion() -> nn.Module:
    """The trained CNN behind purification by diffusion."""
    return Before(Diffusion(fitted(Denoiser(), loss=_denoise, epochs=30)), trained_cnn())


PURIFICATION = (
    Defence(
        magnet,
        "Meng and Chen 2017",
        "1705.09064",
        "an autoencoder outside autograd",
        CW,
        "the autoencoder with its gradient",
        lambda: Before(autoencoder(), trained_cnn()),
    ),
    Defence(
        defense_gan,
        "Samangouei et al. 2018",
        "1805.06605",
        "the generator's image nearest to the image",
        CW,
        "the nearest image with the identity's gradient",
        lambda: straight_through(defense_gan()),
        accuracy=0.7,
    ),
    Defence(
        diffusion,
        "Nie et al. 2022",
        "2205.07460",
        "noise, removed in three steps",
        PGD,
        "the gradient through all steps, averaged over draws",
        diffusion,
        draws=4,
        accuracy=0.6,
    ),
)
