"""Assignments: which samples an attack still has to run on, and the tasks that they are divided into."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kwbench.errors import CannotEvaluate
from kwbench.evaluation.execution.tasks import JudgeAttack, JudgeClean, Task
from kwbench.evaluation.request import Facts, Request
from kwbench.judge import SELECTION_DRAWS
from kwbench.outcome import CLEAN, Outcome, Status
from kwbench.record.cascade import Stage

# Rows that nearly fill the passes of an attack with several climbs a row, and the seconds that a batch should take at most.
_FEW_ROWS, _LONG = 8, 600.0


@dataclass(frozen=True, slots=True)
class Assignment:
    """What is left to do for one attack, or for the clean images.

    `rows` are the positions in the slice that it sees. Of their samples, `missing` have no outcome on record, and `imageless`
    only lack their adversarial image. `whole`: outcomes depend on the other rows of a tile, so tiles are never cut differently.
    `shares` are a stochastic model's smallest shares of right selection draws so far, by sample. `seconds` is about the most
    that a sample takes on one core, 0 where that is unknown.
    """

    label: str
    rows: list[int]
    whole: bool
    missing: frozenset[str]
    imageless: frozenset[str]
    shares: Mapping[str, float] | None
    cascade: bool
    seconds: float

    def keeps_image(self, outcome: Outcome) -> bool:
        """Whether an outcome's image is worth keeping: it is broken, or the best so far of a stochastic model."""
        if self.shares is None:
            return outcome.status is Status.BROKEN
        draws = outcome.selection_draws
        return draws > 0 and outcome.selection_correct / draws < self.shares[outcome.sample]

    def successes(self, recorded: Mapping[str, Outcome], samples: Sequence[str]) -> frozenset[str]:
        """Return the samples, of those that the attack sees, whose image is worth keeping."""
        seen = {samples[row] for row in self.rows}
        return frozenset(
            outcome.sample for outcome in recorded.values() if outcome.sample in seen and self.keeps_image(outcome)
        )

    def tasks(self, request: Request, facts: Facts, clean: Mapping[str, Outcome]) -> list[Task[list[Outcome]]]:
        """Return the tasks that complete the assignment. `clean` are the outcomes on the clean images, by sample."""
        return [self._task(rows, facts, clean) for rows in pending(facts, self, request)]

    def _task(self, rows: list[int], facts: Facts, clean: Mapping[str, Outcome]) -> Task[list[Outcome]]:
        if self.label == CLEAN:
            return JudgeClean(rows)
        samples = [facts.samples[row] for row in rows]
        return JudgeAttack(self.label, rows, [clean[sample] for sample in samples], self._to_beat(samples))

    def _to_beat(self, samples: Sequence[str]) -> list[int] | None:
        """Return the numbers of right selection draws to fall below, as `judge.judge` takes them; None outside a cascade."""
        if self.shares is None or not self.cascade:
            return None
        return [round(self.shares[sample] * SELECTION_DRAWS) for sample in samples]

    def require_equal(self, outcomes: Sequence[Outcome], recorded: Mapping[str, Outcome], model: str) -> None:
        """Raise CannotEvaluate where an image made later belongs to another outcome than the one on record."""
        for outcome in outcomes:
            before = recorded.get(outcome.sample)
            if before is None or (outcome.image is None and outcome.sample not in self.imageless):
                continue
            for name in ("status", "prediction", "selection_correct", "selection_draws", "fresh_correct", "fresh_draws"):
                if getattr(before, name) != getattr(outcome, name):
                    raise CannotEvaluate(
                        f"{model}: {self.label}: sample {outcome.sample}, attacked again to keep its image, has {name} "
                        f"{getattr(outcome, name)}, on record is {getattr(before, name)}; evaluate anew into another --db"
                    )


def assign(
    facts: Facts,
    label: str,
    rows: list[int],
    stage: Stage | None,
    recorded: Mapping[str, Outcome],
    clean: Mapping[str, Outcome],
) -> Assignment:
    """Return what an attack has to do for some rows at its stage; `stage` None stands for the clean images."""
    shares = None
    if stage is not None and facts.stochastic:
        shares = dict(zip(facts.samples, stage.best.tolist(), strict=True))
    forwards = sum(outcome.forwards for outcome in clean.values())
    seconds_a_pass = sum(outcome.seconds for outcome in clean.values()) / forwards if forwards else 0.0
    return Assignment(
        label=label,
        rows=rows,
        whole=facts.stochastic or label in facts.whole_tiles,
        missing=frozenset(facts.samples[row] for row in rows) - recorded.keys(),
        imageless=frozenset(),
        shares=shares,
        cascade=label in facts.cascade,
        seconds=seconds_a_pass * facts.passes.get(label, 0),
    )


def pending(facts: Facts, assignment: Assignment, request: Request) -> list[list[int]]:
    """Return the rows that are still to be judged, in batches."""
    tile, samples, wanted = request.tile, facts.samples, assignment.missing | assignment.imageless
    if assignment.whole:
        tiles = [assignment.rows[start : start + tile] for start in range(0, len(assignment.rows), tile)]
        return [rows for rows in tiles if any(samples[row] in wanted for row in rows)]
    rows = [row for row in assignment.rows if samples[row] in wanted]
    share, most = -(-len(rows) // facts.workers), max(request.batch_size, tile)
    # Each worker gets the same number of batches of one size, so that none waits for another.
    size = -(-len(rows) // max(1, facts.workers * -(-share // most)))
    # An interruption loses the batches in progress.
    size = min(size, max(_FEW_ROWS, int(_LONG / assignment.seconds))) if assignment.seconds else size
    return [rows[start : start + size] for start in range(0, len(rows), max(size, 1))]
