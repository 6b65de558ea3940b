"""Looking before differentiating: who has fallen needs no gradient, and a gradient costs more than the look does.

Where a sample goes next is told from the sample alone, so that its costs do not depend on its company.
"""

import torch
from torch import Tensor

from kwbench.attacks.search.losses import LossName, margin, margin_after

# Later few samples fall, and looks cost more than they spare.
_EARLY = 5


def looks(steps: int) -> int:
    """The most looks at a sample in a search of so many steps."""
    return min(steps, _EARLY)


def to_look_at(taken: Tensor | int, expected: Tensor) -> Tensor:
    """Whom (b,) to look at: after each of the first steps, those of whom a margin of zero or more is `expected` (b,)."""
    return (expected >= 0) & (torch.as_tensor(taken, device=expected.device) <= _EARLY)


def margin_here(logits: Tensor, y: Tensor) -> Tensor:
    """How far beyond the decision (b,) samples with logits (b, k) are; what is not a number is at no finite place."""
    return margin(logits.detach(), y).nan_to_num(nan=-torch.inf, neginf=-torch.inf)


def margin_ahead(here: Tensor, before: Tensor, loss: LossName, value: Tensor, rise: Tensor) -> Tensor:
    """The margin (b,) to expect after a step: as it went from `before` to `here` it goes on, and in a first step, with nothing
    finite before, as the gradient has it, by which the loss goes from `value` by `rise`."""
    return torch.where(before.isfinite(), 2 * here - before, margin_after(loss, value, rise))
