"""Attacks of users' own files run by name, and their code belongs to the identity of a run."""

from pathlib import Path

import pytest

from kwbench.attacks import build_attack, parameters_of
from kwbench.config.suite import suite_of
from kwbench.errors import CannotEvaluate, UsageError
from kwbench.evaluation.identity import attack_identity
from kwbench.outcome import Status
from kwbench.threat import ThreatModel
from support.small_models import first_images, run

CODE = """\
from helper import SHARE
from kwbench.attacks.attack import Attack
from kwbench.geometry import project
from dataclasses import dataclass


@dataclass(frozen=True)
class Brighter(Attack):
    norms = frozenset({"linf"})
    needs = "nothing"
    share: float = SHARE

    def __call__(self, model, x, y, threat, rng):
        return project(x + self.share * threat.radius, x, threat)


class Plain(Attack):
    norms = frozenset({"linf"})
    needs = "scores"

    def __call__(self, model, x, y, threat, rng):
        return x + 2 * threat.radius


class Odd(Plain):
    needs = "luck"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("SHARE = 1.0\n")
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path / "mine.py"


def test_an_attack_of_a_file_is_judged_like_any_other(file: Path) -> None:
    outcomes = run(f"{file}:Brighter", {"share": 0.5}, first_images(16), ThreatModel.of("linf", "0.5"))
    assert any(outcome.distance == pytest.approx(0.25) for outcome in outcomes)
    assert {outcome.status for outcome in outcomes} <= {Status.BROKEN, Status.HELD, Status.WRONG}
    cheating = run(f"{file}:Plain", {}, first_images(16), ThreatModel.of("linf", "0.1"))
    assert {outcome.status for outcome in cheating} <= {Status.INVALID, Status.WRONG}


def test_its_label_is_the_name_of_its_class(file: Path) -> None:
    suite = suite_of(["fgsm", f"{file}:Brighter"])
    assert [attack.label for attack in suite.attacks] == ["fgsm", "Brighter"]
    assert suite.name == "fgsm+Brighter"


def test_the_hash_of_its_code_is_part_of_the_identity_and_its_place_is_not(file: Path, tmp_path: Path) -> None:
    def identity(path: Path) -> object:
        name = f"{path}:Brighter"
        return attack_identity(name, build_attack(name, {}))

    before = identity(file)
    other = tmp_path / "elsewhere" / "mine.py"
    other.parent.mkdir()
    other.write_text(CODE)
    assert identity(other) == before
    file.write_text(CODE.replace("x + self.share", "x - self.share"))
    assert identity(file) != before
    assert parameters_of(build_attack(f"{file}:Brighter", {"share": 0.25})) == {"share": 0.25}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{file}:Brightr", "has no attack 'Brightr'; it defines: Brighter, Plain, Odd"),
        ("{file}:SHARE", "has no attack 'SHARE'"),
        ("{file}:Odd", "needs must be one of gradients"),
        ("nowhere.py:Attack", "nowhere.py: no such file; an attack of your own"),
        ("{file}:Brighter?share", "has no parameter 'shore'; did you mean 'share'"),
    ],
)
def test_what_is_no_attack_is_refused_with_the_remedy(name: str, message: str, file: Path) -> None:
    name, _, parameter = name.partition("?")
    with pytest.raises(UsageError, match=message):
        build_attack(name.format(file=file), {"shore": 1.0} if parameter else {})


def test_code_that_raises_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(CannotEvaluate, match=r"broken\.py: importing it raised ZeroDivisionError"):
        build_attack(f"{tmp_path / 'broken.py'}:Attack", {})
