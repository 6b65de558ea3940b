"""Has a model become less robust? Paired tests on the same samples, against a baseline file or between two models.

A drop counts as a regression only if it exceeds `max_drop` AND is significant. A drop that exceeds `max_drop` but may be chance
is "could not tell", and so is everything that is missing or not comparable: never silently fine.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import ArrayLike

from kwbench.errors import CannotEvaluate, DamagedData, UsageError, did_you_mean
from kwbench.files import write_whole
from kwbench.formatting import interval_text, markdown, percent, plain
from kwbench.outcome import CLEAN
from kwbench.record.comparability import ComparisonKey, attacks_key, comparison_key
from kwbench.record.evaluation import Evaluation
from kwbench.record.store import Store
from kwbench.record.summary import Summary, summaries
from kwbench.statistics import Interval, PairedTest, difference_interval, paired_test
from kwbench.threat import ThreatModel

FORMAT = 1
FILE_KIND = "kwbench baseline"

# How often a check ends with exit code 1 / with exit code 3, in percent, at n = 360, max_drop 1 point, alpha 0.01 and a
# baseline A_rob of 60 %. "Churn", in points: deterministic, the samples that a retrained model loses, and gains, at no drop
# at all; stochastic (100 draws a sample), how far a sample's p moves either way. 20,000 runs (2,000 if stochastic) by
# tests/simulation.py, which tests/test_check.py repeats. A drop of 0 shows the false alarms.
MEASURED = """\
| model | churn | drop 0 | 1 | 2 | 3 | 5 | 8 | 10 |
| :-- | --: | --: | --: | --: | --: | --: | --: | --: |
| deterministic | 0 | 0.0 / 0.0 | 7.1 / 41.1 | 57.9 / 35.4 | 91.7 / 7.9 | 99.9 / 0.1 | 100.0 / 0.0 | 100.0 / 0.0 |
| deterministic | 2 | 0.4 / 16.7 | 4.0 / 46.3 | 15.8 / 62.8 | 35.6 / 57.7 | 77.6 / 22.0 | 98.8 / 1.2 | 99.9 / 0.1 |
| deterministic | 5 | 0.6 / 26.7 | 2.7 / 47.1 | 8.0 / 62.8 | 18.3 / 67.5 | 50.3 / 47.4 | 88.8 / 11.1 | 97.4 / 2.6 |
| stochastic | 0 | 0.1 / 0.0 | 49.4 / 0.0 | 99.9 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 |
| stochastic | 10 | 0.7 / 0.1 | 49.2 / 1.8 | 99.0 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 |
| stochastic | 30 | 1.3 / 10.4 | 14.1 / 37.5 | 56.5 / 33.5 | 92.7 / 6.7 | 100.0 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 |
"""


class Verdict(StrEnum):
    """What a check says of one model."""

    FINE = "fine"
    REGRESSION = "regression"
    UNSURE = "could not tell"

    @property
    def exit_code(self) -> int:
        """0, 1 or 3."""
        return {Verdict.FINE: 0, Verdict.REGRESSION: 1, Verdict.UNSURE: 3}[self]


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """One model against its entry in the baseline. Accuracies are fractions of 1; `test` is one-sided, None if not comparable.

    `drop` is baseline minus now, paired, with its 95 % interval.
    """

    model: str
    dataset: str
    threat: str
    suite: str
    n: int
    verdict: Verdict
    reason: str
    baseline: float | None
    now: Interval | None
    drop: Interval | None
    test: PairedTest | None
    run: str | None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """All models of the baseline, in its order. `new` are models on record that the baseline lacks."""

    models: tuple[ModelCheck, ...]
    new: tuple[str, ...]
    max_drop: float
    alpha: float

    @property
    def exit_code(self) -> int:
        """1 if any model regressed, otherwise 3 if any could not be told or nothing was checked, otherwise 0."""
        verdicts = {each.verdict for each in self.models}
        for verdict in (Verdict.REGRESSION, Verdict.UNSURE):
            if verdict in verdicts:
                return verdict.exit_code
        return 0 if self.models else Verdict.UNSURE.exit_code


@dataclass(frozen=True, slots=True)
class _Entry:
    """One model in a baseline: what it may be compared with, and its value on each sample, by the sample's hash."""

    model: str
    key: ComparisonKey
    attacks: str
    a_rob: float
    run: str
    values: dict[str, float]


def check(
    store: Store,
    baseline: Path,
    *,
    max_drop: float = 1.0,
    alpha: float = 0.01,
    models: Collection[str] | None = None,
) -> CheckResult:
    """Compare the newest evaluation of each model with the baseline, A_rob on the same samples.

    A retrained checkpoint under the same name is compared with the old one: what must agree is the model's name, data, samples,
    threat model, suite with its parameters, and rule of prediction.

    Args:
        store: the record.
        baseline: a file that `update` wrote.
        max_drop: the drop in A_rob that is tolerated, in points (percent); in [0, 100].
        alpha: significance level of each model's one-sided test; in (0, 1).
        models: names to check, all of the baseline by default.

    Raises:
        UsageError: max_drop or alpha out of range.
        CannotEvaluate: there is no baseline file, or the record cannot be read.
        DamagedData: the baseline is damaged.
    """
    _validate(max_drop, alpha)
    entries = _read(baseline)
    evaluations, checked = store.evaluations(), {entry.model for entry in entries}
    found = summaries(store, [each for each in evaluations if each.spec.model in checked])
    checks = []
    for entry in entries:
        if models is None or entry.model in models:
            checks.append(_check_entry(store, entry, found, max_drop, alpha))
    for name in sorted(set(models or ()) - checked):
        reason = "not in the baseline; put it there with --update"
        checks.append(ModelCheck(name, "", "", "", 0, Verdict.UNSURE, reason, None, None, None, None, None))
    new = sorted({each.spec.model for each in evaluations} - checked)
    return CheckResult(tuple(checks), tuple(new), max_drop, alpha)


def decide(before: ArrayLike, after: ArrayLike, *, max_drop: float, alpha: float) -> tuple[Verdict, PairedTest]:
    """The verdict on paired values in [0, 1], one a sample: 0 or 1, or p-hats. `max_drop` in points."""
    test = paired_test(before, after, one_sided=True)
    # Differences of counts carry rounding; exactly max_drop is not above it.
    if 100 * test.difference <= max_drop + 1e-9:
        return Verdict.FINE, test
    return (Verdict.REGRESSION if test.p < alpha else Verdict.UNSURE), test


def update(store: Store, baseline: Path, models: Collection[str] | None = None) -> list[str]:
    """Write the newest evaluations into the baseline, whole or not at all, and return the models written.

    With `models`, only these; entries of other models stay. Equal records give equal bytes.

    Raises:
        UsageError: a model that is not on record.
        CannotEvaluate: an evaluation is incomplete, or the file cannot be written.
        DamagedData: the old baseline, which should keep the other models, is damaged.
    """
    found = summaries(store)
    known = {each.model for each in found}
    for name in models or ():
        if name not in known:
            raise UsageError(f"model {name!r} is not on record; {did_you_mean(name, known)}")
    newest = _newest([each for each in found if models is None or each.model in models])
    if not newest:
        raise CannotEvaluate("nothing is on record; evaluate a model first")
    entries = []
    for each in newest:
        if each.a_rob is None or each.robust_values is None:
            raise CannotEvaluate(
                f"{_describe(each)}: incomplete ({'; '.join(each.missing)}); finish it before it is a baseline"
            )
        values = _by_sample(store, each)
        entry = _Entry(
            each.model,
            comparison_key(each.evaluation),
            _hash(attacks_key(each.evaluation)),
            each.a_rob.value,
            each.evaluation.spec.identity,
            values,
        )
        entries.append(entry)
    written = sorted({entry.model for entry in entries})
    if models is not None and baseline.exists():
        entries += [entry for entry in _read(baseline) if entry.model not in models]
    write_whole(baseline, _serialise(entries))
    return written


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two models on the same samples under one protocol: A_std and A_rob of each, the paired differences first - second with
    95 % intervals, and the two-sided tests."""

    first: Summary
    second: Summary
    a_std: PairedTest
    a_std_difference: Interval
    a_rob: PairedTest
    a_rob_difference: Interval


def compare(store: Store, first: str, second: str) -> list[PairedComparison]:
    """Compare the newest evaluations of two models, under every protocol that both have met.

    Raises:
        UsageError: a model that is not on record.
        CannotEvaluate: the two have no complete, comparable evaluation.
    """
    evaluations = store.evaluations()
    known = {each.spec.model for each in evaluations}
    for name in (first, second):
        if name not in known:
            raise UsageError(f"model {name!r} is not on record; {did_you_mean(name, known)}")
    found = summaries(store, [each for each in evaluations if each.spec.model in (first, second)])
    by_model = {
        name: {comparison_key(each.evaluation): each for each in _newest([each for each in found if each.model == name])}
        for name in (first, second)
    }
    comparisons = []
    for key, one in by_model[first].items():
        other = by_model[second].get(key)
        if other is None or one.index.tolist() != other.index.tolist():
            continue
        if one.clean_values is None or other.clean_values is None or one.robust_values is None or other.robust_values is None:
            continue
        comparisons.append(
            PairedComparison(
                one,
                other,
                paired_test(one.clean_values, other.clean_values, one_sided=False),
                difference_interval(one.clean_values - other.clean_values),
                paired_test(one.robust_values, other.robust_values, one_sided=False),
                difference_interval(one.robust_values - other.robust_values),
            )
        )
    if not comparisons:
        raise CannotEvaluate(
            f"{first} and {second} have no complete evaluations on the same samples with the same suite and threat model"
        )
    return comparisons


def check_json(result: CheckResult) -> dict[str, Any]:
    """The result as JSON values; accuracies and drops as fractions of 1."""
    return {
        "exit_code": result.exit_code,
        "max_drop": result.max_drop,
        "alpha": result.alpha,
        "new": list(result.new),
        "models": [{**asdict(each), "verdict": each.verdict.value} for each in result.models],
    }


def comparison_json(found: Sequence[PairedComparison]) -> list[dict[str, Any]]:
    """Comparisons as JSON values; differences are first - second."""
    return [
        {
            "first": each.first.model,
            "second": each.second.model,
            "dataset": each.first.dataset,
            "n": each.first.n,
            "threat": {"norm": each.first.threat.norm, "eps": each.first.threat.radius, "exact": str(each.first.threat.eps)},
            "suite": each.first.evaluation.spec.suite,
            **{
                name: {
                    "first": asdict(one) if one else None,
                    "second": asdict(other) if other else None,
                    "difference": asdict(difference),
                    "lost": test.lost,
                    "gained": test.gained,
                    "p": test.p,
                    "method": test.method,
                }
                for name, one, other, difference, test in (
                    ("a_std", each.first.a_std, each.second.a_std, each.a_std_difference, each.a_std),
                    ("a_rob", each.first.a_rob, each.second.a_rob, each.a_rob_difference, each.a_rob),
                )
            },
        }
        for each in found
    ]


def write_junit(result: CheckResult, path: Path) -> None:
    """Write the result as JUnit XML: a regression is a failure, "could not tell" an error. Raises CannotEvaluate."""
    count = {verdict: sum(each.verdict is verdict for each in result.models) for verdict in Verdict}
    suite = ElementTree.Element(
        "testsuite",
        name="kwbench check",
        tests=str(len(result.models)),
        failures=str(count[Verdict.REGRESSION]),
        errors=str(count[Verdict.UNSURE]),
        skipped="0",
    )
    for each in result.models:
        group = ".".join(part for part in ("kwbench", each.dataset, each.threat, each.suite) if part)
        case = ElementTree.SubElement(suite, "testcase", classname=plain(group), name=plain(each.model))
        if each.verdict is not Verdict.FINE:
            tag = "failure" if each.verdict is Verdict.REGRESSION else "error"
            ElementTree.SubElement(case, tag, message=plain(each.reason), type=each.verdict.value).text = plain(
                each.reason, 2000
            )
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    write_whole(path, ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n")


def markdown_summary(result: CheckResult) -> str:
    """The result as Markdown, for a job's summary or a comment."""
    titles = {0: "Robustness check: fine", 1: "Robustness check: regression", 3: "Robustness check: could not tell"}
    lines = [
        f"## {titles[result.exit_code]}",
        "",
        f"A drop of A\\_rob counts if it exceeds {result.max_drop:g} points and is significant at {result.alpha:g} "
        "(paired, one-sided).",
        "",
        "| Model | Where | Baseline | Now [95 %] | Drop, points [95 %] | p | Verdict |",
        "| :-- | :-- | --: | --: | --: | --: | :-- |",
    ]
    for each in result.models:
        where = ", ".join(part for part in (each.dataset, each.threat, each.suite) if part)
        drop, p = "–", "–"
        if each.drop is not None and each.test is not None:
            drop = f"{100 * each.drop.value:.1f} [{100 * each.drop.low:.1f}, {100 * each.drop.high:.1f}]"
            p = f"{each.test.p:.2g}"
        verdict = each.verdict.value if each.verdict is Verdict.FINE else f"**{each.verdict.value}**: {markdown(each.reason)}"
        before = "–" if each.baseline is None else percent(each.baseline, each.n)
        cells = (markdown(each.model), markdown(where), before, interval_text(each.now, each.n), drop, p, verdict)
        lines.append(f"| {' | '.join(cells)} |")
    if not result.models:
        lines += ["", "The baseline names no model."]
    if result.new:
        lines += ["", f"Not in the baseline: {', '.join(map(markdown, result.new))}."]
    return "\n".join(lines) + "\n"


def append_summary(result: CheckResult, path: Path) -> None:
    """Append `markdown_summary` to a file such as GITHUB_STEP_SUMMARY names. Raises CannotEvaluate."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(markdown_summary(result))
    except OSError as failure:
        raise CannotEvaluate(f"{path}: the summary cannot be written ({failure.strerror})") from None


def _check_entry(store: Store, entry: _Entry, found: Sequence[Summary], max_drop: float, alpha: float) -> ModelCheck:
    key = entry.key
    threat = str(ThreatModel.of(key.norm, key.eps))

    def unsure(reason: str, now: Interval | None = None, run: str | None = None) -> ModelCheck:
        return ModelCheck(
            entry.model, key.dataset, threat, key.suite, key.n, Verdict.UNSURE, reason, entry.a_rob, now, None, None, run
        )

    same_model = [each for each in found if each.model == entry.model]
    if not same_model:
        return unsure("no evaluation on record")
    candidates = [each for each in same_model if _matches(entry, each.evaluation)]
    if not candidates:
        closest = max(same_model, key=lambda each: (_agreement(entry, each.evaluation), each.evaluation.asked))
        return unsure(f"not comparable: {_differences(entry, closest.evaluation)}", run=closest.evaluation.spec.identity)
    newest = max(candidates, key=_recency)
    run = newest.evaluation.spec.identity
    if newest.a_rob is None:
        return unsure(f"incomplete: {'; '.join(newest.missing)}", run=run)
    values = _by_sample(store, newest)
    if values.keys() != entry.values.keys():
        shared = len(values.keys() & entry.values.keys())
        return unsure(f"other samples: {shared} of {len(entry.values)} are the same", newest.a_rob, run)
    order = sorted(values)
    before, after = np.array([entry.values[name] for name in order]), np.array([values[name] for name in order])
    verdict, test = decide(before, after, max_drop=max_drop, alpha=alpha)
    points = 100 * test.difference
    words = {
        Verdict.FINE: f"drop {points:.1f} points, at most {max_drop:g} allowed",
        Verdict.REGRESSION: f"A_rob: {points:.1f} points less (worse on {test.lost}, better on {test.gained}, p {test.p:.2g})",
        Verdict.UNSURE: f"A_rob: {points:.1f} points less, which may be chance (p {test.p:.2g}); more samples can tell",
    }
    return ModelCheck(
        entry.model,
        key.dataset,
        threat,
        key.suite,
        key.n,
        verdict,
        words[verdict],
        entry.a_rob,
        newest.a_rob,
        difference_interval(before - after),
        test,
        run,
    )


def _newest(found: Sequence[Summary]) -> list[Summary]:
    newest: dict[tuple[str, ComparisonKey, str], Summary] = {}
    for each in sorted(found, key=_recency):
        newest[each.model, comparison_key(each.evaluation), attacks_key(each.evaluation)] = each
    return list(newest.values())


def _recency(standing: Summary) -> tuple[str, int]:
    return standing.evaluation.asked, standing.evaluation.id


def _matches(entry: _Entry, evaluation: Evaluation) -> bool:
    # Baselines of kwbench 0.1.0 may hold what `auto` became.
    return any(
        comparison_key(evaluation, resolved=resolved) == entry.key
        and _hash(attacks_key(evaluation, resolved=resolved)) == entry.attacks
        for resolved in (False, True)
    )


def _agreement(entry: _Entry, evaluation: Evaluation) -> int:
    return sum(one == other for one, other in zip(entry.key, comparison_key(evaluation), strict=True))


def _differences(entry: _Entry, evaluation: Evaluation) -> str:
    now = comparison_key(evaluation)
    found = [
        f"{name} is {getattr(now, name)}, the baseline's {getattr(entry.key, name)}"
        for name in ("dataset", "n", "norm", "eps", "suite", "prediction", "cascade")
        if getattr(now, name) != getattr(entry.key, name)
    ]
    if not found and now.data != entry.key.data:
        found.append("other data")
    return "; ".join(found or _other_parameters(_parameters(entry.key), _parameters(now))) or "other attacks or parameters"


# As many parameters as a message spells out.
_NAMED = 3


def _parameters(key: ComparisonKey) -> dict[str, dict[str, Any]]:
    """By label what the suite says of an attack, and its parameters, nested ones as gradient.kind."""
    definition, attacks = json.loads(key.protocol)
    found = {
        each["label"]: {name: value for name, value in each.items() if name not in ("label", "parameters")}
        | each.get("parameters", {})
        for each in definition or ()
    }
    for label, parameters in attacks:
        found[label] = found.get(label, {}) | parameters
    return {label: dict(_flat(parameters)) for label, parameters in found.items()}


def _flat(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _other_parameters(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which attacks and parameters differ, the first few of them."""
    found = [f"{label} is not among the attacks" for label in before if label not in now]
    found += [f"{label} is not among the baseline's attacks" for label in now if label not in before]
    for label in (each for each in before if each in now):
        one, other = before[label], now[label]
        found += [
            f"{label}.{name} is {other.get(name)}, the baseline's {one.get(name)}"
            for name in dict.fromkeys([*one, *other])
            if one.get(name) != other.get(name)
        ]
    return found[:_NAMED] + ([f"and {len(found) - _NAMED} more"] if len(found) > _NAMED else [])


def _describe(standing: Summary) -> str:
    return f"{standing.model} ({standing.dataset}, {standing.threat}, {standing.evaluation.spec.suite})"


def _by_sample(store: Store, standing: Summary) -> dict[str, float]:
    """The values behind A_rob, by the sample's hash."""
    assert standing.robust_values is not None
    names = {each.index: each.sample for each in store.outcomes(standing.evaluation.attack_runs[CLEAN])}
    return {names[int(index)]: float(value) for index, value in zip(standing.index, standing.robust_values, strict=True)}


def _validate(max_drop: float, alpha: float) -> None:
    if not 0 <= max_drop <= 100:
        raise UsageError(f"--max-drop {max_drop}: must be between 0 and 100 points")
    if not 0 < alpha < 1:
        raise UsageError(f"--alpha {alpha}: must be between 0 and 1")


def _serialise(entries: Sequence[_Entry]) -> str:
    """One line a model, so that a version-control diff shows which models changed."""
    rows = [
        {
            "model": entry.model,
            "key": entry.key._asdict(),
            "attacks": entry.attacks,
            "a_rob": entry.a_rob,
            "run": entry.run,
            "values": entry.values,
        }
        for entry in sorted(entries, key=lambda entry: (entry.model, tuple(map(str, entry.key)), entry.attacks))
    ]
    lines = [json.dumps(row, sort_keys=True, allow_nan=False) for row in rows]
    head = json.dumps({"kind": FILE_KIND, "format": FORMAT, "sha256": _hash("\n".join(lines))})
    return head[:-1] + ', "entries": [\n' + ",\n".join(lines) + "\n]}\n"


def _read(path: Path) -> list[_Entry]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CannotEvaluate(f"{path}: no such baseline; write it with --update") from None
    except OSError as failure:
        raise CannotEvaluate(f"{path}: the baseline cannot be read ({failure.strerror})") from None
    except UnicodeDecodeError:
        raise DamagedData(f"{path}: damaged, not UTF-8; restore it or write it anew with --update") from None
    try:
        whole = json.loads(text)
        if whole["kind"] != FILE_KIND:
            raise ValueError("not a kwbench baseline")
        if whole["format"] != FORMAT:
            raise ValueError(f"format {whole['format']}, this kwbench reads {FORMAT}")
        lines = [json.dumps(row, sort_keys=True, allow_nan=False) for row in whole["entries"]]
        if _hash("\n".join(lines)) != whole["sha256"]:
            raise ValueError("its checksum does not fit its contents")
        return [_entry(row) for row in whole["entries"]]
    except (ValueError, KeyError, TypeError, AttributeError) as failure:
        reason = f"{type(failure).__name__}: {failure}" if not isinstance(failure, ValueError) else str(failure)
        raise DamagedData(f"{path}: damaged ({plain(reason)}); restore it or write it anew with --update") from None


def _entry(row: Mapping[str, Any]) -> _Entry:
    values = {str(name): float(value) for name, value in row["values"].items()}
    if not values or not all(0 <= value <= 1 for value in values.values()):
        raise ValueError("values out of range")
    return _Entry(row["model"], ComparisonKey(**row["key"]), row["attacks"], float(row["a_rob"]), row["run"], values)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
