"""Carries an evaluation out: what is missing on record is judged, batch by batch, and written down in one transaction each.

Kill it at any moment; the same command goes on where the record ends, and ends with the same rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kwbench.errors import CannotEvaluate, UsageError
from kwbench.evaluator import Evaluator, Facts, Request, open_evaluator
from kwbench.judge import CLEAN
from kwbench.outcome import Outcome
from kwbench.provenance import code_digest, digest, machine, versions
from kwbench.store import AttackSpec, Evaluation, EvaluationSpec, Store


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an evaluation is: rows on record under `label`, of all its samples, and of the whole evaluation."""

    model: str
    label: str
    done: int
    samples: int
    done_in_all: int
    rows_in_all: int


def evaluate(
    request: Request,
    store: Store,
    report: Callable[[Progress], None] = lambda _: None,
    *,
    command: str = "",
    time_limit: float | None = None,
) -> Evaluation:
    """Evaluate one model and return its record, complete unless rows are invalid or errors.

    Raises UsageError, CannotEvaluate or DamagedData; what was finished before is on record.
    """
    if request.batch_size < 1:
        raise UsageError(f"--batch-size {request.batch_size}: must be at least 1")
    if request.tile < 1:
        raise UsageError(f"--tile {request.tile}: must be at least 1")
    if time_limit is not None and not time_limit > 0:
        raise UsageError(f"--time-limit {time_limit:g}: must be above 0")
    evaluator = open_evaluator(request, time_limit)
    try:
        evaluation = store.register(describe(request, evaluator.facts, command))
        _carry_out(request, evaluator, evaluation, store, report)
    finally:
        evaluator.close()
    return evaluation


def describe(request: Request, facts: Facts, command: str = "") -> EvaluationSpec:
    """What is to be put on record: the identity of the evaluation and of each of its attack runs."""
    origin = {**facts.identity, "versions": versions(), "code_sha256": code_digest()}
    clean: dict[str, Any] = {"attack": CLEAN, "parameters": {}}
    attacks = []
    for label, attack in {CLEAN: clean, **facts.attacks}.items():
        attacks.append(AttackSpec(label, digest({"origin": origin, "label": label, **attack}), attack))
    paper_attacks = request.suite.paper_attacks
    spec = {
        "origin": origin,
        "suite": request.suite.name,
        "attacks": [attack.identity for attack in attacks],
        "protocol": [asdict(attack) for attack in request.suite.attacks],
        "model": facts.model,
        "dataset": facts.dataset,
        "cascade": False,
        "paper_attacks": [label for label in paper_attacks if label in facts.attacks] if paper_attacks is not None else None,
    }
    return EvaluationSpec(
        identity=digest(spec),
        model=facts.model,
        dataset=facts.dataset,
        suite=request.suite.name,
        threat=facts.threat,
        n=len(facts.samples),
        stochastic=facts.stochastic,
        attacks=tuple(attacks),
        spec=spec,
        provenance={
            **machine(),
            "device": facts.device,
            "threads": facts.threads,
            "effective_sparsity": facts.effective_sparsity,
            "command": command,
        },
    )


def _carry_out(
    request: Request, evaluator: Evaluator, evaluation: Evaluation, store: Store, report: Callable[[Progress], None]
) -> None:
    facts = evaluator.facts
    rows_in_all = len(facts.samples) * len(evaluation.attack_runs)
    done_in_all = 0
    clean: dict[str, Outcome] = {}
    for label, attack_run in evaluation.attack_runs.items():
        recorded = {outcome.sample: outcome for outcome in store.outcomes(attack_run)}
        done = len(recorded)
        progress = Progress(facts.model, label, done, len(facts.samples), done_in_all + done, rows_in_all)
        report(progress)
        whole = facts.stochastic or label in facts.whole_tiles
        size = request.tile if whole else max(1, request.batch_size // request.tile) * request.tile
        for rows in _pending(facts.samples, recorded, request.tile, size):
            for outcomes in _judge_backing_off(evaluator, label, rows, clean, facts, request.tile):
                store.append(attack_run, outcomes)
                recorded |= {outcome.sample: outcome for outcome in outcomes}
            done = len(recorded)
            report(Progress(facts.model, label, done, len(facts.samples), done_in_all + done, rows_in_all))
        if label == CLEAN:
            clean = recorded
        done_in_all += len(recorded)


def _pending(samples: Sequence[str], recorded: dict[str, Outcome], tile: int, size: int) -> list[list[int]]:
    """Rows still to be judged, in batches made of tiles that always start at the same places."""
    tiles = [list(range(start, min(start + tile, len(samples)))) for start in range(0, len(samples), tile)]
    missing = [rows for rows in tiles if any(samples[row] not in recorded for row in rows)]
    tiles_in_batch = size // tile
    return [
        [row for rows in missing[start : start + tiles_in_batch] for row in rows]
        for start in range(0, len(missing), tiles_in_batch)
    ]


def _judge_backing_off(
    evaluator: Evaluator, label: str, rows: list[int], clean: dict[str, Outcome], facts: Facts, tile: int
) -> list[list[Outcome]]:
    """The outcomes of a batch; if memory runs out, of its halves, down to one tile."""
    try:
        if label == CLEAN:
            return [evaluator.judge_clean(rows)]
        return [evaluator.judge(label, rows, [clean[facts.samples[row]] for row in rows])]
    except (torch.OutOfMemoryError, MemoryError):
        if len(rows) <= tile:
            raise CannotEvaluate(f"{facts.model}: memory does not hold {tile} samples at once; give a smaller --tile") from None
    torch.cuda.empty_cache()
    half = -(-len(rows) // tile // 2) * tile
    return [
        *_judge_backing_off(evaluator, label, rows[:half], clean, facts, tile),
        *_judge_backing_off(evaluator, label, rows[half:], clean, facts, tile),
    ]
