"""Parcels: everything that an evaluation reads, for machines that have none of its files."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kwbench.errors import CannotEvaluate, UsageError
from kwbench.evaluation.execution import parcel
from kwbench.evaluation.execution.evaluator import LocalEvaluator
from kwbench.evaluation.execution.parcel import pack
from kwbench.evaluation.request import Request
from support.command_line import OWN_MODEL
from support.small_registry import fast_suite, request, write_registry


def test_a_parcel_alone_gives_the_same_facts_surrogates_included(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    for folder in (home, away):
        folder.mkdir()
    monkeypatch.chdir(home)
    suite = fast_suite("fgsm", "transfer", settings=("transfer.surrogate=small-random",))
    what = request(write_registry(home), suite=suite, n=16, tile=8)
    packed = pack(what)
    # The model and the surrogate; nothing else.
    assert sorted(Path(name).name for name in packed.files) == [
        "registry.yaml",
        "small-random.safetensors",
        "small.safetensors",
    ]
    expected = LocalEvaluator(what, threads=1).facts
    for file in home.iterdir():
        file.unlink()
    monkeypatch.chdir(away)
    unpacked, folder = packed.unpack()
    assert LocalEvaluator(unpacked, threads=1).facts == replace(expected, seconds={})
    assert folder.parent != home


def test_own_code_and_images_go_along_by_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("code/deep/.git").mkdir(parents=True)
    Path("code/net.py").write_text(OWN_MODEL.format(body="return self.f(x)"))
    Path("code/deep/part.py").write_text("")
    Path("code/deep/.git/secret").write_text("")
    Path("code/venv").mkdir()
    Path("code/venv/pyvenv.cfg").write_text("")
    Path("weights.pt").write_bytes(b"weights")
    absolute = str(tmp_path / "code" / "net.py:net")
    packed = pack(Request(absolute, fast_suite(), checkpoint=Path("weights.pt")))
    assert packed.request.model == "code/net.py:net"
    assert sorted(packed.files) == [".kwbench/checkpoint/weights.pt", "code/deep/part.py", "code/net.py"]
    assert packed.request.images is not None
    assert len(packed.request.images.test) == 360
    unpacked, folder = packed.unpack()
    assert (folder / "code" / "net.py").read_bytes() == Path("code/net.py").read_bytes()
    assert unpacked.checkpoint is not None
    assert unpacked.checkpoint.read_bytes() == b"weights"


def test_code_elsewhere_and_files_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.py").write_text(OWN_MODEL.format(body="return self.f(x)"))
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    with pytest.raises(UsageError, match="code lies below the working folder"):
        pack(Request("../net.py:net", fast_suite()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parcel, "MOST_BYTES", 1 << 20)
    Path("data.bin").write_bytes(bytes(2 << 20))
    with pytest.raises(CannotEvaluate, match=r"its files hold 2 MiB, at most 1 MiB .* the largest is data.bin"):
        pack(Request("net.py:net", fast_suite()))


def test_folders_of_processes_that_were_killed_are_removed_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    packed = pack(Request("resnet18-relu", fast_suite()))
    (tmp_path / f"kwbench-parcel-{ended.pid}-x").mkdir()
    (tmp_path / f"kwbench-parcel-{os.getpid()}-x").mkdir()
    _, folder = packed.unpack()
    assert {path.name for path in tmp_path.iterdir()} == {f"kwbench-parcel-{os.getpid()}-x", folder.name}
