"""Revisions of its parts identify a run; comments, docstrings, messages and names of modules do not."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from kwbench import judge
from kwbench.evaluation.description import describe
from kwbench.evaluation.execution.evaluator import LocalEvaluator
from kwbench.evaluation.request import Facts
from kwbench.networks.architectures.cnn3 import Cnn3
from support.small_registry import request, write_registry

ROOT = Path(__file__).resolve().parents[2]

# Fails unless the package comes from the folder that is the first argument.
RUN = "import sys; from kwbench.cli import main; assert main.__file__.startswith(sys.argv.pop(1)), main.__file__; main.main()"


def copy_package(root: Path) -> Path:
    """Copy the package to where a source tree has it, beside the registry and the checkpoints, and return its folder."""
    for name in ("registry.yaml", "models"):
        (root / name).symlink_to(ROOT / name)
    package = root / "bench" / "kwbench"
    shutil.copytree(ROOT / "bench" / "kwbench", package, ignore=shutil.ignore_patterns("__pycache__"))
    return package


def evaluate(root: Path, db: Path) -> None:
    """Evaluate a small model under FGSM and PGD with the package of a source tree."""
    source = str(root / "bench")
    command = [sys.executable, "-c", RUN, source, "evaluate", "resnet18-relu", "--attack", "fgsm,pgd", "--n", "8"]
    command += ["--db", str(db), "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": source}
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def rows(db: Path) -> dict[str, list[tuple[str, int]]]:
    """Return the identity of each evaluation, and the identity and the number of outcomes of each attack run, by label."""
    with closing(sqlite3.connect(db)) as connection:
        evaluations = connection.execute("SELECT 'evaluation', identity, n FROM evaluations ORDER BY id").fetchall()
        number = "(SELECT sum(outcomes) FROM shards WHERE attack_run = attack_runs.id)"
        counts = f"SELECT label, identity, {number} FROM attack_runs ORDER BY id"  # noqa: S608 - a test's own text
        found: dict[str, list[tuple[str, int]]] = {}
        for label, identity, count in [*evaluations, *connection.execute(counts)]:
            found.setdefault(label, []).append((identity, count))
        return found


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with an evaluation by the package as it is."""
    db = tmp_path_factory.mktemp("record") / "results.db"
    evaluate(ROOT, db)
    assert {label: [count for _, count in runs] for label, runs in rows(db).items()} == {
        "evaluation": [8],
        "clean": [8],
        "fgsm": [8],
        "pgd": [8],
    }
    return db


def test_comments_docstrings_messages_and_names_of_modules_change_no_identity(recorded: Path, tmp_path: Path) -> None:
    package = copy_package(tmp_path)
    (package / "attacks" / "pgd.py").rename(package / "attacks" / "projected_gradient_descent.py")
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8").replace("kwbench.attacks.pgd", "kwbench.attacks.projected_gradient_descent")
        text = re.sub(r'(raise \w+\(f?")', r"\1In other words: ", text).replace('"""', '"""In other words: ', 1)
        path.write_text(f"{text}\n# Another comment.\n", encoding="utf-8")
    before = rows(recorded)
    evaluate(tmp_path, recorded)
    assert rows(recorded) == before


def test_a_raised_revision_makes_new_runs_of_that_part_alone(recorded: Path, tmp_path: Path) -> None:
    module = copy_package(tmp_path) / "attacks" / "pgd.py"
    text = module.read_text(encoding="utf-8")
    changed, count = re.subn(r"^    revision = (\d+)$", lambda match: f"    revision = {int(match[1]) + 1}", text, flags=re.M)
    assert count == 1
    module.write_text(changed, encoding="utf-8")
    db = tmp_path / "results.db"
    shutil.copyfile(recorded, db)
    before = rows(db)
    evaluate(tmp_path, db)
    after = rows(db)
    assert (after["clean"], after["fgsm"]) == (before["clean"], before["fgsm"])
    for label in ("evaluation", "pgd"):
        (first, count), (second, again) = after[label]
        assert [(first, count)] == before[label]
        assert again == 8
        assert second != first


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_registry(tmp_path_factory.mktemp("registry"))


def small_facts(registry: Path) -> Facts:
    return LocalEvaluator(request(registry)).facts


def identities(registry: Path, facts: Facts) -> dict[str, str]:
    """Return the identity of the evaluation, and of each attack run by label."""
    spec = describe(request(registry), facts)
    return {"evaluation": spec.identity} | {attack.label: attack.identity for attack in spec.attacks}


@pytest.mark.parametrize(("part", "name"), [(judge, "REVISION"), (Cnn3, "revision")])
def test_a_raised_revision_of_judge_or_network_renews_every_run(
    registry: Path, monkeypatch: pytest.MonkeyPatch, part: ModuleType | type, name: str
) -> None:
    before = identities(registry, small_facts(registry))
    assert identities(registry, small_facts(registry)) == before
    monkeypatch.setattr(part, name, 2)
    after = identities(registry, small_facts(registry))
    assert after.keys() == before.keys() == {"evaluation", "clean", "fgsm", "pgd"}
    assert not set(after.values()) & set(before.values())


def test_the_reason_why_an_attack_does_not_apply_changes_no_identity(registry: Path) -> None:
    facts = small_facts(registry)
    one, other = (replace(facts, not_applicable={"pgd": reason}) for reason in ("no gradients", "gradients are missing"))
    assert identities(registry, one) == identities(registry, other)
    assert identities(registry, one)["evaluation"] != identities(registry, facts)["evaluation"]
