"""Any attack of Foolbox 3 by name (Rauber et al. 2020, doi:10.21105/joss.02607)."""

import warnings
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor

from kwbench.attacks.attack import Attack, JudgingRule
from kwbench.attacks.model_module import ModelModule
from kwbench.errors import CannotEvaluate, did_you_mean
from kwbench.geometry import settle
from kwbench.model import Model
from kwbench.randomness import SampleRandom, seeded_globally
from kwbench.threat import NORMS, ThreatModel

# These need more than images and labels: one needs target classes, the other a data set to draw from.
_NOT_UNTARGETED = {"GenAttack", "DatasetAttack"}
# These ask for predicted classes alone.
_FROM_LABELS = {
    "BinarySearchContrastReductionAttack",
    "BoundaryAttack",
    "GaussianBlurAttack",
    "HopSkipJumpAttack",
    "InversionAttack",
    "LinearSearchBlendedUniformNoiseAttack",
    "LinearSearchContrastReductionAttack",
    "PointwiseAttack",
    "SaltAndPepperNoiseAttack",
}


@dataclass(frozen=True)
class Foolbox(Attack):
    """The Foolbox attack `attack` with its `parameters`, and Foolbox's defaults for the rest.

    Fixed-budget attacks get eps and are clipped to it, as Foolbox does. Minimum-norm attacks run without eps, and their
    proposals are `judged` by distance or clipped, like those of other minimum-norm attacks. Also written `foolbox:NAME` with
    Foolbox's parameters beside it.
    """

    # The norms of all of its attacks; an instance has those of its own attack.
    norms = frozenset(NORMS)
    needs = "gradients"
    libraries = ("foolbox",)
    revision = 2
    whole_tiles = True

    attack: str
    parameters: dict[str, Any] = field(default_factory=dict)
    judged: JudgingRule = "distance"

    def __post_init__(self) -> None:
        if self.attack not in foolbox_attacks():
            raise ValueError(f"Foolbox has no attack {self.attack!r}; {did_you_mean(self.attack, foolbox_attacks())}")
        try:
            attack = self._kind(**self.parameters)
        except (TypeError, ValueError) as refusal:
            raise ValueError(f"Foolbox refuses these parameters: {refusal}") from None
        except ModuleNotFoundError as missing:
            raise CannotEvaluate(
                f"Foolbox's {self.attack} needs the package {missing.name}, which is not installed: pip install {missing.name}"
            ) from None
        import foolbox
        from foolbox.attacks.base import MinimizationAttack

        minimum_norm = issubclass(self._kind, MinimizationAttack)
        object.__setattr__(self, "minimum_norm", minimum_norm)
        if not minimum_norm:
            # A fixed budget is in the attack's own norm; the proposals of a minimum-norm attack can be judged in any norm.
            own = frozenset(name for name in NORMS if getattr(foolbox.distances, name) is attack.distance)
            object.__setattr__(self, "norms", own)

    @property
    def from_labels(self) -> bool:
        """See Attack."""
        return self.attack in _FROM_LABELS

    @property
    def _kind(self) -> Any:
        return foolbox_attacks()[self.attack]

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,)."""
        import foolbox
        from foolbox.attacks.base import FlexibleDistanceMinimizationAttack

        parameters = dict(self.parameters)
        if issubclass(self._kind, FlexibleDistanceMinimizationAttack):
            parameters["distance"] = getattr(foolbox.distances, threat.norm)
        with seeded_globally(rng.batch_seed()):
            adversary = self._kind(**parameters)
            victim = foolbox.models.pytorch.PyTorchModel(ModelModule(model), bounds=(0, 1), device=x.device)
            criterion = foolbox.criteria.Misclassification(y)
            nearest, clipped, _ = adversary(victim, x, criterion, epsilons=None if self.minimum_norm else threat.radius)
        return nearest.detach() if self.minimum_norm else settle(clipped.detach(), x, threat)


@cache
def foolbox_attacks() -> dict[str, Any]:
    """Return Foolbox's attacks by name that can run untargeted from images and labels."""
    with warnings.catch_warnings():
        # Foolbox 3.3.4 imports a filter from a deprecated module of scipy.
        warnings.filterwarnings("ignore", "Please import `gaussian_filter`", DeprecationWarning)
        import foolbox
    from foolbox.attacks.base import FixedEpsilonAttack, MinimizationAttack

    return {
        name: kind
        for name, kind in vars(foolbox.attacks).items()
        if isinstance(kind, type) and issubclass(kind, (FixedEpsilonAttack, MinimizationAttack)) and name not in _NOT_UNTARGETED
    }
