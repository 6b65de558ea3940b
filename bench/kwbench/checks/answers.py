"""Checks of what the model answers and by what operations: logits? of the image alone? how random? what hides in between?"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from kwbench.checks.case import Case, percent
from kwbench.finding import Finding
from kwbench.model import Model, fill_tile
from kwbench.randomness import derived_seed
from kwbench.relaxation.survey import Survey, survey

# exp(-87) is the smallest float32 that is held in full: beyond it cross-entropy's gradient is lost.
GAP = 87.0
SATURATED_SHARE = 0.05
# Images whose pass is looked at, operation by operation, and what a statement names of it.
_SURVEYED = 8
NAMED = 6
# Relative to the largest logit. On equal tiles permuted rows give equal bits; other kernels round by 1e-6.
ROUNDING = 1e-4
DRAWS = 20
# How far apart images are that are next to each other: half a step of 8-bit pixels.
_NEAR = 1 / 512
# A model that answers otherwise more often than this is random in what it says, not only in its last bits.
SPREAD = 0.01


def surveyed(model: Model, x: Tensor, seed: int = 0) -> Survey:
    """The survey of the first few of these images (b, c, h, w); of a whole tile where the module takes nothing less.

    Raises what the module raises.
    """
    try:
        return survey(model.module, x[:_SURVEYED], seed)
    except Exception:  # noqa: BLE001 - foreign code may raise anything
        return survey(model.module, fill_tile(x, model.tile), seed)


def answers_are_logits(case: Case) -> list[Finding]:
    """Probabilities instead of logits, and gaps so wide that float32 loses the gradient of cross-entropy."""
    case.random("outputs")
    with torch.no_grad():
        logits = case.model(case.batch.x)
    probabilities = ((logits >= -1e-5).all(dim=1)) & ((logits.sum(dim=1) - 1).abs() < 1e-4)
    share = probabilities.float().mean().item()
    two = logits.topk(2, dim=1).values
    saturated = two[:, 0] - two[:, 1] > GAP
    wide = saturated.float().mean().item()
    return [
        case.finding(
            "probabilities",
            share,
            0.5,
            f"the answers to {percent(share)} of the samples sum to 1 and are not negative: probabilities, whose cross-entropy "
            "is flat where they are sure",
            "masking",
        ),
        case.finding(
            "saturation",
            wide,
            SATURATED_SHARE,
            f"on {percent(wide)} of the samples the largest logit leads by more than {GAP:g}, where float32 loses the gradient "
            "of cross-entropy",
            "masking",
            concerned=saturated,
        ),
    ]


def answers_depend_on_the_image(case: Case) -> list[Finding]:
    """The same images again, after other images, in other company, where gradients are asked for, and from a copy of the model
    that has not seen what lies near them: are the logits the same?

    Under one seed of the global generators, which is what every pass gets. A random model's noise goes by place in the batch,
    so other company is for deterministic ones only. What remembers queries (as Li et al. 2022, "Blacklight", arXiv:2006.14042)
    knows the images themselves by now; so what is new to it are mixtures of images with noise.
    """
    model, x = case.model, case.batch.x
    rng = case.random("state")
    noise = rng.uniform("noise", x.shape[1:]).to(x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(derived_seed(case.seed, "company"))).to(x.device)
    with torch.no_grad():
        case.same_draws("state")
        first = model(x)
        model(noise)
        case.same_draws("state")
        again = [model(x)]
        if not model.stochastic:
            permuted = torch.empty_like(first)
            permuted[order] = model(x[order])
            half = len(x) // 2
            mixed = model(torch.cat([x[:half], noise[half:]]))
            again += [permuted, torch.cat([mixed[:half], first[half:]])]
    case.same_draws("state")
    # A module that raises with gradients leaves attacks without an answer, which is noticed there.
    with torch.enable_grad(), suppress(Exception):
        again.append(model(x.detach().clone().requires_grad_()).detach())
    moved = torch.stack([_differ(each, first) for each in again]).any(dim=0) | _remembers(case, (x + noise) / 2)
    share = moved.float().mean().item()
    statement = (
        f"the logits of {percent(share)} of the samples are others in other company, the second time, with gradients, or after "
        "images near by; a classifier's answer must depend on the image alone"
    )
    return [case.finding("state", share, 0.0, statement, "doubt", concerned=moved)]


def _differ(one: Tensor, other: Tensor) -> Tensor:
    """Which logits (b, k) differ by more than rounding."""
    off = (one - other).abs().amax(dim=1) / other.abs().amax(dim=1).clamp_min(1e-30)
    return off.nan_to_num(nan=torch.inf) > ROUNDING


def _remembers(case: Case, x: Tensor) -> Tensor:
    """Of which images (b, c, h, w), new to it, the model answers otherwise after it was asked about ones next to them; of none
    where it cannot be copied."""
    try:
        copy = deepcopy(case.model.module)
    except Exception:  # noqa: BLE001 - foreign code may hold what has no copy
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    signs = torch.where(case.random("near").uniform("signs", x.shape[1:]).to(x) < 0.5, -1.0, 1.0)
    near = (x + _NEAR * signs).clamp(0, 1)
    answers = []
    for module, images in ((case.model.module, (x, near)), (copy, (near,))):
        # Not from a recording of passes: what remembers does so in Python.
        with torch.no_grad(), case.model.replacing_forward(partial(_pass_of, module)):
            for each in images:
                case.same_draws("near")
                logits = case.model(each)
        answers.append(logits)
    return _differ(*answers)


def _pass_of(module: nn.Module, _: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    return module(x), 1


def answers_vary(case: Case) -> list[Finding]:
    """How often a stochastic model answers otherwise than it mostly does."""
    if not case.model.stochastic:
        return []
    case.random("randomness")
    x = case.batch.x
    votes = torch.zeros((len(x), case.model.classes), device=x.device)
    for _ in range(DRAWS):
        predicted, _ = case.model.predict(x)
        votes[torch.arange(len(x), device=x.device), predicted] += 1
    spread = 1 - votes.amax(dim=1) / DRAWS
    figure = spread.mean().item()
    statement = f"of {DRAWS} answers to the same image {percent(figure)} differ from the most frequent one, on average"
    return [case.finding("randomness", figure, SPREAD, statement, "note", concerned=spread > 0)]


def operations_are_seen(case: Case) -> list[Finding]:
    """Operations whose gradients had to be softened, and what no relaxation could see on the way to the logits."""
    found = surveyed(case.model, case.batch.x, derived_seed(case.seed, "survey"))
    places = Counter(each.operation for each in found.relaxed)
    named = [f"{name}{f' in {count} places' if count > 1 else ''}" for name, count in places.items()]
    relaxed, unseen = len(found.relaxed), len(found.unseen)
    return [
        Finding(
            "relaxed operations",
            float(relaxed),
            0.0,
            relaxed > 0,
            f"gradients had to be softened: {_listed(named)}" if named else "no operation hides its gradient",
        ),
        Finding(
            "unseen",
            float(unseen),
            0.0,
            unseen > 0,
            f"not seen by the relaxation: {_listed(found.unseen)}" if unseen else "the relaxation sees every operation",
            (),
            "doubt",
        ),
    ]


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return ", ".join(items[:NAMED]) + more
