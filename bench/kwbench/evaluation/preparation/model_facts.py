"""What attacks may know of the model before they start, measured on first use."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from kwbench.attacks.search.pixel_grid import grids_that_matter
from kwbench.attacks.search.student import Lessons
from kwbench.attacks.search.submodules import classifiers_within
from kwbench.certification.certificate import Prospects, prospects
from kwbench.checks.operations import autograd_is_exact, surveyed
from kwbench.model import Model, Precision
from kwbench.networks.architectures.noise import Smoothed
from kwbench.threat import ThreatModel

# Images whose undecided units are counted, and images that are asked on grids and beside them.
_SEARCHED, _ON_GRIDS = 2, 16


@dataclass(frozen=True)
class MeasuredFacts:
    """The facts of a loaded model; see `kwbench.attacks.attack.ModelFacts`.

    `probes` are the batches that the model is measured on: some images (b, c, h, w), and images near them within the ball.
    `lessons` are for attacks that learn the model's answers. `exact` keeps every search in float32.
    """

    model: Model
    threat: ThreatModel
    shape: Sequence[int]
    probes: tuple[Tensor, Tensor]
    lessons: Lessons = field(default_factory=Lessons)
    exact: bool = False

    @cached_property
    def grids(self) -> tuple[int, ...]:
        """The grids of pixel values on which the model answers otherwise than beside them; none if it is random."""
        return () if self.model.stochastic else grids_that_matter(self.model, self.probes[0][:_ON_GRIDS], self.threat)

    @cached_property
    def submodules(self) -> tuple[str, ...]:
        """The names of the submodules that answer like a classifier, but not like the model as a whole."""
        return classifiers_within(self.model, self.probes[0])

    @cached_property
    def prospects(self) -> Prospects:
        """Whether a complete search of the balls may pay, and how long it may take."""
        if self.model.stochastic or self.model.rule.kind == "frozen":
            sigma = self.model.module.sigma if isinstance(self.model.module, Smoothed) else None
            return Prospects("its predictions are random", sigma=sigma)
        return prospects(self.model.module, self.probes[0][:_SEARCHED], self.threat)

    @cached_property
    def hides_gradients(self) -> bool:
        """Whether the relaxation finds an operation to soften, or one that it cannot see into, or corrects autograd."""
        with self.model.raising_by_name():
            for images in self.probes:
                survey = surveyed(self.model, images)
                if survey.relaxed or survey.unseen:
                    return True
            return not autograd_is_exact(self.model, self.probes[1])

    @cached_property
    def search_precision(self) -> Precision:
        """The fastest precision for a search whose steps follow exact gradients.

        Never bfloat16 in l2, whose steps use more than signs, nor if an operation hides its gradient: the last bits may then
        decide, and rounding misleads the search.
        """
        if self.exact or self.hides_gradients:
            return "float32"
        rounds = self.threat.norm == "linf" and self.model.tolerates("bfloat16", self.probes[1])
        return "bfloat16" if rounds else self.precision_without_bfloat16

    @cached_property
    def precision_without_bfloat16(self) -> Precision:
        """The fastest precision for a search that bfloat16 would mislead."""
        if self.exact or self.hides_gradients:
            return "float32"
        return "tf32" if self.model.tolerates("tf32", self.probes[1]) else self.model.effective_precision("folded")
