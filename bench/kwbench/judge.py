"""The judge alone decides what an attack has achieved. It trusts nothing and measures everything again.

The rules for a proposal, in this order:

- It is `invalid` unless it is an image of the right shape, finite, within [0, 1], and inside the ball by its float64 distance.
  Proposals of minimum-norm attacks may lie outside the ball.
- A deterministic model is asked for its float32 prediction. The sample is `broken` if the prediction is wrong or the logits are
  no answer (one is NaN, or the largest is not finite), else `held`. Luck is not a break: unless the model is certain to repeat
  itself, what is broken is asked again under another seed, and 20 times if the answer differs. Then most of the answers decide.
- A stochastic model is asked many times: selection draws choose the worst attack of a sample, and fresh draws, which no choice
  has seen, score it. The sample is `broken` if most of the fresh draws are wrong. In a cascade, drawing stops as soon as the
  proposal cannot be chosen any more.
- A minimum-norm attack is judged by distance (a proposal outside the ball does not count) or clipped into the ball. The status
  under the rule that was not chosen is recorded too.
- An attack that raises leaves an `error`. Neither errors nor invalid proposals ever count as robustness.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kwbench.attacks.attack import Attack
from kwbench.data import Batch
from kwbench.errors import CannotEvaluate, KwbenchError, UsageError
from kwbench.geometry import distance, project
from kwbench.model import Model, are_answers, raise_if_memory_is_out
from kwbench.outcome import ASKED_AGAIN, CLEAN, Example, Outcome, Probabilities, Status
from kwbench.randomness import SampleRandom, derived_seed, seeded_globally
from kwbench.threat import TOLERANCE, ThreatModel

# Raise it with any change that can change an outcome; see tests/golden.
REVISION = 3

SELECTION_DRAWS = 50
FRESH_DRAWS = 100
# The most probable classes that an example holds.
SHOWN_CLASSES = 5
# In a cascade, proposals that cannot be chosen any more are dropped after so many selection draws.
SCREENING_DRAWS = 10
# How often a deterministic model is asked again about a broken image if its answers differ.
REPETITIONS = 20


def judge_clean(model: Model, batch: Batch, seed: int) -> list[Outcome]:
    """Return one outcome per sample for the images themselves: `held` if the prediction is correct, otherwise `wrong`.

    Raises CannotEvaluate if a logit is NaN or the largest is not finite: argmax would take NaN for class 0.
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
                "repair the model, NaN and infinity are not predictions (minus infinity may mask other classes)"
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
            outcomes.append(score.add_counts(outcome, row))
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
    examples: Collection[str] = (),
) -> list[Outcome]:
    """Run an attack and return one outcome per sample of the batch.

    Samples that a deterministic model misclassifies before the attack are only attacked by natural perturbations, whose
    predictions are recorded; their status stays `wrong`. Of a stochastic model, all samples are attacked.

    Args:
        model: the model under attack.
        attack: the attack.
        label: the name of the attack in the suite; part of the address of its random numbers.
        batch: the samples, with images in [0, 1].
        threat: the threat model.
        seed: the seed of the evaluation.
        clean: the outcomes of `judge_clean`, at least for these samples.
        to_beat: for stochastic models in a cascade, the fewest correct selection draws of any candidate so far, one per sample
            of the batch. A proposal that does not fall below has no fresh draws and may have fewer selection draws, which
            then decide its status.
        keep: whether outcomes hold the judged image; for deterministic models, only if it is broken.
        examples: the samples whose outcome holds an `Example` if they are broken.

    Raises:
        UsageError: the attack cannot search in the norm.
        MemoryError: out of memory, as is torch.OutOfMemoryError; the runner then takes fewer samples.
        KwbenchError: a failure of the model itself.
    """
    if threat.norm not in attack.norms:
        raise UsageError(f"attack {label!r} works in {', '.join(sorted(attack.norms))}, not in {threat.norm}")
    bars = dict(zip(batch.samples, to_beat, strict=True)) if to_beat is not None else None
    case = _Case(model, attack, label, threat, seed, bars, keep, frozenset(examples))
    groups = batch.tiles(model.tile) if model.stochastic or attack.whole_tiles else [batch]
    before = {outcome.sample: outcome for outcome in clean}
    outcomes: list[Outcome] = []
    for group in groups:
        outcomes += _judge_group(case, group, [before[sample] for sample in group.samples])
    return outcomes


@dataclass(frozen=True, slots=True)
class _Case:
    """The arguments of `judge` that all samples share. `to_beat` is by sample; None: every proposal is scored in full."""

    model: Model
    attack: Attack
    label: str
    threat: ThreatModel
    seed: int
    to_beat: Mapping[str, int] | None
    keep: bool
    examples: frozenset[str]

    @property
    def searchers(self) -> list[Model]:
        """Return the models whose passes count as the attack's."""
        source = self.attack.source
        return [self.model] if source is None or source is self.model else [self.model, source]


def _judge_group(case: _Case, batch: Batch, clean: list[Outcome]) -> list[Outcome]:
    """Judge the samples of a batch that are to be attacked; the others keep their clean prediction and the status `wrong`."""
    correct = [outcome.status is not Status.WRONG for outcome in clean]
    rows = [row for row in range(len(batch)) if correct[row] or case.model.stochastic or case.attack.natural]
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
    # An attack that draws from global generators must see the same whole tile each time, so that its draws repeat.
    chosen = list(range(len(batch))) if case.attack.whole_tiles else rows
    judged = _attack(case, batch.take(chosen), [outcomes[row] for row in chosen])
    attacked = set(rows)
    for row, outcome in zip(chosen, judged, strict=True):
        if row in attacked:
            outcomes[row] = outcome if correct[row] else replace(outcome, status=_unless_failed(outcome.status))
    return outcomes


def _unless_failed(status: Status) -> Status:
    return status if status in (Status.INVALID, Status.ERROR) else Status.WRONG


def _attack(case: _Case, batch: Batch, drafts: list[Outcome]) -> list[Outcome]:
    """Run the attack. If it raises on a deterministic model, attack each sample alone to isolate the failing ones."""
    rng = SampleRandom(case.seed, case.label, batch.samples)
    started = time.perf_counter()
    try:
        with ExitStack() as meters:
            for searcher in case.searchers:
                meters.enter_context(searcher.metering(len(batch)))
                searcher.reseed(case.seed, case.label, "search", *batch.samples)
            # Copies, because an attack may write into its input.
            proposal = case.attack(case.model, batch.x.clone(), batch.y.clone(), case.threat, rng)
            work = [searcher.work() for searcher in case.searchers]
        seconds = (time.perf_counter() - started) / len(batch)
        outcomes = _judge_proposals(case, batch, proposal, drafts)
    except (torch.OutOfMemoryError, MemoryError, KwbenchError):
        raise
    except Exception as failure:  # noqa: BLE001 - foreign code may raise anything
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


def _judge_proposals(case: _Case, batch: Batch, proposal: Tensor, drafts: list[Outcome]) -> list[Outcome]:
    """Measure each proposal (b, c, h, w) and predict it again."""
    model, attack, threat, x = case.model, case.attack, case.threat, batch.x
    if not isinstance(proposal, Tensor) or proposal.shape != x.shape:
        kind = tuple(proposal.shape) if isinstance(proposal, Tensor) else type(proposal).__name__
        note = f"proposed {kind} where {tuple(x.shape)} was expected"
        return [replace(draft, status=Status.INVALID, prediction=None, note=note) for draft in drafts]
    z = proposal.detach().to(x)
    measured = _measure(z, x, threat)
    valid = measured.finite & measured.in_range & (measured.inside | attack.minimum_norm)
    clamped = torch.where(_per_image(valid), z.clamp(0, 1), x)
    at_distance = torch.where(_per_image(valid & measured.inside), clamped, x)
    by_rule = {"distance": at_distance, "clipped": project(clamped, x, threat) if attack.minimum_norm else at_distance}
    rule = attack.judged if attack.minimum_norm else "distance"

    score = _score(model, batch, by_rule[rule], case.seed, case.label, case.to_beat)
    other_score, adversarial = None, [True] * len(drafts)
    if attack.minimum_norm:
        other_rule = "clipped" if rule == "distance" else "distance"
        other_score = _score(model, batch, by_rule[other_rule], case.seed, f"{case.label} {other_rule}", case.to_beat)
        if not model.stochastic:
            # Only an adversarial example has a distance worth recording.
            adversarial = _score(model, batch, clamped, case.seed, case.label).broken
    surrogate = None
    if attack.source is not None:
        attack.source.reseed(case.seed, case.label, "surrogate", *batch.samples)
        surrogate = attack.source.predict(by_rule[rule])[0].tolist()

    is_valid, lengths = valid.tolist(), measured.distance.tolist()
    shown = [row for row, sample in enumerate(batch.samples) if sample in case.examples and is_valid[row] and score.broken[row]]
    proposed = score.logits[shown] if score.logits is not None else None
    examples = (
        dict(zip(shown, _examples(case, batch.take(shown), by_rule[rule][shown], proposed), strict=True)) if shown else {}
    )
    outcomes = []
    for row, draft in enumerate(drafts):
        if not is_valid[row]:
            outcomes.append(_invalid(draft, row, measured))
            continue
        outcome = replace(
            draft,
            status=score.status(row),
            other_status=other_score.status(row) if other_score is not None else None,
            prediction=score.predicted[row],
            distance=lengths[row] if adversarial[row] else None,
            surrogate_prediction=surrogate[row] if surrogate is not None else None,
            note=score.note(row, adversarial[row]),
        )
        if case.keep and (model.stochastic or score.broken[row]):
            outcome = replace(outcome, image=by_rule[rule][row].cpu().numpy())
        if row in examples:
            outcome = replace(outcome, example=examples[row])
        outcomes.append(score.add_counts(outcome, row))
    return outcomes


def _examples(case: _Case, batch: Batch, z: Tensor, of_proposed: Tensor | None) -> list[Example]:
    """Return images z (b, c, h, w) that break the model as examples: residuals of 8 bits where these break it, too.

    `of_proposed` are the logits (b, k) of z by a deterministic model, None of a stochastic one.
    """
    model, x = case.model, batch.x
    scale = (z - x).abs().flatten(1).amax(dim=1).clamp(min=1e-9) / 127
    residual = ((z - x) / _per_image(scale)).round()
    decoded = (x + _per_image(scale) * residual).clamp(0, 1)
    inside = distance(x, decoded, case.threat.norm) <= case.threat.radius + TOLERANCE
    model.reseed(case.seed, case.label, "example", *batch.samples)
    if of_proposed is None:
        kept = inside & (2 * model.count_correct(decoded, batch.y, SELECTION_DRAWS)[0] < SELECTION_DRAWS)
        after = torch.where(_per_image(kept), decoded, z)
        shown = [_probabilities(draws) for draws in (_screen(model, x), _screen(model, after))]
    else:
        with torch.no_grad():
            of_clean, of_decoded = model(torch.cat([x, decoded])).chunk(2)
        kept = inside & _fails(of_decoded, batch.y)
        shown = [_probabilities([logits]) for logits in (of_clean, torch.where(kept[:, None], of_decoded, of_proposed))]
    small = kept.tolist()
    return [
        Example(
            clean=x[row].cpu().numpy(),
            residual=residual[row].to(torch.int8).cpu().numpy() if small[row] else None,
            scale=float(scale[row]),
            image=None if small[row] else z[row].cpu().numpy(),
            before=before,
            after=after,
        )
        for row, (before, after) in enumerate(zip(*shown, strict=True))
    ]


def _screen(model: Model, x: Tensor) -> list[Tensor]:
    """Return the logits (b, k) of SCREENING_DRAWS draws."""
    with torch.no_grad():
        return [model(x) for _ in range(SCREENING_DRAWS)]


def _probabilities(draws: list[Tensor]) -> list[Probabilities]:
    """Return the most probable classes of each image from logits (b, k) of draws: the mean of their probabilities."""
    mean = torch.stack([logits.softmax(dim=1) for logits in draws]).mean(dim=0)
    values, classes = mean.nan_to_num().topk(min(SHOWN_CLASSES, mean.shape[1]), dim=1)
    pairs = zip(classes.tolist(), values.tolist(), strict=True)
    return [tuple((number, round(value, 4)) for number, value in zip(*pair, strict=True)) for pair in pairs]


@dataclass(frozen=True, slots=True)
class _Measurements:
    """Of each proposal (b,): whether all pixels are finite and within [0, 1], its distance, and whether it is in the ball.

    The distance of a proposal with a pixel that is not finite is 0.
    """

    finite: Tensor
    in_range: Tensor
    distance: Tensor
    inside: Tensor


def _measure(z: Tensor, x: Tensor, threat: ThreatModel) -> _Measurements:
    finite = z.isfinite().flatten(1).all(dim=1)
    in_range = (z >= -TOLERANCE).flatten(1).all(dim=1) & (z <= 1 + TOLERANCE).flatten(1).all(dim=1)
    length = distance(x, torch.where(_per_image(finite), z, x), threat.norm)
    return _Measurements(finite, in_range, length, length <= threat.radius + TOLERANCE)


def _per_image(flags: Tensor) -> Tensor:
    """Return flags (b,) as (b, 1, 1, 1), to be broadcast over images."""
    return flags.view(-1, 1, 1, 1)


def _invalid(draft: Outcome, row: int, measured: _Measurements) -> Outcome:
    """Return the outcome of a proposal that is no image inside the ball."""
    length = float(measured.distance[row]) if bool(measured.finite[row]) else None
    if length is None:
        note = "proposed a pixel that is not finite"
    elif not bool(measured.in_range[row]):
        note = "proposed a pixel outside [0, 1]"
    else:
        note = f"proposed a point at distance {length:.6g}, outside the ball"
    return replace(draft, status=Status.INVALID, prediction=None, distance=length, note=note)


def _note(finite: bool, adversarial: bool) -> str:
    if not finite:
        return "the logits of the adversarial image are not finite"
    return "" if adversarial else "found no adversarial image at any distance"


def _score(model: Model, batch: Batch, z: Tensor, seed: int, label: str, to_beat: Mapping[str, int] | None = None) -> "_Score":
    """Predict z (b, c, h, w) in float32, with random numbers that depend on the label and the samples only."""
    model.reseed(seed, label, "predict", *batch.samples)
    if not model.stochastic:
        logits, repeats = model.answer(z)
        broken = _fails(logits, batch.y)
        spared = repeats or label == CLEAN
        failures = [REPETITIONS] * len(z) if spared else _failures_again(model, batch, z, logits, seed, label)
        kept = [was and 2 * failed > REPETITIONS for was, failed in zip(broken.tolist(), failures, strict=True)]
        return _Score(logits.argmax(dim=1).tolist(), are_answers(logits).tolist(), kept, None, failures, logits)
    predicted, finite = model.predict(z)
    rows = torch.arange(len(z), device=z.device)
    bar = torch.full_like(rows, SELECTION_DRAWS + 1)
    if to_beat is not None:
        bar = torch.tensor([to_beat[sample] for sample in batch.samples], device=z.device)
    # Rows: correct selection draws, selection draws, correct fresh draws, fresh draws.
    tally = torch.zeros((4, len(z)), dtype=torch.long, device=z.device)
    for purpose, row, draws in (
        ("selection", 0, SCREENING_DRAWS),
        (None, 0, SELECTION_DRAWS - SCREENING_DRAWS),
        ("fresh", 2, FRESH_DRAWS),
    ):
        if purpose is not None:
            model.reseed(seed, label, purpose, *batch.samples)
        rows = rows[tally[0, rows] < bar[rows]]
        if len(rows):
            correct, always_finite = model.count_correct(z[rows], batch.y[rows], draws)
            tally[row, rows] += correct
            tally[row + 1, rows] += draws
            finite[rows] &= always_finite
    selection, selection_draws, fresh, fresh_draws = tally
    broken = torch.where(fresh_draws > 0, 2 * fresh < fresh_draws, 2 * selection < selection_draws)
    return _Score(predicted.tolist(), finite.tolist(), broken.tolist(), tally.T.tolist())


def _failures_again(model: Model, batch: Batch, z: Tensor, first: Tensor, seed: int, label: str) -> list[int]:
    """Return how often z (b, c, h, w) fails when it is asked REPETITIONS times more; all of them where the logits repeat.

    `first` are the logits (b, k) of the first answer. Each time the global generators have another seed. One repetition shows
    whether anything changes.
    """
    failures = [REPETITIONS] * len(z)
    rows = _fails(first, batch.y).nonzero().flatten()
    answers: list[Tensor] = []
    for repetition in range(REPETITIONS):
        if not len(rows):
            return failures
        with torch.no_grad(), seeded_globally(derived_seed(seed, label, "again", repetition)):
            answers.append(model(z[rows]))
        if repetition == 0:
            changed = (answers[0].nan_to_num() != first[rows].nan_to_num()).any(dim=1)
            rows, answers = rows[changed], [answers[0][changed]]
    wrong = torch.stack([_fails(logits, batch.y[rows]) for logits in answers]).sum(dim=0)
    for row, count in zip(rows.tolist(), wrong.tolist(), strict=True):
        failures[row] = count
    return failures


def _fails(logits: Tensor, y: Tensor) -> Tensor:
    """Return which logits (b, k) are no answer (see `are_answers`) or predict another class than y, as (b,)."""
    return (logits.argmax(dim=1) != y) | ~are_answers(logits)


@dataclass(frozen=True, slots=True)
class _Score:
    """Predictions of a batch, one entry per sample.

    Attributes:
        predicted: the predicted class.
        finite: whether all logits were finite.
        broken: whether the sample is broken; without fresh draws, most of the selection draws decide.
        failures: for a deterministic model, of REPETITIONS repetitions, how many failed.
        logits: for a deterministic model, the logits (b, k).
        counts: for a stochastic model, correct selection draws, selection draws, correct fresh draws, fresh draws.
    """

    # Lists, because reading single values from a tensor costs more than a small forward pass.
    predicted: list[int]
    finite: list[bool]
    broken: list[bool]
    counts: list[list[int]] | None
    failures: list[int] = field(default_factory=list)
    logits: Tensor | None = None

    def note(self, row: int, adversarial: bool) -> str:
        """Return what there is to say about the row."""
        if self.failures and self.failures[row] < REPETITIONS:
            return f"{ASKED_AGAIN}: {self.failures[row]} of {REPETITIONS} answers are wrong"
        return _note(self.finite[row], adversarial)

    def status(self, row: int) -> Status:
        """Return the status of a sample that was correct before the attack."""
        return Status.BROKEN if self.broken[row] else Status.HELD

    def add_counts(self, outcome: Outcome, row: int) -> Outcome:
        """Return the outcome with the counts of the row, if there are any."""
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
