"""Conversion: the same tensors give the same bytes, and no code from a checkpoint is run."""

import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import kwbench.networks.converting
from cli.conftest import kwb  # noqa: F401 - a fixture
from kwbench.config.registry import Registry, read_registry
from kwbench.errors import CannotEvaluate, DamagedData, KwbenchError, UsageError
from kwbench.networks.architectures import build_network
from kwbench.networks.converting import (
    CONVERTERS,
    _convert_here,
    convert,
    convert_entry,
    convert_file,
    convert_pretrained,
    fetch,
)
from support.command_line import Kwbench

ENTRY = """\
models:
  cifar10/net:
    architecture: {{name: wide_resnet, depth: 10, widen: 1}}
    activation: {{name: relu}}
    checkpoint:
      file: models/net.safetensors
      sha256: "{result}"
      source: {{url: "{url}", sha256: "{source}", key: model, converter: panousis2021-wide-resnet}}
  plain:
    architecture: {{name: cnn3}}
    activation: {{name: relu}}
"""


class Code:
    """Creates a folder if its pickle is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def authors_network() -> dict[str, Tensor]:
    """A state dict with the keys of panousis2021's code: depth 10, one block a stage."""
    tensors = {"conv1.weight": torch.rand(16, 3, 3, 3), "fc.bias": torch.rand(10), "lwta.temp": torch.tensor(0.1)}
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        tensors[f"block{stage}.layer.0.conv2.weight"] = torch.rand(width, width, 3, 3)
        tensors[f"block{stage}.layer.0.lwta1.temp"] = torch.tensor(0.67)
    tensors["block2.layer.0.convShortcut.weight"] = torch.rand(32, 16, 1, 1)
    tensors["sub_block1.layer.0.conv2.weight"] = torch.rand(16, 16, 3, 3)
    return tensors


def saved(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return saved(tmp_path_factory.mktemp("published") / "net.pt", {"model": authors_network(), "epoch": 3})


@pytest.fixture(scope="module")
def result(published: Path) -> bytes:
    return convert(published.read_bytes(), "net", key="model", converter="panousis2021-wide-resnet")


def registry_of(folder: Path, source: bytes, result: bytes, url: str = "https://nowhere.invalid/net.pt") -> Registry:
    hashes = {"source": hashlib.sha256(source).hexdigest(), "result": hashlib.sha256(result).hexdigest()}
    (folder / "registry.yaml").write_text(ENTRY.format(url=url, **hashes))
    return read_registry(folder / "registry.yaml")


def test_converting_reorders_the_authors_blocks_and_drops_unused_weights(published: Path, result: bytes) -> None:
    original, converted = torch.load(published, weights_only=True)["model"], safetensors.torch.load(result)
    expected = {
        "conv1.weight": "conv1.weight",
        "fc.bias": "fc.bias",
        "blocks.0.conv2.weight": "block1.layer.0.conv2.weight",
        "blocks.1.conv2.weight": "block2.layer.0.conv2.weight",
        "blocks.2.conv2.weight": "block3.layer.0.conv2.weight",
        "blocks.1.shortcut.weight": "block2.layer.0.convShortcut.weight",
    }
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], original[other]) for key, other in expected.items())
    with pytest.raises(DamagedData, match="net: not a WideResNet of panousis2021"):
        CONVERTERS["panousis2021-wide-resnet"]({"fc.bias": torch.zeros(10)}, "net")


def test_an_entrys_checkpoint_is_made_from_a_copy_and_only_the_pinned_bytes_are_written(
    tmp_path: Path, published: Path, result: bytes
) -> None:
    content = published.read_bytes()
    registry = registry_of(tmp_path, content, result)
    path, digest = convert_entry(registry, "cifar10/net", file=published)
    assert path == tmp_path / "models" / "net.safetensors"
    assert path.read_bytes() == result
    assert digest == hashlib.sha256(result).hexdigest()
    (tmp_path / "other.pt").write_bytes(content + b" ")
    with pytest.raises(DamagedData, match=r"other.pt: a zip archive .* with sha256 \w+, but the registry pins"):
        convert_entry(registry, "cifar10/net", file=tmp_path / "other.pt")
    path.unlink()
    with pytest.raises(DamagedData, match=r"net.pt, converted: \d+ bytes with sha256 \w+, but the registry pins"):
        convert_entry(registry_of(tmp_path, content, b"other"), "cifar10/net", file=published)
    assert not path.exists()


def test_the_source_is_hashed_before_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.pt").write_bytes(b"whatever")
    monkeypatch.setattr(kwbench.networks.converting, "convert", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(DamagedData, match="8 bytes with sha256"):
        convert_entry(registry_of(tmp_path, b"else", b""), "cifar10/net", file=tmp_path / "net.pt")


def test_nothing_is_fetched_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kwbench.networks.converting, "fetch", lambda _: pytest.fail("fetched"))
    registry = registry_of(tmp_path, b"", b"")
    with pytest.raises(UsageError, match=r"--download fetches https://nowhere.invalid/net.pt, --from FILE takes a copy of it"):
        convert_entry(registry, "cifar10/net")
    with pytest.raises(UsageError, match=r"model 'plain' has no published checkpoint to convert; these have one: cifar10/net"):
        convert_entry(registry, "plain", download=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A server of /net.pt that redirects /away to another protocol."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = (tmp_path / "net.pt").read_bytes()
            self.send_response({"/net.pt": 200, "/away": 302}.get(self.path, 404))
            self.send_header("Location", "ftp://127.0.0.1/net.pt")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_a_published_file_is_fetched_whole_or_refused_with_the_reason(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.pt").write_bytes(b"0123456789")
    assert fetch(f"{server}/net.pt") == b"0123456789"
    for place in ("/none", "/away"):
        with pytest.raises(CannotEvaluate, match=f"{server}{place}: .*; fetch it yourself and name it with --from"):
            fetch(server + place)
    monkeypatch.setattr(kwbench.networks.converting, "LARGEST", 9)
    with pytest.raises(DamagedData, match="more than"):
        fetch(f"{server}/net.pt")


def test_a_download_is_converted_wherever_it_is_wanted(
    tmp_path: Path, published: Path, result: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def fetch(url: str) -> bytes:
        fetched.append(url)
        return published.read_bytes()

    monkeypatch.setattr(kwbench.networks.converting, "fetch", fetch)
    registry = registry_of(tmp_path, published.read_bytes(), result)
    path, _ = convert_entry(registry, "cifar10/net", tmp_path / "x" / "y.safetensors", download=True)
    assert path == tmp_path / "x" / "y.safetensors"
    assert fetched == ["https://nowhere.invalid/net.pt"]
    assert path.read_bytes() == result


def test_a_plain_state_dict_keeps_its_tensors_and_gives_the_same_bytes_each_time(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    shared = network.state_dict()
    shared["view"] = shared["0.weight"].transpose(0, 3)
    shared["same"] = shared["0.weight"]
    digest = convert_file(saved(tmp_path / "deep.pt", {"a": {"b": shared}}), tmp_path / "deep.safetensors", key="a.b")
    written = (tmp_path / "deep.safetensors").read_bytes()
    assert digest == hashlib.sha256(written).hexdigest()
    for name, options in (("new.pt", {}), ("old.pt", {"_use_new_zipfile_serialization": False})):
        assert _convert_here(saved(tmp_path / name, shared, **options).read_bytes(), name, None) == written
    tensors = safetensors.torch.load(written)
    assert tensors.keys() == shared.keys()
    assert all(torch.equal(tensors[key], shared[key]) and tensors[key].dtype == shared[key].dtype for key in shared)


def test_a_prefix_is_removed_from_keys(tmp_path: Path) -> None:
    tensors = {"module.a": torch.ones(1), "module.module.b": torch.ones(2), "c": torch.ones(3)}
    content = saved(tmp_path / "net.pt", tensors).read_bytes()
    assert safetensors.torch.load(_convert_here(content, "net", None, "module.")).keys() == {"a", "module.b", "c"}
    with pytest.raises(UsageError, match=r"net: no key begins with 'net\.'; the first is 'module.a'"):
        _convert_here(content, "net", None, "net.")
    clash = saved(tmp_path / "clash.pt", {"module.a": torch.ones(1), "a": torch.ones(1)}).read_bytes()
    with pytest.raises(DamagedData, match=r"net: without 'module\.', two tensors are called 'a'"):
        _convert_here(clash, "net", None, "module.")


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_code_in_a_pickle_is_refused_and_never_run(tmp_path: Path, options: dict[str, Any]) -> None:
    harmful = saved(tmp_path / "net.pt", {"a": torch.ones(1), "b": Code(tmp_path / "mark")}, **options)
    pickled_module = saved(tmp_path / "whole.pt", nn.Linear(1, 1), **options)
    for file, culprit in ((harmful, r"\w+\.(system|mkdir)"), (pickled_module, r"torch\.nn\.modules\.linear\.Linear")):
        with pytest.raises(DamagedData, match=f"net.pt: its pickle asks for {culprit}, which is code and is not run; save a"):
            _convert_here(file.read_bytes(), "net.pt", None)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["net.pt", "whole.pt"]


def test_a_refusal_in_the_reading_process_is_raised_here_and_leaves_no_file(tmp_path: Path) -> None:
    file = saved(tmp_path / "net.pt", {"a": Code(tmp_path / "mark")})
    with pytest.raises(DamagedData, match=r"net.pt: its pickle asks for"):
        convert_file(file, tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file, not a torch.save file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer, not a torch.save file"),
        (b"\n<!DOCTYPE html><html>", "an HTML page, not a torch.save file"),
        (b"0123456789", "10 bytes, not a torch.save file"),
        (b"PK\x03\x04 and then nothing", "a damaged zip archive"),
        (b"\x80\x02}q\x00", "not a readable torch.save file"),
    ],
)
def test_files_that_are_not_checkpoints_are_refused_with_a_description_of_them(content: bytes, message: str) -> None:
    with pytest.raises(DamagedData, match=f"net.pt: {message}"):
        _convert_here(content, "net.pt", None)


def test_a_truncated_checkpoint_is_refused(published: Path) -> None:
    content = published.read_bytes()
    for size in range(5, len(content), len(content) // 7):
        with pytest.raises(DamagedData, match=r"net\.pt: "):
            _convert_here(content[:size], "net.pt", "model")


@pytest.mark.parametrize(
    ("value", "key", "kind", "message"),
    [
        ({"a": torch.ones(1)}, "model", UsageError, "has no key 'model'; it holds 'a'"),
        ({"a": torch.ones(1)}, "a.b", UsageError, "has no key 'b'; it holds a Tensor"),
        ([torch.ones(1)], None, DamagedData, "holds no state dict; it holds a list"),
        ({}, None, DamagedData, "holds no state dict; it is empty"),
        ({1: torch.ones(1)}, None, DamagedData, "holds no state dict; it holds 1"),
        (
            {"epoch": 3, "net": {"a": torch.ones(1)}},
            None,
            DamagedData,
            "'epoch' is no tensor, so this is no state dict; --key net may be where it is; it holds 'epoch', 'net'",
        ),
        ({"a": torch.ones(2).to_sparse()}, None, DamagedData, "a is no plain tensor"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, None, DamagedData, "a is no plain tensor"),
        ({"a": torch.ones(1).expand(1 << 31)}, None, DamagedData, "more than 4 GiB"),
    ],
)
def test_other_objects_than_state_dicts_are_refused_with_a_description_of_them(
    tmp_path: Path, value: Any, key: str | None, kind: type[KwbenchError], message: str
) -> None:
    content = saved(tmp_path / "net.pt", value).read_bytes()
    with pytest.raises(kind, match=message):
        _convert_here(content, "net.pt", key)


def test_a_zip_archive_that_unpacks_to_too_much_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved(tmp_path / "net.pt", {"a": torch.zeros(1000)}).read_bytes()
    monkeypatch.setattr(kwbench.networks.converting, "LARGEST", 3000)
    with pytest.raises(DamagedData, match=r"net\.pt: more than"):
        _convert_here(content, "net.pt", None)


def test_an_unknown_converter_comes_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="converter 'panousis2021' is unknown; did you mean 'panousis2021-wide-resnet'"):
        convert(b"", "net", converter="panousis2021")


def test_a_reading_process_that_dies_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # `os.abort` cannot be patched into another process; a target that cannot be imported there also ends it.
    monkeypatch.setattr(kwbench.networks.converting, "_convert_apart", print)
    with pytest.raises(DamagedData, match=r"net: the process that read it ended with code \d"):
        convert(b"", "net")


def test_the_command_converts_models_and_files(tmp_path: Path, kwb: Kwbench, published: Path, result: bytes) -> None:  # noqa: F811
    registry_of(tmp_path, published.read_bytes(), result)
    asked = kwb("evaluate", "cifar10/net", "--data", tmp_path / "none.npz")
    assert asked.code == 3
    answer = kwb("convert", "cifar10/net", "--from", published)
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[1] == f"sha256 {hashlib.sha256(result).hexdigest()}"
    answer = kwb("convert", published, "own.safetensors", "--key", "model", "--json")
    assert answer.json["checkpoint"] == "own.safetensors"
    assert "block1.layer.0.conv2.weight" in safetensors.torch.load_file(tmp_path / "own.safetensors")
    for words, message in (
        ((published,), "name the file to write"),
        ((published, "x.safetensors", "--download"), "--from and --download: for a model of the registry"),
        (("cifar10/net", "--key", "model"), "--key and --strip-prefix: for a file"),
        (("cifar10/nt",), "did you mean 'cifar10/net'"),
        (("missing.pt", "x.safetensors"), "missing.pt: cannot be read"),
    ):
        refused = kwb("convert", *words)
        assert refused.code in (2, 3), words
        assert message in refused.err
    listed = {model["model"]: model["training"] for model in kwb("models", "--json").json}
    assert listed["cifar10/net"] == "published"
    assert listed["plain"] == "none"


def test_torchvisions_weights_are_verified_by_the_hash_in_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://example.org/net-01234567.pth"
    with pytest.raises(UsageError, match=f"--download fetches {url}, --weights FILE takes a copy of it"):
        convert_pretrained(url)
    wrong = saved(tmp_path / "wrong.pth", {"a": torch.rand(2)})
    with pytest.raises(DamagedData, match=r"wrong\.pth: .* which must begin with 01234567"):
        convert_pretrained(url, file=wrong)
    monkeypatch.setattr(kwbench.networks.converting, "fetch", lambda _: b"<html>")
    with pytest.raises(DamagedData, match=f"{url}: an HTML page with sha256 .*, which must begin with 01234567"):
        convert_pretrained(url, download=True)


def test_a_network_with_imagenets_classes_becomes_the_start_of_one_with_ten(tmp_path: Path, kwb: Kwbench) -> None:  # noqa: F811
    pretrained = build_network("resnet18_imagenet", {"width": 4, "pixels": 32}, nn.ReLU, 1, 1000)
    file = saved(tmp_path / "copy.pth", pretrained.state_dict())
    url = f"https://example.org/resnet18-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
    (tmp_path / "registry.yaml").write_text(
        "models:\n  net:\n    architecture: {name: resnet18_imagenet, width: 4, pixels: 32}\n    activation: {name: relu}\n"
        f'    recipe: {{epochs: 1, learning_rate: 1.0e-9, seed: 0, threads: 1, pretrained: "{url}"}}\n'
    )
    answer = kwb("train", "net", "--weights", str(file), "--output", "a.safetensors")
    assert answer.code == 0, answer.err
    trained = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert torch.allclose(trained["layer2.0.conv1.weight"], pretrained.state_dict()["layer2.0.conv1.weight"], atol=1e-6)
    assert trained["fc.weight"].shape == (10, 32)
