"""Summaries as a data frame and as JSON values."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kwbench.record.cascade import cascaded_attacks
from kwbench.record.summary import AttackSummary, Summary
from kwbench.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd

# Columns that hold NaN where there is no number; left to itself, pandas would infer objects from None.
_FRACTIONS = ("a_std", "a_rob", "a_certified", "accuracy", "standing", "other_accuracy", "surrogate_accuracy")


def to_frame(records: Sequence[Summary]) -> "pd.DataFrame":
    """Return one row per evaluation and attack, the clean images included.

    Accuracies are fractions of 1 with the ends of their 95 % intervals (`_low`, `_high`), NaN where there is no valid number.
    Costs are totals over the samples. `earlier_version` marks evaluations by a version of kwbench whose runs are not reused.
    """
    import pandas as pd  # slow to import, and few callers need a frame

    rows: list[dict[str, Any]] = []
    for summary in records:
        evaluation, identity = _evaluation_columns(summary), _identity_columns(summary)
        for attack in (*([summary.clean] if summary.clean is not None else []), *summary.attacks):
            rows.append(evaluation | _attack_columns(attack) | identity | {"attack_run": attack.spec.identity})
    frame = pd.DataFrame(rows, columns=None if rows else ["model", "dataset", "suite", "attack", "accuracy", "a_std", "a_rob"])
    for name in frame.columns:
        if name.startswith(_FRACTIONS):
            frame[name] = frame[name].astype(float)
    return frame


def to_json(summary: Summary) -> dict[str, Any]:
    """Return a summary as JSON values: accuracies as fractions of 1, null where there is no valid number."""
    spec = summary.evaluation.spec
    cascaded = cascaded_attacks(spec)
    return {
        "model": summary.model,
        "dataset": summary.dataset,
        "n": summary.n,
        "threat": {"norm": summary.threat.norm, "eps": summary.threat.radius, "exact": summary.threat.eps_text},
        "suite": spec.suite,
        "stochastic": summary.stochastic,
        "complete": summary.complete,
        "missing": list(summary.missing),
        "run": spec.identity,
        "earlier_version": summary.earlier_version,
        "a_std": interval_json(summary.a_std),
        "a_rob": interval_json(summary.a_rob),
        "a_certified": interval_json(summary.a_certified),
        "bounds": summary.bounds,
        "certified_images": [] if summary.certified is None else summary.index[summary.certified].tolist(),
        "cascade": summary.cascade,
        "a_rob_as_in_paper": interval_json(summary.a_rob_as_in_paper),
        **({"claimed": claimed} if (claimed := summary.evaluation.spec.provenance.get("claimed")) else {}),
        "protocol": list(summary.protocol),
        "a_protocol": interval_json(summary.a_protocol),
        **({"a_rob_excused": interval_json(summary.a_rob_excused)} if summary.a_rob_excused is not None else {}),
        "passes": {"budget": summary.budget, "used": round(summary.used, 3)},
        "attacks": [_attack_json(attack, cascaded=attack.name in cascaded) for attack in summary.attacks],
        "notes": list(summary.notes),
        "skipped": [{"name": label, "reason": reason} for label, reason in summary.skipped.items()],
    }


def _evaluation_columns(summary: Summary) -> dict[str, Any]:
    spec = summary.evaluation.spec
    return {
        "model": spec.model,
        "dataset": spec.dataset,
        "suite": spec.suite,
        "norm": spec.threat.norm,
        "eps": spec.threat.radius,
        "eps_exact": spec.threat.eps_text,
        "n": spec.n,
        "stochastic": spec.stochastic,
        "cascade": summary.cascade,
        "complete": summary.complete,
        **_interval_columns("a_std", summary.a_std),
        **_interval_columns("a_rob", summary.a_rob),
        **_interval_columns("a_rob_as_in_paper", summary.a_rob_as_in_paper),
        **_interval_columns("a_certified", summary.a_certified),
        "bounds": summary.bounds,
    }


def _attack_columns(attack: AttackSummary) -> dict[str, Any]:
    return {
        "attack": attack.name,
        "rows": attack.n,
        **_interval_columns("accuracy", attack.accuracy),
        **_interval_columns("standing", attack.remaining),
        **attack.statuses,
        "broke": attack.broke,
        "budget": attack.budget,
        "other_accuracy": attack.other_accuracy.value if attack.other_accuracy else None,
        "precision": attack.precision,
        "surrogate": attack.surrogate,
        "surrogate_accuracy": attack.surrogate_accuracy.value if attack.surrogate_accuracy else None,
        "forwards": attack.forwards,
        "backwards": attack.backwards,
        "seconds": attack.seconds,
    }


def _identity_columns(summary: Summary) -> dict[str, Any]:
    origin = summary.evaluation.origin
    return {
        "seed": origin.get("seed"),
        "model_sha256": origin.get("model_sha256"),
        "data_sha256": origin.get("data_sha256"),
        "run": summary.evaluation.spec.identity,
        "earlier_version": summary.earlier_version,
        "created": summary.evaluation.created,
    }


def _interval_columns(name: str, interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _attack_json(attack: AttackSummary, *, cascaded: bool) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": attack.name,
        "n": attack.n,
        "accuracy": interval_json(attack.accuracy),
        "broke": attack.broke,
        "statuses": dict(attack.statuses),
        "passes": {"budget": attack.budget, "used": round(attack.used, 3)},
        "forwards": attack.forwards,
        "backwards": attack.backwards,
        "seconds": attack.seconds,
    }
    if cascaded:
        values["standing"] = interval_json(attack.remaining)
    if attack.other_accuracy is not None:
        judged = attack.spec.spec.get("parameters", {}).get("judged", "distance")
        values |= {"judged": judged, "other_accuracy": interval_json(attack.other_accuracy)}
    if attack.precision is not None:
        values["precision"] = attack.precision
    if attack.surrogate is not None:
        values["surrogate"] = {"name": attack.surrogate, "accuracy": interval_json(attack.surrogate_accuracy)}
    return values


def interval_json(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else {"value": interval.value, "low": interval.low, "high": interval.high}
