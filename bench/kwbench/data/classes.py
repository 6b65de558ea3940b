"""The order of classes: which label a folder of images gets."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kwbench.errors import CannotEvaluate, UsageError, did_you_mean

# Names that a note lists at most.
_LISTED = 20


def natural_order(names: Iterable[str]) -> list[str]:
    """Return names in their natural order: numbers in them count as numbers, so that 2 precedes 10."""

    def key(name: str) -> tuple[list[str | int], str]:
        parts = re.split(r"([0-9]+)", name)
        return [int(part) if position % 2 else part for position, part in enumerate(parts)], name

    return sorted(names, key=key)


@dataclass(frozen=True)
class ClassOrder:
    """The classes that a model knows, in the order of its outputs, as a file lists them.

    Attributes:
        path: the file.
        names: the names of each class; the first one is shown.
    """

    path: Path
    names: tuple[tuple[str, ...], ...]

    def labels(self, folders: Sequence[str]) -> list[int]:
        """Return the label of each folder. Raises UsageError for a folder that is no class, or not a single one."""
        by_name: dict[str, set[int]] = {}
        for label, names in enumerate(self.names):
            for name in names:
                by_name.setdefault(_normal(name), set()).add(label)
        labels = []
        for folder in folders:
            candidates = by_name.get(_normal(folder), set())
            if len(candidates) != 1:
                problem = f"lists {len(candidates)} classes" if candidates else "lists no class"
                known = [names[0] for names in self.names]
                advice = "" if candidates else f"; {did_you_mean(folder, known)}"
                raise UsageError(f"--classes {self.path}: {problem} of the name of the folder {folder!r}{advice}")
            labels.append(candidates.pop())
        if len(set(labels)) != len(labels):
            raise UsageError(f"--classes {self.path}: two folders are one class; give each class one folder")
        return labels


def read_class_order(path: Path) -> ClassOrder:
    """Read the names of classes in the order of a model's outputs.

    The file holds one name a line, or JSON: a list of names, or an object from the index of each class to its name. In JSON, a
    class may have several names, as in ImageNet's usual index.

    Raises CannotEvaluate if the file cannot be read, UsageError for other contents.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as failure:
        raise CannotEvaluate(f"--classes {path}: cannot be read ({failure})") from None
    try:
        value = json.loads(text) if text.lstrip()[:1] in ("[", "{") else [line.strip() for line in text.splitlines()]
        names = tuple(_names(entry) for entry in _listed(value))
    except (ValueError, TypeError, RecursionError) as failure:
        raise UsageError(
            f"--classes {path}: {failure}; the file holds one name a line, or JSON: a list, or an object from index to name"
        ) from None
    return ClassOrder(path, names)


def mapping_note(names: Sequence[str]) -> str:
    """Return which label each class has, as a clause; in the middle of a long list some are left out."""
    if list(names) == [str(label) for label in range(len(names))]:
        return f"labels are the folders' names, 0 to {len(names) - 1}"
    labels = [f"{label} {name}" for label, name in enumerate(names)]
    if len(labels) > _LISTED:
        labels = [*labels[: _LISTED // 2], "...", *labels[-_LISTED // 2 :]]
    return f"labels by folder name: {', '.join(labels)}"


def _listed(value: Any) -> list[Any]:
    if isinstance(value, dict):
        by_index = {int(index): names for index, names in value.items()}
        if sorted(by_index) != list(range(len(by_index))):
            raise ValueError(f"its {len(by_index)} indices do not run from 0 to {len(by_index) - 1}")
        value = [by_index[index] for index in range(len(by_index))]
    while value and value[-1] == "":
        value.pop()
    if not value:
        raise ValueError("it names no class")
    return list(value)


def _names(entry: Any) -> tuple[str, ...]:
    names = (entry,) if isinstance(entry, str) else tuple(entry)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{entry!r} is not the name of a class")
    return names


def _normal(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).casefold()
