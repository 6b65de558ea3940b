"""The effort of a search, counted instead of timed, so that the same search ends at the same place on every machine."""

import math

from kwbench.certification.graph import Graph
from kwbench.errors import CannotEvaluate

# Multiply-adds that a core carries out in a second, and those that one call of a matrix product costs besides its own.
SECOND, _CALL = 2e9, 5e5


# The least effort of a search: small networks spend most of a pass's time on costs that do not depend on their size. The most
# is a minute.
_LEAST, _MOST = 0.5, 60.0


def pass_seconds(graph: Graph) -> float:
    """Return the nominal seconds of one sample's forward pass through a network."""
    return sum(node.multiply_adds for node in graph) / SECOND


def affordable(seconds: float, least: float = _LEAST) -> float:
    """Return the nominal seconds that a search may take which is worth so many; with two digits, to be read in a record."""
    return float(f"{min(max(seconds, least), _MOST):.2g}")


class OutOfEffort(CannotEvaluate):
    """The effort does not suffice for the next part of a search."""


class Effort:
    """What a search may spend, in nominal seconds of one core, and what it has spent."""

    def __init__(self, seconds: float = math.inf) -> None:
        self._limit = seconds * SECOND
        self._spent = 0.0

    @property
    def seconds(self) -> float:
        """The nominal seconds that were spent."""
        return self._spent / SECOND

    def part(self, share: float) -> "Effort":
        """Return a share of what is left, which counts as spent."""
        part = Effort((self._limit - self._spent) * share / SECOND) if self._limit < math.inf else Effort()
        if self._limit < math.inf:
            self._spent += part._limit
        return part

    def allows(self, multiply_adds: float, calls: int = 1) -> bool:
        """Return whether so much is left."""
        return self._spent + multiply_adds + calls * _CALL <= self._limit

    def take(self, multiply_adds: float, calls: int = 1) -> bool:
        """Spend so much if it is left, and return whether it was."""
        allowed = self.allows(multiply_adds, calls)
        if allowed:
            self._spent += multiply_adds + calls * _CALL
        return allowed

    def spend(self, multiply_adds: float, calls: int = 1) -> None:
        """Spend so much. Raises OutOfEffort if less is left."""
        if not self.take(multiply_adds, calls):
            raise OutOfEffort("not certified: the effort ran out")
