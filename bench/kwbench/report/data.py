"""What reports show: the record in the forms that formats render."""

from collections.abc import Collection
from functools import cached_property
from typing import TYPE_CHECKING

from kwbench.record.measurement import Measurement
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import Summary
from kwbench.report.drawing.picture import Style
from kwbench.report.leaderboard import Board, boards

if TYPE_CHECKING:
    from kwbench.claims import ClaimComparison, Remark
    from kwbench.report.figures import Figure


class ReportData:
    """The contents of a record, each form computed on first use and then kept, as several formats share it."""

    def __init__(self, store: Store, files: Collection[str] = (), style: Style = Style.SCREEN) -> None:
        self.store = store
        self.style = style
        # The files that the chosen formats write, so that pages can link to one another.
        self.pages = frozenset(files)

    @cached_property
    def summaries(self) -> list[Summary]:
        """All evaluations with their numbers, oldest first."""
        return summaries(self.store)

    @cached_property
    def boards(self) -> list[Board]:
        """The leaderboards."""
        return boards(self.summaries)

    @cached_property
    def suite_boards(self) -> list[Board]:
        """The leaderboards in which all evaluations under suites of one name share a board."""
        return boards(self.summaries, any_definition=True)

    @cached_property
    def experiments(self) -> list[Measurement]:
        """The measurements of experiments, the newest last."""
        return self.store.experiments()

    @cached_property
    def sweeps(self) -> list[Measurement]:
        """The sweeps of a parameter, the newest last."""
        return [measurement for measurement in self.experiments if measurement.experiment == "sweep"]

    @cached_property
    def claims(self) -> "tuple[list[ClaimComparison], list[Remark], list[Summary]]":
        """Every claim beside its measurement, the remarks of the lint, and the evaluations that no claim is about."""
        from kwbench.claims import compare_claims, lint, read_claims, unclaimed

        claims = read_claims()
        compared = compare_claims(claims, self.store, on_record=self.summaries)
        return compared, lint(claims), unclaimed(claims, self.summaries)

    @cached_property
    def figures(self) -> "list[Figure]":
        """Every figure that the record can give."""
        from kwbench.report.figures import figures

        return figures(self.experiments, self.summaries, self.boards)
