"""Certificates of images, see `kwbench.certification`."""

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from kwbench.attacks.attack import strict
from kwbench.certification import certificate, certify, trace
from kwbench.certification.effort import Effort
from kwbench.errors import CannotEvaluate
from kwbench.experiments.experiment import Subject
from kwbench.record.measurement import Array


@dataclass(frozen=True)
class Certificates:
    """Bound the margin of each image over the ball from below, within about `budget` seconds an image.

    An `effort` in nominal seconds (`kwbench.certification.effort`) bounds it as well; with a budget of None it alone does, so
    that every machine proves the same.
    """

    revision: ClassVar[int] = certificate.REVISION

    __pydantic_config__: ClassVar[ConfigDict] = strict
    default_images: ClassVar[int] = 128

    budget: float | None = 60.0
    effort: float | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and not self.budget >= 0:
            raise ValueError("budget must not be negative")
        if self.effort is not None and not self.effort > 0:
            raise ValueError("effort must be above 0")

    def __call__(self, subject: Subject) -> dict[str, Array]:
        """Return `bound`, a lower bound of the margin, `margin`, the smallest that the search met, `branches` and `seconds`,
        each (n,). A bound is NaN where too many units are undecided or the effort does not suffice.

        Raises CannotEvaluate for a model with randomness, and for layers that certificates do not know.
        """
        model, batch = subject.model, subject.batch
        if model.stochastic:
            raise CannotEvaluate(f"{model.name}: not certified: its predictions are random")
        try:
            graph = trace(copy.deepcopy(model.module).cpu(), model.shape)
        except CannotEvaluate as failure:
            raise CannotEvaluate(f"{model.name}: {failure}") from None
        rows = []
        budget, effort = (math.inf if limit is None else limit for limit in (self.budget, self.effort))
        for x, y in zip(batch.x.cpu(), batch.y.tolist(), strict=True):
            try:
                made = certify(graph, x, y, subject.threat, budget, Effort(effort))
                rows.append([made.bound, made.margin, float(made.branches), made.seconds])
            except CannotEvaluate:
                rows.append([np.nan, np.nan, 0.0, 0.0])
        columns = np.array(rows, dtype=np.float64).reshape(-1, 4).T
        return dict(zip(("bound", "margin", "branches", "seconds"), columns, strict=True))
