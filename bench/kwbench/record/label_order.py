"""Would the clean accuracy be far higher if the labels named the classes in another order?

A folder's label is its place among the folders; a model may have learnt another order. The predictions on the clean images
show it. Sources of such orders: torchvision's ImageFolder sorts names as text; some files count labels from 1; the folders of a
part of ImageNet have other places than in the whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kwbench.outcome import CLEAN
from kwbench.record.database.outcomes import Predictions
from kwbench.record.store import Store

if TYPE_CHECKING:
    from kwbench.record.summary import Summary

# Clean accuracy above which no order of the classes could make a fourth more of the samples right.
_SUSPICIOUS = 0.75

# An order is worth a hint if it would make so many more of the samples right, as a share, and at least so many of them.
_GAIN = 0.25
_LEAST = 8
# The share of the classes that an order without a name must cover.
_COVERED = 0.75
# Classes that the hint about an unknown order lists.
_LISTED = 5

_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"
)
_NUMBERS = {word: number for number, word in enumerate(f"{_WORDS} nineteen twenty".split())}


def with_label_hints(store: Store, summarized: "list[Summary]") -> "list[Summary]":
    """Return the summaries; those of a low clean accuracy with a hint, if another order of the classes would explain it."""
    low = {
        one.evaluation.attack_runs[CLEAN]
        for one in summarized
        if one.a_std is not None and one.a_std.value < _SUSPICIOUS and CLEAN in one.evaluation.attack_runs
    }
    predictions = store.predictions(low) if low else {}
    return [
        replace(one, label_hint=label_hint(predictions[run], one.evaluation.spec.provenance.get("classes") or ()))
        if (run := one.evaluation.attack_runs.get(CLEAN)) in predictions
        else one
        for one in summarized
    ]


def label_hint(counts: Predictions, names: Sequence[str] = ()) -> str | None:
    """Return a clause on the order of classes under which most predictions on clean images would be right, if there is one.

    Args:
        counts: number of clean samples by label and prediction.
        names: the names of the classes by label, if they have any.
    """
    n, right = sum(counts.values()), _hits(counts, {label: label for label, _ in counts})
    # An order that has a name comes before the one that fits best.
    for orders in (_named_orders(counts, names), _learnt_order(counts, names)):
        hits, how = max(((_hits(counts, order), how) for how, order in orders), default=(0, ""))
        # Of the samples that the two orders judge differently, chance explains up to about three deviations.
        if hits - right >= max(_LEAST, _GAIN * n) and (hits - right) ** 2 >= 8 * (hits + right):
            remedy = "--classes FILE names the classes in the model's order" if names else "check the labels"
            return f"A_std would be {100 * hits / n:.1f} instead of {100 * right / n:.1f} {how}; {remedy}"
    return None


def _hits(counts: Predictions, order: Mapping[int, int]) -> int:
    """Return how many samples are right if each label means the class that `order` gives."""
    return sum(number for (label, prediction), number in counts.items() if order.get(label) == prediction)


def _named_orders(counts: Predictions, names: Sequence[str]) -> list[tuple[str, Mapping[int, int]]]:
    """Return orders of the classes that have a common cause, each with the words for it."""
    labels = sorted({label for label, _ in counts})
    orders: list[tuple[str, Mapping[int, int]]] = [
        ("if each label were one less", {label: label - 1 for label in labels}),
        ("if each label were one more", {label: label + 1 for label in labels}),
    ]
    if names:
        position = {name: place for place, name in enumerate(sorted(names))}
        orders.append(("if the names of the folders were sorted as text", {label: position[names[label]] for label in labels}))
        numbers = {label: _number(names[label]) for label in labels}
        if None not in numbers.values():
            order = {label: number for label, number in numbers.items() if number is not None}
            orders.insert(0, ("if each folder's label were the number that its name says", order))
    return orders


def _learnt_order(counts: Predictions, names: Sequence[str]) -> list[tuple[str, Mapping[int, int]]]:
    """Return the order that the predictions show, with the words for it; none if it does not cover nearly all classes."""
    learnt = _usual_predictions(counts)
    if len(learnt) < _COVERED * len({label for label, _ in counts}):
        return []
    listed = ", ".join(f"{names[label] if names else label} {learnt[label]}" for label in sorted(learnt)[:_LISTED])
    more = ", ..." if len(learnt) > _LISTED else ""
    return [(f"in the order that the predictions show ({listed}{more})", learnt)]


def _number(name: str) -> int | None:
    return int(name) if name.isascii() and name.isdigit() else _NUMBERS.get(name.casefold())


def _usual_predictions(counts: Predictions) -> dict[int, int]:
    """Return the class that the samples of each label are usually predicted as, where no other label shares it.

    It must be the usual one also without any single sample, so that few samples of a class show nothing.
    """
    usual: dict[int, tuple[int, int]] = {}
    for label in {label for label, _ in counts}:
        own = sorted(((number, prediction) for (of, prediction), number in counts.items() if of == label), reverse=True)
        (most, prediction), second = own[0], own[1][0] if len(own) > 1 else 0
        if most - 1 > second and most > usual.get(prediction, (0, 0))[0]:
            usual[prediction] = most, label
    return {label: prediction for prediction, (_, label) in usual.items()}
