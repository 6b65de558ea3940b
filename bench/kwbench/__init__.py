"""kwbench: the robust accuracy of image classifiers, with the evidence.

`kwbench.results()` is the record as a pandas DataFrame.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["results"]


def results(db: str = "results.db") -> "pd.DataFrame":
    """One row for each evaluation and attack: accuracies with their intervals, costs, threat model and hashes.

    `db` is a SQLite file or a SQLAlchemy URL. Raises CannotEvaluate if it is missing, DamagedData if it is not a record.
    """
    from kwbench.record.results import results as read  # pandas takes its time, and `import kwbench` must not

    return read(db)
