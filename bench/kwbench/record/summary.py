"""The numbers of an evaluation, derived from its outcomes and from nothing else: a pure view, computed anew each time.

Deterministic models: A_std is the share of samples that are right on the clean images, the accuracy under an attack the share
that it did not break, A_rob the share that no attack broke. Stochastic models: let p be the probability that a prediction is
right; A_std and the accuracy under an attack are means of p as measured on fresh draws, and A_rob is the mean of the fresh p
at ONE candidate for each sample, chosen by the selection draws. The minimum over fresh draws would be the winner's curse: ten
attacks that do nothing stage p = 0.87 into 0.79.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kwbench.finding import Finding
from kwbench.outcome import CLEAN, Status, escalated
from kwbench.record.cascade import Stage, align, cascaded_attacks, stages
from kwbench.record.evaluation import AttackSpec, Evaluation, EvaluationSpec
from kwbench.record.store import Store
from kwbench.record.tally import Tally, pack
from kwbench.statistics import Interval, accuracy_of_hits, accuracy_of_values
from kwbench.threat import ThreatModel

if TYPE_CHECKING:
    import pandas as pd

_LETTERS = {status.value: status.value[:1].encode() for status in Status}
_HELD = ord(Status.HELD[0])

# What suites write for a parameter that depends on the model and the machine.
_AUTO = "auto"


@dataclass(frozen=True, slots=True)
class AttackSummary:
    """What one attack did.

    `n` counts its rows; in a cascade they are fewer than the samples. `accuracy` is None unless every sample has a verdict.
    `remaining` is for cascades: the accuracy after this attack and all before it.
    `broke` counts the samples whose worst case it is: that it broke and no attack before it (deterministic models), or whose
    chosen candidate is its own (stochastic models).
    `statuses` counts rows; costs are sums over all rows, forwards and backwards in samples, `seconds` of the whole batch's
    time divided among its samples. `budget` is the largest number of passes, forwards and backwards, that the attack may
    spend on a sample, None where it does not say. `other_accuracy` is the accuracy under the judging rule that was not
    chosen (minimum-norm attacks), `surrogate_accuracy` the surrogate's own on the images made against it (transfer attacks).
    """

    name: str
    spec: AttackSpec
    n: int
    accuracy: Interval | None
    remaining: Interval | None
    statuses: Mapping[str, int]
    forwards: int
    backwards: int
    seconds: float
    other_accuracy: Interval | None = None
    surrogate: str | None = None
    surrogate_accuracy: Interval | None = None
    broke: int = 0
    budget: int | None = None

    @property
    def used(self) -> float:
        """Passes, forwards and backwards, per sample that it saw."""
        return (self.forwards + self.backwards) / self.n if self.n else 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """An evaluation and its numbers, fractions of 1 with 95 % intervals; None where there is no truthful number.

    `attacks` leaves out the clean images, whose numbers are `clean`, and what did not run, which `skipped` lists by label with
    the reason. `complete` is false, and `missing` says why, if any attack lacks a verdict on any sample it should have seen;
    such an evaluation has no `a_rob` and is not ranked. `a_protocol` is the accuracy under the worst case of the suite's
    `protocol` alone, None where the suite names none.
    `index`, `clean_values`, `robust_values` and `protocol_values` are the values behind A_std, A_rob and A_protocol, one a
    sample: 0 or 1, or a p-hat. `worst` is the label of the attack behind each robust value, `clean` where that is none.
    `findings` are those of the diagnostic checks; empty if there were none.
    """

    evaluation: Evaluation
    complete: bool
    missing: tuple[str, ...]
    a_std: Interval | None
    a_rob: Interval | None
    a_rob_as_in_paper: Interval | None
    clean: AttackSummary | None
    attacks: tuple[AttackSummary, ...]
    index: NDArray[np.int64] = field(repr=False, compare=False)
    clean_values: NDArray[np.float64] | None = field(repr=False, compare=False)
    robust_values: NDArray[np.float64] | None = field(repr=False, compare=False)
    skipped: Mapping[str, str] = field(default_factory=dict)
    a_protocol: Interval | None = None
    protocol_values: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)
    worst: tuple[str, ...] = field(default=(), repr=False, compare=False)
    findings: tuple[Finding, ...] = field(default=(), repr=False)

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
        """Whether attacks saw only the samples that still stood: each, or those after the suite's own."""
        return bool(cascaded_attacks(self.evaluation.spec))

    @property
    def protocol(self) -> tuple[str, ...]:
        """The labels of the attacks behind `a_protocol`."""
        return tuple(self.evaluation.spec.spec.get("protocol_attacks") or ())

    @property
    def budget(self) -> int | None:
        """The largest number of passes, forwards and backwards, that the attacks that ran may spend on a sample, in all."""
        known = [attack.budget for attack in self.attacks]
        return sum(each for each in known if each is not None) if known and None not in known else None

    @property
    def used(self) -> float:
        """Passes, forwards and backwards, per sample of the evaluation, in all attacks."""
        return sum(attack.forwards + attack.backwards for attack in self.attacks) / self.n


def summarize(evaluation: Evaluation, frame: "pd.DataFrame") -> Summary:
    """The numbers of one evaluation, from the outcomes of (at least) its attack runs, as `Store.frame` gives them."""
    return _summarize(evaluation, pack(frame[frame["attack_run"].isin(evaluation.attack_runs.values())]))


def summaries(store: Store, evaluations: Sequence[Evaluation] | None = None) -> list[Summary]:
    """The numbers of evaluations, by default of all on record, oldest first."""
    chosen = store.evaluations() if evaluations is None else evaluations
    runs = None if evaluations is None else sorted({run for each in chosen for run in each.attack_runs.values()})
    tallies = store.tallies(runs)
    findings = store.findings_by_evaluation()
    return [replace(_summarize(each, tallies), findings=tuple(findings.get(each.id, ()))) for each in chosen]


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
    # Of every attack: one that follows plain attacks shows in no column.
    cascade: bool


def comparison_key(evaluation: Evaluation, *, resolved: bool = False) -> Comparison:
    """Data set and slice, number of samples, threat model, suite with every parameter, and the rule of prediction.

    A parameter that the suite leaves open (`auto`) counts as that, whatever it became for this model on this machine, unless
    `resolved`. A suite may have attacks for stochastic models only; it is one protocol all the same if its definition is on
    record.
    """
    spec = evaluation.spec
    origin = origin_of(evaluation)
    protocol = spec.spec.get("protocol")
    only = {label for label, when in suite_labels(evaluation).items() if when != "always"}
    attacks = [each for each in _parameters(evaluation, resolved=resolved) if each[0] not in only]
    # A deterministic model answers the same under every rule of prediction; on record it is a single draw's.
    prediction = origin.get("prediction", {"kind": "draw", "draws": 1})
    return Comparison(
        spec.dataset,
        str(origin.get("data_sha256")),
        spec.n,
        spec.threat.norm,
        str(spec.threat.eps),
        spec.suite,
        _text([protocol, attacks]),
        _text(prediction),
        spec.spec.get("cascade", False) is True,
    )


def suite_labels(evaluation: Evaluation) -> dict[str, str]:
    """All labels that the suite's definition has, in its order, each with the kind of model that it is for (`when`).

    Empty where the record has no definition.
    """
    return {label: str(each.get("when", "always")) for label, each in _definition(evaluation).items()}


def attacks_key(evaluation: Evaluation, *, resolved: bool = False) -> str:
    """Equal for evaluations with the very same attacks and parameters; `resolved` as for `comparison_key`."""
    return _text(_parameters(evaluation, resolved=resolved))


def _parameters(evaluation: Evaluation, *, resolved: bool) -> list[tuple[str, dict[str, Any]]]:
    """Labels and every parameter of the attacks, as the suite asks for them; as on record where it is not `auto`."""
    definition = {} if resolved else _definition(evaluation)
    found = []
    for attack in evaluation.spec.attacks:
        asked = definition.get(attack.label, {}).get("parameters", {})
        parameters = attack.spec.get("parameters", {})
        kept = {name: _AUTO if asked.get(name) == _AUTO else value for name, value in parameters.items()}
        found.append((attack.label, kept))
    return found


def _definition(evaluation: Evaluation) -> dict[str, Mapping[str, Any]]:
    """The suite's own words on each label, escalations included, in its order."""
    protocol = evaluation.spec.spec.get("protocol")
    return {
        escalated(str(each.get("label")), doubled): each
        for each in (protocol if isinstance(protocol, list) else ())
        if isinstance(each, Mapping)
        for doubled in range(each.get("escalate", 0) + 1)
    }


def origin_of(evaluation: Evaluation) -> Mapping[str, Any]:
    """What identifies model, data and code: hashes, seed, versions. Empty where the record has none."""
    origin = evaluation.spec.spec.get("origin")
    return origin if isinstance(origin, Mapping) else {}


def to_json(standing: Summary) -> dict[str, Any]:
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
        "protocol": list(standing.protocol),
        "a_protocol": _interval_json(standing.a_protocol),
        "passes": {"budget": standing.budget, "used": round(standing.used, 3)},
        "attacks": [_attack_json(each, each.name in cascaded_attacks(standing.evaluation.spec)) for each in standing.attacks],
        "skipped": [{"name": label, "reason": reason} for label, reason in standing.skipped.items()],
    }


def to_frame(standings: Sequence[Summary]) -> "pd.DataFrame":
    """One row for each evaluation and attack, the clean images included (attack `clean`); see `results`."""
    import pandas as pd  # takes its time, and few ask for a frame

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
                | _columns("standing", attack.remaining)
                | dict(attack.statuses)
                | {
                    "broke": attack.broke,
                    "budget": attack.budget,
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


def results(db: str = "results.db") -> "pd.DataFrame":
    """What is on record, one row for each evaluation and attack, oldest first; the clean images are the attack `clean`.

    Accuracies are fractions of 1 with the ends of their 95 % intervals (`_low`, `_high`), NaN where there is no truthful
    number; costs are totals over the samples.

    Raises:
        CannotEvaluate: there is no such database, or it cannot be read.
        DamagedData: it is not a kwbench database.
    """
    store = Store.open(db)
    try:
        return to_frame(summaries(store))
    finally:
        store.close()


def _columns(name: str, interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _attack_json(attack: AttackSummary, cascade: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": attack.name,
        "n": attack.n,
        "accuracy": _interval_json(attack.accuracy),
        "broke": attack.broke,
        "statuses": dict(attack.statuses),
        "passes": {"budget": attack.budget, "used": round(attack.used, 3)},
        "forwards": attack.forwards,
        "backwards": attack.backwards,
        "seconds": attack.seconds,
    }
    if cascade:
        found["standing"] = _interval_json(attack.remaining)
    if attack.other_accuracy is not None:
        judged = attack.spec.spec.get("parameters", {}).get("judged", "distance")
        found |= {"judged": judged, "other_accuracy": _interval_json(attack.other_accuracy)}
    if attack.surrogate is not None:
        found["surrogate"] = {"name": attack.surrogate, "accuracy": _interval_json(attack.surrogate_accuracy)}
    return found


def _interval_json(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else {"value": interval.value, "low": interval.low, "high": interval.high}


def _summarize(evaluation: Evaluation, tallies: Mapping[int, Tally]) -> Summary:
    spec = evaluation.spec
    cascade = cascaded_attacks(spec)
    rows = [tallies.get(evaluation.attack_runs[each.label]) for each in spec.attacks]
    taken = stages(spec, rows)
    # The samples of the evaluation: those of the clean images, by which all else is aligned.
    first = next((row for each, row in zip(spec.attacks, rows, strict=True) if each.label == CLEAN), None)
    index = first.index if first is not None else np.empty(0, dtype=np.int64)
    values = _worst_cases(taken, rows, index, spec.stochastic)
    worst = np.zeros(len(index), dtype=np.intp)
    for position, stage in enumerate(taken):
        worst[stage.lowered] = position
    broke = np.bincount(worst, minlength=len(taken)).tolist()
    # Labels by what they lack.
    lacking: dict[str, list[str]] = {}
    found: list[AttackSummary] = []
    for position, (each, row, stage) in enumerate(zip(spec.attacks, rows, taken, strict=True)):
        if stage.skipped is not None:
            continue
        counts = _counts(row)
        lacks = _lacks(row, counts, stage, index, spec, cascade=each.label in cascade)
        if lacks:
            lacking.setdefault(lacks, []).append(each.label)
        left = _accuracy(values[position], spec.stochastic) if each.label in cascade and not lacking else None
        found.append(_attack(each, row, counts, spec, usable=not lacks, left=left, broke=broke[position]))
    missing = [f"{', '.join(those)}: {lacks}" for lacks, those in lacking.items()]
    if first is None:
        missing.insert(0, "nothing is known of the clean images")
    if all(each.label == CLEAN for each in spec.attacks):
        missing.append("there is no attack")
    by_name = {each.name: each for each in found}
    clean = by_name.get(CLEAN)
    a_std = clean.accuracy if clean is not None else None
    clean_values = _values(first, spec.stochastic) if first is not None and a_std is not None else None
    robust_values = values[-1] if not missing else None
    protocol_values = _protocol_values(spec, rows, index, [label for those in lacking.values() for label in those])
    return Summary(
        evaluation=evaluation,
        complete=not missing,
        missing=tuple(missing),
        a_std=a_std,
        a_rob=None if robust_values is None else _accuracy(robust_values, spec.stochastic),
        a_rob_as_in_paper=_as_in_paper(spec.spec.get("paper_attacks"), by_name),
        clean=clean,
        attacks=tuple(each for each in found if each.name != CLEAN),
        index=index,
        clean_values=clean_values,
        robust_values=robust_values,
        skipped={stage.label: stage.skipped for stage in taken if stage.skipped is not None},
        a_protocol=None if protocol_values is None else _accuracy(protocol_values, spec.stochastic),
        protocol_values=protocol_values,
        worst=tuple([spec.attacks[position].label for position in worst.tolist()]) if robust_values is not None else (),
    )


def _worst_cases(
    taken: Sequence[Stage], rows: Sequence[Tally | None], index: NDArray[np.int64], stochastic: bool
) -> list[NDArray[np.float64]]:
    """The value of each sample after each attack: the score of the candidate that the selection has chosen by then."""
    values = np.ones(len(index))
    found = []
    for stage, row in zip(taken, rows, strict=True):
        scores = np.full(len(index), np.nan) if row is None else align(index, row, _values(row, stochastic))
        # The clean images are the first candidate, whatever their selection draws say.
        values = scores if stage.label == CLEAN else np.where(stage.lowered, scores, values)
        found.append(values)
    return found


def _protocol_values(
    spec: EvaluationSpec, rows: Sequence[Tally | None], index: NDArray[np.int64], lacking: Collection[str]
) -> NDArray[np.float64] | None:
    """The worst case over the attacks of the suite's protocol alone; None without a protocol, or where it lacks rows."""
    wanted = {CLEAN, *(spec.spec.get("protocol_attacks") or ())}
    members = [(each, row) for each, row in zip(spec.attacks, rows, strict=True) if each.label in wanted]
    if len(members) < 2 or any(each.label in lacking for each, _ in members):
        return None
    theirs = [row for _, row in members]
    taken = stages(replace(spec, attacks=tuple(each for each, _ in members), spec={}), theirs)
    return _worst_cases(taken, theirs, index, spec.stochastic)[-1]


def _lacks(  # noqa: PLR0911 - one reason after the other
    row: Tally | None, counts: Mapping[str, int], stage: Stage, index: NDArray[np.int64], spec: EvaluationSpec, *, cascade: bool
) -> str | None:
    """Why an attack has no verdict on every sample that it is to see, or None."""
    n = spec.n
    expected = int(stage.targets.sum()) if cascade and len(index) == n else n
    if row is None:
        return f"0 of {expected} samples" if expected else None
    for status in (Status.ERROR, Status.INVALID):
        if count := counts[status]:
            return f"{count} of {len(row)} rows {status.value}"
    if len(index) != n:
        return f"{len(row)} of {n} samples, {len(index)} of the clean images"
    # One array stands for all attack runs on the same samples; comparing it with itself would take most of the time.
    if row.index is not index and not np.isin(row.index, index, assume_unique=True).all():
        return "rows of other samples than the clean images"
    if not stage.finished:
        return f"{int(np.isin(index[stage.targets], row.index, assume_unique=True).sum())} of {expected} samples"
    if spec.stochastic:
        # In a cascade only what lowered the selection need be scored.
        needed = stage.lowered if cascade else np.ones(n, dtype=bool)
        drawn = len(row.selection) == len(row) and not np.isnan(row.selection).any()
        if not drawn or np.isnan(align(index, row, row.fresh)[needed]).any():
            return "rows without draws"
    return None


def _attack(
    attack: AttackSpec,
    row: Tally | None,
    counts: Mapping[str, int],
    spec: EvaluationSpec,
    *,
    usable: bool,
    left: Interval | None,
    broke: int,
) -> AttackSummary:
    n, stochastic = spec.n, spec.stochastic
    budget = spec.spec.get("passes", {}).get(attack.label)
    parameters = attack.spec.get("parameters", {})
    surrogate = parameters.get("surrogate") if isinstance(parameters, Mapping) else None
    if row is None:
        return AttackSummary(
            attack.label, attack, 0, None, left, counts, 0, 0, 0.0, surrogate=surrogate, broke=broke, budget=budget
        )
    whole = usable and len(row) == n and not (stochastic and np.isnan(row.fresh).any())
    # A verdict under the other rule exists where the attack ran; samples that were wrong before have neither.
    both = whole and not stochastic and row.other_rows > 0 and row.other_rows == n - counts[Status.WRONG]
    accuracy = None
    if whole:
        accuracy = accuracy_of_values(row.fresh) if stochastic else accuracy_of_hits(counts[Status.HELD], n)
    return AttackSummary(
        name=attack.label,
        spec=attack,
        n=len(row),
        accuracy=accuracy,
        remaining=left,
        statuses=counts,
        forwards=row.forwards,
        backwards=row.backwards,
        seconds=round(row.seconds, 6),
        other_accuracy=accuracy_of_hits(row.other_held, n) if both else None,
        surrogate=surrogate,
        surrogate_accuracy=accuracy_of_hits(row.surrogate_right, row.surrogate_rows) if row.surrogate_rows else None,
        broke=broke,
        budget=budget,
    )


def _counts(row: Tally | None) -> dict[str, int]:
    """How many rows have each status."""
    letters = b"" if row is None else row.status.tobytes()
    return {status: letters.count(letter) for status, letter in _LETTERS.items()}


def _values(row: Tally, stochastic: bool) -> NDArray[np.float64]:
    if stochastic:
        return row.fresh if len(row.fresh) else np.full(len(row), np.nan)
    held: NDArray[np.bool_] = row.status.view(np.uint8) == _HELD
    return held.astype(float)


def _accuracy(values: NDArray[np.float64], stochastic: bool) -> Interval:
    return accuracy_of_values(values) if stochastic else accuracy_of_hits(int(values.sum()), len(values))


def _as_in_paper(labels: Sequence[str] | None, attacks: Mapping[str, AttackSummary]) -> Interval | None:
    """The smallest of the accuracies under single attacks: those of the paper's table, otherwise all."""
    wanted = [name for name in attacks if name != CLEAN] if labels is None else labels
    accuracies = [attacks[name].accuracy if name in attacks else None for name in wanted]
    known = [each for each in accuracies if each is not None]
    return min(known, key=lambda each: each.value) if known and len(known) == len(accuracies) else None


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
