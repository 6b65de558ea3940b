"""Parts of kwbench, the revisions behind their outcomes, and the comparison of outcomes with golden.json.

An outcome is plain data: strings, integers, floats, and lists and mappings of them. golden.json holds the outcomes of each part
beside the revisions and library versions with which they were made.
"""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import kwbench

GOLDEN = Path(__file__).with_name("golden.json")
REMAKE = "python tests/golden/remake.py"

# Processors round float32 sums differently. Floats may differ by this share of the largest in their list.
_TOLERANCE = 5e-4
# Significant digits of the floats in golden.json.
_DIGITS = 5
# Libraries that take part in every run; see kwbench.evaluation.identity.
_LIBRARIES = ("numpy", "torch")
_PACKAGE = Path(kwbench.__file__).parent


@dataclass(frozen=True)
class Revision:
    """The revision of a class or a module: its name, the file that sets it, and its present value."""

    name: str
    file: str
    value: int


def of_class(kind: type[Any]) -> Revision:
    """Return the revision of a class of kwbench."""
    return Revision(f"{kind.__name__}.revision", _file_of(inspect.getmodule(kind)), kind.revision)


def of_module(module: ModuleType) -> Revision:
    """Return the revision of a module of kwbench."""
    return Revision(f"{module.__name__.rpartition('.')[2]}.REVISION", _file_of(module), module.REVISION)


def _file_of(module: ModuleType | None) -> str:
    assert module is not None
    assert module.__file__ is not None
    return str(Path(module.__file__).relative_to(_PACKAGE.parent))


@dataclass(frozen=True)
class Part:
    """A part of kwbench and how to compute its outcomes.

    `own` returns the revision to raise when the part's behaviour changes, None for a part that no run is identified by.
    `others` returns the revisions of the parts that it computes with. `libraries` are the distributions that it wraps.
    """

    name: str
    outcomes: Callable[[], Mapping[str, Any]]
    own: Callable[[], Revision] | None
    others: Callable[[], Sequence[Revision]] = list
    libraries: tuple[str, ...] = ()

    def revisions(self) -> dict[str, int]:
        """Return the present revisions by name, the part's own first."""
        own = [self.own()] if self.own is not None else []
        return {revision.name: revision.value for revision in [*own, *self.others()]}

    def versions(self) -> dict[str, str]:
        """Return the installed versions of the libraries behind the outcomes."""
        return {name: version(name).partition("+")[0] for name in sorted({*_LIBRARIES, *self.libraries})}

    def record(self) -> dict[str, Any]:
        """Return the part's entry in golden.json, computed anew."""
        return {
            "revisions": self.revisions(),
            "libraries": self.versions(),
            "outcomes": {case: _rounded(outcome) for case, outcome in self.outcomes().items()},
        }


def problem(part: Part, recorded: Mapping[str, Any] | None) -> str | None:
    """Return what is wrong with a part's outcomes and the remedy, None if they are those of golden.json."""
    if recorded is None:
        return f"{part.name}: golden.json has no outcomes of this part; run {REMAKE}"
    raised = [name for name, value in part.revisions().items() if value != recorded["revisions"].get(name)]
    if raised:
        return f"{part.name}: {', '.join(raised)} differs from golden.json; run {REMAKE}"
    now = part.record()
    found = list(differences(now["outcomes"], recorded["outcomes"]))
    if not found:
        return None
    shown = "\n".join(f"  {line}" for line in found[:10])
    more = f"\n  and {len(found) - 10} more" if len(found) > 10 else ""
    return f"{part.name}: outcomes differ from golden.json\n{shown}{more}\n{_remedy(part, now, recorded)}"


def _remedy(part: Part, now: Mapping[str, Any], recorded: Mapping[str, Any]) -> str:
    changed = [name for name, installed in now["libraries"].items() if installed != recorded["libraries"].get(name)]
    if changed:
        versions = ", ".join(f"{name} {now['libraries'][name]}, was {recorded['libraries'].get(name)}" for name in changed)
        return f"Other library versions are installed ({versions}). If they explain it, run {REMAKE}"
    if part.own is None:
        return f'Undo the change, or accept it: {REMAKE} "{part.name}"'
    own = part.own()
    others = [f"{revision.name} ({revision.file})" for revision in part.others()]
    cause = (
        f" If the cause is one of the parts that it computes with, raise that revision: {', '.join(others)}." if others else ""
    )
    return f"Raise {own.name} in {own.file} and run {REMAKE}, or undo the change.{cause}"


def remade(parts: Sequence[Part], golden: Mapping[str, Any], accepted: Sequence[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """Return golden.json anew, and the problems that no raised revision explains.

    A part is written anew if it is new, if one of its revisions was raised, if a library has another version, or if it has no
    revision and its name is among `accepted`. Any other part keeps its recorded outcomes.
    """
    entries: dict[str, Any] = {}
    problems = []
    for part in parts:
        recorded = golden.get(part.name)
        now = part.record()
        if recorded is None or _may_change(part, now, recorded, accepted):
            entries[part.name] = now
            continue
        entries[part.name] = recorded
        lowered = [name for name, value in now["revisions"].items() if value < recorded["revisions"].get(name, value)]
        if lowered:
            problems.append(f"{part.name}: {', '.join(lowered)} is lower than in golden.json; a revision only rises")
        elif complaint := problem(part, recorded):
            problems.append(complaint)
    return entries, problems


def _may_change(part: Part, now: Mapping[str, Any], recorded: Mapping[str, Any], accepted: Sequence[str]) -> bool:
    before, after = recorded["revisions"], now["revisions"]
    if any(value < before.get(name, value) for name, value in after.items()):
        return False
    if before != after or now["libraries"] != recorded["libraries"]:
        return True
    return part.own is None and part.name in accepted


def differences(now: Any, recorded: Any, where: str = "") -> Iterator[str]:
    """Yield a line for each place where two outcomes differ."""
    if isinstance(now, Mapping) and isinstance(recorded, Mapping):
        for key in [*now, *(key for key in recorded if key not in now)]:
            path = f"{where}{': ' if where else ''}{key}"
            if key not in now or key not in recorded:
                yield f"{path}: {'missing now' if key in recorded else 'not in golden.json'}"
            else:
                yield from differences(now[key], recorded[key], path)
    elif not _agree(now, recorded):
        yield f"{where}: {json.dumps(now)}, was {json.dumps(recorded)}"


def _agree(now: Any, recorded: Any) -> bool:
    if isinstance(now, list) and isinstance(recorded, list):
        if len(now) != len(recorded):
            return False
        if all(isinstance(value, int | float) for value in [*now, *recorded]):
            largest = max((abs(value) for value in recorded), default=0.0)
            return all(_close(one, other, largest) for one, other in zip(now, recorded, strict=True))
        return all(_agree(one, other) for one, other in zip(now, recorded, strict=True))
    if isinstance(now, int | float) and isinstance(recorded, int | float):
        return _close(now, recorded, abs(recorded))
    return bool(now == recorded)


def _close(now: float, recorded: float, largest: float) -> bool:
    if isinstance(now, int) and isinstance(recorded, int):
        return now == recorded
    return abs(now - recorded) <= _TOLERANCE * largest + 1e-9


def _rounded(outcome: Any) -> Any:
    if isinstance(outcome, Mapping):
        return {str(key): _rounded(value) for key, value in outcome.items()}
    if isinstance(outcome, list | tuple):
        return [_rounded(value) for value in outcome]
    if isinstance(outcome, float):
        # JSON has neither NaN nor infinity; a whole float stays one.
        return float(f"{outcome:.{_DIGITS}g}") if abs(outcome) < float("inf") else str(outcome)
    return outcome


def read() -> dict[str, Any]:
    """Return the contents of golden.json; empty if there is none."""
    return dict(json.loads(GOLDEN.read_text())) if GOLDEN.exists() else {}


def write(entries: Mapping[str, Any]) -> None:
    """Write golden.json with one line for each case, so that a change reads well in a diff."""
    GOLDEN.write_text(_text(entries) + "\n")


def _text(value: Any, depth: int = 0) -> str:
    if not isinstance(value, Mapping) or depth == 3 or not value:
        return json.dumps(value)
    indent = "  " * (depth + 1)
    lines = ",\n".join(f"{indent}{json.dumps(key)}: {_text(entry, depth + 1)}" for key, entry in value.items())
    return f"{{\n{lines}\n{'  ' * depth}}}"
