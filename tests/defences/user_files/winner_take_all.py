"""Winner-take-all activations as people write them: stochastic LWTA in ten ways, k-WTA in six. Plain PyTorch, nothing else.

Stochastic LWTA: in each block of two consecutive channels one wins at each position, with probability softmax of the values
(Panousis et al. 2021, arXiv:2112.02671). Where the draw is relaxed, the temperature is 0.01, as in the authors' code.
k-WTA: the k = floor(gamma * n) largest of a sample's n values stay (Xiao et al. 2020, arXiv:1905.10510).
"""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNITS = 2
TEMPERATURE = 0.01


def blocks_of(x: Tensor) -> Tensor:
    """(b, c, ...) to (b, c / 2, 2, ...)."""
    return x.reshape(x.shape[0], x.shape[1] // UNITS, UNITS, *x.shape[2:])


def gumbel(like: Tensor) -> Tensor:
    return -torch.log(-torch.log(torch.rand_like(like) + 1e-8) + 1e-8)


class LwtaSoftmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a = blocks_of(x)
        mask = F.softmax((a + gumbel(a)) / TEMPERATURE, dim=2)
        return (a * mask).reshape(x.shape)


class LwtaExpOverSum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a = blocks_of(x)
        scores = (a + gumbel(a)) / TEMPERATURE
        powers = torch.exp(scores - scores.max(dim=2, keepdim=True)[0])
        return (a * (powers / powers.sum(dim=2, keepdim=True))).reshape(x.shape)


class LwtaArgmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a = blocks_of(x)
        winner = torch.argmax(a + gumbel(a), dim=2)
        mask = F.one_hot(winner, UNITS).movedim(-1, 2).to(x.dtype)
        return (a * mask).reshape(x.shape)


class LwtaCategorical(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a = blocks_of(x)
        winner = torch.distributions.Categorical(logits=a.movedim(2, -1)).sample()  # type: ignore[no-untyped-call]
        mask = F.one_hot(winner, UNITS).movedim(-1, 2).to(x.dtype)
        return (a * mask).reshape(x.shape)


class LwtaMultinomial(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        last = blocks_of(x).movedim(2, -1)
        winner = torch.multinomial(torch.softmax(last, dim=-1).reshape(-1, UNITS), 1)
        mask = torch.zeros(len(winner), UNITS).scatter_(1, winner, 1.0).reshape(last.shape)
        return (last * mask).movedim(-1, 2).reshape(x.shape)


class LwtaGumbelSoftmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a = blocks_of(x)
        return (a * F.gumbel_softmax(a, tau=TEMPERATURE, hard=True, dim=2)).reshape(x.shape)


class _DrawWinner(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        noisy = a + gumbel(a)
        mask = (noisy == noisy.amax(dim=2, keepdim=True)).to(a.dtype)
        ctx.save_for_backward(mask)
        return a * mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (mask,) = ctx.saved_tensors
        passed: Tensor = gradient * mask
        return passed


class LwtaFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _DrawWinner.apply(blocks_of(x)).reshape(x.shape)  # type: ignore[no-any-return,no-untyped-call]


def _relaxed_draw(a: Tensor) -> Tensor:
    noise = -torch.log(-torch.log(torch.rand_like(a) + 1e-8) + 1e-8)
    return a * torch.softmax((a + noise) / 0.01, dim=2)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    _scripted_draw = torch.jit.script(_relaxed_draw)


class LwtaScript(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        drawn: Tensor = _scripted_draw(blocks_of(x)).reshape(x.shape)
        return drawn


class LwtaNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a = blocks_of(x)
        values = a.detach().cpu().numpy()
        noisy = values + np.random.gumbel(size=values.shape)
        mask = (noisy == noisy.max(axis=2, keepdims=True)).astype(values.dtype)
        return (a * torch.from_numpy(mask).to(x.device)).reshape(x.shape)


class LwtaNoGrad(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a = blocks_of(x)
        with torch.no_grad():
            mask = F.softmax((a + gumbel(a)) / TEMPERATURE, dim=2)
        return (a * mask).reshape(x.shape)


class _Kwta(nn.Module):
    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

    def k(self, flat: Tensor) -> int:
        return max(1, int(self.gamma * flat.shape[1]))


class KwtaTopk(_Kwta):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        values, places = flat.topk(self.k(flat), dim=1)
        return torch.zeros_like(flat).scatter(1, places, values).view(x.shape)


class KwtaKthValue(_Kwta):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        threshold = flat.kthvalue(flat.shape[1] - self.k(flat) + 1, dim=1, keepdim=True).values
        mask = (flat >= threshold).to(x.dtype)
        return (flat * mask).view(x.shape)


class KwtaSort(_Kwta):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        threshold = flat.sort(dim=1, descending=True)[0][:, self.k(flat) - 1]
        return (flat * (flat >= threshold[:, None]).float()).view(x.shape)


class KwtaMaskedFill(_Kwta):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        threshold = flat.topk(self.k(flat), dim=1).values.min(dim=1, keepdim=True).values
        return flat.masked_fill(flat < threshold, 0.0).view(x.shape)


class KwtaWhere(_Kwta):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        threshold = flat.topk(self.k(flat), dim=1).values[:, -1:]
        return torch.where(flat < threshold, torch.zeros_like(flat), flat).view(x.shape)


class _KeepLargest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor, k: int) -> Tensor:
        mask = torch.zeros_like(flat).scatter(1, flat.topk(k, dim=1).indices, 1.0)
        ctx.save_for_backward(mask)
        return flat * mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return gradient * mask, None


class KwtaFunction(_Kwta):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return _KeepLargest.apply(flat, self.k(flat)).view(x.shape)  # type: ignore[no-any-return,no-untyped-call]


# By the word that factories and tests use for each way of writing.
LWTA: dict[str, type[nn.Module]] = {
    "softmax": LwtaSoftmax,
    "exp_over_sum": LwtaExpOverSum,
    "argmax": LwtaArgmax,
    "categorical": LwtaCategorical,
    "multinomial": LwtaMultinomial,
    "gumbel_softmax": LwtaGumbelSoftmax,
    "function": LwtaFunction,
    "script": LwtaScript,
    "numpy": LwtaNumpy,
    "no_grad": LwtaNoGrad,
}
KWTA: dict[str, type[nn.Module]] = {
    "topk": KwtaTopk,
    "kthvalue": KwtaKthValue,
    "sort": KwtaSort,
    "masked_fill": KwtaMaskedFill,
    "where": KwtaWhere,
    "function": KwtaFunction,
}
