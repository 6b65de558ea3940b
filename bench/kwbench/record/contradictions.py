"""Contradictions between certificates and attacks: one of the two is wrong, or the model does not always answer alike.

A deterministic certificate says that no image of a ball is misclassified. A misclassified image of that ball contradicts it,
whichever evaluation found it, in whatever norm and radius.

The certificate of a model with Gaussian noise bounds the probability of a right answer at every image of the ball from below.
Single wrong answers do not contradict it. Right answers must be rarer than the bound allows, in tests whose error is 0.001 for
an evaluation, as large as that of the bounds. The fresh draws of an attack are fit for them, because no choice has seen them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from kwbench.outcome import Outcome, Status
from kwbench.record.certificates import CERTIFICATE, CONFIDENCE, model_asked
from kwbench.record.evaluation import Evaluation
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import Summary
from kwbench.threat import NORMS, ThreatModel

# Half of the error is for single samples, half for their mean.
_ERROR = (1 - CONFIDENCE) / 2


@dataclass(frozen=True, slots=True)
class Contradiction:
    """An attack's outcome on a sample that a certificate rules out; `position` of the sample in the split."""

    model: str
    dataset: str
    certified: ThreatModel
    attack: str
    position: int

    def __str__(self) -> str:
        sample = f"{self.model} on {self.dataset}: image {self.position}"
        return f"{sample} is certified in {self.certified}, and {self.attack} broke it"


def contradictions(store: Store) -> list[Contradiction]:
    """Return the contradictions between all certificates and all attacks on record."""
    evaluations = store.evaluations()
    return [
        *_of_deterministic_models(store, evaluations),
        *(
            contradiction
            for summary in summaries(store, [one for one in evaluations if one.spec.stochastic])
            for contradiction in _of_gaussian_bounds(store, summary)
        ),
    ]


def rarer_than_bounds(right: ArrayLike, draws: ArrayLike, bounds: ArrayLike) -> NDArray[np.bool_]:
    """Return, as (n,), whether right answers are rarer than their probabilities, which are at least `bounds`, allow.

    `right` (n,) are right answers among independent `draws` (n,). If the bounds hold, some entry is true with a probability
    of at most 0.0005 (Bonferroni).
    """
    right, draws, bounds = (np.asarray(values, dtype=np.float64) for values in (right, draws, bounds))
    rare: NDArray[np.bool_] = special.bdtr(right, draws.astype(np.int64), bounds) < _ERROR / max(len(right), 1)
    return rare


def mean_is_below_bounds(right: ArrayLike, draws: ArrayLike, bounds: ArrayLike) -> bool:
    """Return whether right answers are rarer in the mean than their probabilities, which are at least `bounds`, allow.

    Arguments as in `rarer_than_bounds`. If the bounds hold, it is true with a probability of at most 0.0005. For a sum of
    independent answers of different probabilities the binomial of the mean probability is the worst case, up to one answer
    below the mean (Hoeffding 1956, Annals of Mathematical Statistics 27, theorem 4).
    """
    right, draws, bounds = (np.asarray(values, dtype=np.float64) for values in (right, draws, bounds))
    total, answers = float(right.sum()), int(draws.sum())
    expected = float((draws * bounds).sum())
    return total <= expected - 1 and bool(special.bdtr(total, answers, expected / answers) < _ERROR)


def below_gaussian_bounds(summary: Summary, outcomes: Mapping[str, Iterable[Outcome]]) -> tuple[list[tuple[str, int]], bool]:
    """Return where right answers are rarer than the Gaussian bounds of an evaluation allow: labels of attacks with positions of
    samples, and whether they are in the mean of the worst cases. `outcomes` are by label of the attack."""
    if summary.certified_values is None:
        return [], False
    bounds = dict(zip(summary.index.tolist(), summary.certified_values.tolist(), strict=True))
    tested = [
        (label, outcome)
        for label, run in outcomes.items()
        for outcome in run
        if outcome.fresh_draws and outcome.index in bounds
    ]
    worst: dict[int, Outcome] = {}
    for _, outcome in tested:
        least = worst.setdefault(outcome.index, outcome)
        if _selected(outcome) < _selected(least):
            worst[outcome.index] = outcome
    if not worst:
        return [], False
    rare = rarer_than_bounds(*_columns([outcome for _, outcome in tested], bounds))
    places = [(label, outcome.index) for (label, outcome), flag in zip(tested, rare.tolist(), strict=True) if flag]
    return places, mean_is_below_bounds(*_columns(list(worst.values()), bounds))


def _selected(outcome: Outcome) -> float:
    return outcome.selection_correct / max(outcome.selection_draws, 1)


def _columns(outcomes: Sequence[Outcome], bounds: Mapping[int, float]) -> tuple[list[int], list[int], list[float]]:
    return (
        [outcome.fresh_correct for outcome in outcomes],
        [outcome.fresh_draws for outcome in outcomes],
        [bounds[outcome.index] for outcome in outcomes],
    )


def _of_gaussian_bounds(store: Store, summary: Summary) -> Iterator[Contradiction]:
    evaluation = summary.evaluation
    outcomes = {label: store.outcomes(run) for label, run in evaluation.attack_runs.items()}
    for label, position in below_gaussian_bounds(summary, outcomes)[0]:
        yield Contradiction(summary.model, summary.dataset, summary.threat, label, position)


def _of_deterministic_models(store: Store, evaluations: Sequence[Evaluation]) -> Iterator[Contradiction]:
    by_model: dict[str, dict[ThreatModel, set[str]]] = {}
    for measurement in store.experiments(of=CERTIFICATE):
        origin = measurement.spec["origin"]
        proved = np.asarray(measurement.arrays["bound"]) > 0
        samples = {sample for sample, flag in zip(measurement.spec["samples"], proved.tolist(), strict=True) if flag}
        threat = ThreatModel.of(origin["norm"], origin["eps"])
        by_model.setdefault(model_asked(origin), {}).setdefault(threat, set()).update(samples)
    for evaluation in evaluations:
        certificates = by_model.get(model_asked(evaluation.origin))
        if certificates is None or evaluation.spec.stochastic:
            continue
        for attack in evaluation.spec.attacks:
            minimum_norm = bool(attack.spec.get("declared", {}).get("minimum_norm"))
            for outcome in store.outcomes(evaluation.attack_runs[attack.label]):
                reached = _reached(outcome, evaluation.spec.threat, minimum_norm)
                for threat, samples in certificates.items():
                    if outcome.sample in samples and reached is not None and _lies_in(reached, evaluation.spec.threat, threat):
                        spec = evaluation.spec
                        yield Contradiction(spec.model, spec.dataset, threat, attack.label, outcome.index)


def _reached(outcome: Outcome, threat: ThreatModel, minimum_norm: bool) -> float | None:
    """Return a radius within which the outcome shows a misclassified image; None if it shows none."""
    if outcome.status is Status.WRONG:
        return 0.0
    if outcome.status is Status.BROKEN:
        return threat.radius if outcome.distance is None else min(outcome.distance, threat.radius)
    # Minimum-norm attacks record the distance of adversarial images only, also of those outside the ball.
    return outcome.distance if outcome.status is Status.HELD and minimum_norm else None


def _lies_in(reached: float, threat: ThreatModel, certified: ThreatModel) -> bool:
    """Whether the ball of radius `reached` lies in the certified one: of one radius, the l1 ball is the smallest."""
    return NORMS.index(threat.norm) >= NORMS.index(certified.norm) and reached <= certified.radius
