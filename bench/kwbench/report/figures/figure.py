"""A figure and the sources of its numbers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kwbench.record.measurement import Measurement
from kwbench.report.drawing.picture import Picture


@dataclass(frozen=True, slots=True)
class Source:
    """The origin of a figure's numbers: the model, the identity of the run, and its recorded settings and provenance."""

    model: str
    identity: str
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture for a page and files. `name` is the files' name without suffix, `section` an experiment, transfer or gamma."""

    name: str
    section: str
    caption: str
    picture: Picture
    sources: tuple[Source, ...] = field(repr=False)


def source_of(measurement: Measurement) -> Source:
    """Return the source that a measurement is."""
    return Source(measurement.model, measurement.identity, {**measurement.spec, "provenance": measurement.provenance})


def described(group: Iterable[Measurement]) -> str:
    """Return the description in a file: the experiments, models and runs behind it."""
    return "kwbench; " + "; ".join(f"{run.experiment} {run.model} run {run.identity}" for run in group)


def figure_of(group: Sequence[Measurement], suffix: str, caption: str, picture: Picture) -> Figure:
    """Return the figure of a group of measurements, named after experiment, suffix and data set."""
    first = group[0]
    name = "-".join(part for part in (first.experiment, suffix, first.dataset) if part).replace("/", "-")
    return Figure(name, first.experiment, caption, picture, tuple(source_of(measurement) for measurement in group))


def short(model: str) -> str:
    """Return a model's name without its data set, which the title names; a user's file keeps its path."""
    return model if ".py:" in model else model.rpartition("/")[2]
