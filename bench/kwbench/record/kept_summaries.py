"""Summaries of a large record, kept in a file of this user, so that later reports need not derive them again.

Each has a fingerprint of all that it was derived from: the code, the evaluation, and the stored bytes of its
outcomes. Where one of these changed, it is derived anew, which notices damage. The file is no part of the record, and may be
deleted at any time.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kwbench.errors import CannotEvaluate
from kwbench.files import cache_folder, read_file, write_whole
from kwbench.outcome import CLEAN
from kwbench.record.database.packing import compress, decompress, pack, unpack
from kwbench.record.evaluation import AttackSpec, Evaluation
from kwbench.record.provenance import code_digest
from kwbench.record.summary import AttackSummary, Summary
from kwbench.statistics import Interval

_DIGEST_BYTES = 32
# Fields that hold an array, and NumPy's letter for the type of its values.
_ARRAYS = {"index": "i", "worst_attacks": "i", "clean_values": "f", "robust_values": "f", "protocol_values": "f"}
# Fields that the record itself holds, or that are the same for all summaries that are kept.
_OTHERS = {
    *("evaluation", "complete", "missing", "clean", "attacks", "findings", "guarded"),
    *("label_hint", "certified", "certified_values", "a_rob_excused"),
}
_NUMBERS = [field.name for field in fields(Summary) if field.name not in {*_ARRAYS, *_OTHERS}]
_ATTACK_NUMBERS = [field.name for field in fields(AttackSummary) if field.name != "spec"]
_INTERVALS = {
    *("a_std", "a_rob", "a_rob_as_in_paper", "a_protocol"),
    *("accuracy", "remaining", "other_accuracy", "surrogate_accuracy"),
}


def fingerprint(evaluation: Evaluation, stored: Mapping[int, bytes]) -> str | None:
    """Return a digest of all that the summary of an evaluation is derived from; None if it cannot be kept.

    `stored` are the digests of `Store.fingerprints`. Summaries of what was recorded without checksums are not kept.
    """
    digests = [stored.get(run) for run in evaluation.attack_runs.values()]
    if not evaluation.guarded or None in digests:
        return None
    # The checksum of a guarded evaluation shows that its identity is that of its specification.
    content = (evaluation.spec.identity, evaluation.spec.stochastic, evaluation.spec.n, digests)
    return hashlib.sha256(repr(content).encode()).hexdigest()


class KeptSummaries:
    """The summaries of one record that this user's last report kept."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._entries, self._content = _read(file)
        # Evaluations on the same samples share one array.
        self._shared: dict[bytes, NDArray[np.int64]] = {}

    @classmethod
    def of(cls, record: str) -> Self:
        """Return those of the record with this name, a path or an address."""
        name = hashlib.sha256(str(Path(record).resolve() if "://" not in record else record).encode()).hexdigest()
        return cls(cache_folder("summaries") / name[:32])

    def summary(self, key: str | None, evaluation: Evaluation) -> Summary | None:
        """Return the summary of an evaluation that was kept with this fingerprint; None if there is none."""
        entry = self._entries.get(key or "")
        if entry is None:
            return None
        specs = {attack.label: attack for attack in evaluation.spec.attacks}
        attacks = [_attack(values, specs) for values in entry["attacks"]]
        values: dict[str, Any] = {name: _value(name, value) for name, value in entry["numbers"].items()}
        values |= {name: self._array(_ARRAYS[name], *place) for name, place in entry["arrays"].items()}
        return Summary(
            evaluation=evaluation,
            complete=True,
            missing=(),
            clean=next((attack for attack in attacks if attack.name == CLEAN), None),
            attacks=tuple(attack for attack in attacks if attack.name != CLEAN),
            **values,
        )

    def write(self, summaries: Mapping[str | None, Summary]) -> None:
        """Keep these summaries, by fingerprint, and no others; only complete ones that have a fingerprint."""
        content = _Content()
        entries = {key: _entry(summary, content) for key, summary in summaries.items() if key is not None and summary.complete}
        head = json.dumps({"code": _code(), "entries": entries}).encode()
        whole = len(head).to_bytes(8, "big") + head + b"".join(content.parts)
        with suppress(CannotEvaluate):  # without a file that can be written, the next report derives them anew
            write_whole(self._file, hashlib.sha256(whole).digest() + whole)

    def _array(self, kind: str, start: int, length: int, n: int) -> NDArray[Any]:
        packed = self._content[start : start + length]
        if kind == "f":
            return unpack(decompress(packed), kind, n)[0]
        if packed not in self._shared:
            self._shared[packed] = unpack(decompress(packed), kind, n)[0]
        return self._shared[packed]


class _Content:
    """Packed arrays, one after the other, and equal ones once."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._places: dict[bytes, tuple[int, int, int]] = {}
        self._end = 0

    def add(self, array: NDArray[Any], kind: str) -> tuple[int, int, int]:
        """Add an array (n,), and return where its bytes start, their number, and n."""
        packed = compress(pack([array.astype({"i": np.int64, "f": np.float64}[kind])]))
        if packed not in self._places:
            self._places[packed] = self._end, len(packed), len(array)
            self.parts.append(packed)
            self._end += len(packed)
        return self._places[packed]


def _code() -> list[str]:
    """Return what identifies the code that derives summaries."""
    return [code_digest(), version("numpy"), version("scipy")]


def _read(file: Path) -> tuple[dict[str, Any], bytes]:
    """Return the entries of a file by fingerprint, and their arrays; none if it is damaged, or of another version."""
    with suppress(OSError):
        whole = read_file(file)
        content = whole[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() == whole[:_DIGEST_BYTES]:
            start = 8 + int.from_bytes(content[:8], "big")
            head = json.loads(content[8:start])
            if head["code"] == _code():
                return head["entries"], content[start:]
    return {}, b""


def _entry(summary: Summary, content: _Content) -> dict[str, Any]:
    """Return what is kept of a summary, as JSON values and the places of its arrays."""
    arrays = {name: (getattr(summary, name), kind) for name, kind in _ARRAYS.items()}
    attacks = [summary.clean, *summary.attacks] if summary.clean is not None else summary.attacks
    return {
        "numbers": {name: _plain(getattr(summary, name)) for name in _NUMBERS},
        "attacks": [{name: _plain(getattr(attack, name)) for name in _ATTACK_NUMBERS} for attack in attacks],
        "arrays": {name: content.add(array, kind) for name, (array, kind) in arrays.items() if array is not None},
    }


def _attack(values: Mapping[str, Any], specs: Mapping[str, AttackSpec]) -> AttackSummary:
    return AttackSummary(spec=specs[values["name"]], **{name: _value(name, value) for name, value in values.items()})


def _plain(value: Any) -> Any:
    """Return a value of a field in a form that JSON has."""
    if isinstance(value, Interval):
        return [value.value, value.low, value.high]
    return dict(value) if isinstance(value, Mapping) else value


def _value(name: str, value: Any) -> Any:
    """Return the value of a field that `_plain` turned into JSON."""
    return Interval(*value) if name in _INTERVALS and value is not None else value
