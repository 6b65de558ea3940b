"""Asking the model during a search: whether an iterate succeeded, and how candidates compare under the same random numbers."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kwbench.attacks.search.losses import fooled
from kwbench.model import Model, Precision

# Masks and positions of samples (b,) on the CPU, whatever the device of the images.
Mask = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.int64]


def misclassified(
    model: Model, z: Tensor, logits: Tensor, labels: Tensor, rows: Tensor, precision: Precision
) -> tuple[Tensor, bool]:
    """Return which iterates z (b, c, h, w) the judge would call broken, as (b,), and whether any may be.

    `logits` (b, k) are those of the search. If its precision is not float32, those that they call broken are confirmed by a
    forward pass in float32, for which a GPU is waited for. `rows` (b,): the positions of the samples in the metered batch.
    """
    broken = fooled(logits, labels)
    if model.effective_precision(precision) == "float32":
        return broken, True
    suspected = broken.nonzero().squeeze(1)
    if not len(suspected):
        return broken, False
    with torch.no_grad():
        broken[suspected] = fooled(model(z[suspected], rows[suspected]), labels[suspected])
    return broken, True


def put_where(chosen: Tensor, target: Tensor, at: Tensor, values: Tensor) -> None:
    """Set the entries `at` (b,) of a target (n, ...) to values (b, ...) for the samples in the mask `chosen` (b,).

    A CPU moves those alone. A GPU, which would have to be waited for to count them, moves all.
    """
    if chosen.is_cpu:
        target[at[chosen]] = values[chosen]
    else:
        target[at] = torch.where(chosen.view(-1, *[1] * (values.dim() - 1)), values, target[at])


def read(*masks: Tensor) -> Sequence[Mask]:
    """Return masks (b,) as Python can use them. A GPU is waited for once."""
    return list(torch.stack(masks).cpu().numpy())


def on_device(positions: Positions, like: Tensor) -> Tensor:
    """Return positions (b,) on the device of `like`, without waiting for it."""
    return torch.from_numpy(positions).to(like.device, non_blocking=True)


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
