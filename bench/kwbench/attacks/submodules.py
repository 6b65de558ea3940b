"""Attack the networks inside a defence, and judge the images on the whole (Tramer et al. 2020, arXiv:2002.08347)."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor

from kwbench import relaxation
from kwbench.attacks.apgd import Apgd
from kwbench.attacks.attack import Attack, ModelFacts
from kwbench.attacks.search.submodules import Within
from kwbench.attacks.search.transfer_images import most_misclassified, towards_targets
from kwbench.gradients import EvidenceGroup, Relaxed
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel


@dataclass(frozen=True)
class Submodules(Attack):
    """PGD on each of the submodules that answer like a classifier, towards several classes, by relaxed gradients.

    `most` submodules at most. An attack without an evaluation knows of none, and proposes the images themselves.
    """

    norms = Apgd.norms
    needs = "gradients"

    steps: int = 30
    targets: int = 3
    most: int = 4
    selection_draws: int = 20
    names: tuple[str, ...] = field(default=(), repr=False, compare=False, metadata={"parameter": False})

    def __post_init__(self) -> None:
        if min(self.steps, self.targets, self.most, self.selection_draws) < 1:
            raise ValueError("steps, targets, most and selection_draws must be at least 1")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,)."""
        return most_misclassified(model, x, y, self._candidates(model, x, y, threat, rng), self.selection_draws)

    def _candidates(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Iterator[Tensor]:
        for name in self.names[: self.most]:
            inner = Model(
                Within(model.module, name),
                name=f"{model.name}: {name}",
                classes=model.classes,
                shape=model.shape,
                device=model.device,
                tile=model.tile,
            )
            inner.stochastic = model.stochastic
            inner.reseed("submodule", name, *rng.samples)
            gradient = Relaxed(unreachable="zero")
            yield from towards_targets(inner, x, y, threat, rng.child(name), gradient, steps=self.steps, targets=self.targets)

    @property
    def evidence_group(self) -> EvidenceGroup:
        """See Attack: its success is that of another model's adversarial images."""
        return "transfer"

    def passes(self, stochastic: bool) -> int:
        """See Attack; the passes of submodules are not the model's."""
        return len(self.names[: self.most]) * self.targets * (self.selection_draws if stochastic else 1)

    def doubled(self, times: int) -> Self:
        """See Attack."""
        return replace(self, targets=self.targets * 2**times)

    def resolved(self, facts: ModelFacts) -> Self:
        """See Attack."""
        return replace(self, names=tuple(facts.submodules))

    def revisions(self) -> dict[str, int]:
        """See Attack."""
        return {**super().revisions(), "relaxation": relaxation.REVISION}

    def redundant(self, facts: ModelFacts) -> str | None:
        """See Attack."""
        return None if facts.submodules else "no submodule answers otherwise than the model"
