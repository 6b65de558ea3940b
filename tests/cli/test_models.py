"""The commands that list what there is, and those that make checkpoints."""

import re
from pathlib import Path

from support.command_line import Kwbench, refused


def test_models_attacks_and_suites_are_listed(kwb: Kwbench) -> None:
    names = [row["model"] for row in kwb("models", "--json").json]
    assert names[:2] == ["small", "small-random"]
    assert "resnet18-kwta0.1" in names
    assert "small-random" in kwb("models").out
    attacks = {row["attack"]: row for row in kwb("attacks", "--json").json}
    assert attacks["pgd"]["parameters"]["steps"] > 0
    assert "steps=" in kwb("attacks").out
    assert {row["suite"] for row in kwb("suites", "--json").json} >= {"all", "controls"}
    assert "controls" in kwb("suites").out


def test_lists_are_tables_with_headings(kwb: Kwbench) -> None:
    for command, headings in (
        ("models", ["model", "data set", "architecture", "activation", "training", "epochs", "trained on", "description"]),
        ("attacks", ["attack", "norms", "parameters"]),
        ("suites", ["suite", "attacks", "description"]),
    ):
        answer = kwb(command)
        first = next(line for line in answer.out.splitlines() if line.strip())
        assert re.split(r" {2,}", first.strip()) == headings
        assert "\x1b" not in answer.out


def test_a_checkpoint_that_cannot_be_pinned_is_refused_before_training(kwb: Kwbench, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    entry = "{architecture: {name: cnn3}, activation: {name: relu}, recipe: {epochs: 1, learning_rate: 0.1, seed: 0}}"
    (folder / "registry.yaml").write_text(f"models:\n  new: {entry}\n")
    words = ("train", "new", "--registry", "project/registry.yaml", "--pin", "--output", "outside.safetensors")
    answer = kwb(*words)
    refused(answer, 2, "outside.safetensors", "must lie below")
    assert "epoch" not in answer.err
    assert not (tmp_path / "outside.safetensors").exists()


def test_train_writes_the_checkpoint_of_an_entry_and_pins_it(kwb: Kwbench, tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    recipe = "    recipe: {epochs: 1, learning_rate: 0.05, seed: 0, threads: 1}\n"
    path.write_text(
        "models:\n  new:\n    architecture: {name: cnn3, width: 4, hidden: 16}\n    activation: {name: relu}\n" + recipe
    )
    refused(kwb("evaluate", "new"), 3, "has no checkpoint", "kwbench train new")
    result = kwb("train", "new", "--pin", "--json").json
    assert result["sha256"] in path.read_text()
    assert 0 <= result["validation_accuracy"] <= 1
    assert kwb("evaluate", "new", "--attack", "noop", "--n", 16).code == 0
    refused(kwb("train", "new", "--device", "abacus"), 2, "--device abacus: not usable here")
    again = kwb("train", "new", "--output", "again.safetensors")
    assert result["sha256"] in again.out
    assert "epoch 1/1" in again.err
