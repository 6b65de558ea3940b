"""The numbers of an evaluation, derived from its outcomes and from nothing else: a pure view, computed anew each time.

Deterministic models: A_std is the share of samples that are right on the clean images, the accuracy under an attack the share
that it did not break, A_rob the share that no attack broke. Stochastic models: let p be the probability that a prediction is
right; A_std and the accuracy under an attack are means of p as measured on fresh draws, and A_rob is the mean of the fresh p
at ONE candidate for each sample, chosen by the selection draws. The minimum over fresh draws would be the winner's curse: ten
attacks that do nothing turn p = 0.87 into 0.79.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kwbench.outcome import Status
from kwbench.statistics import Interval, accuracy_of_hits, accuracy_of_values
from kwbench.store import AttackSpec, Evaluation, Store, Tally, pack
from kwbench.threat import ThreatModel

# The label of the clean images among the attacks of an evaluation.
CLEAN = "clean"

_LETTERS = {status: status.value[:1].encode() for status in Status}
_HELD = _LETTERS[Status.HELD]


@dataclass(frozen=True, slots=True)
class AttackStanding:
    """What one attack did.

    `n` counts its rows; in a cascade they are fewer than the samples. `accuracy` is None unless every sample has a verdict.
    `standing` is for cascades: the accuracy that is left after this attack and all before it.
    `statuses` counts rows; costs are sums over all rows, forwards and backwards in samples, `seconds` of the whole batch's
    time divided among its samples. `other_accuracy` is the accuracy under the judging rule that was not chosen (minimum-norm
    attacks), `surrogate_accuracy` the surrogate's own on the images made against it (transfer attacks).
    """

    name: str
    spec: AttackSpec
    n: int
    accuracy: Interval | None
    standing: Interval | None
    statuses: Mapping[str, int]
    forwards: int
    backwards: int
    seconds: float
    other_accuracy: Interval | None = None
    surrogate: str | None = None
    surrogate_accuracy: Interval | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """An evaluation and its numbers, fractions of 1 with 95 % intervals; None where there is no truthful number.

    `attacks` leaves out the clean images, whose numbers are `clean`. `complete` is false, and `missing` says why, if any
    attack lacks a verdict on any sample it should have seen; such an evaluation has no `a_rob` and is not ranked.
    `index`, `clean_values` and `robust_values` are the values behind A_std and A_rob, one a sample: 0 or 1, or a p-hat.
    """

    evaluation: Evaluation
    complete: bool
    missing: tuple[str, ...]
    a_std: Interval | None
    a_rob: Interval | None
    a_rob_as_in_paper: Interval | None
    clean: AttackStanding | None
    attacks: tuple[AttackStanding, ...]
    index: NDArray[np.int64] = field(repr=False, compare=False)
    clean_values: NDArray[np.float64] | None = field(repr=False, compare=False)
    robust_values: NDArray[np.float64] | None = field(repr=False, compare=False)

    @property
    def model(self) -> str:
        """The model's name."""
        return self.evaluation.spec.model

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return self.evaluation.spec.dataset

    @property
    def n(self) -> int:
        """How many samples the evaluation asks for."""
        return self.evaluation.spec.n

    @property
    def threat(self) -> ThreatModel:
        """What the adversary may do."""
        return self.evaluation.spec.threat

    @property
    def stochastic(self) -> bool:
        """Whether the model's predictions are random."""
        return self.evaluation.spec.stochastic

    @property
    def cascade(self) -> bool:
        """Whether each attack saw only the samples that still stood."""
        return bool(self.evaluation.spec.spec.get("cascade", False))


def standing(evaluation: Evaluation, frame: pd.DataFrame) -> Standing:
    """The numbers of one evaluation, from the outcomes of (at least) its attack runs, as `Store.frame` gives them."""
    return _standing(evaluation, pack(frame[frame["attack_run"].isin(evaluation.attack_runs.values())]))


def standings(store: Store, evaluations: Sequence[Evaluation] | None = None) -> list[Standing]:
    """The numbers of evaluations, by default of all on record, oldest first."""
    chosen = store.evaluations() if evaluations is None else evaluations
    runs = None if evaluations is None else sorted({run for each in chosen for run in each.attack_runs.values()})
    tallies = store.tallies(runs)
    return [_standing(each, tallies) for each in chosen]


class Comparison(NamedTuple):
    """Equal for evaluations whose numbers may stand in one table, and for no others."""

    dataset: str
    data: str
    n: int
    norm: str
    eps: str
    suite: str
    protocol: str
    prediction: str
    cascade: bool


def comparison_key(evaluation: Evaluation) -> Comparison:
    """Data set and slice, number of samples, threat model, suite with every parameter, and the rule of prediction.

    A suite may have attacks for stochastic models only; it is one protocol all the same if its definition is on record.
    """
    spec = evaluation.spec
    origin = origin_of(evaluation)
    protocol: Any = spec.spec.get("protocol")
    attacks: list[Any] = [(each.label, each.spec.get("parameters", {})) for each in spec.attacks]
    if isinstance(protocol, list):
        only = {each.get("label") for each in protocol if isinstance(each, Mapping) and each.get("when", "always") != "always"}
        attacks = [each for each in attacks if each[0] not in only]
    # A deterministic model answers the same under every rule of prediction.
    prediction = origin.get("prediction") if spec.stochastic else {"kind": "draw", "draws": 1}
    return Comparison(
        spec.dataset,
        str(origin.get("data_sha256")),
        spec.n,
        spec.threat.norm,
        str(spec.threat.eps),
        spec.suite,
        _text([protocol, attacks]),
        _text(prediction),
        bool(spec.spec.get("cascade", False)),
    )


def attacks_key(evaluation: Evaluation) -> str:
    """Equal for evaluations with the very same attacks and parameters."""
    return _text([(each.label, each.spec.get("parameters", {})) for each in evaluation.spec.attacks])


def origin_of(evaluation: Evaluation) -> Mapping[str, Any]:
    """What identifies model, data and code: hashes, seed, versions. Empty where the record has none."""
    origin = evaluation.spec.spec.get("origin")
    return origin if isinstance(origin, Mapping) else {}


def to_json(standing: Standing) -> dict[str, Any]:
    """The numbers as JSON values: accuracies as fractions of 1, None (null) where there is no truthful number."""
    return {
        "model": standing.model,
        "dataset": standing.dataset,
        "n": standing.n,
        "threat": {"norm": standing.threat.norm, "eps": standing.threat.radius, "exact": str(standing.threat.eps)},
        "suite": standing.evaluation.spec.suite,
        "stochastic": standing.stochastic,
        "complete": standing.complete,
        "missing": list(standing.missing),
        "run": standing.evaluation.spec.identity,
        "a_std": _interval_json(standing.a_std),
        "a_rob": _interval_json(standing.a_rob),
        "cascade": standing.cascade,
        "a_rob_as_in_paper": _interval_json(standing.a_rob_as_in_paper),
        "attacks": [_attack_json(each, standing.cascade) for each in standing.attacks],
    }


def to_frame(standings: Sequence[Standing]) -> pd.DataFrame:
    """One row for each evaluation and attack, the clean images included (attack `clean`); see `results`."""
    rows: list[dict[str, Any]] = []
    for each in standings:
        spec, origin = each.evaluation.spec, origin_of(each.evaluation)
        whole = {
            "model": spec.model,
            "dataset": spec.dataset,
            "suite": spec.suite,
            "norm": spec.threat.norm,
            "eps": spec.threat.radius,
            "eps_exact": str(spec.threat.eps),
            "n": spec.n,
            "stochastic": spec.stochastic,
            "cascade": each.cascade,
            "complete": each.complete,
            **_columns("a_std", each.a_std),
            **_columns("a_rob", each.a_rob),
            **_columns("a_rob_as_in_paper", each.a_rob_as_in_paper),
        }
        hashes = {
            "seed": origin.get("seed"),
            "model_sha256": origin.get("model_sha256"),
            "data_sha256": origin.get("data_sha256"),
            "run": spec.identity,
            "created": each.evaluation.created,
        }
        for attack in (*([each.clean] if each.clean is not None else []), *each.attacks):
            rows.append(
                whole
                | {"attack": attack.name, "rows": attack.n}
                | _columns("accuracy", attack.accuracy)
                | _columns("standing", attack.standing if each.cascade else None)
                | dict(attack.statuses)
                | {
                    "other_accuracy": attack.other_accuracy.value if attack.other_accuracy else None,
                    "surrogate": attack.surrogate,
                    "surrogate_accuracy": attack.surrogate_accuracy.value if attack.surrogate_accuracy else None,
                    "forwards": attack.forwards,
                    "backwards": attack.backwards,
                    "seconds": attack.seconds,
                }
                | hashes
                | {"attack_run": attack.spec.identity}
            )
    frame = pd.DataFrame(rows, columns=None if rows else ["model", "dataset", "suite", "attack", "accuracy", "a_std", "a_rob"])
    for name in frame.columns:
        if name.startswith(("a_std", "a_rob", "accuracy", "standing")) or name in ("other_accuracy", "surrogate_accuracy"):
            frame[name] = frame[name].astype(float)
    return frame


def results(db: str = "results.db") -> pd.DataFrame:
    """What is on record, one row for each evaluation and attack, oldest first; the clean images are the attack `clean`.

    Accuracies are fractions of 1 with the ends of their 95 % intervals (`_low`, `_high`), NaN where there is no truthful
    number; costs are totals over the samples.

    Raises:
        CannotEvaluate: there is no such database, or it cannot be read.
        DamagedData: it is not a kwbench database.
    """
    store = Store.open(db)
    try:
        return to_frame(standings(store))
    finally:
        store.close()


def _columns(name: str, interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _attack_json(attack: AttackStanding, cascade: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": attack.name,
        "n": attack.n,
        "accuracy": _interval_json(attack.accuracy),
        "statuses": dict(attack.statuses),
        "forwards": attack.forwards,
        "backwards": attack.backwards,
        "seconds": attack.seconds,
    }
    if cascade:
        found["standing"] = _interval_json(attack.standing)
    if attack.other_accuracy is not None:
        judged = attack.spec.spec.get("parameters", {}).get("judged", "distance")
        found |= {"judged": judged, "other_accuracy": _interval_json(attack.other_accuracy)}
    if attack.surrogate is not None:
        found["surrogate"] = {"name": attack.surrogate, "accuracy": _interval_json(attack.surrogate_accuracy)}
    return found


def _interval_json(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else {"value": interval.value, "low": interval.low, "high": interval.high}


def _standing(evaluation: Evaluation, tallies: Mapping[int, Tally]) -> Standing:
    spec = evaluation.spec
    cascade = bool(spec.spec.get("cascade", False)) and not spec.stochastic
    rows = [tallies.get(evaluation.attack_runs[each.label]) for each in spec.attacks]
    # The samples of the evaluation: those of the clean images, by which all else is aligned.
    first = next((row for each, row in zip(spec.attacks, rows, strict=True) if each.label == CLEAN), None)
    index = first.index if first is not None else np.empty(0, dtype=np.int64)
    felled = np.zeros(len(index), dtype=bool)
    # Labels by what they lack.
    lacking: dict[str, list[str]] = {}
    found: list[AttackStanding] = []
    complete: list[Tally] = []
    for each, row in zip(spec.attacks, rows, strict=True):
        if row is None:
            lacks: str | None = f"0 of {spec.n} samples"
        else:
            lacks = _lacks(row, index, spec.n, spec.stochastic, felled if cascade else None)
        if lacks:
            lacking.setdefault(lacks, []).append(each.label)
        elif row is not None:
            complete.append(row)
            if cascade:
                felled[np.searchsorted(index, row.index[row.status != _HELD])] = True
        left = accuracy_of_hits(int((~felled).sum()), spec.n) if cascade and not lacking else None
        found.append(_attack(each, row, spec.n, spec.stochastic, usable=not lacks, left=left))
    missing = [f"{', '.join(labels)}: {lacks}" for lacks, labels in lacking.items()]
    if first is None:
        missing.insert(0, "nothing is known of the clean images")
    if all(each.label == CLEAN for each in spec.attacks):
        missing.append("there is no attack")
    by_name = {each.name: each for each in found}
    clean = by_name.get(CLEAN)
    attacks = tuple(each for each in found if each.name != CLEAN)
    a_std = clean.accuracy if clean is not None else None
    clean_values = _values(first, spec.stochastic) if first is not None and a_std is not None else None
    robust_values = None
    if not missing and first is not None:
        robust_values = _worst_case(complete) if spec.stochastic else _never_broken(complete, index)
    return Standing(
        evaluation=evaluation,
        complete=not missing,
        missing=tuple(missing),
        a_std=a_std,
        a_rob=None if robust_values is None else _accuracy(robust_values, spec.stochastic),
        a_rob_as_in_paper=_as_in_paper(spec.spec.get("paper_attacks"), by_name),
        clean=clean,
        attacks=attacks,
        index=index,
        clean_values=clean_values,
        robust_values=robust_values,
    )


def _lacks(row: Tally, index: NDArray[np.int64], n: int, stochastic: bool, felled: NDArray[np.bool_] | None) -> str | None:
    """Why an attack has no accuracy, or None. `felled`, for cascades: the samples that it need not have seen."""
    for status in (Status.ERROR, Status.INVALID):
        if count := _count(row, status):
            return f"{count} of {len(row)} rows {status.value}"
    if len(index) != n:
        return f"{len(row)} of {n} samples, {len(index)} of the clean images"
    if row.index is index:
        # One array stands for all attack runs on the same samples; comparing it with itself would take most of the time.
        seen = n
    else:
        if not np.isin(row.index, index, assume_unique=True).all():
            return "rows of other samples than the clean images"
        seen = len(row) if felled is None else int((felled | np.isin(index, row.index, assume_unique=True)).sum())
    if seen != n:
        return f"{seen} of {n} samples"
    if stochastic and (len(row.fresh) != n or np.isnan(row.fresh).any() or np.isnan(row.selection).any()):
        return "rows without draws"
    return None


def _attack(
    spec: AttackSpec, row: Tally | None, n: int, stochastic: bool, *, usable: bool, left: Interval | None
) -> AttackStanding:
    parameters = spec.spec.get("parameters", {})
    surrogate = parameters.get("surrogate") if isinstance(parameters, Mapping) else None
    if row is None:
        return AttackStanding(spec.label, spec, 0, None, None, dict.fromkeys(Status, 0), 0, 0, 0.0, surrogate=surrogate)
    counts = {status.value: _count(row, status) for status in Status}
    whole = usable and len(row) == n
    # A verdict under the other rule exists where the attack ran; samples that were wrong before have neither.
    both = whole and not stochastic and row.other_rows > 0 and row.other_rows == n - counts[Status.WRONG]
    return AttackStanding(
        name=spec.label,
        spec=spec,
        n=len(row),
        accuracy=_accuracy(_values(row, stochastic), stochastic) if whole else None,
        standing=left,
        statuses=counts,
        forwards=row.forwards,
        backwards=row.backwards,
        seconds=round(row.seconds, 6),
        other_accuracy=accuracy_of_hits(row.other_held, n) if both else None,
        surrogate=surrogate,
        surrogate_accuracy=accuracy_of_hits(row.surrogate_right, row.surrogate_rows) if row.surrogate_rows else None,
    )


def _count(row: Tally, status: Status) -> int:
    return row.status.tobytes().count(_LETTERS[status])


def _values(row: Tally, stochastic: bool) -> NDArray[np.float64]:
    return row.fresh if stochastic else (row.status == _HELD).astype(float)


def _accuracy(values: NDArray[np.float64], stochastic: bool) -> Interval:
    return accuracy_of_values(values) if stochastic else accuracy_of_hits(int(values.sum()), len(values))


def _worst_case(rows: Sequence[Tally]) -> NDArray[np.float64]:
    """The fresh p-hat of each sample at the candidate that the selection draws choose; the earliest of the suite in a tie."""
    chosen = np.argmin(np.stack([row.selection for row in rows]), axis=0)
    fresh = np.stack([row.fresh for row in rows])
    scored: NDArray[np.float64] = fresh[chosen, np.arange(fresh.shape[1])]
    return scored


def _never_broken(rows: Sequence[Tally], index: NDArray[np.int64]) -> NDArray[np.float64]:
    values = np.ones(len(index))
    for row in rows:
        values[np.searchsorted(index, row.index[row.status != _HELD])] = 0.0
    return values


def _as_in_paper(labels: Sequence[str] | None, attacks: Mapping[str, AttackStanding]) -> Interval | None:
    """The smallest of the accuracies under single attacks: those of the paper's table, otherwise all."""
    wanted = [name for name in attacks if name != CLEAN] if labels is None else labels
    accuracies = [attacks[name].accuracy if name in attacks else None for name in wanted]
    known = [each for each in accuracies if each is not None]
    return min(known, key=lambda each: each.value) if known and len(known) == len(accuracies) else None


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
