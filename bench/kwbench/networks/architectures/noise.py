"""Randomness as a defence: parametric noise injection, and the noise of smoothing."""

from typing import ClassVar

import torch
from torch import Tensor, nn

# The initial alpha of He et al.
_INITIAL = 0.25


class NoiseInjection(nn.Module):
    """Parametric noise injection (He et al. 2019, arXiv:1811.09135): x + alpha * s * n, n standard normal, at every pass.

    s is the standard deviation of the values of the sample itself, so that samples stay independent. alpha is learned.
    """

    revision: ClassVar[int] = 1

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(_INITIAL))

    def forward(self, x: Tensor) -> Tensor:
        """(b, ...) to the same shape; fresh draws at every call, from torch's global generator."""
        deviation = x.detach().flatten(1).std(dim=1).view(-1, *([1] * (x.dim() - 1)))
        return x + self.alpha * deviation * torch.randn_like(x)


class Smoothed(nn.Module):
    """A network with Gaussian noise on its input (Cohen et al. 2019, arXiv:1902.02918).

    One pass is one draw. The smoothed classifier itself is the vote of many draws (`prediction: {kind: vote, draws: ...}`).
    """

    revision: ClassVar[int] = 1

    def __init__(self, network: nn.Module, sigma: float) -> None:
        super().__init__()
        self.network = network
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1] (b, c, h, w) to logits (b, k); the noise may leave [0, 1]."""
        logits: Tensor = self.network(x + self.sigma * torch.randn_like(x))
        return logits

    def extra_repr(self) -> str:
        """For print."""
        return f"sigma={self.sigma}"
