"""The baseline file: for each model, what it may be compared with and its robust value on each sample.

The file is JSON with a checksum. Each model has one line, so that a version-control diff shows which models changed.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kwbench.errors import CannotEvaluate, DamagedData, UsageError, did_you_mean
from kwbench.files import write_whole
from kwbench.formatting import plain
from kwbench.outcome import CLEAN
from kwbench.record.comparability import ComparisonKey, attacks_key, comparison_key
from kwbench.record.evaluation import Evaluation
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import Summary
from kwbench.regression.newest import newest_summaries

FORMAT = 1
FILE_KIND = "kwbench baseline"


@dataclass(frozen=True, slots=True)
class BaselineEntry:
    """One model in a baseline.

    Attributes:
        model: name of the model.
        key: what an evaluation must agree in to be comparable.
        attacks: SHA-256 of the attacks and their parameters.
        a_rob: its A_rob, a fraction of 1.
        run: identity of the evaluation.
        values: robust value of each sample in [0, 1], by the sample's hash.
    """

    model: str
    key: ComparisonKey
    attacks: str
    a_rob: float
    run: str
    values: dict[str, float]

    def is_comparable(self, evaluation: Evaluation) -> bool:
        """Return whether an evaluation has the same key and the same attacks."""
        # Baselines of kwbench 0.1.0 may hold the values that `auto` parameters took.
        return any(
            comparison_key(evaluation, resolved=resolved) == self.key
            and _hash(attacks_key(evaluation, resolved=resolved)) == self.attacks
            for resolved in (False, True)
        )


def update_baseline(store: Store, path: Path, models: Collection[str] | None = None) -> list[str]:
    """Write the newest evaluations into the baseline, whole or not at all; equal records give equal bytes.

    Args:
        store: the record.
        path: the baseline.
        models: write only these models, and keep the entries of all others.

    Returns:
        The names of the models that were written.

    Raises:
        UsageError: a model is not on record.
        CannotEvaluate: an evaluation is incomplete, or the file cannot be written.
        DamagedData: the old baseline, whose other models should stay, is damaged.
    """
    on_record = summaries(store)
    names = {summary.model for summary in on_record}
    for name in models or ():
        if name not in names:
            raise UsageError(f"model {name!r} is not on record; {did_you_mean(name, names)}")
    newest = newest_summaries([summary for summary in on_record if models is None or summary.model in models])
    if not newest:
        raise CannotEvaluate("nothing is on record; evaluate a model first")
    entries = [_entry_of(store, summary) for summary in newest]
    written = sorted({entry.model for entry in entries})
    if models is not None and path.exists():
        entries += [entry for entry in read_baseline(path) if entry.model not in models]
    write_whole(path, _to_text(entries))
    return written


def read_baseline(path: Path) -> list[BaselineEntry]:
    """Return the entries of a baseline in order.

    Raises:
        CannotEvaluate: the file does not exist or cannot be read.
        DamagedData: it is not an intact baseline of this format.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CannotEvaluate(f"{path}: no such baseline; write it with --update") from None
    except OSError as failure:
        raise CannotEvaluate(f"{path}: the baseline cannot be read ({failure.strerror})") from None
    except UnicodeDecodeError:
        raise DamagedData(f"{path}: damaged, not UTF-8; restore it or write it anew with --update") from None
    try:
        content = json.loads(text)
        if content["kind"] != FILE_KIND:
            raise ValueError("not a kwbench baseline")
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this kwbench reads {FORMAT}")
        lines = [json.dumps(row, sort_keys=True, allow_nan=False) for row in content["entries"]]
        if _hash("\n".join(lines)) != content["sha256"]:
            raise ValueError("its checksum does not match its contents")
        return [_entry_from_row(row) for row in content["entries"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as failure:
        reason = f"{type(failure).__name__}: {failure}" if not isinstance(failure, ValueError) else str(failure)
        raise DamagedData(f"{path}: damaged ({plain(reason)}); restore it or write it anew with --update") from None


def values_by_sample(store: Store, summary: Summary) -> dict[str, float]:
    """Return the robust values of a complete evaluation by the samples' hashes."""
    assert summary.robust_values is not None
    hashes = _hashes(store, summary)
    return {hashes[int(index)]: float(value) for index, value in zip(summary.index, summary.robust_values, strict=True)}


def worst_by_sample(store: Store, summary: Summary) -> dict[str, str]:
    """Return the label of the attack behind each robust value of a complete evaluation, by the samples' hashes."""
    hashes = _hashes(store, summary)
    return {hashes[int(index)]: label for index, label in zip(summary.index, summary.worst, strict=True)}


def _hashes(store: Store, summary: Summary) -> dict[int, str]:
    """Return the hashes of the samples by their positions in the split."""
    clean = store.outcome_arrays(summary.evaluation.attack_runs[CLEAN])
    return dict(zip(clean.index.tolist(), (sample.decode() for sample in clean.sample.tolist()), strict=True))


def _entry_of(store: Store, summary: Summary) -> BaselineEntry:
    if summary.a_rob is None:
        name = f"{summary.model} ({summary.dataset}, {summary.threat}, {summary.evaluation.spec.suite})"
        raise CannotEvaluate(f"{name}: incomplete ({'; '.join(summary.missing)}); finish it before it is a baseline")
    return BaselineEntry(
        summary.model,
        comparison_key(summary.evaluation),
        _hash(attacks_key(summary.evaluation)),
        summary.a_rob.value,
        summary.evaluation.spec.identity,
        values_by_sample(store, summary),
    )


def _entry_from_row(row: Mapping[str, Any]) -> BaselineEntry:
    values = {str(sample): float(value) for sample, value in row["values"].items()}
    if not values or not all(0 <= value <= 1 for value in values.values()):
        raise ValueError("values out of range")
    key = ComparisonKey(**row["key"])
    return BaselineEntry(row["model"], key, row["attacks"], float(row["a_rob"]), row["run"], values)


def _to_text(entries: Sequence[BaselineEntry]) -> str:
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


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
