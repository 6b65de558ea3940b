"""Assignments: the samples that an attack still has to run on, and their division into tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kwbench.errors import CannotEvaluate
from kwbench.evaluation.execution.tasks import JudgeAttack, JudgeClean, Task
from kwbench.evaluation.request import Facts, Request
from kwbench.judge import SELECTION_DRAWS
from kwbench.outcome import CLEAN, Outcome, Status
from kwbench.record.cascade import Stage

# Batches are not made smaller than this: attacks that run several climbs per row nearly fill their passes with so many rows.
_LEAST_ROWS = 8
# The seconds that a batch should take at most.
_LONGEST_BATCH = 600.0


@dataclass(frozen=True, slots=True)
class Assignment:
    """The remaining work of one attack, or of the clean images.

    Attributes:
        label: label of the attack, or `CLEAN`.
        rows: positions in the slice of the samples that the attack sees.
        whole: whether an outcome depends on the other rows of its tile. The tiles must then always hold the same rows.
        missing: samples without a recorded outcome.
        imageless: samples with a recorded outcome whose adversarial image is still to be stored.
        shares: lowest share of correct selection draws so far, by sample; None for a deterministic model and for clean images.
        cascade: whether the attack is part of a cascade.
        seconds: estimate of the longest time that a sample takes on one core; 0 if unknown.
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
        """Return whether to store an outcome's image: it is broken, or for a stochastic model better than all before."""
        if self.shares is None:
            return outcome.status is Status.BROKEN
        draws = outcome.selection_draws
        return draws > 0 and outcome.selection_correct / draws < self.shares[outcome.sample]

    def successes(self, recorded: Mapping[str, Outcome], samples: Sequence[str]) -> frozenset[str]:
        """Return the samples that the attack sees and whose recorded outcome has an image to store."""
        seen = {samples[row] for row in self.rows}
        return frozenset(
            outcome.sample for outcome in recorded.values() if outcome.sample in seen and self.keeps_image(outcome)
        )

    def tasks(self, request: Request, facts: Facts, clean: Mapping[str, Outcome]) -> list[Task[list[Outcome]]]:
        """Return the tasks that complete the assignment. `clean` are the outcomes on the clean images, by sample."""
        return [self._task(rows, facts, clean) for rows in pending(facts, self, request)]

    def tiles(self, request: Request, facts: Facts, clean: Mapping[str, Outcome]) -> dict[int, Task[list[Outcome]]]:
        """Return the same work as one task for each tile of `rows`, by the number of the tile.

        Drivers that share a record number the tiles alike, whatever each of them misses.
        """
        tasks = {}
        for number, start in enumerate(range(0, len(self.rows), request.tile_size)):
            rows = self.rows[start : start + request.tile_size]
            wanted = [row for row in rows if facts.samples[row] in self.missing]
            if wanted:
                tasks[number] = self._task(rows if self.whole else wanted, facts, clean)
        return tasks

    def _task(self, rows: list[int], facts: Facts, clean: Mapping[str, Outcome]) -> Task[list[Outcome]]:
        if self.label == CLEAN:
            return JudgeClean(rows)
        samples = [facts.samples[row] for row in rows]
        return JudgeAttack(self.label, rows, [clean[sample] for sample in samples], self._to_beat(samples))

    def _to_beat(self, samples: Sequence[str]) -> list[int] | None:
        """Return the numbers of correct selection draws that `judge.judge` has to fall below; None outside a cascade."""
        if self.shares is None or not self.cascade:
            return None
        return [round(self.shares[sample] * SELECTION_DRAWS) for sample in samples]

    def require_equal(self, outcomes: Sequence[Outcome], recorded: Mapping[str, Outcome], model: str) -> None:
        """Raise CannotEvaluate if an attack that ran again to store an image gives another outcome than the recorded one."""
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
    """Return the assignment of an attack for `rows` at its stage of the evaluation; `stage` is None for the clean images."""
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
    """Return the rows that are still to be judged, divided into batches."""
    tile, samples, wanted = request.tile_size, facts.samples, assignment.missing | assignment.imageless
    if assignment.whole:
        tiles = [assignment.rows[start : start + tile] for start in range(0, len(assignment.rows), tile)]
        return [rows for rows in tiles if any(samples[row] in wanted for row in rows)]
    rows = [row for row in assignment.rows if samples[row] in wanted]
    share, most = -(-len(rows) // facts.workers), max(request.batch_size, tile, *facts.tiles.values())
    # Each worker gets the same number of batches of equal size, so that no worker waits for another.
    size = -(-len(rows) // max(1, facts.workers * -(-share // most)))
    # Keep batches short, because an interruption loses those in progress.
    size = min(size, max(_LEAST_ROWS, int(_LONGEST_BATCH / assignment.seconds))) if assignment.seconds else size
    return [rows[start : start + size] for start in range(0, len(rows), max(size, 1))]
