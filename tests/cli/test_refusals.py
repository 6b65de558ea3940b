"""What kwbench evaluate refuses: each with one message that names the cause, and with the documented exit code."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.command_line import FAST, Kwbench, refused


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["smal"], 2, ["did you mean 'small'"]),
        (["small", "smal"], 2, ["did you mean 'small'"]),
        (["small", "--num-gpus", "1"], 2, ["--num-gpus", "add --executor ray"]),
        (["small", "--address", "auto"], 2, ["--address", "add --executor ray"]),
        (["small", "--plan", "--price", "inf"], 2, ["--price"]),
        (["small", "--stop-after", "soon"], 2, ["--stop-after soon", "2h"]),
        (["small", "--eps", "0"], 2, ["eps"]),
        (["small", "--eps=-0.1"], 2, ["eps"]),
        (["small", "--eps", "1.01"], 2, ["eps"]),
        (["small", "--eps", "lots"], 2, ["eps", "lots"]),
        (["small", "--norm", "l2"], 2, ["--norm l2", "--eps"]),
        (["small", "--norm", "l3"], 2, ["l3", "linf"]),
        (["small", "--attack", "pgdd"], 2, ["did you mean 'pgd'"]),
        (["small", "--attack", "pgd,pgd"], 2, ["twice"]),
        (["small", "--attack", "pgd", "--suite", "all"], 2, ["--attack", "--suite"]),
        (["small", "--suite", "controlls"], 2, ["did you mean 'controls'"]),
        (["small", "--attack", "pgd", "--set", "pgd.stps=3"], 2, ["'stps'", "did you mean 'steps'"]),
        (["small", "--attack", "pgd", "--set", "pgd.steps=many"], 2, ["pgd.steps", "many"]),
        (["small", "--attack", "pgd", "--set", "mim.steps=3"], 2, ["no attack 'mim'"]),
        (["small", "--attack", "pgd", "--set", "pgd.steps"], 2, ["LABEL.PARAMETER=VALUE"]),
        (["small", "small-random", "--checkpoint", "small.safetensors"], 2, ["--checkpoint"]),
        (["small", "--dataset", "digit"], 2, ["did you mean 'digits'"]),
        (["small", "--data", "none.npz"], 3, ["none.npz"]),
        (["small", "--n", "1000"], 2, ["--n 1000", "360"]),
        (["small", "--n", "few"], 2, ["Usage: kwbench evaluate", "--n"]),
        (["small", "--batch-size", "16"], 2, ["--batch-size"]),
        (["small", "--time-limit", "0"], 2, ["--time-limit 0"]),
        (["small", "--memory-limit", "0"], 2, ["--memory-limit 0: must be above 0"]),
        (["small", "--device", "abacus"], 2, ["--device abacus"]),
        (["small", "--sandbox"], 2, ["--sandbox: small is a model of the registry"]),
        (["small", "--untrusted"], 2, ["--untrusted: small is a model of the registry"]),
        (["small", "--no-such-option"], 2, ["--no-such-option"]),
        ([], 2, ["MODEL"]),
        (["small", "--db", "missing/results.db"], 3, ["missing", "does not exist"]),
        (["small", "--db", "folder"], 3, ["a folder"]),
        (["small", "--db", "registry.yaml"], 4, ["not a kwbench database"]),
        (["small", "--db", "oracle-of-delphi://x"], 2, ["oracle-of-delphi"]),
        (["small", "--registry", "none.yaml"], 3, ["none.yaml"]),
        (["missing.py:net"], 2, ["missing.py: no such file"]),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_by_name(
    kwb: Kwbench, tmp_path: Path, words: list[str], code: int, parts: list[str]
) -> None:
    (tmp_path / "folder").mkdir()
    refused(kwb("evaluate", *words), code, *parts)


def test_an_empty_list_of_attacks_is_refused(kwb: Kwbench) -> None:
    for nothing in ("", " ", ","):
        refused(kwb("evaluate", "small", "--attack", nothing), 2, "--attack")


def test_a_folder_that_cannot_be_written_is_refused(kwb: Kwbench) -> None:
    refused(kwb("evaluate", "small", "--db", "/proc/results.db"), 3, "/proc/results.db", "cannot be written")


@pytest.mark.parametrize(
    ("change", "code", "parts"),
    [
        (lambda path: path.unlink(), 3, ["small.safetensors", "cannot be read", "kwbench train small"]),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), 4, ["small.safetensors", "sha256", "pins"]),
        (lambda path: path.write_bytes(b""), 4, ["small.safetensors", "an empty file"]),
        (lambda path: path.write_bytes(b"<html>Not found</html>"), 4, ["an HTML page"]),
        (lambda path: shutil.copy(path.with_name("small-random.safetensors"), path), 4, ["sha256", "pins"]),
    ],
    ids=["missing", "cut short", "empty", "an error page", "another's"],
)
def test_a_checkpoint_that_is_not_the_pinned_one_is_refused(
    kwb: Kwbench, tmp_path: Path, change: Callable[[Path], Any], code: int, parts: list[str]
) -> None:
    change(tmp_path / "small.safetensors")
    refused(kwb("evaluate", "small"), code, *parts)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("    activation", "    activaton", ["registry.yaml", "unknown key", "activaton'; did you mean 'activation'"]),
        ("  small-random:", "  small:", ["registry.yaml", "small", "duplicate"]),
        ("name: cnn3", "name: cnn", ["architecture 'cnn' is unknown", "cnn3"]),
        ("width: 8", "widht: 8", ["'widht'", "did you mean 'width'"]),
        ("small.safetensors", "../small.safetensors", ["registry.yaml", "below the registry's folder"]),
    ],
)
def test_malformed_registries_are_refused_by_key(kwb: Kwbench, tmp_path: Path, old: str, new: str, parts: list[str]) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text(path.read_text().replace(old, new))
    refused(kwb("evaluate", "small"), 2, *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("attacks:\n  pgd: {stps: 3}\n", ["'stps'"]),
        ("attacks:\n  pgd: {}\n  pgd: {}\n", ["pgd", "duplicate"]),
        ("attacks:\n  pgd: {}\nkind: odd\n", ["kind"]),
        ("attacks: {}\n", ["there is none"]),
        ("threat: {norm: linf, eps: 2}\nattacks:\n  pgd: {}\n", ["eps"]),
    ],
)
def test_malformed_suites_are_refused_by_key(kwb: Kwbench, tmp_path: Path, text: str, parts: list[str]) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    refused(kwb("evaluate", "small", "--suite", "mine.yaml"), 2, *parts)


def test_an_unknown_last_model_is_refused_before_the_first_is_evaluated(kwb: Kwbench, tmp_path: Path) -> None:
    refused(kwb("evaluate", "small", "smal", *FAST), 2, "did you mean 'small'")
    assert not (tmp_path / "results.db").exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("evaluate", "smal"), 2),
        (("evaluate", "small", "--eps", "2"), 2),
        (("evaluate", "small", "--n", "1000"), 2),
        (("evaluate", "small", "--dataset", "digit"), 2),
        (("evaluate", "broken.py:net"), 3),
        (("diagnose", "broken.py:net"), 3),
        (("sweep", "small", "--over", "eps=2,3"), 2),
        (("experiment", "logits", "small", "--images", "400"), 2),
        (("experiment", "learning", "small"), 3),
        (("landscape", "broken.py:net"), 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_command_that_fails_before_it_has_results_leaves_no_database(
    kwb: Kwbench, tmp_path: Path, words: tuple[str, ...], code: int
) -> None:
    (tmp_path / "broken.py").write_text("def net():\n    raise RuntimeError('no weights')\n")
    before = set(tmp_path.iterdir())
    assert kwb(*words).code == code
    assert {path for path in tmp_path.iterdir() if path.name != "__pycache__"} == before


def test_an_unknown_name_lists_the_nearest_once(kwb: Kwbench) -> None:
    message = kwb("evaluate", "resnet18-rel").err
    assert message.count("did you mean") == 1
    assert message.count("'resnet18-relu'") == 1
    assert len(message.splitlines()) == 1
