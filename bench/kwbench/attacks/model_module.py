"""A torch module around a Model, for attack libraries."""

import torch
from torch import Tensor, nn

from kwbench.gradients import CutGradientError
from kwbench.model import Model
from kwbench.randomness import globals_restored
from kwbench.relaxation.backward import with_finite_slopes


class ModelModule(nn.Module):
    """Calls a Model, which counts passes and pads tiles; hides its weights from the library.

    The library gets finite gradients (see `finite_slopes`), and no seed that the model sets changes its random numbers. Raises
    CutGradientError where the library asks for gradients and none reaches the pixels.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (b, k) of x (b, c, h, w)."""
        with globals_restored():
            if not (torch.is_grad_enabled() and x.requires_grad):
                return _finite_logits(self.model(x))
            logits = self.model(with_finite_slopes(x))
        if not logits.requires_grad:
            raise CutGradientError
        return _finite_logits(logits)


def _finite_logits(logits: Tensor) -> Tensor:
    """Return logits (b, k), those of masked classes far below the others: libraries subtract them from each other."""
    values = logits.detach()
    if not bool((values == -torch.inf).any()):
        return logits
    lowest = torch.where(values == -torch.inf, torch.inf, values).amin(dim=1, keepdim=True)
    floor = lowest - 100 * (1 + values.amax(dim=1, keepdim=True) - lowest)
    return torch.where(values == -torch.inf, floor, logits)
