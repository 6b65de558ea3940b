"""Queries on outcomes and the adversarial images that were kept."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from kwbench.errors import DamagedData
from kwbench.outcome import Outcome, Status
from kwbench.record.database import schema
from kwbench.record.database.checksums import (
    REMEDY,
    OutcomesChecksum,
    require_outcomes,
    select_run_checksums,
    tally_checksum,
)
from kwbench.record.database.examples import insert_examples
from kwbench.record.database.statements import in_parts, insert, lock, pack_array, unpack_array, upsert
from kwbench.record.database.tallies import TallyReader

if TYPE_CHECKING:
    import pandas as pd

# Number of samples by label and prediction.
Predictions = Mapping[tuple[int, int], int]

# Images and examples have tables of their own.
_COLUMNS = [field.name for field in fields(Outcome) if field.name not in ("image", "example")]


def insert_outcomes(connection: sa.Connection, attack_run: int, outcomes: Sequence[Outcome]) -> None:
    """Insert outcomes, and the images of those that carry one, where they are missing or errors."""
    lock(connection, schema.attack_runs, schema.attack_runs.c.id == attack_run)
    recorded = _select_samples(connection, attack_run, [outcome.sample for outcome in outcomes])
    fresh = {
        outcome.sample: outcome
        for outcome in reversed(outcomes)
        if outcome.sample not in recorded or recorded[outcome.sample].status is Status.ERROR
    }
    replaced = [recorded[sample] for sample in fresh if sample in recorded]
    with _keeping_checksums(connection, attack_run) as change:
        _delete(connection, attack_run, [outcome.sample for outcome in replaced])
        rows = [
            {"attack_run": attack_run} | {name: getattr(outcome, name) for name in _COLUMNS}
            for outcome in reversed(fresh.values())
        ]
        insert(connection, schema.outcomes, rows)
        change(fresh.values(), replaced)
    images = [
        {
            "attack_run": attack_run,
            "sample": outcome.sample,
            **dict(zip(("channels", "height", "width"), outcome.image.shape, strict=True)),
            "image": pack_array(outcome.image, "<f4", outcome.sample),
        }
        for outcome in outcomes
        if outcome.image is not None
    ]
    insert(connection, schema.adversarials, images)
    insert_examples(connection, attack_run, outcomes)


def delete_outcomes(connection: sa.Connection, attack_run: int, samples: Collection[str] | None) -> None:
    """Delete the outcomes of these samples, by default of all, and their images."""
    lock(connection, schema.attack_runs, schema.attack_runs.c.id == attack_run)
    recorded = select_outcomes(connection, attack_run)
    deleted = [outcome for outcome in recorded if samples is None or outcome.sample in samples]
    with _keeping_checksums(connection, attack_run) as change:
        _delete(connection, attack_run, [outcome.sample for outcome in deleted])
        change((), deleted)


@contextmanager
def _keeping_checksums(
    connection: sa.Connection, attack_run: int
) -> Iterator[Callable[[Iterable[Outcome], Iterable[Outcome]], None]]:
    """Bring the checksums of an attack run up to date after the block, which states the outcomes added and removed.

    Raises DamagedData if what is on record before is not what was written. Outcomes from before the record had checksums, and
    those added to them, stay without.
    """
    table = schema.attack_run_checksums
    before = TallyReader().read(connection, [attack_run]).get(attack_run)
    recorded = select_run_checksums(connection, [attack_run]).get(attack_run)
    state = OutcomesChecksum(recorded[0] if recorded is not None else "0 0")

    def change(added: Iterable[Outcome], removed: Iterable[Outcome]) -> None:
        nonlocal state
        state = state.add(added).remove(removed)

    yield change
    if recorded is None and before is not None:
        return
    after = TallyReader(checked=False).read(connection, [attack_run]).get(attack_run)
    if after is not None:
        row = {"attack_run": attack_run, "outcomes": str(state), "tally": tally_checksum(after)}
        upsert(connection, table, row)
    else:
        connection.execute(sa.delete(table).where(table.c.attack_run == attack_run))


def _delete(connection: sa.Connection, attack_run: int, samples: Sequence[str]) -> None:
    for table in (schema.examples, schema.adversarials, schema.outcomes):
        for part in in_parts(samples):
            connection.execute(sa.delete(table).where(table.c.attack_run == attack_run, table.c.sample.in_(part)))


def _select_samples(connection: sa.Connection, attack_run: int, samples: Sequence[str]) -> dict[str, Outcome]:
    """Return the recorded outcomes of these samples."""
    table = schema.outcomes
    recorded: dict[str, Outcome] = {}
    for part in in_parts(samples):
        query = sa.select(table).where(table.c.attack_run == attack_run, table.c.sample.in_(part))
        recorded |= {row.sample: _outcome(row) for row in connection.execute(query)}
    return recorded


def select_outcomes(connection: sa.Connection, attack_run: int) -> list[Outcome]:
    """Return the outcomes of an attack run, by position in the split. Raises DamagedData if they are not what was written."""
    table = schema.outcomes
    query = sa.select(table).where(table.c.attack_run == attack_run).order_by(table.c.index)
    outcomes = [_outcome(row) for row in connection.execute(query)]
    require_outcomes(connection, attack_run, outcomes)
    return outcomes


def select_frame(connection: sa.Connection, attack_runs: Collection[int]) -> "pd.DataFrame":
    """Return the outcomes of attack runs as a data frame: column `attack_run`, then the fields of `Outcome`."""
    import pandas as pd

    table = schema.outcomes
    rows: list[tuple[Any, ...]] = []
    for part in in_parts(set(attack_runs)):
        query = sa.select(table).where(table.c.attack_run.in_(part)).order_by(table.c.attack_run, table.c.index)
        rows += [tuple(row) for row in connection.execute(query)]
        TallyReader().read(connection, part)
    return pd.DataFrame(rows, columns=["attack_run", *_COLUMNS])


def select_predictions(connection: sa.Connection, attack_runs: Collection[int]) -> dict[int, Predictions]:
    """Return the predictions on clean images, by attack run."""
    table = schema.outcomes
    columns = (table.c.attack_run, table.c.label, table.c.clean_prediction)
    predictions: dict[int, dict[tuple[int, int], int]] = {}
    for part in in_parts(set(attack_runs)):
        query = sa.select(*columns, sa.func.count()).where(table.c.attack_run.in_(part), columns[2].is_not(None))
        for run, label, prediction, number in connection.execute(query.group_by(*columns)):
            predictions.setdefault(run, {})[label, prediction] = number
    return dict(predictions)


def select_reasons(connection: sa.Connection, attack_runs: Collection[int]) -> dict[int, dict[str, int]]:
    """Return the notes of rows that are invalid or errors, with the number of rows, by attack run."""
    table = schema.outcomes
    columns = (table.c.attack_run, table.c.note)
    reasons: dict[int, dict[str, int]] = {}
    for part in in_parts(set(attack_runs)):
        failed = table.c.status.in_([Status.INVALID.value, Status.ERROR.value])
        query = sa.select(*columns, sa.func.count()).where(table.c.attack_run.in_(part), failed)
        for run, note, number in connection.execute(query.group_by(*columns)):
            reasons.setdefault(run, {})[note] = number
    return reasons


def select_images(connection: sa.Connection, attack_run: int) -> dict[str, NDArray[np.float32]]:
    """Return the adversarial images (c, h, w) that were kept, by sample. Raises DamagedData for damaged ones."""
    table = schema.adversarials.c
    query = sa.select(table.sample, table.channels, table.height, table.width, table.image)
    rows = connection.execute(query.where(table.attack_run == attack_run).order_by(table.sample))
    return {sample: _image(sample, (c, h, w), packed) for sample, c, h, w, packed in rows}


def select_samples_with_images(connection: sa.Connection, attack_run: int) -> set[str]:
    """Return the samples whose adversarial images were kept."""
    table = schema.adversarials.c
    return set(connection.execute(sa.select(table.sample).where(table.attack_run == attack_run)).scalars())


def _outcome(row: sa.Row[Any]) -> Outcome:
    # `row.index` would be the method of tuples.
    values = {name: row._mapping[name] for name in _COLUMNS}
    try:
        values["status"] = Status(values["status"])
        values["other_status"] = Status(values["other_status"]) if values["other_status"] else None
    except ValueError as failure:
        raise DamagedData(f"damaged: sample {row.sample} of attack run {row.attack_run}: {failure}; {REMEDY}") from None
    return Outcome(**values)


def _image(sample: str, shape: tuple[int, int, int], packed: bytes) -> NDArray[np.float32]:
    try:
        return unpack_array(packed, "<f4", shape, sample).astype(np.float32)
    except (ValueError, TypeError) as failure:
        raise DamagedData(f"the adversarial image of sample {sample} is damaged ({failure})") from None
