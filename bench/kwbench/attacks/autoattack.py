"""AutoAttack (Croce and Hein 2020, arXiv:2003.01690), through the authors' package pyautoattack."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from kwbench.attacks.attack import Attack
from kwbench.attacks.model_module import ModelModule
from kwbench.errors import CannotEvaluate
from kwbench.geometry import settle
from kwbench.gradients import EvidenceGroup
from kwbench.model import Model
from kwbench.randomness import SampleRandom, seeded_globally
from kwbench.threat import ThreatModel

Part = Literal["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]

# The difference of logits ratio divides by the gap between the first logit and the third, its targeted form by one with the
# fourth (eq. 6 and 7 of the paper).
CLASSES_NEEDED = {"apgd-dlr": 3, "apgd-t": 4}
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@dataclass(frozen=True)
class AutoAttack(Attack):
    """The attacks of `pyautoattack`, each on the samples that the ones before it did not break.

    `version`: `standard` is APGD, targeted APGD, targeted FAB and Square; `rand`, for stochastic models, APGD with two losses
    and 20 draws a gradient; `plus` all six with more restarts; `custom` the `attacks` in their order. Every other parameter is
    the package's. The package gets the evaluation's seed and one tile as one batch, so that the proposals are those of
    `pyautoattack` called on that tile. On a stochastic model the package keeps the first proposal that fails in one draw, as
    its protocol says; the judge scores the proposal on fresh draws.

    With fewer than 10 classes there are fewer targets. With fewer than 4, APGD-T is left out of `standard` and `plus`, because
    its loss is undefined; with 2, so is APGD-DLR.
    """

    norms = frozenset({"linf", "l2", "l1"})
    needs = "gradients"
    libraries = ("pyautoattack",)
    revision = 2
    whole_tiles = True

    version: Literal["standard", "rand", "plus", "custom"] = "standard"
    attacks: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        if (self.version == "custom") != bool(self.attacks):
            raise ValueError("version: custom and a list of attacks come together")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,). Raises CannotEvaluate if a part needs more classes."""
        import pyautoattack

        with seeded_globally(rng.batch_seed()), silence():
            adversary = pyautoattack.AutoAttack(
                ModelModule(model),
                attacks=list(self.attacks) or None,
                device=x.device,
                eps=threat.radius,
                norm=NORMS[threat.norm],
                seed=rng.seed,
                version=self.version,
            )
            targets = model.classes - 1
            adversary.apgd_targeted.n_target_classes = min(adversary.apgd_targeted.n_target_classes, targets)
            adversary.fab.n_target_classes = min(adversary.fab.n_target_classes, targets)
            adversary.attacks_to_run = self._possible(adversary.attacks_to_run, model)
            proposal, _ = adversary.run_standard_evaluation(x, y, batch_size=len(x))
        return settle(proposal.detach(), x, threat)

    @property
    def evidence_group(self) -> EvidenceGroup | None:
        """See Attack; `standard` and `plus` contain Square."""
        return "exact" if self.version == "rand" else None

    def _possible(self, parts: list[str], model: Model) -> list[str]:
        possible = [part for part in parts if model.classes >= CLASSES_NEEDED.get(part, 2)]
        if self.version == "custom" and len(possible) < len(parts):
            missing = next(part for part in parts if part not in possible)
            raise CannotEvaluate(f"autoattack: {missing} needs {CLASSES_NEEDED[missing]} classes, there are {model.classes}")
        return possible


@contextmanager
def silence() -> Iterator[None]:
    """Silence the package's log, and restore the debugger's trace function, which its check for dynamic defences replaces."""
    logger, trace = logging.getLogger("auto-attack"), sys.gettrace()
    disabled = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = disabled
        sys.settrace(trace)
