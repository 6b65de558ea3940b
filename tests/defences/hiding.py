"""Functions of rows (b, 6) in plain PyTorch whose gradients autograd does not see or gets wrong, as found in real code."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

N = 6
Row = Callable[[Tensor], Tensor]


def _no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.softmax(x / 0.01, dim=1) * x


def _inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        mask = torch.softmax(x / 0.01, dim=1)
    return x * mask.clone()


class _Lying(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * (x > 0.3)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


def _in_script(x: Tensor) -> Tensor:
    if bool(x.max() > -100):
        x = x * torch.softmax(x / 0.01, dim=1)
    return x


def _at_least_the_second(x: Tensor) -> Tensor:
    return x * (x >= x.topk(2, dim=1)[0][:, -1:]).float()


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    _scripted = torch.jit.script(_in_script)
    _traced = torch.jit.trace(_at_least_the_second, torch.randn(3, N))  # type: ignore[no-untyped-call]


def _set_negative_to_zero(x: Tensor) -> Tensor:
    y = x.clone()
    y[y < 0] = 0.0
    y[y > 1] = 1.0
    return y


def _writes_into_itself(x: Tensor) -> Tensor:
    y = x * 4
    y.sigmoid_()
    y.mul_((x > 0).float()).clamp_(0.1, 0.9)
    return y.masked_fill_(x < -1, -1.0)


def _writes_into_a_view(x: Tensor) -> Tensor:
    mask = torch.zeros(x.shape, dtype=torch.bool)
    mask[:, 1:4] = x[:, 1:4] > 0
    mask[:, 4:] |= x[:, 4:] > 0.2
    mask[:, 0] = True
    return x * mask


def _writes_columns(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, [0, 2]] = (x[:, [0, 2]] * 3).round()
    out[:, 1].add_(x[:, 1])
    out[:, 3:] = x[:, 3:].sign()
    return out


def _writes_where_true(x: Tensor) -> Tensor:
    out, mask = torch.zeros_like(x), x > 0
    out[mask] = x[mask]
    return out


def _writes_elsewhere(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    torch.mul(x.sign(), 2.0, out=out)
    return out


def _turned_in_place(x: Tensor) -> Tensor:
    y = (x > 0).float() * x
    y.unsqueeze_(1).transpose_(1, 2)
    return y.squeeze_(2)


def _one_hot_by_index(x: Tensor) -> Tensor:
    mask = torch.zeros_like(x)
    mask[torch.arange(len(x)), x.argmax(dim=1)] = 1.0
    return x * mask


def _top_members(x: Tensor) -> Tensor:
    return x * torch.zeros_like(x).scatter_(1, x.topk(2, dim=1).indices, 1.0)


def _top_values(x: Tensor) -> Tensor:
    values, places = x.topk(2, dim=1)
    return torch.zeros_like(x).scatter(1, places, values)


def _sorted_members(x: Tensor) -> Tensor:
    mask = torch.zeros(x.shape, dtype=torch.bool)
    mask.scatter_(1, x.argsort(dim=1, descending=True)[:, :2], True)
    return x * mask


def _without_the_smallest(x: Tensor) -> Tensor:
    return x * torch.ones_like(x).scatter(1, x.argsort(dim=1)[:, :3], 0.0)


def _kth(x: Tensor) -> Tensor:
    return x * (x >= x.kthvalue(N - 1, dim=1, keepdim=True).values).float()


def _msort(x: Tensor) -> Tensor:
    return torch.where(x >= torch.msort(x.t())[N - 2].unsqueeze(1), x, 0.0)


def _rank(x: Tensor) -> Tensor:
    return x * (x.argsort(dim=1).argsort(dim=1) >= N - 2)


def _first_in_order(x: Tensor) -> Tensor:
    # Keep the first two positive values.
    positive = x > 0
    return x * (positive & (positive.cumsum(dim=1) <= 2))


def _categorical(x: Tensor) -> Tensor:
    winner = torch.distributions.Categorical(logits=2 * x).sample()  # type: ignore[no-untyped-call]
    return x * F.one_hot(winner, N).to(x.dtype)


def _one_hot_categorical(x: Tensor) -> Tensor:
    return x * torch.distributions.OneHotCategorical(logits=2 * x).sample()  # type: ignore[no-any-return,no-untyped-call]


def _relaxed_one_hot(x: Tensor) -> Tensor:
    distribution = torch.distributions.RelaxedOneHotCategorical(torch.tensor(0.01), logits=2 * x)
    return x * distribution.sample()  # type: ignore[no-any-return,no-untyped-call]


def _multinomial(x: Tensor) -> Tensor:
    drawn = torch.multinomial(torch.softmax(2 * x, dim=1), 2)
    return x * torch.zeros_like(x).scatter_(1, drawn, 1.0)


def _dropped(x: Tensor) -> Tensor:
    return F.dropout(x * (x > 0), 0.3, training=True)


def _draws_counted(x: Tensor) -> Tensor:
    drawn = torch.multinomial(torch.softmax(2 * x, dim=1), 8, replacement=True)
    return torch.zeros_like(x).scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=x.dtype))


def _votes(x: Tensor) -> Tensor:
    return torch.stack([F.one_hot((x + 0.3 * torch.randn_like(x)).argmax(dim=1), N) for _ in range(5)]).sum(0).float()


def _table(x: Tensor) -> Tensor:
    return torch.linspace(0, 1, 17)[((x.clamp(-2, 2) + 2) * 4).round().long()]


def _thermometer(x: Tensor) -> Tensor:
    return (x.unsqueeze(2) > torch.linspace(-1, 1, 8)).float().flatten(1)


def _counted_levels(x: Tensor) -> Tensor:
    return (x.unsqueeze(2) > torch.linspace(-1, 1, 8)).sum(dim=2) / 8


def _logic(x: Tensor) -> Tensor:
    inside = torch.logical_and(x > -0.5, ~(x > 0.8)) | (x < -1.5)
    return torch.where(inside ^ (x > 3), x, 0.0) + 0.5 * inside.all(dim=1, keepdim=True) + (x > 1).any(dim=1, keepdim=True)


def _masked_attention(x: Tensor) -> Tensor:
    scores = x.unsqueeze(2) - x.unsqueeze(1)
    hidden = torch.where(torch.arange(N).unsqueeze(1) >= torch.arange(N), scores / 0.01, -torch.inf)
    return torch.einsum("bij,bj->bi", hidden.softmax(dim=2), x)


def _selected_by_product(x: Tensor) -> Tensor:
    return torch.einsum("bi,ij->bj", x * (x > 0), torch.eye(N)) + (x > 0).float() @ torch.eye(N)


def _gathered(x: Tensor) -> Tensor:
    return x + 3 * x.gather(1, x.argmin(dim=1, keepdim=True))


def _read_at(x: Tensor) -> Tensor:
    return torch.cat([x, 3 * x[torch.arange(len(x)), x.argmax(dim=1)].unsqueeze(1)], dim=1)


def _summed_by_index(x: Tensor) -> Tensor:
    signs = (x > 0).to(x.dtype)
    halves = torch.arange(N) % 2
    return torch.zeros(len(x), 2).index_add(1, halves, signs) + torch.zeros(len(x), 2).scatter_reduce(
        1, halves.expand(len(x), N), signs, "mean", include_self=False
    )


def _nearest(x: Tensor) -> Tensor:
    tones = torch.linspace(-1, 1, 16).expand(len(x), 1, 1, -1)
    where = torch.stack([x / 2, torch.zeros_like(x)], dim=-1)[:, None]
    return F.grid_sample(tones, where, mode="nearest", padding_mode="border", align_corners=True)[:, 0, 0]


def _exp_over_sum(x: Tensor) -> Tensor:
    powers = torch.exp((x - x.amax(dim=1, keepdim=True)) / 0.01)
    return x * (powers / powers.sum(dim=1, keepdim=True))


def _exp_over_sum_in_place(x: Tensor) -> Tensor:
    powers = ((x - x.max(dim=1, keepdim=True)[0]) / 0.01).exp_()
    return powers.div_(powers.sum(dim=1, keepdim=True)) * x


def _logistic(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-300 * x))


# Deterministic functions by name; random ones follow.
HIDING: dict[str, Row] = {
    "no_grad": _no_grad,
    "inference_mode": _inference,
    "detach": lambda x: x.detach() * (x.detach() > 0),
    "data": lambda x: (x.data * 2).sigmoid(),
    "function with a lying backward": _Lying.apply,
    "script": _scripted,
    "trace": _traced,
    "set negative to zero": _set_negative_to_zero,
    "writes into itself": _writes_into_itself,
    "writes into a view": _writes_into_a_view,
    "writes columns": _writes_columns,
    "writes where true": _writes_where_true,
    "writes elsewhere": _writes_elsewhere,
    "turned in place": _turned_in_place,
    "one hot by index": _one_hot_by_index,
    "one hot by scatter": lambda x: x * F.one_hot(x.argmax(dim=1), N),
    "equal to the largest": lambda x: x * (x == x.amax(dim=1, keepdim=True)),
    "place of the largest": lambda x: x * F.one_hot(x.max(dim=1)[1], N),
    "top members": _top_members,
    "top values": _top_values,
    "sorted members": _sorted_members,
    "without the smallest": _without_the_smallest,
    "kth value": _kth,
    "msort": _msort,
    "rank": _rank,
    "first in order": _first_in_order,
    "sign": lambda x: x.sign(),
    "sign of a sum": lambda x: torch.sign(x + x.roll(1, 1)) * 2,
    "heaviside": lambda x: torch.heaviside(x, torch.tensor(0.5)),
    "signbit": lambda x: x.signbit().float(),
    "round": lambda x: (x * 2).round() / 2,
    "floor": lambda x: (x * 2).floor() / 2,
    "rounded in place": lambda x: (x * 2).ceil_().div_(2),
    "whole numbers": lambda x: (x * 2).int() / 2,
    "bytes": lambda x: ((x + 8) * 8).byte().float() / 8,
    "whole division": lambda x: (x * 2) // 1,
    "truth of a float": lambda x: F.relu(x).bool().float(),
    "clamped": lambda x: x.clamp(-0.2, 0.2),
    "hardtanh": lambda x: F.hardtanh(3 * x),
    "threshold": lambda x: F.threshold(x, 0.5, 0.0),
    "hardshrink": lambda x: F.hardshrink(x, 0.8),
    "bucketize": lambda x: torch.bucketize(x.contiguous(), torch.linspace(-1, 1, 9)).float(),
    "table": _table,
    "thermometer": _thermometer,
    "counted levels": _counted_levels,
    "remainder": lambda x: 2 * x - (2 * x).remainder(1.0),
    "jump": lambda x: torch.where(x < 0, 0.0, 5 + x),
    "jump by masked fill": lambda x: (5 + x).masked_fill(x < 0, 0.0),
    "saturated sigmoid": lambda x: torch.sigmoid(500 * x),
    "saturated tanh": lambda x: torch.tanh(500 * x),
    "hard sigmoid": lambda x: F.hardsigmoid(50 * x),
    "logistic by exp": _logistic,
    "exp over sum": _exp_over_sum,
    "exp over sum in place": _exp_over_sum_in_place,
    "exp of log softmax": lambda x: x * torch.log_softmax(x / 0.01, dim=1).exp(),
    "exp minus logsumexp": lambda x: x * (x / 0.01 - torch.logsumexp(x / 0.01, dim=1, keepdim=True)).exp(),
    "sign by rsqrt": lambda x: x * torch.rsqrt(x * x + 1e-14),
    "sign by sqrt": lambda x: x / (x.pow(2) + 1e-14).sqrt(),
    "sign by size": lambda x: x / (x.abs() + 1e-7),
    "fast wave": lambda x: x + 0.1 * torch.sin(400 * x),
    "teeth of tangents": lambda x: x - torch.atan(torch.tan(8 * x)) / 8,
    "nearest in a picture": _nearest,
    "logic": _logic,
    "masked attention": _masked_attention,
    "products": _selected_by_product,
    "gather": _gathered,
    "read at": _read_at,
    "summed by index": _summed_by_index,
}

HIDING_AND_RANDOM: dict[str, Row] = {
    "bernoulli": lambda x: torch.bernoulli(torch.sigmoid(2 * x)),
    "bernoulli in place": lambda x: torch.empty_like(x).bernoulli_(torch.sigmoid(2 * x)),
    "categorical": _categorical,
    "one hot categorical": _one_hot_categorical,
    "relaxed one hot": _relaxed_one_hot,
    "multinomial": _multinomial,
    "gumbel softmax": lambda x: x * F.gumbel_softmax(2 * x, tau=0.01),
    "hard gumbel softmax": lambda x: x * F.gumbel_softmax(2 * x, tau=0.01, hard=True),
    "normal": lambda x: torch.normal(x, 0.3).sign(),
    "dropout": _dropped,
    "counted draws": _draws_counted,
    "votes": _votes,
}


def through_numpy(x: Tensor) -> Tensor:
    values = x.detach().cpu().numpy()
    return torch.from_numpy(np.where(values > 0, values, 0).astype(np.float32))
