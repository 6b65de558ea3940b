"""What a figure is, and where its numbers come from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kwbench.record.measurement import Measurement


@dataclass(frozen=True, slots=True)
class Source:
    """What a figure's numbers come from: a model, the identity of what was measured, and all that was recorded with it."""

    model: str
    identity: str
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture for a page and a file: `name` without ending, what it is about, and what it shows."""

    name: str
    section: str
    title: str
    caption: str
    svg: str
    sources: tuple[Source, ...] = field(repr=False)


# In the order of the page, with what each is about.


def source_of(each: Measurement) -> Source:
    return Source(each.model, each.identity, {**each.spec, "provenance": each.provenance})


def described(group: Iterable[Measurement]) -> str:
    return "kwbench; " + "; ".join(f"{each.experiment} {each.model} run {each.identity}" for each in group)


def figure_of(group: Sequence[Measurement], suffix: str, title: str, caption: str, svg: str) -> Figure:
    first = group[0]
    name = "-".join(part for part in (first.experiment, suffix, first.dataset) if part).replace("/", "-")
    return Figure(name, first.experiment, title, caption, svg, tuple(source_of(each) for each in group))


def short(model: str) -> str:
    """A model's name without its data set, which the title has; a file keeps its path."""
    return model if ".py:" in model else model.rpartition("/")[2]
