"""What a format of the report is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kwbench.report.data import ReportData


@dataclass(frozen=True, slots=True)
class Format:
    """One format of the report.

    Args:
        name: The option of `kwbench report` without its dashes, such as `html`.
        description: What the files show, as a sentence without a full stop.
        files: The files that it writes, relative to the report's folder; `*` stands for names that depend on the record.
        render: Return the content of each file by its name. It imports what it needs when it is called, so that the command
            line can list all formats without waiting for pandas, jinja2 or numpy.
    """

    name: str
    description: str
    files: tuple[str, ...]
    render: Callable[["ReportData"], Mapping[str, str | bytes]]

    @property
    def option_help(self) -> str:
        """The help text of the option: description and files."""
        return f"{self.description}: {', '.join(self.files)}."
