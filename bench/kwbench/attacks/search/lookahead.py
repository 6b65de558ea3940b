"""Lookahead: a forward pass before a gradient, for samples that are expected to be misclassified and then need no gradient.

The expectation uses the sample alone, so that its cost does not depend on the other samples of the batch.
"""

import torch
from torch import Tensor

from kwbench.attacks.search.losses import LossName, margin, margin_after

# After more steps few samples become misclassified, and lookaheads cost more than they save.
_EARLY = 5


def most_lookaheads(steps: int) -> int:
    """Return the largest number of lookaheads for a sample in a search of so many steps; they come first."""
    return min(steps, _EARLY)


def should_look_ahead(expected: Tensor) -> Tensor:
    """Return for which samples (b,) to look ahead early in a search: those whose `expected` margin (b,) is not negative."""
    return expected >= 0


def current_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the margins (b,) of logits (b, k) with labels y (b,); minus infinity if they are NaN."""
    return margin(logits.detach(), y).nan_to_num(nan=-torch.inf, neginf=-torch.inf)


def expected_margin(current: Tensor, before: Tensor, loss: LossName, value: Tensor, rise: Tensor) -> Tensor:
    """Return the margin (b,) to expect after the next step.

    It is extrapolated linearly from the last two margins (b,). Where `before` is not finite, as in the first step, it follows
    from the loss `value` (b,) and the `rise` (b,) that the gradient predicts.
    """
    return torch.where(before.isfinite(), 2 * current - before, margin_after(loss, value, rise))
