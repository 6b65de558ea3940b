"""What one diagnostic check found: its figure, its threshold, whether it fires, and the samples concerned."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["doubt", "masking", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check on one evaluation.

    `figure` is what was measured and `threshold` what it is held against, both in the unit that `statement`, one sentence for
    people, names; `figure` None: it could not be measured, and the statement says why. `samples` are the hashes of the
    samples concerned, empty where the check is about the model as a whole.
    `kind` says what it means when it fires. `doubt`: the robust accuracy itself may be too high. `masking`: attacks through
    the model's own gradients overestimate it, and what is measured by other means may still be right. `note`: worth knowing.
    """

    check: str
    figure: float | None
    threshold: float
    fires: bool
    statement: str
    samples: tuple[str, ...] = ()
    kind: Kind = "note"
