"""The samples of one evaluation, as a script that its page and the comparison load. Pages on disk cannot fetch other files."""

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kwbench.formatting import plain
from kwbench.outcome import CLEAN, Example, Status
from kwbench.record.arrays import OutcomeArrays
from kwbench.record.comparability import comparison_key
from kwbench.record.store import Store
from kwbench.record.summary import Summary
from kwbench.report.figures.conventions import class_names
from kwbench.report.html.grouping import run_file
from kwbench.report.html.survival import survival_curves

# Images of a page stop at this size; `kwbench export` has them all.
_MOST_BYTES = 8_000_000

# The first letter of a status as `OutcomeArrays` has it.
_BROKEN = ord(Status.BROKEN[0])


def samples_script(store: Store, summary: Summary, outcomes: Mapping[str, OutcomeArrays]) -> str:
    """Return the script: what each attack achieved on each sample, and the adversarial examples on record.

    `outcomes` are those on record, by the label of the attack; they need not be those of all attacks.
    """
    labels = [CLEAN, *(attack.name for attack in summary.attacks)]
    spec = summary.evaluation.spec
    head = {
        "run": run_file(summary),
        "model": plain(summary.model),
        "title": plain(f"{summary.dataset}, {summary.threat}, {spec.suite}"),
        "protocol": hashlib.sha256(comparison_key(summary.evaluation).protocol.encode()).hexdigest()[:16],
        "stochastic": summary.stochastic,
        "norm": spec.threat.norm,
        "attacks": [plain(label) for label in labels],
        "cascade": summary.cascade,
        "curves": survival_curves(outcomes, summary),
        "classes": class_names(summary.dataset, spec.provenance),
        "index": summary.index.tolist(),
        "complete": summary.complete,
        "worst": _worst_attacks(summary, outcomes, labels),
        "cleanValues": _values(summary.clean_values),
        "robustValues": _values(summary.robust_values),
        "images": _images(store, summary),
    }
    rows = ",".join(_rows(outcomes.get(label)) for label in labels)
    return f'kwbenchRun({json.dumps(head)[:-1]}, "rows": [{rows}]}});\n'


def _worst_attacks(summary: Summary, outcomes: Mapping[str, OutcomeArrays], labels: Sequence[str]) -> list[int]:
    """Return the position in `labels` of the attack behind each sample's worst case, 0 if it is the clean image.

    An incomplete evaluation has no worst case yet: of a sample, the first attack that broke it, or -1.
    """
    if summary.worst:
        return [labels.index(label) if label in labels else -1 for label in summary.worst]
    worst = np.full(len(summary.index), -1)
    beside = summary.evaluation.spec.spec.get("beside", ())
    for position, label in reversed(list(enumerate(labels))):
        rows = outcomes.get(label)
        if rows is not None and label != CLEAN and label not in beside:
            worst[np.isin(summary.index, rows.index[rows.status.view(np.uint8) == _BROKEN])] = position
    return [int(attack) for attack in worst]


def _rows(outcomes: OutcomeArrays | None) -> str:
    if outcomes is None:
        return "null"
    columns: dict[str, Iterable[int | float]] = {
        "index": outcomes.index.tolist(),
        "label": outcomes.label.tolist(),
        "prediction": np.maximum(outcomes.prediction, -1).tolist(),
        "distance": [round(distance, 6) for distance in np.nan_to_num(outcomes.distance, nan=-1.0).tolist()],
        "passes": (outcomes.forwards + outcomes.backwards).tolist(),
    }
    if outcomes.fresh_draws.any():
        columns |= {"right": outcomes.fresh_correct.tolist(), "draws": outcomes.fresh_draws.tolist()}
    status = outcomes.status.tobytes().decode()
    return "{" + ",".join(f'"{name}":{_compact(values)}' for name, values in columns.items()) + f',"status":"{status}"}}'


def _compact(values: Iterable[int | float]) -> str:
    return json.dumps(values, separators=(",", ":"))


def _values(values: NDArray[np.float64] | None) -> list[float] | None:
    return None if values is None else [round(value, 4) for value in values.tolist()]


def _images(store: Store, summary: Summary) -> dict[int, Mapping[str, Any]]:
    """Return the example of each sample's worst case, by its position in the split."""
    images: dict[int, Mapping[str, Any]] = {}
    size = 0
    for position, _, example in worst_examples(store, summary):
        if size < _MOST_BYTES:
            images[position] = _image(example)
            size += len(images[position]["clean"]) + len(images[position]["residual"])
    return dict(sorted(images.items()))


def worst_examples(store: Store, summary: Summary) -> Iterator[tuple[int, str, Example]]:
    """Yield the example of each sample's worst case that is on record, after its position in the split and the attack."""
    runs = summary.evaluation.attack_runs
    for label in sorted(set(summary.worst) - {CLEAN}):
        examples = store.examples(runs[label])
        if not examples:
            continue
        outcomes = store.outcome_arrays(runs[label])
        positions = dict(zip(outcomes.index.tolist(), (sample.decode() for sample in outcomes.sample.tolist()), strict=True))
        for position, worst in zip(summary.index.tolist(), summary.worst, strict=True):
            example = examples.get(positions.get(position, ""))
            if worst == label and example is not None:
                yield position, label, example


def _image(example: Example) -> Mapping[str, Any]:
    """Return an example for the page: the clean image in steps of 1/255, and the residual as signed bytes."""
    residual, scale = example.residual, example.scale
    if residual is None:
        moved = example.adversarial - example.clean
        scale = float(np.abs(moved).max()) / 127 or 1.0
        residual = np.rint(moved / scale).astype(np.int8)
    return {
        "shape": list(example.clean.shape),
        "clean": _packed(np.rint(255 * example.clean).astype(np.uint8)),
        "residual": _packed(residual),
        "scale": scale,
        "before": example.before,
        "after": example.after,
    }


def _packed(array: NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()
