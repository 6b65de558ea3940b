"""A hint where the classes in another order would make far more of the clean images right, and nowhere else."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kwbench.record.label_order import label_hint
from kwbench.record.results import to_json
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from support.records import record, rows, specification

_WORDS = sorted(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
_VALUES = [["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"].index(word) for word in _WORDS]
_NUMBERED = [str(number) for number in range(12)]
_AS_TEXT = [sorted(_NUMBERED).index(name) for name in _NUMBERED]
_SCATTERED = [217, 0, 482, 491, 497, 566, 569, 571, 574, 701]


def _counts(predict: Callable[[int], int], classes: int, n: int, errors: int = 1) -> Counter[tuple[int, int]]:
    """Return the counts of a model that predicts so for each label, but for some errors."""
    counts = Counter((index % classes, predict(index % classes)) for index in range(n - errors))
    counts.update((label, (predict(label) + 3) % 10) for label in range(errors))
    return counts


@pytest.mark.parametrize(
    ("predict", "classes", "names", "words"),
    [
        (lambda label: _VALUES[label], 10, _WORDS, "if each folder's label were the number that its name says"),
        (lambda label: _AS_TEXT[label], 12, _NUMBERED, "if the names of the folders were sorted as text"),
        (lambda label: label - 1, 10, (), "if each label were one less; check the labels"),
        (lambda label: label + 1, 10, (), "if each label were one more"),
        (lambda label: label + 7, 3, ["7", "8", "9"], "if each folder's label were the number that its name says"),
        (lambda label: _SCATTERED[label], 10, list("abcdefghij"), "predictions show (a 217, b 0, c 482, d 491, e 497, ...)"),
        (lambda label: 9 - label, 10, (), "in the order that the predictions show (0 9, 1 8, 2 7, 3 6, 4 5, ...)"),
    ],
)
def test_another_order_of_the_classes_is_hinted_at(
    predict: Callable[[int], int], classes: int, names: list[str], words: str
) -> None:
    hint = label_hint(_counts(predict, classes, 40), names)
    assert hint is not None
    assert hint.startswith("A_std would be 97.5 instead of ")
    assert words in hint
    assert ("--classes FILE" in hint) == bool(names)


def _rng_counts(seed: int, n: int, classes: int) -> Counter[tuple[int, int]]:
    rng = np.random.default_rng([seed, n, classes])
    return Counter(zip(rng.integers(0, classes, n).tolist(), rng.integers(0, classes, n).tolist(), strict=True))


@pytest.mark.parametrize(
    "counts",
    [
        _counts(lambda label: label, 10, 40),
        _counts(lambda _: 3, 10, 40),  # a constant model
        _counts(lambda label: label // 2, 10, 60),  # a model that confuses pairs of classes
        _counts(lambda label: label - 1, 10, 8),  # too few samples to tell
        *(_rng_counts(seed, n, classes) for seed in range(10) for n in (16, 64, 1000) for classes in (3, 10, 100)),
    ],
)
def test_no_order_is_hinted_at_without_evidence(counts: Counter[tuple[int, int]]) -> None:
    assert label_hint(counts) is None
    assert label_hint(counts, [str(number) for number in range(100)][::-1]) is None


def test_the_hint_stands_beside_the_number_and_in_the_json(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "results.db"), create=True)
    # Labels from 1, for a model that counts from 0.
    wrong = [replace(row, label=row.label + 1) for row in rows("w" * 40)]
    record(store, specification(n=40), {"clean": wrong, "pgd": wrong})
    record(store, specification("other", n=4), {"clean": rows("hhhh"), "pgd": rows("hhbb")})
    shifted, other = summaries(store)
    assert "if each label were one less" in to_json(shifted)["notes"][0]
    assert other.notes == ()
