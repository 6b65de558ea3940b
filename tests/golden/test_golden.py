"""Behaviour changes only together with a revision, by which runs on record are identified; see golden.parts."""

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from golden.every_part import every_part
from golden.parts import Part, problem, read, remade
from kwbench.attacks import ATTACKS
from kwbench.attacks.pgd import Pgd
from kwbench.model import Model
from kwbench.networks.activations import ACTIVATIONS
from kwbench.networks.architectures import ARCHITECTURES
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel

PARTS = {part.name: part for part in every_part()}


@pytest.mark.parametrize("name", PARTS)
def test_outcomes_are_those_of_the_recorded_revision(name: str) -> None:
    complaint = problem(PARTS[name], read().get(name))
    assert complaint is None, complaint


def test_golden_json_holds_exactly_the_parts_there_are() -> None:
    assert list(read()) == list(PARTS)


def test_every_attack_activation_and_architecture_is_a_part() -> None:
    expected = {f"attack {name}" for name in ATTACKS}
    expected |= {f"activation {name}" for name in ACTIVATIONS} | {f"architecture {name}" for name in ARCHITECTURES}
    assert expected <= set(PARTS)


@pytest.fixture
def doubled_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PGD take steps of twice the size."""
    attack = Pgd.__call__

    def doubled(self: Pgd, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        size = self._relative_step_size * threat.radius if self.step_size is None else self.step_size
        return attack(replace(self, step_size=2 * size), model, x, y, threat, rng)

    monkeypatch.setattr(Pgd, "__call__", doubled)


@pytest.mark.usefixtures("doubled_steps")
def test_a_changed_step_rule_names_the_revision_to_raise() -> None:
    complaint = problem(PARTS["attack pgd"], read()["attack pgd"])
    assert complaint is not None
    assert "Raise Pgd.revision in kwbench/attacks/pgd.py and run python tests/golden/remake.py, or undo" in complaint
    assert "l1: predictions" in complaint


@pytest.mark.usefixtures("doubled_steps")
def test_a_changed_step_rule_with_its_revision_raised_is_to_be_remade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pgd, "revision", Pgd.revision + 1)
    complaint = problem(PARTS["attack pgd"], read()["attack pgd"])
    assert complaint == "attack pgd: Pgd.revision differs from golden.json; run python tests/golden/remake.py"
    entries, problems = remade([PARTS["attack pgd"]], read())
    assert not problems
    assert entries["attack pgd"]["revisions"]["Pgd.revision"] == Pgd.revision
    assert problem(PARTS["attack pgd"], entries["attack pgd"]) is None


@pytest.mark.usefixtures("doubled_steps")
def test_a_changed_step_rule_is_not_remade_under_the_same_revision() -> None:
    entries, problems = remade([PARTS["attack pgd"]], read())
    assert entries["attack pgd"] == read()["attack pgd"]
    assert ["Pgd.revision" in complaint for complaint in problems] == [True]


def test_a_changed_docstring_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pgd, "__doc__", "Another description.")
    assert problem(PARTS["attack pgd"], read()["attack pgd"]) is None


def part_of(outcome: Any, revision: int = 1) -> Part:
    """A part with one outcome."""
    return replace(PARTS["attack noop"], outcomes=lambda: {"case": outcome}, own=lambda: _revision(revision), others=tuple)


def _revision(value: int) -> Any:
    own = PARTS["attack noop"].own
    assert own is not None
    return replace(own(), value=value)


@pytest.mark.parametrize("other", [1.0003, 0.9997])
def test_floats_may_differ_as_processors_round(other: float) -> None:
    assert problem(part_of([other, 0.0]), part_of([1.0, 0.0003]).record()) is None


@pytest.mark.parametrize(
    ("now", "recorded"), [(1.001, 1.0), (3, 4), ("bb", "bh"), ([1, 2], [1]), (None, 1.0), ({"a": 1}, {"b": 1})]
)
def test_anything_more_is_a_difference(now: Any, recorded: Any) -> None:
    complaint = problem(part_of(now), part_of(recorded).record())
    assert complaint is not None
    assert "NoOp.revision" in complaint


def test_a_new_part_is_to_be_made() -> None:
    complaint = problem(part_of(1), None)
    assert complaint is not None
    assert complaint.endswith("run python tests/golden/remake.py")
    assert remade([part_of(1)], {})[0]["attack noop"]["outcomes"] == {"case": 1}


def test_a_lowered_revision_is_refused() -> None:
    _, problems = remade([part_of(1)], {"attack noop": part_of(1, revision=2).record()})
    assert problems == ["attack noop: NoOp.revision is lower than in golden.json; a revision only rises"]


def test_outcomes_of_another_library_version_may_be_remade() -> None:
    recorded = part_of(1).record() | {"libraries": {"numpy": "1.0", "torch": "2.0"}}
    complaint = problem(part_of(2), recorded)
    assert complaint is not None
    assert "Other library versions" in complaint
    assert remade([part_of(2)], {"attack noop": recorded})[1] == []
    assert problem(part_of(1), recorded) is None


def test_a_part_without_a_revision_is_remade_by_name() -> None:
    part = replace(part_of(2), own=None)
    recorded = {"attack noop": replace(part_of(1), own=None).record()}
    complaint = problem(part, recorded["attack noop"])
    assert complaint is not None
    assert 'python tests/golden/remake.py "attack noop"' in complaint
    assert remade([part], recorded)[1] != []
    assert remade([part], recorded, ["attack noop"])[0]["attack noop"]["outcomes"] == {"case": 2}
