"""Attack a student that has learned the model's answers, and transfer the images (Papernot et al. 2017, arXiv:1602.02697)."""

import math
from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor

from kwbench.attacks.apgd import Apgd
from kwbench.attacks.attack import Attack, ModelFacts
from kwbench.attacks.search.student import Lessons
from kwbench.attacks.search.transfer_images import most_misclassified, towards_targets
from kwbench.gradients import EXACT, EvidenceGroup
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel


@dataclass(frozen=True)
class Student(Attack):
    """PGD on a small network that was trained on the model's labels of noisy images, towards several classes.

    It is for models of which labels are all that is left: nothing inside the model can mislead it. `queries` is the number of
    labels that the student learns from; by default 4096 for small images, and 2048 for images of more than 784 values. They
    are asked once for all samples of the evaluation, and charged to none of them.
    """

    norms = Apgd.norms
    needs = "labels"

    queries: int | None = None
    steps: int = 40
    targets: int = 9
    selection_draws: int = 20
    lessons: Lessons = field(default_factory=Lessons, repr=False, compare=False, metadata={"parameter": False})

    def __post_init__(self) -> None:
        if self.steps < 1 or self.targets < 1 or self.selection_draws < 1:
            raise ValueError("steps, targets and selection_draws must be at least 1")
        if self.queries is not None and self.queries < 2:
            raise ValueError("queries must be at least 2")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,)."""
        student = self.lessons.student_of(model, self.queries or _affordable(x[0].numel() if len(x) else 1), threat)
        ends = towards_targets(student, x, y, threat, rng, EXACT, steps=self.steps, targets=self.targets)
        return most_misclassified(model, x, y, ends, self.selection_draws)

    @property
    def evidence_group(self) -> EvidenceGroup:
        """See Attack: its success is that of another model's adversarial images."""
        return "transfer"

    def passes(self, stochastic: bool) -> int:
        """See Attack; the student's passes are not the model's."""
        return self.targets * (self.selection_draws if stochastic else 1)

    def doubled(self, times: int) -> Self:
        """See Attack; a student of more labels."""
        return replace(self, queries=(self.queries or _affordable(1)) * 2**times)

    def resolved(self, facts: ModelFacts) -> Self:
        """See Attack."""
        return replace(self, queries=self.queries or _affordable(math.prod(facts.shape)), lessons=facts.lessons)

    def redundant(self, facts: ModelFacts) -> str | None:
        """See Attack."""
        return None if facts.hides_gradients else "no operation of the model hides its gradient: its own lead further"


def _affordable(values: int) -> int:
    """Return the number of labels to ask for images of so many values."""
    return 4096 if values <= 784 else 2048
