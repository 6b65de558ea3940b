"""Caveats: what makes the number of a plain attack worthless, found in a few passes before any attack runs.

The diagnosis of a strong suite looks closer at the same; this runs for every evaluation, so it has to be cheap.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from kwbench.attacks.search.losses import margin
from kwbench.checks.case import percent
from kwbench.checks.outputs import GAP, are_probabilities
from kwbench.checks.state import rows_that_differ
from kwbench.gradients import CutGradientError, autograd_estimate
from kwbench.model import Model, raise_if_memory_is_out
from kwbench.randomness import generator_states, seeded_globally

# Caveats name what concerns a larger share of the samples than this.
SHARE = 0.1


def caveats(model: Model, x: Tensor, y: Tensor, *, follows_gradients: bool, strong: bool) -> list[str]:
    """Return what a reader of a robust accuracy must know about the model, one clause each; usually nothing.

    x (b, c, h, w) are images inside the ball, at most a tile, and y (b,) their labels. `follows_gradients` is whether an attack
    follows autograd's gradient, `strong` whether the suite also attacks without it. Costs two forward passes, and another one
    and a backward pass where attacks follow gradients. Raises CannotEvaluate if the model raises.
    """
    first, states = _logits(model, x, seed=0)
    if model.stochastic:
        again, _ = _logits(model, x, seed=1)
        clauses = list(_on_state(rows_that_differ(again, first)))
    else:
        # Other neighbours in another order, after other images, from other states of the generators.
        again, other_states = _logits(model, x.flip(0), seed=1)
        clauses = [*_on_dependence(rows_that_differ(again.flip(0), first)), *_on_generators(states, other_states)]
    clauses += _on_masks(first)
    found = [*(_on_gradients(model, x, y) if follows_gradients else ()), *_on_outputs(first)]
    return clauses + [clause if strong else f"{clause}; --suite strong does not rely on it" for clause in found]


def _logits(model: Model, x: Tensor, seed: int) -> tuple[Tensor, dict[str, bytes]]:
    """Return logits (b, k), and the states in which the pass leaves the global generators that were seeded before."""
    model.reseed("caveats")
    with seeded_globally(seed), torch.no_grad(), model.raising_by_name():
        logits = model(x)
        return logits, generator_states(x.device)


def _on_gradients(model: Model, x: Tensor, y: Tensor) -> Iterator[str]:
    def objective(logits: Tensor) -> Tensor:
        return margin(logits, y)[None]

    model.reseed("caveats")
    try:
        gradients = autograd_estimate(model, x, objective).gradients[0].flatten(1)
    except CutGradientError:
        yield "no gradient reaches the pixels, so that attacks which follow it fail or go nowhere"
        return
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as failure:  # noqa: BLE001 - foreign code may raise anything
        raise_if_memory_is_out(failure)
        reason = str(failure).partition("\n")[0][:200].rstrip(".")
        yield f"autograd fails ({type(failure).__name__}: {reason}), and with it attacks that follow gradients"
        return
    zero = (gradients == 0).all(dim=1).float().mean().item()
    if zero > SHARE:
        yield f"autograd's gradient is zero on {percent(zero)} of the samples, so that attacks which follow it go nowhere"
    unusable = (~gradients.isfinite()).any(dim=1).float().mean().item()
    if unusable > SHARE:
        yield f"autograd's gradient is NaN or infinite at some pixels on {percent(unusable)} of the samples"


def _on_masks(logits: Tensor) -> Iterator[str]:
    masked = (logits == -torch.inf).float().mean().item()
    if masked > 0:
        yield f"{percent(masked)} of the logits are minus infinity, which is allowed for other classes than the predicted one"


def _on_outputs(logits: Tensor) -> Iterator[str]:
    if are_probabilities(logits).float().mean().item() > SHARE:
        yield (
            "the outputs are probabilities, not logits, whose cross-entropy is flat where the model is confident, so that "
            "plain attacks overestimate it"
        )
        return
    largest = logits.topk(2, dim=1).values
    saturated = (largest[:, 0] - largest[:, 1] > GAP).float().mean().item()
    if saturated > SHARE:
        yield (
            f"the largest logit leads by more than {GAP:g} on {percent(saturated)} of the samples, where cross-entropy in "
            "float32 has no gradient, so that attacks of other libraries overestimate it"
        )


def _on_dependence(depends: Tensor) -> Iterator[str]:
    share = depends.float().mean().item()
    if share > 0:
        yield (
            f"the logits of {percent(share)} of the samples depend on other images of the batch, or on earlier ones, so that "
            "another batch gives another number; --suite strong says so in its verdict"
        )


def _on_state(changes: Tensor) -> Iterator[str]:
    share = changes.float().mean().item()
    if share > 0:
        yield (
            f"the logits of {percent(share)} of the samples change though the global generators repeat: the model keeps state "
            "or draws from a generator of its own, so that another run gives another number; --suite strong says so in its "
            "verdict"
        )


def _on_generators(states: Mapping[str, bytes], other_states: Mapping[str, bytes]) -> Iterator[str]:
    if names := [name for name, state in states.items() if state == other_states[name]]:
        yield (
            f"forward seeds the global generator of {' and '.join(names)}: its noise is the same in every pass, and programs "
            "that draw from this generator, as attack libraries do, repeat themselves; the attacks here do not"
        )
