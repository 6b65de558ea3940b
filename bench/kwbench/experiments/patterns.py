"""Distances from an image to the next change of an activation pattern, and the jumps of the logits there.

Theorem 1 and appendix B of xiao2020 (arXiv:1905.10510), measured on a trained network. For ReLU these are the linear regions
of Raghu et al. 2017 (arXiv:1606.05336).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from kwbench.attacks.attack import strict
from kwbench.errors import CannotEvaluate
from kwbench.experiments.experiment import Subject, numbers
from kwbench.networks.activations import Kwta, Lwta
from kwbench.randomness import SampleRandom
from kwbench.record.measurement import Array

# Steps of the bisection; float64 resolves no more.
_HALVINGS = 50


@dataclass(frozen=True)
class Patterns:
    """Follow random unit directions perpendicular to the image until a winner-take-all or ReLU unit switches on or off.

    While all patterns stay the same the network is affine, so the inputs that share them form a convex region (lemma 1 of
    the paper), and bisection finds its border. It runs on a float64 copy of the network, because float32 rounds more
    coarsely than many of these distances. With other activations or max-pooling in the network the region may not be convex;
    such networks are measured all the same.
    """

    revision: ClassVar[int] = 1

    __pydantic_config__: ClassVar[ConfigDict] = strict
    default_images: ClassVar[int] = 16

    directions: int = 8

    def __post_init__(self) -> None:
        if self.directions < 1:
            raise ValueError("directions must be at least 1")

    def __call__(self, subject: Subject) -> dict[str, Array]:
        """Return `distance` and `jump` (n, directions) and `label` (n,).

        `distance` is an l2 distance over the l2 norm of the image, NaN where no pattern changes within that norm. `jump` is
        the l2 norm of the change of the logits there, over the range of the logits at the image.

        Raises CannotEvaluate for stochastic networks, whose patterns change between passes, for networks without such
        layers, and for those that do not run in float64.
        """
        model, batch = subject.model, subject.batch
        if model.stochastic:
            raise CannotEvaluate(f"{model.name}: is random, so its activation patterns change between passes")
        rng = SampleRandom(subject.seed, "patterns", batch.samples)
        normals = rng.normal("directions", (self.directions, *model.shape)).double().to(batch.x.device)
        try:
            network = copy.deepcopy(model.module).double()
            crossings = [_crossings(network, x, d, model.tile) for x, d in zip(batch.x.double(), normals, strict=True)]
        except (RuntimeError, TypeError) as failure:
            reason = str(failure).splitlines()[0]
            raise CannotEvaluate(f"{model.name}: does not run in float64, which such small distances need ({reason})") from None
        if any(crossing is None for crossing in crossings):
            raise CannotEvaluate(f"{model.name}: has no k-WTA, LWTA or ReLU layer whose patterns could change")
        distances, jumps = zip(*(crossing for crossing in crossings if crossing is not None), strict=True)
        return {
            "distance": numbers(torch.stack(distances)),
            "jump": numbers(torch.stack(jumps)),
            "label": numbers(batch.y),
        }


def _crossings(network: nn.Module, x: Tensor, normals: Tensor, tile: int) -> tuple[Tensor, Tensor] | None:
    """The relative distances (m,) and jumps (m,) from an image x (c, h, w) along directions (m, c, h, w).

    None if no layer has a pattern.
    """
    length = x.norm()
    flat = normals.flatten(1)
    along = x.flatten() / length.clamp_min(1e-300)
    flat = flat - (flat @ along)[:, None] * along
    directions = (flat / flat.norm(dim=1, keepdim=True)).view_as(normals) * length
    with _recorded_patterns(network) as patterns, torch.no_grad():

        def evaluate(images: Tensor) -> tuple[Tensor, Tensor]:
            outputs, active = [], []
            for part in torch.split(images, tile):
                patterns.clear()
                outputs.append(network(part))
                active.append(torch.cat(patterns, dim=1) if patterns else part.new_zeros((len(part), 0), dtype=torch.bool))
            return torch.cat(outputs), torch.cat(active)

        logits, pattern = evaluate(x[None])
        if not pattern.shape[1]:
            return None
        low, high = x.new_zeros(len(normals)), x.new_ones(len(normals))
        changes = (evaluate(x + directions)[1] != pattern).any(dim=1)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            changed = (evaluate(x + middle.view(-1, 1, 1, 1) * directions)[1] != pattern).any(dim=1)
            low, high = torch.where(changed, low, middle), torch.where(changed, middle, high)
        before, after = (evaluate(x + share.view(-1, 1, 1, 1) * directions)[0] for share in (low, high))
    spread = (logits.amax() - logits.amin()).clamp_min(1e-300)
    missing = torch.full_like(high, torch.nan)
    return torch.where(changes, high, missing), torch.where(changes, (after - before).norm(dim=1) / spread, missing)


@contextmanager
def _recorded_patterns(network: nn.Module) -> Iterator[list[Tensor]]:
    """Record the active units of each layer, (b, units) as booleans, in the order in which the layers run."""
    patterns: list[Tensor] = []

    def append(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        patterns.append((output != 0).flatten(1))

    hooks = [layer.register_forward_hook(append) for layer in network.modules() if isinstance(layer, Kwta | Lwta | nn.ReLU)]
    try:
        yield patterns
    finally:
        for hook in hooks:
            hook.remove()
