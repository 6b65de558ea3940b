"""Gradient estimators by the `kind` that users write. A new one is a file in this folder and a line in ESTIMATORS."""

from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from kwbench.gradients.agreement import cosines_of
from kwbench.gradients.eot import Eot
from kwbench.gradients.es import Es
from kwbench.gradients.estimator import Estimate, Estimator, EvidenceGroup, Objective
from kwbench.gradients.exact import CutGradientError, Exact, autograd_estimate
from kwbench.gradients.relaxed import Relaxed
from kwbench.gradients.smooth import Smooth

ESTIMATORS: dict[str, type[Estimator]] = {
    "exact": Exact,
    "eot": Eot,
    "smooth": Smooth,
    "es": Es,
    "relaxed": Relaxed,
}

# The default of every gradient attack.
EXACT = Exact()


class _AnyEstimator:
    """Lets pydantic choose among ESTIMATORS by `kind`, as they are when an attack is built."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {kind: handler.generate_schema(estimator) for kind, estimator in ESTIMATORS.items()}
        return core_schema.tagged_union_schema(choices, discriminator="kind")


# The type of an attack's parameter `gradient`.
Gradient = Annotated[Estimator, _AnyEstimator]

__all__ = [
    "ESTIMATORS",
    "EXACT",
    "CutGradientError",
    "Eot",
    "Es",
    "Estimate",
    "Estimator",
    "EvidenceGroup",
    "Exact",
    "Gradient",
    "Objective",
    "Relaxed",
    "Smooth",
    "autograd_estimate",
    "cosines_of",
]
