"""Single parts of AutoAttack (Croce and Hein 2020, arXiv:2003.01690), through the authors' package pyautoattack."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from kwbench.attacks.attack import Attack
from kwbench.attacks.autoattack import CLASSES_NEEDED, NORMS, Part, silence
from kwbench.attacks.model_module import ModelModule
from kwbench.errors import CannotEvaluate
from kwbench.geometry import settle
from kwbench.model import Model
from kwbench.randomness import SampleRandom, seeded_globally
from kwbench.threat import ThreatModel


@dataclass(frozen=True)
class AutoAttackPart(Attack):
    """One part with the settings that `version` gives it: `standard`, or `rand` with 20 draws a gradient.

    Every sample is attacked, and the part's result is proposed unchanged. The package itself predicts the clean image once and
    each proposal once, attacks only samples that were right so far, and returns the clean image if the proposal was predicted
    right. For a stochastic model its count can be computed from the parts' proposals and fresh draws
    (`kwbench.record.single_draw_protocol`), without that chance. The package gets the evaluation's seed, and one tile as one
    batch.
    """

    norms = frozenset(NORMS)
    needs = "gradients"
    libraries = ("pyautoattack",)
    revision = 2
    whole_tiles = True

    part: Part = "apgd-ce"
    version: Literal["standard", "rand"] = "standard"

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,). Raises CannotEvaluate if the part needs more classes."""
        import pyautoattack

        needed = CLASSES_NEEDED.get(self.part, 2)
        if model.classes < needed:
            raise CannotEvaluate(f"autoattack-part: {self.part} needs {needed} classes, there are {model.classes}")
        with seeded_globally(rng.batch_seed()), silence():
            package = pyautoattack.AutoAttack(
                ModelModule(model),
                device=x.device,
                eps=threat.radius,
                norm=NORMS[threat.norm],
                seed=rng.seed,
                version=self.version,
            )
            searcher = {"apgd-t": package.apgd_targeted, "square": package.square}.get(
                self.part, package.fab if self.part.startswith("fab") else package.apgd
            )
            if self.part in ("apgd-ce", "apgd-dlr"):
                searcher.loss = self.part.removeprefix("apgd-")
            elif self.part in ("fab", "fab-t"):
                searcher.targeted = self.part == "fab-t"
            if self.part in ("apgd-t", "fab-t"):
                searcher.n_target_classes = min(searcher.n_target_classes, model.classes - 1)
            searcher.seed = rng.seed
            proposal = searcher.perturb(x, y)
        return settle(proposal.detach(), x, threat)
