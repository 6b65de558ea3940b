"""What the zoo knows of a defence: its paper, its usual attack, and what the attack written for it goes by."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

EPS = "0.2"


@dataclass(frozen=True)
class Usual:
    """The attack of a paper's evaluation, at the zoo's radius: its name in the report, kwbench's attack and its parameters."""

    name: str
    attack: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


_EXACT = {"gradient": {"kind": "exact", "unreachable": "zero"}}
FGSM = Usual("FGSM", "fgsm", _EXACT)
BIM = Usual("BIM-10", "pgd", {"steps": 10, "relative_step_size": 0.1, "random_start": False, **_EXACT})
PGD = Usual("PGD-40", "pgd", {"steps": 40, "relative_step_size": 1 / 30, **_EXACT})
MIM = Usual("MIM-10", "mim", {"steps": 10, **_EXACT})
CW = Usual("C&W", "cw", _EXACT)
EOT = Usual("PGD-40, 10 draws", "pgd", {**PGD.parameters, "gradient": {"kind": "eot", "draws": 10, "unreachable": "zero"}})
SQUARE = Usual("Square-500", "square", {"steps": 500})


@dataclass(frozen=True)
class Defence:
    """A defence on digits, in linf 0.2.

    Attributes:
        factory: returns the defended network. It trains for seconds, always to the same weights.
        paper: first author and year of its paper, or where it was seen.
        arxiv: the paper's number; empty for none.
        how: how it answers, in a few words.
        usual: the attack of its paper.
        adaptive: what the attack written for it goes by, in a few words.
        substitute: returns a network that the adaptive attack can follow: that of the defence's gradients, or a similar one.
        draws: passes of the substitute that each gradient is averaged over; 1 if it is deterministic.
        accuracy: lower bound on the clean accuracy.
    """

    factory: Callable[[], nn.Module]
    paper: str
    arxiv: str
    how: str
    usual: Usual
    adaptive: str
    substitute: Callable[[], nn.Module]
    draws: int = 1
    accuracy: float = 0.85

    @property
    def name(self) -> str:
        return self.factory.__name__

    @property
    def model(self) -> str:
        """The model as the command line takes it, with the tests on the path."""
        return f"{Path(inspect.getfile(inspect.unwrap(self.factory))).resolve()}:{self.name}"
