"""Pinning a checkpoint changes its path and hash in the registry file, and nothing else."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from kwbench.config.pinning import pin_checkpoint, require_pinnable
from kwbench.config.registry import read_registry
from kwbench.errors import UsageError

SHA = "ab" * 32
LINE = "{architecture: {name: resnet18, width: 8}, activation: {name: kwta, gamma: 0.1}}"


REGISTRY = """\
# The models.
#
# Two of them.
models:
  first:  # the first
    description: A model whose description is quite long, so long that a writer with a narrow page would fold it into two lines.
    architecture: {name: resnet18, width: 8}
    activation: {name: kwta, gamma: 0.1}  # one tenth
    recipe:
      epochs: 3
      learning_rate: 1.0e-1
      seed: 0
      # A comment inside.
      adversarial: {eps: "8/255", steps: 3, step_size: 0.05}

  # About the second.
  digits/second:
    architecture: {name: vgg11}
    activation: {name: 'relu'}
    normalise:
      mean: [0.5]
      std: [0.25]
    checkpoint:
      file: models/old.safetensors
      sha256: "%s"

# The end.
"""


def test_pinning_changes_the_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text(REGISTRY % SHA)
    new = "cd" * 32
    pin_checkpoint(read_registry(file), "second", tmp_path / "models" / "new.safetensors", new)
    assert file.read_text() == (REGISTRY % new).replace("models/old", "models/new")
    checkpoint = read_registry(file).find("second")[1].checkpoint
    assert checkpoint is not None
    assert checkpoint.sha256 == new


def test_pinning_adds_a_checkpoint_and_keeps_every_comment(tmp_path: Path) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text(REGISTRY % SHA)
    before = YAML(typ="safe").load(REGISTRY % SHA)
    pin_checkpoint(read_registry(file), "first", tmp_path / "a.safetensors", SHA)
    text = file.read_text()
    lines = (REGISTRY % SHA).splitlines()
    added = [line for line in text.splitlines() if line not in lines]
    assert [line.strip().split(":")[0] for line in added] == ["file"]
    assert not [line for line in lines if line not in text.splitlines()]
    # The comment about the second entry is still right above it.
    assert "  # About the second.\n  digits/second:\n" in text
    after = YAML(typ="safe").load(text)
    assert after["models"]["first"].pop("checkpoint") == {"file": "a.safetensors", "sha256": SHA}
    assert after == before


def test_models_that_are_pinned_at_the_same_time_are_all_pinned(tmp_path: Path) -> None:
    file = tmp_path / "registry.yaml"
    names = [f"model-{number}" for number in range(12)]
    file.write_text("models:\n" + "".join(f"  {name}: {LINE}\n" for name in names))
    registry = read_registry(file)
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: pin_checkpoint(registry, name, tmp_path / f"{name}.safetensors", SHA), names))
    pinned = YAML(typ="safe").load(file.read_text())["models"]
    assert [name for name in names if "checkpoint" not in pinned[name]] == []


def test_a_comment_below_an_entry_stays_with_the_next_one(tmp_path: Path) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text(
        f"models:\n  a:\n    architecture: {{name: vgg11}}\n    activation: {{name: relu}}\n\n  # About b.\n  b: {LINE}\n"
    )
    pin_checkpoint(read_registry(file), "a", tmp_path / "a.safetensors", SHA)
    assert "  # About b.\n  b:" in file.read_text()


def test_a_comment_below_a_recipe_stays_with_the_next_entry_and_one_beside_its_last_line_stays_there(tmp_path: Path) -> None:
    file = tmp_path / "registry.yaml"
    entry = "  a:\n    architecture: {name: vgg11}\n    activation: {name: relu}\n"
    recipe = "    recipe:\n      epochs: 3\n      learning_rate: 0.1\n      seed: 0  # Beside.\n"
    below = f"\n  # About b.\n  # More about b.\n  b: {LINE}\n"
    file.write_text(f"models:\n{entry}{recipe}{below}")
    pin_checkpoint(read_registry(file), "a", tmp_path / "a.safetensors", SHA)
    pinned = f'    checkpoint:\n      file: a.safetensors\n      sha256: "{SHA}"\n'
    assert file.read_text() == f"models:\n{entry}{recipe}{pinned}{below}"


def test_a_checkpoint_above_other_keys_is_pinned_where_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "registry.yaml"
    text = (
        'models:\n  a:\n    checkpoint:\n      file: old.safetensors\n      sha256: "%s"\n    architecture: {name: vgg11}\n'
        "    activation:\n      name: relu\n\n  # About b.\n" + f"  b: {LINE}\n"
    )
    file.write_text(text % SHA)
    new = "cd" * 32
    pin_checkpoint(read_registry(file), "a", tmp_path / "old.safetensors", new)
    assert file.read_text() == text % new


def test_a_checkpoint_outside_the_registrys_folder_cannot_be_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "registry.yaml"
    file.write_text(f"models:\n  a: {LINE}\n")
    registry = read_registry(file)
    before = file.read_text()
    with pytest.raises(UsageError, match=r"a\.safetensors: a pinned checkpoint must lie below .*in"):
        pin_checkpoint(registry, "a", tmp_path / "a.safetensors", SHA)
    assert file.read_text() == before
    with pytest.raises(UsageError, match="must lie below"):
        require_pinnable(registry, "a", tmp_path / "in" / ".." / "a.safetensors")
    assert require_pinnable(registry, "a", tmp_path / "in" / "new" / "a.safetensors") == "new/a.safetensors"
    monkeypatch.chdir(tmp_path / "in")
    assert require_pinnable(registry, "a", Path("a.safetensors")) == "a.safetensors"
