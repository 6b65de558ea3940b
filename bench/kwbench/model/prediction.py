"""The rule by which a random module answers, and the majority vote of its draws."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kwbench.model.outputs import are_answers


@dataclass(frozen=True, slots=True)
class Prediction:
    """The rule by which a random module answers.

    `draw` takes one draw. `mean_logits` averages the logits of several draws (panousis2021 eq. 10). `vote` takes the class
    that most draws predict, and of tied classes the one with the larger mean logit. `frozen` uses the randomness of `seed` in
    every pass and for every image, which makes the module a deterministic classifier.
    """

    kind: Literal["draw", "mean_logits", "vote", "frozen"] = "draw"
    draws: int = 1
    seed: int = 0

    def identity(self) -> dict[str, Any]:
        """The fields that distinguish this rule from others, as plain data."""
        return {"kind": self.kind, "draws": self.draws, **({"seed": self.seed} if self.kind == "frozen" else {})}


def majority(draws: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the class (b,) that most draws (b, k) predict, and whether all draws are answers (b,) (see `are_answers`).

    Of tied classes the one with the larger mean logit wins.
    """
    logits = torch.stack(draws)
    votes = torch.zeros_like(draws[0]).index_put_(
        (torch.arange(logits.shape[1], device=logits.device).expand(len(draws), -1), logits.argmax(dim=2)),
        logits.new_ones(()),
        accumulate=True,
    )
    most = votes == votes.amax(dim=1, keepdim=True)
    # A class that is masked in one draw may still win.
    means = logits.mean(dim=0).clamp_min(torch.finfo(logits.dtype).min)
    predicted = torch.where(most, means, -torch.inf).argmax(dim=1)
    return predicted, are_answers(logits).all(dim=0)
