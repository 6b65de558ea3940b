"""The judge: it alone decides what an attack has achieved, by measuring everything again.

Distances in float64, the pixel range, and fresh float32 predictions. For stochastic models a proposal is scored twice, on
selection draws, by which the worst attack of a sample is chosen, and on fresh draws that no choice has seen.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kwbench.attacks.attack import Attack
from kwbench.errors import CannotEvaluate, KwbenchError
from kwbench.geometry import TOLERANCE, distance, project
from kwbench.data import Batch
from kwbench.model import Model
from kwbench.outcome import Outcome, Status
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel

SELECTION_DRAWS = 50
FRESH_DRAWS = 100

# The name under which the clean images themselves are on record.
CLEAN = "clean"


def judge_clean(model: Model, batch: Batch, seed: int) -> list[Outcome]:
    """What the model says of the images themselves.

    Raises CannotEvaluate if a logit is not finite: such a model cannot be evaluated, and argmax would call NaN class 0.
    """
    outcomes = []
    for tile in batch.tiles(model.tile):
        started = time.perf_counter()
        with model.metering(len(tile)):
            model.reseed(seed, CLEAN, "predict", *tile.samples)
            predicted, finite = model.predict(tile.x)
            if not bool(finite.all()):
                row = int((~finite).nonzero()[0])
                raise CannotEvaluate(
                    f"{model.name}: logits of clean image {tile.indices[row]} are not finite; "
                    "mend the model, NaN and infinity are not predictions"
                )
            counts = _Counts.of(model, tile, tile.x, seed, CLEAN) if model.stochastic else _Counts.none(len(tile))
            forwards, backwards = model.work()
        seconds = (time.perf_counter() - started) / len(tile)
        for row in range(len(tile)):
            right = counts.majority(row) if model.stochastic else int(predicted[row]) == int(tile.y[row])
            outcomes.append(
                counts.onto(
                    Outcome(
                        sample=tile.samples[row],
                        index=tile.indices[row],
                        label=int(tile.y[row]),
                        status=Status.HELD if right else Status.WRONG,
                        clean_prediction=int(predicted[row]),
                        prediction=int(predicted[row]),
                        distance=0.0,
                        forwards=forwards[row],
                        backwards=backwards[row],
                        seconds=seconds,
                    ),
                    row,
                )
            )
    return outcomes


def judge(
    model: Model,
    attack: Attack,
    label: str,
    batch: Batch,
    threat: ThreatModel,
    seed: int,
    clean: Sequence[Outcome],
) -> list[Outcome]:
    """One outcome for each sample of the batch. `label` is the attack's name in the suite, `clean` what `judge_clean` said.

    Deterministic models: samples that are wrong before the attack are not attacked. Stochastic models: all are.
    An attack that raises leaves `error` rows. Running out of GPU memory is raised on, for the runner to back off.
    """
    groups = batch.tiles(model.tile) if model.stochastic or attack.whole_tiles else [batch]
    outcomes: list[Outcome] = []
    for group in groups:
        before = {outcome.sample: outcome for outcome in clean}
        outcomes += _judge_group(model, attack, label, group, threat, seed, [before[sample] for sample in group.samples])
    return outcomes


def _judge_group(
    model: Model, attack: Attack, label: str, batch: Batch, threat: ThreatModel, seed: int, clean: list[Outcome]
) -> list[Outcome]:
    right = [outcome.status is not Status.WRONG for outcome in clean]
    rows = [row for row in range(len(batch)) if right[row] or model.stochastic]
    outcomes = [
        Outcome(
            sample=batch.samples[row],
            index=batch.indices[row],
            label=int(batch.y[row]),
            status=Status.WRONG,
            clean_prediction=clean[row].clean_prediction,
            prediction=clean[row].clean_prediction,
        )
        for row in range(len(batch))
    ]
    if not rows:
        return outcomes
    # A library that draws from global generators must see a tile whole, so that its draws fall as they always do.
    chosen = list(range(len(batch))) if attack.whole_tiles else rows
    judged = _attack(model, attack, label, batch.take(chosen), threat, seed, [outcomes[row] for row in chosen])
    for row, outcome in zip(chosen, judged, strict=True):
        if row in set(rows):
            outcomes[row] = outcome if right[row] else replace(outcome, status=_unless_failed(outcome.status))
    return outcomes


def _unless_failed(status: Status) -> Status:
    return status if status in (Status.INVALID, Status.ERROR) else Status.WRONG


def _attack(
    model: Model, attack: Attack, label: str, batch: Batch, threat: ThreatModel, seed: int, drafts: list[Outcome]
) -> list[Outcome]:
    """Run the attack; where it raises, find out which samples are to blame by attacking each alone (deterministic models)."""
    rng = SampleRandom(seed, label, batch.samples)
    started = time.perf_counter()
    with model.metering(len(batch)):
        model.reseed(seed, label, "search", *batch.samples)
        try:
            proposal = attack(model, batch.x, batch.y, threat, rng)
        except (torch.OutOfMemoryError, KwbenchError):
            raise
        except Exception as failure:  # noqa: BLE001 - foreign code may raise anything; it becomes a row, never robustness
            if len(batch) > 1 and not model.stochastic and not attack.whole_tiles:
                return [
                    outcome
                    for row, draft in enumerate(drafts)
                    for outcome in _attack(model, attack, label, batch.take([row]), threat, seed, [draft])
                ]
            note = f"{type(failure).__name__}: {failure}"[:500]
            return [replace(draft, status=Status.ERROR, prediction=None, note=note) for draft in drafts]
        forwards, backwards = model.work()
    seconds = (time.perf_counter() - started) / len(batch)
    outcomes = _verdicts(model, attack, label, batch, threat, seed, proposal, drafts)
    return [
        replace(outcome, forwards=forwards[row], backwards=backwards[row], seconds=seconds)
        for row, outcome in enumerate(outcomes)
    ]


def _verdicts(
    model: Model,
    attack: Attack,
    label: str,
    batch: Batch,
    threat: ThreatModel,
    seed: int,
    proposal: Tensor,
    drafts: list[Outcome],
) -> list[Outcome]:
    x, y = batch.x, batch.y
    if not isinstance(proposal, Tensor) or proposal.shape != x.shape:
        got = tuple(proposal.shape) if isinstance(proposal, Tensor) else type(proposal).__name__
        note = f"proposed {got} where {tuple(x.shape)} was asked for"
        return [replace(draft, status=Status.INVALID, prediction=None, note=note) for draft in drafts]
    z = proposal.detach().to(x)
    finite = z.isfinite().flatten(1).all(dim=1)
    in_range = (z >= -TOLERANCE).flatten(1).all(dim=1) & (z <= 1 + TOLERANCE).flatten(1).all(dim=1)
    far = distance(x, torch.where(finite.view(-1, 1, 1, 1), z, x), threat.norm)
    inside = far <= threat.radius + TOLERANCE
    valid = finite & in_range & (inside | attack.minimum_norm)
    safe = torch.where(valid.view(-1, 1, 1, 1), z, x)

    at_distance = torch.where((valid & inside).view(-1, 1, 1, 1), safe, x)
    clipped = project(safe, x, threat) if attack.minimum_norm else at_distance
    by_rule = {"distance": at_distance, "clipped": clipped}
    rule: str = getattr(attack, "judged", "distance")
    other = "clipped" if rule == "distance" else "distance"
    final, counts, broken, flagged = _score(model, batch, by_rule[rule], seed, label)
    other_broken = broken
    if attack.minimum_norm:
        _, _, other_broken, _ = _score(model, batch, by_rule[other], seed, f"{label} {other}")
    source: Model | None = getattr(attack, "source", None)
    surrogate = source.predict(by_rule[rule])[0].tolist() if source is not None else None

    outcomes = []
    for row, draft in enumerate(drafts):
        if not bool(valid[row]):
            note = (
                "proposed a pixel that is not finite"
                if not bool(finite[row])
                else "proposed a pixel outside [0, 1]"
                if not bool(in_range[row])
                else f"proposed a point at distance {float(far[row]):.6g}, outside the ball"
            )
            outcomes.append(
                replace(
                    draft,
                    status=Status.INVALID,
                    prediction=None,
                    distance=float(far[row]) if bool(finite[row]) else None,
                    note=note,
                )
            )
            continue
        outcomes.append(
            counts.onto(
                replace(
                    draft,
                    status=Status.BROKEN if bool(broken[row]) else Status.HELD,
                    other_status=None
                    if not attack.minimum_norm
                    else Status.BROKEN
                    if bool(other_broken[row])
                    else Status.HELD,
                    prediction=int(final[row]),
                    distance=float(far[row]),
                    surrogate_prediction=surrogate[row] if surrogate is not None else None,
                    note="the logits of the adversarial image are not finite" if bool(flagged[row]) else "",
                ),
                row,
            )
        )
    return outcomes


def _score(model: Model, batch: Batch, z: Tensor, seed: int, label: str) -> tuple[Tensor, "_Counts", Tensor, Tensor]:
    """Predictions, draw counts, which samples are broken, and which answers were not finite (which counts as broken)."""
    model.reseed(seed, label, "predict", *batch.samples)
    predicted, finite = model.predict(z)
    if not model.stochastic:
        return predicted, _Counts.none(len(batch)), (predicted != batch.y) | ~finite, ~finite
    counts = _Counts.of(model, batch, z, seed, label)
    broken = torch.tensor([not counts.majority(row) for row in range(len(batch))])
    return predicted, counts, broken, ~finite


@dataclass(frozen=True, slots=True)
class _Counts:
    """Correct answers among selection draws and among fresh draws, one entry a sample."""

    selection: list[int]
    fresh: list[int]
    drawn: bool

    @classmethod
    def none(cls, size: int) -> "_Counts":
        return cls([0] * size, [0] * size, drawn=False)

    @classmethod
    def of(cls, model: Model, batch: Batch, z: Tensor, seed: int, label: str) -> "_Counts":
        model.reseed(seed, label, "selection", *batch.samples)
        selection = model.count_correct(z, batch.y, SELECTION_DRAWS)
        model.reseed(seed, label, "fresh", *batch.samples)
        fresh = model.count_correct(z, batch.y, FRESH_DRAWS)
        return cls(selection.tolist(), fresh.tolist(), drawn=True)

    def majority(self, row: int) -> bool:
        return 2 * self.fresh[row] >= FRESH_DRAWS

    def onto(self, outcome: Outcome, row: int) -> Outcome:
        if not self.drawn:
            return outcome
        return replace(
            outcome,
            selection_correct=self.selection[row],
            selection_draws=SELECTION_DRAWS,
            fresh_correct=self.fresh[row],
            fresh_draws=FRESH_DRAWS,
        )
