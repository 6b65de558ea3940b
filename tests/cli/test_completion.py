"""Shell completion: the names are those of the registries, and completing them does not import torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kwbench.attacks import ATTACKS
from kwbench.cli.completion import attack_names, complete_attacks, dataset_names, experiment_names
from kwbench.data import DATA_SETS
from kwbench.experiments import EXPERIMENTS, SYNTHETIC
from support.small_registry import write_registry

# Completes as bash does, then prints the heavy modules that were imported to stderr.
PROGRAM = """\
import sys

sys.argv = ["kwbench"]
from kwbench.cli.main import main

try:
    main()
finally:
    print(sorted({"torch", "pandas", "sqlalchemy"} & set(sys.modules)), file=sys.stderr)
"""


def completed(line: str, folder: Path) -> list[str]:
    """What the last word of a command line is completed to, by a process of its own."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_KWBENCH_COMPLETE": "complete_bash"}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=folder, env={**os.environ, **words}, capture_output=True, text=True, check=True
    )
    assert process.stderr == "[]\n"
    return process.stdout.split()


def test_names_read_from_source_are_those_of_the_registries() -> None:
    assert attack_names() == list(ATTACKS)
    assert dataset_names() == list(DATA_SETS)
    assert sorted(experiment_names()) == sorted([*EXPERIMENTS, *SYNTHETIC, "learning"])


def test_the_last_name_of_a_list_is_completed() -> None:
    assert complete_attacks("pgd,ra") == ["pgd,rays", "pgd,random-sign"]
    assert complete_attacks("al") == ["all"]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("kwbench sw", ["sweep"]),
        ("kwbench evaluate resnet18-re", ["resnet18-relu", "resnet18-relu-at"]),
        ("kwbench evaluate smal", ["small", "small-random"]),
        ("kwbench evaluate digits/smal", ["digits/small", "digits/small-random"]),
        ("kwbench evaluate small --attack pgd,fg", ["pgd,fgsm"]),
        ("kwbench evaluate small --suite co", ["controls", "costa2020"]),
        ("kwbench evaluate small --dataset mn", ["mnist"]),
        ("kwbench experiment land", ["landscape"]),
        ("kwbench evaluate small --regis", ["--registry"]),
    ],
)
def test_names_are_completed_without_importing_torch(line: str, names: list[str], tmp_path: Path) -> None:
    write_registry(tmp_path)
    assert completed(line, tmp_path) == names


def test_models_of_another_registry_are_completed(tmp_path: Path) -> None:
    entry = "{architecture: {name: cnn3}, activation: {name: relu}}"
    (tmp_path / "other.yaml").write_text(f"models:\n  mine: {entry}\n")
    assert completed("kwbench evaluate --registry other.yaml mi", tmp_path) == ["mine"]
    (tmp_path / "registry.yaml").write_text("models: [")
    assert completed("kwbench evaluate mi", tmp_path) == []


def test_the_script_for_a_shell_is_shown() -> None:
    command = [sys.executable, "-m", "kwbench", "--show-completion", "bash"]
    # The test runner is no shell that Typer could detect.
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "complete -o default -F _kwbench_completion kwbench" in process.stdout
