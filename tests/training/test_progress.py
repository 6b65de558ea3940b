"""Training that is interrupted and continued."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from kwbench.config.registry import read_registry
from kwbench.data import DataSet, load_dataset
from kwbench.errors import DamagedData, UsageError
from kwbench.training import Epoch, read_curve, recipe_hash, train
from kwbench.training.progress import write_progress
from support.training import KINDS, bits, entry, quiet


class Stopped(Exception):
    """Raised in the middle of a training."""


@pytest.mark.parametrize("kind", ["bfloat16", "stochastic", "free", "mixture"])
def test_a_training_stopped_within_an_epoch_ends_at_the_same_weights(
    kind: str, few: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kwbench.training.loop._SAVE_EVERY", 0)
    activation, recipe = KINDS[kind]
    model = entry(activation, **recipe)
    epochs: list[Epoch] = []
    uninterrupted = train(model, few, epochs.append)
    saved: list[int] = []

    def stop(path: Path, identity: dict[str, str], state: dict[str, Any]) -> None:
        write_progress(path, identity, state)
        saved.append(len(saved))
        if len(saved) == 10:  # in the second epoch of seven batches
            raise Stopped

    path = tmp_path / "net.progress"
    monkeypatch.setattr("kwbench.training.loop.write_progress", stop)
    with pytest.raises(Stopped):
        train(model, few, quiet, progress=path)
    monkeypatch.setattr("kwbench.training.loop.write_progress", write_progress)
    torch.rand(3)
    remaining_epochs: list[Epoch] = []
    assert bits(train(model, few, remaining_epochs.append, progress=path)) == bits(uninterrupted)
    assert [(epoch.number, epoch.loss, epoch.accuracy) for epoch in remaining_epochs] == [
        (epoch.number, epoch.loss, epoch.accuracy) for epoch in epochs[1:]
    ]


def test_progress_of_another_training_and_damaged_progress_are_refused_by_name(few: DataSet, tmp_path: Path) -> None:
    path = tmp_path / "net.progress"
    train(entry(epochs=1), few, quiet, progress=path)
    with pytest.raises(UsageError, match=r"net\.progress: the progress of a training with other recipe; remove it"):
        train(entry(epochs=2), few, quiet, progress=path)
    with pytest.raises(UsageError, match="with other images"):
        train(entry(epochs=1), load_dataset("digits"), quiet, progress=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DamagedData, match=r"net\.progress: .*damaged.*remove it"):
        train(entry(epochs=1), few, quiet, progress=path)


def test_a_training_killed_with_kill_9_continues_to_the_same_weights(tmp_path: Path) -> None:
    """Kill the real command twice without warning, between two epochs or within one."""
    (tmp_path / "registry.yaml").write_text(
        "models:\n  net:\n    architecture: {name: cnn3, width: 8, hidden: 32}\n    activation: {name: kwta, gamma: 0.2}\n"
        "    recipe: {epochs: 5, learning_rate: 0.05, seed: 0, threads: 1, shift: 1, free: {eps: 0.1, replays: 2}}\n"
    )
    program = "from kwbench.cli.main import main; import kwbench.training.loop as loop; loop._SAVE_EVERY = 0.05; main()"
    root = Path(__file__).resolve().parents[2] / "bench"

    def start_training(output: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, "train", "net", "--output", output, "--json"]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)}, **pipes)

    with start_training("whole.safetensors") as uninterrupted:
        out, err = uninterrupted.communicate(timeout=120)
    assert uninterrupted.returncode == 0, err
    progress = tmp_path / "killed.progress"
    for epochs in (1, 3):
        with start_training("killed.safetensors") as victim:
            assert victim.stderr is not None
            for line in victim.stderr:
                if f"epoch {epochs}/5" in line:
                    break
            victim.send_signal(signal.SIGKILL)
        assert victim.returncode == -signal.SIGKILL
        assert progress.exists()
        assert not (tmp_path / "killed.safetensors").exists()
    with start_training("killed.safetensors") as last:
        resumed_output, err = last.communicate(timeout=120)
    assert last.returncode == 0, err
    assert "epoch 1/5" not in err, "the training started again"
    assert json.loads(resumed_output)["sha256"] == json.loads(out)["sha256"]
    assert read_curve(tmp_path / "killed.safetensors") == read_curve(tmp_path / "whole.safetensors")
    assert [epoch["epoch"] for epoch in read_curve(tmp_path / "killed.safetensors")] == list(range(1, 6))
    assert not progress.exists()
    with safetensors.safe_open(tmp_path / "killed.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata == {"recipe": recipe_hash(read_registry(tmp_path / "registry.yaml").entries["net"])}
