"""A fingerprint of a model's answers: the net below a model's identity.

The identity follows code and values. What a forward pass reads from elsewhere, such as a file or an environment variable, it
does not see. So the answers to a few images are stored with each evaluation. Rows on record are reused only for a model with
the same answers.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kwbench.evaluation.request import Facts
from kwbench.model import Model
from kwbench.record.evaluation import Evaluation
from kwbench.record.store import Store

# Logits of each image; None stands for values that are not finite.
Answers = list[list[float | None]]

# Images of each kind, and values of each image that are kept.
_IMAGES, _VALUES = 8, 32
# Relative to the largest answer. Other machines and batch sizes round by 1e-6.
_TOLERANCE = 1e-3
# A network with hard choices may answer one image otherwise after rounding.
_SHARE = 1 / 8

# Parts of an evaluation's origin that do not change what is asked for the fingerprint.
_OTHER_QUESTIONS = {"norm", "eps", "seed", "answers"}


def fingerprint(model: Model, images: Tensor) -> Answers | None:
    """Return the model's answers to the first of some images (b, c, h, w) and to as many images of noise.

    At most 32 numbers an image: its logits, or as many fixed sums of them. None, if the answers change from pass to pass
    although the model's random numbers are the same. Costs one pass, two of a stochastic model.
    """
    first = images[:_IMAGES]
    noise = torch.rand(first.shape, generator=torch.Generator().manual_seed(0)).to(first)
    asked = torch.cat([first, noise])
    with torch.no_grad(), model.raising_by_name(), model.metering(len(asked)):
        passes = []
        for _ in range(2 if model.stochastic else 1):
            model.reseed("fingerprint")
            passes.append(model(asked).double().cpu())
    if not torch.equal(passes[0], passes[-1]):
        return None
    logits = passes[0]
    if logits.shape[1] > _VALUES:
        positions = torch.arange(1, logits.shape[1] + 1, dtype=torch.float64)
        logits = logits @ torch.outer(positions, positions[:_VALUES]).cos() / len(positions) ** 0.5
    return [[float(f"{value:.6g}") if abs(value) < torch.inf else None for value in row] for row in logits.tolist()]


def told_apart(facts: Facts, store: Store) -> Facts:
    """Return the facts with another identity and a note, if models on record of the same identity answer otherwise.

    Models of one identity that answer otherwise are numbered in the order in which they were met. Evaluations without a
    fingerprint, by earlier versions, count as the first of them.
    """
    answers = facts.answers
    if answers is None:
        return facts
    known = _known(facts, store.evaluations(containing=str(facts.identity["model_sha256"])))
    if not known or any(number is None and agree(answers, other) for number, other in known):
        return facts
    number = next((number for number, other in known if agree(answers, other)), None)
    if number is None:
        number = 1 + max(number or 0 for number, _ in known)
    note = (
        "the same code and weights gave other answers before, so that something else that it uses has changed; "
        "it counts as another model, and was evaluated anew"
    )
    return replace(facts, identity={**facts.identity, "answers": number}, notes=(*facts.notes, note))


def agree(one: Answers, other: Sequence[Sequence[float | None]]) -> bool:
    """Return whether two fingerprints are equal up to rounding, on all but an eighth of the images."""
    if [len(row) for row in one] != [len(row) for row in other]:
        return False
    differ = sum(not _close(row, reference) for row, reference in zip(one, other, strict=True))
    return differ <= _SHARE * len(one)


def _close(one: Sequence[float | None], other: Sequence[float | None]) -> bool:
    if [value is None for value in one] != [value is None for value in other]:
        return False
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    scale = max((abs(b) for _, b in pairs), default=0.0)
    return all(abs(a - b) <= _TOLERANCE * scale for a, b in pairs)


def _known(facts: Facts, evaluations: Sequence[Evaluation]) -> list[tuple[int | None, Answers]]:
    """Return the numbers and answers of the models on record that have these facts' identity."""

    def question(origin: Any) -> dict[str, Any]:
        return {key: value for key, value in origin.items() if key not in _OTHER_QUESTIONS}

    return [
        (evaluation.origin.get("answers"), answers)
        for evaluation in evaluations
        if question(evaluation.origin) == question(facts.identity)
        and (answers := evaluation.spec.provenance.get("answers")) is not None
    ]
