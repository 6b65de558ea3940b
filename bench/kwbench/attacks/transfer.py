"""Transfer of adversarial examples from a surrogate model (Papernot et al. 2017, arXiv:1602.02697)."""

from dataclasses import dataclass, field, replace
from typing import Literal, Self

from torch import Tensor

from kwbench.attacks.apgd import Apgd
from kwbench.attacks.attack import Attack, Length, ModelFacts
from kwbench.attacks.pgd import Pgd
from kwbench.attacks.search.losses import LossName
from kwbench.gradients import EXACT, Gradient
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel


@dataclass(frozen=True)
class Transfer(Attack):
    """PGD on a surrogate to its last step, or Auto-PGD to its highest loss, without using the model under test.

    `surrogate` names a model of the registry, or is `swap:relu`, `swap:identity`, `swap:mean-field` or `swap:argmax`: the
    weights under test with other activations. `source` is the surrogate once loaded. Step sizes are PGD's.
    Hidden gradients do not hinder it: if it breaks more than attacks on the model's own gradients, those are masked.
    """

    norms = Apgd.norms
    needs = "nothing"
    revision = 2

    surrogate: str = "vgg11"
    search: Literal["pgd", "apgd"] = "pgd"
    steps: int = 40
    step_size: Length | None = None
    relative_step_size: float | None = None
    random_start: bool = True
    loss: LossName = "cross_entropy"
    gradient: Gradient = EXACT
    source: Model | None = field(default=None, repr=False, compare=False, metadata={"parameter": False})

    def __post_init__(self) -> None:
        self._search()

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,). Raises ValueError where no surrogate has been loaded."""
        if self.source is None:
            raise ValueError(f"the surrogate {self.surrogate!r} has not been loaded")
        return self._search()(self.source, x, y, threat, rng)

    def resolved(self, facts: ModelFacts) -> Self:
        """See Attack; the record states the step size of PGD."""
        attack = super().resolved(facts)
        search = attack._search().resolved(facts)
        return replace(attack, relative_step_size=search.relative_step_size) if isinstance(search, Pgd) else attack

    def passes(self, stochastic: bool) -> int:
        """See Attack; the passes are those of the surrogate."""
        return self._search().passes(stochastic)

    def revisions(self) -> dict[str, int]:
        """See Attack; the search on the surrogate is one of its parts."""
        return {**super().revisions(), "search": self._search().revision}

    def _search(self) -> Pgd | Apgd:
        if self.search == "apgd":
            return Apgd(
                steps=self.steps,
                random_start=self.random_start,
                loss=self.loss,
                gradient=self.gradient,
                early_exit=False,
            )
        return Pgd(
            steps=self.steps,
            step_size=self.step_size,
            relative_step_size=self.relative_step_size,
            random_start=self.random_start,
            loss=self.loss,
            gradient=self.gradient,
            early_exit=False,
        )
