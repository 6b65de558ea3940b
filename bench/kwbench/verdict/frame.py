"""The record as a data frame, with the verdicts."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kwbench.record.results import to_frame
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import Summary
from kwbench.verdict.verdict import verdict_on_record

if TYPE_CHECKING:
    import pandas as pd

# The columns that `with_verdicts` adds.
VERDICTS = ["verdict", "overestimate", "overestimate_low", "overestimate_high"]


def results(db: str) -> "pd.DataFrame":
    """Return one row per evaluation and attack; see `with_verdicts`.

    Args:
        db: a path to a SQLite file, or a database URL.

    Raises:
        CannotEvaluate: there is no such database, or it cannot be read.
        DamagedData: it is not a kwbench database.
    """
    store = Store.open(db)
    try:
        return with_verdicts(summaries(store))
    finally:
        store.close()


def with_verdicts(records: Sequence[Summary]) -> "pd.DataFrame":
    """Return the frame of `to_frame` with the columns `verdict`, and `overestimate` with its 98 % interval.

    `verdict` is empty for evaluations that were not diagnosed. An overestimate is a fraction of 1: the accuracy under the usual
    protocol minus the robust accuracy; NaN where there is none.
    """
    frame = to_frame(records)
    found = {record.evaluation.spec.identity: verdict_on_record(record) for record in records}
    rows = [found[identity] for identity in frame["run"]] if len(frame) else []
    frame["verdict"] = [verdict.conclusion if verdict else "" for verdict in rows]
    gaps = [verdict.overestimate if verdict else None for verdict in rows]
    frame["overestimate"] = [gap.value if gap else math.nan for gap in gaps]
    frame["overestimate_low"] = [gap.low if gap else math.nan for gap in gaps]
    frame["overestimate_high"] = [gap.high if gap else math.nan for gap in gaps]
    return frame
