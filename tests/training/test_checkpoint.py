"""Saved checkpoints and the hash of a recipe."""

import hashlib
from pathlib import Path

from kwbench.data import DataSet
from kwbench.networks.entries import build_module
from kwbench.networks.weights import load_weights
from kwbench.training import recipe_hash, save_checkpoint, train
from support.training import bits, entry, quiet


def test_a_saved_checkpoint_holds_the_same_weights_under_its_hash(tmp_path: Path, few: DataSet) -> None:
    module = train(entry(epochs=1), few, quiet)
    path = tmp_path / "new" / "net.safetensors"
    assert save_checkpoint(module, path) == hashlib.sha256(path.read_bytes()).hexdigest()
    other = build_module(entry(), (1, 8, 8), 10)
    load_weights(other, path.read_bytes(), "net")
    assert bits(other) == bits(module)
    assert [file.name for file in path.parent.iterdir()] == ["net.safetensors"]
    assert save_checkpoint(module, path) == save_checkpoint(other, tmp_path / "again")


def test_a_half_precision_checkpoint_holds_exactly_the_returned_weights(few: DataSet, tmp_path: Path) -> None:
    module = train(entry(epochs=1, storage="float16"), few, quiet)
    save_checkpoint(module, tmp_path / "half", "float16")
    save_checkpoint(module, tmp_path / "whole")
    other = build_module(entry(), (1, 8, 8), 10)
    load_weights(other, (tmp_path / "half").read_bytes(), "half")
    assert bits(other) == bits(module)
    assert (tmp_path / "half").stat().st_size < 0.65 * (tmp_path / "whole").stat().st_size


def test_the_hash_of_a_recipe_covers_exactly_what_determines_the_weights() -> None:
    digest = recipe_hash(entry())
    assert digest == recipe_hash(entry(momentum=0.9)), "an explicit default changes nothing"
    changed = [entry(seed=8), entry(noise=0.1), entry({"name": "softplus"}), entry(fast={"eps": 0.1})]
    assert len({digest, *map(recipe_hash, changed)}) == 5
    described = entry().model_copy(update={"description": "another"})
    assert recipe_hash(described) == digest
