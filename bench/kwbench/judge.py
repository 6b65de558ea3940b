"""The judge: it alone decides what an attack has achieved, by measuring everything again.

Distances in float64, the pixel range, and fresh float32 predictions. For stochastic models a proposal is scored twice, on
selection draws, by which the worst attack of a sample is chosen, and on fresh draws that no choice has seen. In a cascade the
draws end as soon as it is certain that a proposal will not be chosen.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kwbench.attacks.attack import Attack
from kwbench.data import Batch
from kwbench.errors import CannotEvaluate, KwbenchError, UsageError
from kwbench.geometry import TOLERANCE, distance, project
from kwbench.model import Model, raise_if_memory_is_out
from kwbench.outcome import CLEAN, Outcome, Status
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel

# Raise it with any change that can change an outcome; see tests/golden.
REVISION = 1

SELECTION_DRAWS = 50
FRESH_DRAWS = 100
# In a cascade, the selection draws after which proposals that can no longer be chosen are left.
SCREENING_DRAWS = 10


def judge_clean(model: Model, batch: Batch, seed: int) -> list[Outcome]:
    """What the model says of the images themselves.

    Raises CannotEvaluate if a logit is not finite: such a model cannot be evaluated, and argmax would call NaN class 0.
    """
    outcomes = []
    for tile in batch.tiles(model.tile):
        started = time.perf_counter()
        with model.metering(len(tile)), model.raising_by_name():
            score = _score(model, tile, tile.x, seed, CLEAN)
            forwards, backwards = model.work()
        if not all(score.finite):
            row = score.finite.index(False)
            raise CannotEvaluate(
                f"{model.name}: logits of clean image {tile.indices[row]} are not finite; "
                "mend the model, NaN and infinity are not predictions"
            )
        seconds = (time.perf_counter() - started) / len(tile)
        for row in range(len(tile)):
            predicted = score.predicted[row]
            outcome = Outcome(
                sample=tile.samples[row],
                index=tile.indices[row],
                label=int(tile.y[row]),
                status=Status.WRONG if score.broken[row] else Status.HELD,
                clean_prediction=predicted,
                prediction=predicted,
                distance=0.0,
                forwards=forwards[row],
                backwards=backwards[row],
                seconds=seconds,
            )
            outcomes.append(score.onto(outcome, row))
    return outcomes


def judge(
    model: Model,
    attack: Attack,
    label: str,
    batch: Batch,
    threat: ThreatModel,
    seed: int,
    clean: Sequence[Outcome],
    *,
    to_beat: Sequence[int] | None = None,
    keep: bool = False,
) -> list[Outcome]:
    """One outcome for each sample of the batch. `label` is the attack's name in the suite, `clean` what `judge_clean` said.

    `to_beat`, for stochastic models in a cascade: the fewest right selection draws so far, one for each sample of the batch. A
    proposal that does not fall below has no fresh draws and may have fewer selection draws; its status goes by those.
    `keep`: outcomes carry the image that was judged, those of deterministic models where it is broken.

    Deterministic models: samples that are wrong before the attack are not attacked, but by natural perturbations, whose
    predictions are kept; the status stays `wrong`. Stochastic models: all are.
    An attack that raises, or drives the model to raise, leaves `error` rows. Running out of memory is raised on, for the
    runner to back off; so is what ails the model as such. Raises UsageError for a norm in which the attack cannot search.
    """
    if threat.norm not in attack.norms:
        raise UsageError(f"attack {label!r} works in {', '.join(sorted(attack.norms))}, not in {threat.norm}")
    bars = dict(zip(batch.samples, to_beat, strict=True)) if to_beat is not None else None
    case = _Case(model, attack, label, threat, seed, bars, keep)
    groups = batch.tiles(model.tile) if model.stochastic or attack.whole_tiles else [batch]
    before = {outcome.sample: outcome for outcome in clean}
    outcomes: list[Outcome] = []
    for group in groups:
        outcomes += _judge_group(case, group, [before[sample] for sample in group.samples])
    return outcomes


@dataclass(frozen=True, slots=True)
class _Case:
    """Who is attacked, by what, within which ball, where the random numbers come from, and what is asked for besides."""

    model: Model
    attack: Attack
    label: str
    threat: ThreatModel
    seed: int
    # By sample; None: every proposal is scored in full.
    to_beat: Mapping[str, int] | None
    keep: bool

    @property
    def searchers(self) -> list[Model]:
        """The models whose work is the attack's."""
        source = self.attack.source
        return [self.model] if source is None or source is self.model else [self.model, source]


def _judge_group(case: _Case, batch: Batch, clean: list[Outcome]) -> list[Outcome]:
    right = [outcome.status is not Status.WRONG for outcome in clean]
    rows = [row for row in range(len(batch)) if right[row] or case.model.stochastic or case.attack.natural]
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
    chosen = list(range(len(batch))) if case.attack.whole_tiles else rows
    judged = _attack(case, batch.take(chosen), [outcomes[row] for row in chosen])
    attacked = set(rows)
    for row, outcome in zip(chosen, judged, strict=True):
        if row in attacked:
            outcomes[row] = outcome if right[row] else replace(outcome, status=_unless_failed(outcome.status))
    return outcomes


def _unless_failed(status: Status) -> Status:
    return status if status in (Status.INVALID, Status.ERROR) else Status.WRONG


def _attack(case: _Case, batch: Batch, drafts: list[Outcome]) -> list[Outcome]:
    """Run the attack; where it raises, find out which samples are to blame by attacking each alone (deterministic models)."""
    rng = SampleRandom(case.seed, case.label, batch.samples)
    started = time.perf_counter()
    try:
        with ExitStack() as meters:
            for searcher in case.searchers:
                meters.enter_context(searcher.metering(len(batch)))
                searcher.reseed(case.seed, case.label, "search", *batch.samples)
            # Copies: an attack that writes into its input must not move the images it is measured against.
            proposal = case.attack(case.model, batch.x.clone(), batch.y.clone(), case.threat, rng)
            work = [searcher.work() for searcher in case.searchers]
        seconds = (time.perf_counter() - started) / len(batch)
        outcomes = _verdicts(case, batch, proposal, drafts)
    except (torch.OutOfMemoryError, MemoryError, KwbenchError):
        raise
    except Exception as failure:  # noqa: BLE001 - foreign code may raise anything; it becomes a row, never robustness
        raise_if_memory_is_out(failure)
        if len(batch) > 1 and not case.model.stochastic and not case.attack.whole_tiles:
            return [outcome for row, draft in enumerate(drafts) for outcome in _attack(case, batch.take([row]), [draft])]
        note = f"{type(failure).__name__}: {failure}"[:500]
        return [replace(draft, status=Status.ERROR, prediction=None, note=note) for draft in drafts]
    return [
        replace(
            outcome,
            forwards=sum(forwards[row] for forwards, _ in work),
            backwards=sum(backwards[row] for _, backwards in work),
            seconds=seconds,
        )
        for row, outcome in enumerate(outcomes)
    ]


def _verdicts(case: _Case, batch: Batch, proposal: Tensor, drafts: list[Outcome]) -> list[Outcome]:
    """Measure each proposal and ask the model again."""
    model, attack, threat, x = case.model, case.attack, case.threat, batch.x
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
    safe = torch.where(valid.view(-1, 1, 1, 1), z.clamp(0, 1), x)

    at_distance = torch.where((valid & inside).view(-1, 1, 1, 1), safe, x)
    by_rule = {"distance": at_distance, "clipped": project(safe, x, threat) if attack.minimum_norm else at_distance}
    rule = attack.judged if attack.minimum_norm else "distance"
    final = _score(model, batch, by_rule[rule], case.seed, case.label, case.to_beat)
    other, found = None, [True] * len(drafts)
    if attack.minimum_norm:
        other_rule = "clipped" if rule == "distance" else "distance"
        other = _score(model, batch, by_rule[other_rule], case.seed, f"{case.label} {other_rule}", case.to_beat)
        if not model.stochastic:
            # The distance of a point that fools nobody is the distance of nothing.
            found = _score(model, batch, safe, case.seed, case.label).broken
    surrogate = None
    if attack.source is not None:
        attack.source.reseed(case.seed, case.label, "surrogate", *batch.samples)
        surrogate = attack.source.predict(by_rule[rule])[0].tolist()

    outcomes = []
    are_valid, are_finite, are_in_range, lengths = (each.tolist() for each in (valid, finite, in_range, far))
    for row, draft in enumerate(drafts):
        if not are_valid[row]:
            measured = lengths[row] if are_finite[row] else None
            note = _why_invalid(are_finite[row], are_in_range[row], measured)
            outcomes.append(replace(draft, status=Status.INVALID, prediction=None, distance=measured, note=note))
            continue
        outcome = replace(
            draft,
            status=final.status(row),
            other_status=other.status(row) if other is not None else None,
            prediction=final.predicted[row],
            distance=lengths[row] if found[row] else None,
            surrogate_prediction=surrogate[row] if surrogate is not None else None,
            note=(
                "the logits of the adversarial image are not finite"
                if not final.finite[row]
                else ""
                if found[row]
                else "found no adversarial image at any distance"
            ),
        )
        if case.keep and (model.stochastic or final.broken[row]):
            outcome = replace(outcome, image=by_rule[rule][row].cpu().numpy())
        outcomes.append(final.onto(outcome, row))
    return outcomes


def _why_invalid(finite: bool, in_range: bool, far: float | None) -> str:
    if not finite:
        return "proposed a pixel that is not finite"
    if not in_range:
        return "proposed a pixel outside [0, 1]"
    return f"proposed a point at distance {far:.6g}, outside the ball"


def _score(model: Model, batch: Batch, z: Tensor, seed: int, label: str, to_beat: Mapping[str, int] | None = None) -> "_Score":
    """What the model says of z (b, c, h, w), in float32 and anew."""
    model.reseed(seed, label, "predict", *batch.samples)
    predicted, finite = model.predict(z)
    if not model.stochastic:
        return _Score(predicted.tolist(), finite.tolist(), ((predicted != batch.y) | ~finite).tolist(), None)
    rows = torch.arange(len(z), device=z.device)
    bar = torch.full_like(rows, SELECTION_DRAWS + 1)
    if to_beat is not None:
        bar = torch.tensor([to_beat[sample] for sample in batch.samples], device=z.device)
    # Right answers and draws of the selection, then of the scoring.
    tally = torch.zeros((4, len(z)), dtype=torch.long, device=z.device)
    for purpose, right, draws in (
        ("selection", 0, SCREENING_DRAWS),
        (None, 0, SELECTION_DRAWS - SCREENING_DRAWS),
        ("fresh", 2, FRESH_DRAWS),
    ):
        if purpose is not None:
            model.reseed(seed, label, purpose, *batch.samples)
        rows = rows[tally[0, rows] < bar[rows]]
        if len(rows):
            correct, always_finite = model.count_correct(z[rows], batch.y[rows], draws)
            tally[right, rows] += correct
            tally[right + 1, rows] += draws
            finite[rows] &= always_finite
    selection, selection_draws, fresh, fresh_draws = tally
    broken = torch.where(fresh_draws > 0, 2 * fresh < fresh_draws, 2 * selection < selection_draws)
    return _Score(predicted.tolist(), finite.tolist(), broken.tolist(), tally.T.tolist())


@dataclass(frozen=True, slots=True)
class _Score:
    """Row by row: predictions, which samples had only finite answers, and which are broken: by one answer if the model is
    deterministic (also one that is not finite), else by most of the fresh draws, or of the selection draws where there are no
    fresh ones. `counts` are a stochastic model's: right and all selection draws, right and all fresh draws, of each row.
    """

    # Lists: to ask a tensor for one value after the other costs more than a small pass.
    predicted: list[int]
    finite: list[bool]
    broken: list[bool]
    counts: list[list[int]] | None

    def status(self, row: int) -> Status:
        """The status of a sample that was right before the attack."""
        return Status.BROKEN if self.broken[row] else Status.HELD

    def onto(self, outcome: Outcome, row: int) -> Outcome:
        """The outcome with the row's counts, if there are any."""
        if self.counts is None:
            return outcome
        selection, selection_draws, fresh, fresh_draws = self.counts[row]
        return replace(
            outcome,
            selection_correct=selection,
            selection_draws=selection_draws,
            fresh_correct=fresh,
            fresh_draws=fresh_draws,
        )
