"""Objectives that an attack raises, from logits (b, k) and labels (b,) to one value a sample (b,)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Minus the log-probability of the true class."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest other logit minus the true one: positive exactly where the sample is misclassified.

    Carlini and Wagner 2017 (arXiv:1608.04644), f6 without its hinge.
    """
    true = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.masked_fill(F.one_hot(y, logits.shape[1]).bool(), -torch.inf)
    return others.amax(dim=1) - true


def fooled(logits: Tensor, y: Tensor) -> Tensor:
    """Which samples the judge would call broken: another class wins, or a logit is not finite."""
    return (logits.argmax(dim=1) != y) | ~logits.isfinite().all(dim=1)


LOSSES = {"cross_entropy": cross_entropy, "margin": margin}
