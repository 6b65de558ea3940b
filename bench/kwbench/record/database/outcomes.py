"""Queries on outcomes and the adversarial images that were kept."""

from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from kwbench.errors import DamagedData
from kwbench.outcome import Outcome, Status
from kwbench.record.database import schema
from kwbench.record.database.statements import in_parts, insert, pack_array, unpack_array

if TYPE_CHECKING:
    import pandas as pd

# Images have a table of their own.
_COLUMNS = [field.name for field in fields(Outcome) if field.name != "image"]


def insert_outcomes(connection: sa.Connection, attack_run: int, outcomes: Sequence[Outcome]) -> None:
    """Insert outcomes, and the images of those that carry one, where they are missing."""
    rows = [{"attack_run": attack_run} | {name: getattr(outcome, name) for name in _COLUMNS} for outcome in outcomes]
    insert(connection, schema.outcomes, rows)
    images = [
        {
            "attack_run": attack_run,
            "sample": outcome.sample,
            **dict(zip(("channels", "height", "width"), outcome.image.shape, strict=True)),
            "image": pack_array(outcome.image, "<f4"),
        }
        for outcome in outcomes
        if outcome.image is not None
    ]
    insert(connection, schema.adversarials, images)


def select_outcomes(connection: sa.Connection, attack_run: int) -> list[Outcome]:
    """Return the outcomes of an attack run, by position in the split."""
    table = schema.outcomes
    query = sa.select(table).where(table.c.attack_run == attack_run).order_by(table.c.index)
    return [_outcome(row) for row in connection.execute(query)]


def select_frame(connection: sa.Connection, attack_runs: Collection[int]) -> "pd.DataFrame":
    """Return the outcomes of attack runs as a data frame: column `attack_run`, then the fields of `Outcome`."""
    import pandas as pd

    table = schema.outcomes
    rows: list[tuple[Any, ...]] = []
    for part in in_parts(set(attack_runs)):
        query = sa.select(table).where(table.c.attack_run.in_(part)).order_by(table.c.attack_run, table.c.index)
        rows += [tuple(row) for row in connection.execute(query)]
    return pd.DataFrame(rows, columns=["attack_run", *_COLUMNS])


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
    values["status"] = Status(values["status"])
    values["other_status"] = Status(values["other_status"]) if values["other_status"] else None
    return Outcome(**values)


def _image(sample: str, shape: tuple[int, int, int], packed: bytes) -> NDArray[np.float32]:
    try:
        return unpack_array(packed, "<f4", shape).astype(np.float32)
    except ValueError as failure:
        raise DamagedData(f"the adversarial image of sample {sample} is damaged ({failure})") from None
