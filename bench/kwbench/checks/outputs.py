"""Are the outputs logits, and are they small enough for the gradient of cross-entropy in float32?"""

import torch
from torch import Tensor

from kwbench.checks.case import Case, percent
from kwbench.finding import Check, Criterion, Finding

# exp(-87) is the smallest normal float32: beyond this lead the gradient of cross-entropy is lost.
GAP = 87.0
SATURATED_SHARE = 0.05
PROBABILITIES_SHARE = 0.5

PROBABILITIES = Criterion("probabilities", kind="masking", revision=2)
SATURATION = Criterion("saturation", kind="masking")


def outputs_are_logits(case: Case) -> list[Finding]:
    """Find probabilities instead of logits, and leads so large that float32 loses the gradient of cross-entropy."""
    case.random("outputs")
    with torch.no_grad():
        logits = case.model(case.batch.x)
    share = are_probabilities(logits).float().mean().item()
    largest_two = logits.topk(2, dim=1).values
    saturated = largest_two[:, 0] - largest_two[:, 1] > GAP
    saturated_share = saturated.float().mean().item()
    return [
        PROBABILITIES.finding(
            share,
            PROBABILITIES_SHARE,
            f"the outputs for {percent(share)} of the samples are probabilities between 0 and 1, whose cross-entropy is flat "
            "where the model is confident",
        ),
        SATURATION.finding(
            saturated_share,
            SATURATED_SHARE,
            f"on {percent(saturated_share)} of the samples the largest logit leads by more than {GAP:g}, where float32 loses "
            "the gradient of cross-entropy",
            samples=case.samples(saturated),
        ),
    ]


def are_probabilities(logits: Tensor) -> Tensor:
    """Return which outputs (b, k) are probabilities, as (b,): not negative with a sum of 1, as those of softmax, or all between
    0 and 1 in the whole batch, as those of a sigmoid."""
    low, high = logits.aminmax(dim=1)
    sums = (logits.sum(dim=1) - 1).abs() < 1e-4
    return (low >= -1e-5) & (sums | bool(((low >= 0) & (high <= 1)).all()))


OUTPUTS = Check("outputs", outputs_are_logits, (PROBABILITIES, SATURATION), passes=1, always=True)
