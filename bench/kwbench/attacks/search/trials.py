"""Asking the model during a search: whether an iterate succeeded, and how candidates compare under the same random numbers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kwbench.attacks.search.losses import fooled
from kwbench.model import Model, Precision


def misclassified(model: Model, z: Tensor, logits: Tensor, labels: Tensor, rows: Tensor, precision: Precision) -> Tensor:
    """Return which iterates z (b, c, h, w) the judge would call broken, as (b,).

    `logits` (b, k) are those of the search. If its precision is not float32, those that they call broken are confirmed by a
    forward pass in float32. `rows` (b,): the positions of the samples in the metered batch.
    """
    broken = fooled(logits, labels)
    if bool(broken.any()) and model.effective_precision(precision) != "float32":
        with torch.no_grad():
            broken[broken.clone()] = fooled(model(z[broken], rows[broken]), labels[broken])
    return broken


def means_under_same_draws(
    model: Model, images: Sequence[Tensor], value: Callable[[Tensor], Tensor], rows: Tensor, draws: int
) -> list[Tensor]:
    """Return the mean of `value` (b,) of a stochastic model's logits for each batch of images; all batches get the same noise.

    NaN counts as infinity, because the judge calls a NaN prediction broken.
    """
    totals = [torch.zeros(len(z), device=z.device) for z in images]
    for _ in range(draws):
        with model.same_draws():
            for total, z in zip(totals, images, strict=True):
                total.add_(value(model(z, rows)).nan_to_num(nan=torch.inf))
    return [total / draws for total in totals]
