"""Sweeps: the same evaluation at several radii, or at several values of an attack's parameter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kwbench.config.suite import Suite, override
from kwbench.errors import UsageError
from kwbench.evaluation.request import Request
from kwbench.evaluation.runner import Progress, evaluate
from kwbench.evaluation.studies.series import record_series
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import Summary
from kwbench.report.drawing.picture import Picture
from kwbench.report.figures.series import sweep_curves
from kwbench.threat import exact_fraction

EPS = "eps"


@dataclass(frozen=True, slots=True)
class Sweep:
    """The varied quantity, `eps` or LABEL.PARAMETER, and its values in ascending order, as written.

    Without values it is every radius, from one run of minimum-norm attacks; see `record.minimum_norm`.
    """

    quantity: str
    values: tuple[str, ...]

    @property
    def numbers(self) -> tuple[float, ...]:
        """The values as numbers."""
        return tuple(float(exact_fraction(value)) for value in self.values)

    @property
    def over_eps(self) -> bool:
        """Whether the radius is varied."""
        return self.quantity == EPS

    def suite(self, suite: Suite, value: str) -> Suite:
        """Return the suite with the parameter set to one of the values; unchanged if the radius is varied."""
        if self.over_eps:
            return suite
        try:
            return override(suite, [f"{self.quantity}={value}"])
        except UsageError as failure:
            raise UsageError(str(failure).replace("--set", "--over", 1)) from None


def parse_sweep(text: str) -> Sweep:
    """Parse the argument of `--over`: eps=1/255,2/255,8/255 or pgd.steps=1,10,100; eps alone is every radius.

    Raises UsageError unless it names at least two different positive numbers, or none of eps.
    """
    if text.strip() == EPS:
        return Sweep(EPS, ())
    quantity, separator, rest = text.partition("=")
    values = [value.strip() for value in rest.split(",")]
    if not separator or not quantity or not (quantity == EPS or "." in quantity) or "" in values:
        raise UsageError(f"--over {text}: write eps, eps=VALUE,VALUE,... or LABEL.PARAMETER=VALUE,VALUE,...")
    try:
        numbers = {value: exact_fraction(value) for value in values}
    except ValueError as failure:
        raise UsageError(f"--over {text}: {failure}") from None
    if len(set(numbers.values())) < max(2, len(values)) or min(numbers.values()) <= 0:
        raise UsageError(f"--over {text}: give at least two values, all positive and different")
    return Sweep(quantity, tuple(sorted(values, key=numbers.__getitem__)))


def run_sweep(
    sweep: Sweep,
    requests: Sequence[Sequence[Request]],
    suite: str,
    store: Store,
    report: Callable[[Progress], None] = lambda _: None,
    *,
    command: str = "",
    time_limit: float | None = None,
) -> list[list[Summary]]:
    """Evaluate models at each value, and put each model's curve on record as a series; return results by model, then by value.

    `requests` holds, for each value of the sweep, one request for each model. `suite` names the suite before any parameter is
    changed. Raises as `runner.evaluate` does.
    """
    evaluations = [
        evaluate(request, store, report, command=command, time_limit=time_limit)
        for at_value in requests
        for request in at_value
    ]
    results, models = summaries(store, evaluations), len(requests[0])
    curves = [results[model::models] for model in range(models)]
    for curve in curves:
        record_series(
            store,
            "sweep",
            [point.evaluation for point in curve],
            {"over": sweep.quantity, "values": list(sweep.values), "suite": suite},
            {"place": np.array(sweep.numbers)},
            model=curve[0].model,
            command=command,
        )
    return curves


def sweep_picture(sweep: Sweep, curves: Sequence[Sequence[Summary]], suite: str) -> Picture:
    """Return robust accuracy against the varied quantity, a curve for each model; at radius 0 it is the clean accuracy."""
    return sweep_curves(suite, sweep.quantity, np.array(sweep.numbers), curves)
