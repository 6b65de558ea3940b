"""Connections that an Indian Buffet Process prior enables or disables (Panousis et al. 2019, arXiv:1805.07624; hicheur2024)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The strength of the prior, and the temperature of the relaxed draws, as in the authors' experiments.
_ALPHA = 1.0
_TEMPERATURE = 0.5
_TINY = 1e-6


class GatedConv2d(nn.Conv2d):
    """A convolution whose kernels pass or not, two by two as they compete: z_b (W_b * x), z_b drawn for every sample.

    q(z_b) is Bernoulli; its prior is the stick-breaking one, pi_b = u_1 ... u_b, u ~ Beta(1, 1), with Kumaraswamy posteriors.
    Training draws relaxed and keeps one sample's KL of z and u in `kl`, a part of the ELBO; evaluation draws hard.
    """

    revision: ClassVar[int] = 1

    kl: Tensor

    def __init__(self, inputs: int, outputs: int, *sizes: Any, **options: Any) -> None:
        super().__init__(inputs, outputs, *sizes, **options)
        blocks = (outputs + 1) // 2
        # Logits of q(z); kernels are enabled at first.
        self.utility = nn.Parameter(torch.full((blocks,), 3.0))
        # Kumaraswamy's a and b, through softplus; many blocks need a mean of u near 1, or the last ones have no prior left.
        self.stick = nn.Parameter(torch.stack([torch.full((blocks,), float(blocks)), torch.full((blocks,), 0.54)]))
        self.kl = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h', w'); fresh draws at every call, from torch's global generator."""
        noise = torch.rand(len(x), len(self.utility), device=x.device)
        if self.training:
            logistic = torch.logit(noise, eps=_TINY)
            gate = torch.sigmoid((self.utility + logistic) / _TEMPERATURE)
            self.kl = self._divergence()
        else:
            gate = (noise < torch.sigmoid(self.utility)).float()
        out: Tensor = super().forward(x)
        kernels = gate.repeat_interleave(2, dim=1)[:, : self.out_channels]
        return out * kernels[:, :, None, None].to(out.dtype)

    def _divergence(self) -> Tensor:
        a, b = F.softplus(self.stick.float()) + _TINY
        uniform = torch.rand_like(a).clamp(_TINY, 1 - _TINY)
        u = (1 - (1 - uniform).pow(1 / b)).clamp(_TINY, 1 - _TINY).pow(1 / a).clamp(_TINY, 1 - _TINY)
        prior = u.log().cumsum(dim=0).clamp(max=-_TINY)
        q = torch.sigmoid(self.utility.float()).clamp(_TINY, 1 - _TINY)
        of_gates = q * (q.log() - prior) + (1 - q) * ((1 - q).log() - torch.log(-torch.expm1(prior)))
        # KL of Kumaraswamy(a, b) from Beta(alpha, 1) (Nalisnick and Smyth 2017, arXiv:1605.06197).
        euler = -torch.digamma(torch.ones_like(b))
        of_sticks = (a - _ALPHA) / a * (-euler - torch.digamma(b) - 1 / b) + (a * b / _ALPHA).log() - (b - 1) / b
        total: Tensor = (of_gates + of_sticks).sum()
        return total
