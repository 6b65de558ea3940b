"""Does the output depend on the image alone?"""

import time
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from kwbench.checks.case import Case, percent
from kwbench.finding import Check, Criterion, Finding
from kwbench.model import Model
from kwbench.model.pristine import AskedFirst
from kwbench.randomness import derived_seed

# Relative to the largest logit. Permuted rows of equal tiles give equal bits; other kernels round by 1e-6.
ROUNDING = 1e-4
# The distance between neighbouring images, per pixel: half a step of 8-bit pixels.
_NEAR = 1 / 512

# The same for batches of other sizes, in which half precision rounds otherwise, and the number of images asked alone.
_BATCH_ROUNDING, _ALONE, _LEAST_TILE = 0.05, 5, 16

# Calls of a fast model, and the seconds for them, before its answers are compared with those of an unused one.
_USES, _PATIENCE = 100, 0.3

STATE = Criterion("state", kind="doubt", role="unstable", remedy="a model whose output depends on the image alone", revision=3)


def outputs_depend_on_the_image_alone(case: Case) -> list[Finding]:
    """Compare the logits of the same images when they are repeated.

    They are repeated after other images, among other images of the batch, with gradients enabled, and by a copy of the model
    that has not seen neighbouring images. The global generators have the same seed each time, as in every pass. The noise of a
    stochastic model depends on the position in the batch, so that only deterministic models get other batches.

    A model that remembers queries (as Li et al. 2022, "Blacklight", arXiv:2006.14042) knows the images themselves by now.
    Mixtures of images with noise are new to it.
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
        repeated = [model(x)]
        if not model.stochastic:
            permuted = torch.empty_like(first)
            permuted[order] = model(x[order])
            half = len(x) // 2
            mixed = model(torch.cat([x[:half], noise[half:]]))
            repeated += [permuted, torch.cat([mixed[:half], first[half:]])]
    case.same_draws("state")
    # A module that raises with gradients enabled makes the attacks fail, which other checks report.
    with torch.enable_grad(), suppress(Exception):
        repeated.append(model(x.detach().clone().requires_grad_()).detach())
    differ = torch.stack([rows_that_differ(logits, first) for logits in repeated]).any(dim=0) | _remembers(
        case, (x + noise) / 2
    )
    by_batch = depends_on_the_batch(model, x)
    differ[: len(by_batch)] |= by_batch
    if model.pristine is not None:
        by_use = changed_by_use(model, x, model.pristine)
        differ[: len(by_use)] |= by_use
    share = differ.float().mean().item()
    statement = (
        f"the logits of {percent(share)} of the samples change alone or in another batch, the second time, with gradients "
        "enabled, after neighbouring images, or in a fresh process; the output of a classifier must depend on the image alone"
    )
    return [STATE.finding(share, 0.0, statement, samples=case.samples(differ))]


def depends_on_the_batch(model: Model, x: Tensor) -> Tensor:
    """Return which of the first few images x (b, c, h, w) are answered otherwise alone than among others, as (n,).

    Among a tile of images, and among seven. The module is called directly, because the model pads its batches. A model with
    randomness, also a frozen one, is not asked, since its noise depends on the batch; nor is one that refuses single images.
    """
    few = x[:_ALONE]
    differ = torch.zeros(len(few), dtype=torch.bool, device=x.device)
    if model.stochastic or model.rule.kind == "frozen":
        return differ
    try:
        with model.aside("alone"), torch.no_grad():
            alone = torch.cat([model.module(image.clone()) for image in torch.split(few, 1)])
            for size in (max(model.tile, _LEAST_TILE), 7):
                rows = torch.arange(size, device=x.device) % len(few)
                changed = rows_that_differ(model.module(few[rows]), alone[rows], _BATCH_ROUNDING)
                differ[rows[changed]] = True
    except Exception:  # noqa: BLE001 - foreign modules may refuse other batches
        return torch.zeros_like(differ)
    return differ


def answers_change_with_use(model: Model, x: Tensor, pristine: Callable[[Tensor], Tensor]) -> bool:
    """Return whether a model in use answers the first few of images x (b, c, h, w) otherwise than an unused one.

    A fast model is used more before: state may change only after so many calls.
    """
    unused = _unused_answers(model, x, pristine)
    first = _differ(model, x, unused)
    started = time.process_time()
    with suppress(Exception), torch.no_grad(), model.aside("use"):
        for call in range(_USES):
            model.module(x[call % len(x)][None].clone())
            if time.process_time() - started > _PATIENCE:
                break
    return bool((first | _differ(model, x, unused)).any())


def changed_by_use(model: Model, x: Tensor, pristine: Callable[[Tensor], Tensor]) -> Tensor:
    """Return which of the first few images x (b, c, h, w), asked alone, an unused model answers otherwise, as (n,).

    A module that refuses single images is not compared.
    """
    return _differ(model, x, _unused_answers(model, x, pristine))


def _unused_answers(model: Model, x: Tensor, pristine: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Return the logits of an unused model for the first few images, asked alone; None if it refuses them."""
    with suppress(Exception), model.aside("use"), torch.no_grad():
        return torch.cat([pristine(image) for image in torch.split(x[:_ALONE], 1)])
    return None


def _differ(model: Model, x: Tensor, unused: Tensor | None) -> Tensor:
    few = x[:_ALONE]
    used = model.module.warm if isinstance(model.module, AskedFirst) else model.module
    with suppress(Exception), model.aside("use"), torch.no_grad():
        answers = torch.cat([used(image.clone()) for image in torch.split(few, 1)])
        if unused is not None:
            return rows_that_differ(answers, unused, _BATCH_ROUNDING)
    return torch.zeros(len(few), dtype=torch.bool, device=x.device)


def rows_that_differ(first: Tensor, second: Tensor, rounding: float = ROUNDING) -> Tensor:
    """Return which rows (b,) of two batches of logits (b, k) differ by more than rounding."""
    # Classes that are masked in both do not differ.
    masked = (first == second) & second.isinf()
    first, second = first.masked_fill(masked, 0), second.masked_fill(masked, 0)
    relative = (first - second).abs().amax(dim=1) / second.abs().amax(dim=1).clamp_min(1e-30)
    return relative.nan_to_num(nan=torch.inf) > rounding


def _remembers(case: Case, x: Tensor) -> Tensor:
    """Return for which new images (b, c, h, w) neighbouring queries change the output, as (b,).

    None, if the model cannot be copied.
    """
    try:
        copy = deepcopy(case.model.module)
    except Exception:  # noqa: BLE001 - foreign modules may hold what cannot be copied
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    signs = torch.where(case.random("near").uniform("signs", x.shape[1:]).to(x) < 0.5, -1.0, 1.0)
    near = (x + _NEAR * signs).clamp(0, 1)
    outputs = []
    for module, queries in ((case.model.module, (x, near)), (copy, (near,))):
        # Without CUDA graphs: a replayed graph would skip Python code that remembers.
        with torch.no_grad(), case.model.replacing_forward(partial(_forward, module)):
            for images in queries:
                case.same_draws("near")
                logits = case.model(images)
        outputs.append(logits)
    remembering, fresh = outputs
    return rows_that_differ(remembering, fresh)


def _forward(module: nn.Module, _: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    return module(x), 1


DEPENDENCE = Check("state", outputs_depend_on_the_image_alone, (STATE,), passes=9, always=True)
