"""Reading outcomes sample by sample, as texts that the database joins: a page shows thousands of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from kwbench.record.database import schema
from kwbench.record.database.statements import in_parts


@dataclass(frozen=True, slots=True)
class SampleColumns:
    """The outcomes of one attack run. Each field lists a value per sample, separated by commas, in one order.

    `prediction` and `distance` are -1 where there is none, `passes` counts forwards and backwards, and `right` are correct
    fresh draws out of `draws`.
    """

    index: str
    label: str
    status: str
    prediction: str
    distance: str
    passes: str
    right: str
    draws: str


def select_columns(connection: sa.Connection, attack_runs: Sequence[int]) -> dict[int, SampleColumns]:
    """Return the outcomes of attack runs; runs without rows are left out."""
    table = schema.outcomes.c
    distance = sa.func.round(sa.cast(sa.func.coalesce(table.distance, -1.0), sa.Numeric(20, 6)), 6)
    columns = (
        table.index,
        table.label,
        table.status,
        sa.func.coalesce(table.prediction, -1),
        distance,
        table.forwards + table.backwards,
        table.fresh_correct,
        table.fresh_draws,
    )
    joined = [sa.func.aggregate_strings(sa.cast(column, sa.String), ",") for column in columns]
    found: dict[int, SampleColumns] = {}
    for part in in_parts(attack_runs):
        query = sa.select(table.attack_run, *joined).where(table.attack_run.in_(part)).group_by(table.attack_run)
        found |= {run: SampleColumns(*texts) for run, *texts in connection.execute(query)}
    return found
