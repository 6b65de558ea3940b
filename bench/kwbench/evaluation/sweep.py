"""The same evaluation at several values of one thing: the radius, or a parameter of an attack."""

from dataclasses import dataclass

from kwbench.config.suite import Suite, override
from kwbench.errors import UsageError
from kwbench.threat import exact_fraction

EPS = "eps"


@dataclass(frozen=True, slots=True)
class Sweep:
    """What changes, `eps` or LABEL.PARAMETER, and its values in rising order, as written."""

    what: str
    values: tuple[str, ...]

    @property
    def places(self) -> tuple[float, ...]:
        """The values as numbers."""
        return tuple(float(exact_fraction(each)) for each in self.values)

    @property
    def of_eps(self) -> bool:
        """Whether the radius changes."""
        return self.what == EPS

    def suite(self, suite: Suite, value: str) -> Suite:
        """The suite at one of the values."""
        if self.of_eps:
            return suite
        try:
            return override(suite, [f"{self.what}={value}"])
        except UsageError as failure:
            raise UsageError(str(failure).replace("--set", "--over", 1)) from None


def parse_sweep(text: str) -> Sweep:
    """What `--over` says: eps=1/255,2/255,8/255 or pgd.steps=1,10,100.

    Raises UsageError unless it names at least two different positive numbers.
    """
    what, separator, rest = text.partition("=")
    values = [each.strip() for each in rest.split(",")]
    if not separator or not what or not (what == EPS or "." in what) or "" in values:
        raise UsageError(f"--over {text}: write eps=VALUE,VALUE,... or LABEL.PARAMETER=VALUE,VALUE,...")
    try:
        numbers = {each: exact_fraction(each) for each in values}
    except ValueError as failure:
        raise UsageError(f"--over {text}: {failure}") from None
    if len(set(numbers.values())) < max(2, len(values)) or min(numbers.values()) <= 0:
        raise UsageError(f"--over {text}: give at least two values, all positive and different")
    return Sweep(what, tuple(sorted(values, key=numbers.__getitem__)))
