"""How far an input moves before an activation pattern changes, and how far the logits jump there.

Theorem 1 and appendix B of xiao2020 (arXiv:1905.10510), measured on a network as it is; with ReLU, the linear regions of
Raghu et al. 2017 (arXiv:1606.05336).
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

# Halvings of the distance: float64 tells no more apart.
_HALVINGS = 50


@dataclass(frozen=True)
class Patterns:
    """Random directions perpendicular to the image, of length 1 in l2: the first place along each where any unit of any
    winner-take-all or ReLU layer starts or stops.

    Where all patterns stay as they are the network is affine, so that the inputs that share them are convex (lemma 1 of the
    paper), and halving the distance finds the place exactly. It is done on a copy in float64: in float32, whose rounding is
    coarser than many of these distances, the place could not be told. Networks with other activations or max-pooling besides
    are measured too, but the region need not be convex there.
    """

    revision: ClassVar[int] = 1

    __pydantic_config__: ClassVar[ConfigDict] = strict
    usual: ClassVar[int] = 16

    directions: int = 8

    def __post_init__(self) -> None:
        if self.directions < 1:
            raise ValueError("directions must be at least 1")

    def __call__(self, subject: Subject) -> dict[str, Array]:
        """`distance` (n, directions) in l2 as a share of the image's length, NaN where no pattern changes within that length;
        `jump` (n, directions), how far the logits jump there in l2, as a share of their spread at the image; `label` (n,).

        Raises CannotEvaluate for random networks, whose patterns change by themselves, those without such layers, and those
        that cannot work in float64.
        """
        model, batch = subject.model, subject.batch
        if model.stochastic:
            raise CannotEvaluate(f"{model.name}: is random, so its activation patterns change by themselves")
        rng = SampleRandom(subject.seed, "patterns", batch.samples)
        drawn = rng.normal("directions", (self.directions, *model.shape)).double().to(batch.x.device)
        try:
            network = copy.deepcopy(model.module).double()
            found = [_crossings(network, x, d, model.tile) for x, d in zip(batch.x.double(), drawn, strict=True)]
        except (RuntimeError, TypeError) as failure:
            reason = str(failure).splitlines()[0]
            raise CannotEvaluate(f"{model.name}: does not work in float64, which distances so small need ({reason})") from None
        if any(each is None for each in found):
            raise CannotEvaluate(f"{model.name}: has no k-WTA, LWTA or ReLU layer whose patterns could change")
        distances, jumps = zip(*(each for each in found if each is not None), strict=True)
        return {
            "distance": numbers(torch.stack(distances)),
            "jump": numbers(torch.stack(jumps)),
            "label": numbers(batch.y),
        }


def _crossings(network: nn.Module, x: Tensor, drawn: Tensor, tile: int) -> tuple[Tensor, Tensor] | None:
    """For an image x (c, h, w) and directions (m, c, h, w), the relative distances (m,) and jumps (m,); None without layers."""
    length = x.norm()
    flat = drawn.flatten(1)
    along = x.flatten() / length.clamp_min(1e-300)
    flat = flat - (flat @ along)[:, None] * along
    directions = (flat / flat.norm(dim=1, keepdim=True)).view_as(drawn) * length
    with _watching(network) as patterns, torch.no_grad():

        def look(images: Tensor) -> tuple[Tensor, Tensor]:
            answers, units = [], []
            for part in torch.split(images, tile):
                patterns.clear()
                answers.append(network(part))
                units.append(torch.cat(patterns, dim=1) if patterns else part.new_zeros((len(part), 0), dtype=torch.bool))
            return torch.cat(answers), torch.cat(units)

        logits, here = look(x[None])
        if not here.shape[1]:
            return None
        low, high = x.new_zeros(len(drawn)), x.new_ones(len(drawn))
        changes = (look(x + directions)[1] != here).any(dim=1)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            changed = (look(x + middle.view(-1, 1, 1, 1) * directions)[1] != here).any(dim=1)
            low, high = torch.where(changed, low, middle), torch.where(changed, middle, high)
        before, after = (look(x + each.view(-1, 1, 1, 1) * directions)[0] for each in (low, high))
    spread = (logits.amax() - logits.amin()).clamp_min(1e-300)
    missing = torch.full_like(high, torch.nan)
    return torch.where(changes, high, missing), torch.where(changes, (after - before).norm(dim=1) / spread, missing)


@contextmanager
def _watching(network: nn.Module) -> Iterator[list[Tensor]]:
    """What gets through each layer of a pass, (b, units) as booleans, in the order in which the layers run."""
    patterns: list[Tensor] = []

    def note(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        patterns.append((output != 0).flatten(1))

    hooks = [layer.register_forward_hook(note) for layer in network.modules() if isinstance(layer, Kwta | Lwta | nn.ReLU)]
    try:
        yield patterns
    finally:
        for hook in hooks:
            hook.remove()
