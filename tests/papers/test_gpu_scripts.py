"""The scripts for a GPU: their networks are the paper's, their pack is small, and both run through on a CPU."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import gpu_pack as pack
from kwbench.config.registry import read_registry
from kwbench.networks.activations import Kwta
from kwbench.networks.entries import build_module
from kwbench.training.schedule import phases

REPOSITORY = Path(__file__).resolve().parents[2]
FULL_WIDTH = REPOSITORY / "bench/papers/full-width.yaml"


def test_networks_of_full_width_train_as_in_appendix_d1() -> None:
    registry = read_registry(FULL_WIDTH)
    assert len(registry.own) == 6
    for name, entry in registry.own.items():
        recipe = entry.recipe
        assert recipe is not None
        module = build_module(entry, (3, 32, 32), 10)
        epochs = list(phases(recipe, [layer for layer in module.modules() if isinstance(layer, Kwta)]))
        rates = [epoch.learning_rate(0) for epoch in epochs]
        assert (recipe.batch_size, recipe.momentum) == (256, 0.9)
        if name.endswith("kwta0.1"):
            assert rates == [0.1] * 90
            assert [float(epochs[at].gamma or 0) for at in (0, 49, 50, 51, 52, 89)] == [0.2, 0.2, 0.195, 0.195, 0.19, 0.1]
        else:
            assert rates == pytest.approx([0.1] * 50 + [0.01] * 30)
        if name.endswith("-at"):
            assert recipe.adversarial is not None
            assert (recipe.adversarial.steps, float(recipe.adversarial.eps)) == (8, 0.031)
        else:
            assert recipe.training == "natural"


def test_pyautoattack_is_packed_without_its_examples(tmp_path: Path) -> None:
    wheel = tmp_path / "pyautoattack-0-py3-none-any.whl"
    record = "pyautoattack/square.py,,\npyautoattack/examples/model_test.pt,,\npyautoattack-0.dist-info/RECORD,,\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pyautoattack/square.py", "code")
        archive.writestr("pyautoattack/examples/model_test.pt", "weights")
        archive.writestr("pyautoattack-0.dist-info/RECORD", record)
    pack.without_examples(wheel)
    with zipfile.ZipFile(wheel) as archive:
        assert archive.namelist() == ["pyautoattack/square.py", "pyautoattack-0.dist-info/RECORD"]
        assert archive.read("pyautoattack-0.dist-info/RECORD").decode() == record.replace(record.splitlines()[1] + "\n", "")
    assert list(tmp_path.iterdir()) == [wheel]


def test_a_pack_that_is_too_large_is_refused_by_its_largest_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small").write_bytes(bytes(10))
    (tmp_path / "large").write_bytes(bytes(2_000_000))
    pack.require_small(tmp_path)
    monkeypatch.setattr(pack, "LIMIT", 1_000_000)
    with pytest.raises(SystemExit, match=r"2\.0 MB, and at most 1 MB may travel; the largest: large 2\.0 MB, small"):
        pack.require_small(tmp_path)


def test_packed_models_keep_their_places_and_missing_ones_are_named(tmp_path: Path) -> None:
    there, *missing = pack.MODELS
    (tmp_path / there).parent.mkdir(parents=True)
    (tmp_path / there).write_bytes(b"weights")
    assert pack.pack_models(tmp_path, tmp_path / "tree") == missing
    assert (tmp_path / "tree" / there).read_bytes() == b"weights"


def test_packed_images_are_those_that_benchmarks_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "IMAGES", 3)
    images = np.arange(5 * 12, dtype=np.uint8).reshape(5, 3, 2, 2)
    np.savez(tmp_path / "all.npz", x_test=images, y_test=np.arange(5), x_train=images, y_train=np.arange(5))
    pack.pack_images(tmp_path / "all.npz", tmp_path / "packed.npz")
    with np.load(tmp_path / "packed.npz") as arrays:
        assert sorted(arrays) == ["x_test", "y_test"]
        assert np.array_equal(arrays["x_test"], images[:3])
        assert arrays["y_test"].tolist() == [0, 1, 2]


@pytest.mark.trial
@pytest.mark.timeout(1800)
def test_networks_train_and_are_evaluated_in_chunks(tmp_path: Path) -> None:
    command = ["bash", "bench/papers/gpu.sh", "--smoke", "--minutes"]
    environment = os.environ | {"PYTHON": sys.executable, "FOLDER": str(tmp_path / "full-width")}
    first = subprocess.run([*command, "0.3"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 75, first.stderr
    rest = subprocess.run([*command, "25"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert rest.returncode == 0, rest.stderr
    registry = read_registry(tmp_path / "full-width/registry.yaml")
    assert all(entry.checkpoint is not None for entry in registry.own.values())
    assert "cifar10/resnet18-w64-kwta0.1" in (tmp_path / "full-width/report/leaderboard.md").read_text(encoding="utf-8")


@pytest.mark.trial
@pytest.mark.timeout(1800)
def test_speed_is_compared_on_a_cpu(tmp_path: Path) -> None:
    variables = {"PYTHON": sys.executable, "FOLDER": str(tmp_path), "SMOKE": "1", "DEVICE": "cpu", "MINUTES": "25"}
    done = subprocess.run(
        ["sh", "bench/speed/gpu.sh"], cwd=REPOSITORY, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    tables = {"throughput", "activations", "training", "rivals", "cost", "growth"}
    assert {path.stem for path in tmp_path.glob("*.md")} == tables
    assert "pyautoattack" in (tmp_path / "rivals.md").read_text(encoding="utf-8")
