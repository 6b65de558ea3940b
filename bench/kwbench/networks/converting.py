"""Convert published checkpoints to safetensors, without running code in them, and check their hashes.

A `.pt` file is a pickle. It is read with `weights_only`, which builds tensors and refuses everything else, in a process of
its own. If a registry entry pins a hash, a file with another hash is not opened.
"""

import hashlib
import importlib.util
import io
import multiprocessing
import multiprocessing.connection
import re
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import safetensors.torch
import torch
from torch import Tensor

from kwbench.config.registry import Checkpoint, Registry
from kwbench.errors import CannotEvaluate, DamagedData, KwbenchError, UsageError, did_you_mean
from kwbench.files import read_file, write_whole
from kwbench.networks.weights import describe_content

# Larger than the weights of any classifier that kwbench can evaluate; a file that unpacks to more is not opened.
LARGEST = 4 << 30

Tensors = dict[str, Tensor]

# The first bytes of an error that the reading process returns. A safetensors file begins with the length of its header instead.
_FAILURES: dict[bytes, type[KwbenchError]] = {b"use\xff" * 4: UsageError, b"bad\xff" * 4: DamagedData}


def convert_entry(
    registry: Registry, name: str, output: Path | None = None, *, file: Path | None = None, download: bool = False
) -> tuple[Path, str]:
    """Convert the checkpoint that an entry's authors published to the one that the entry pins; return its path and SHA-256.

    The published file is `file`, or that of an installed package, or else downloaded from the entry's address if `download`.
    Its hash and that of the result must be the pinned ones. Raises UsageError if the entry names no source or if neither
    option is given, DamagedData if a hash differs, CannotEvaluate if the package is not installed.
    """
    short, entry = registry.find(name)
    checkpoint = entry.checkpoint
    if checkpoint is None or checkpoint.source is None:
        raise UsageError(f"model {short!r} has no published checkpoint to convert; {_has_source(registry)}")
    converted = convert_source(short, checkpoint, file=file, download=download)
    digest = hashlib.sha256(converted).hexdigest()
    path = output or registry.checkpoint_path(short)
    write_whole(path, converted)
    return path, digest


def convert_source(name: str, checkpoint: Checkpoint, *, file: Path | None = None, download: bool = False) -> bytes:
    """Return the weights of a published checkpoint as safetensors; see `convert_entry`."""
    source = checkpoint.source
    assert source is not None
    if file is None and source.package is not None:
        file = _in_package(name, source.package)
    elif file is None and not download:
        raise UsageError(f"{name}: --download fetches {source.url}, --from FILE takes a copy of it")
    content, where = (_read(file), str(file)) if file is not None else (fetch(str(source.url)), str(source.url))
    _require(hashlib.sha256(content).hexdigest(), source.sha256, where, describe_content(content))
    converted = convert(content, where, key=source.key, converter=source.converter)
    _require(hashlib.sha256(converted).hexdigest(), checkpoint.sha256, f"{where}, converted", f"{len(converted)} bytes")
    return converted


def _in_package(name: str, path: str) -> Path:
    """Return the path of a file in an installed package, which is not imported."""
    package, _, below = path.partition("/")
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        raise CannotEvaluate(f"{name}: its checkpoint is in the package {package}, which is not installed")
    return Path(folders[0]) / below


def convert_pretrained(url: str, *, file: Path | None = None, download: bool = False) -> bytes:
    """Return the weights that torchvision publishes at `url` as safetensors, from a copy in `file` or by download.

    Torchvision's file names end with the first eight digits of the SHA-256, which must agree. Raises UsageError if neither
    `file` nor `download` is given, DamagedData if the hash differs.
    """
    if file is None and not download:
        raise UsageError(f"--download fetches {url}, --weights FILE takes a copy of it")
    content, where = (_read(file), str(file)) if file is not None else (fetch(url), url)
    prefix = url.rpartition("-")[2].removesuffix(".pth")
    digest = hashlib.sha256(content).hexdigest()
    if not digest.startswith(prefix):
        raise DamagedData(f"{where}: {describe_content(content)} with sha256 {digest}, which must begin with {prefix}")
    return convert(content, where)


def convert_file(file: Path, output: Path, *, key: str | None = None, strip_prefix: str = "") -> str:
    """Write the state dict in a `.pt` file as safetensors and return the SHA-256. `key` is the dotted key of the state dict.

    Raises DamagedData if the file holds no plain state dict, or code.
    """
    converted = convert(_read(file), str(file), key=key, strip_prefix=strip_prefix)
    write_whole(output, converted)
    return hashlib.sha256(converted).hexdigest()


def convert(
    content: bytes,
    name: str,
    *,
    key: str | None = None,
    strip_prefix: str = "",
    converter: str | None = None,
    single: str | None = None,
) -> bytes:
    """Convert the bytes of a `.pt` file to those of a safetensors file. The same tensors give the same bytes.

    With `single`, the file may also hold a tensor alone, which gets this name, or sequences of tensors, of which the first is
    kept. The pickle is read in a freshly spawned process. Raises UsageError for an unknown converter, DamagedData otherwise.
    """
    if converter is not None and converter not in CONVERTERS:
        raise UsageError(f"converter {converter!r} is unknown; {did_you_mean(converter, CONVERTERS)}")
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_convert_apart, args=(sender, content, name, key, strip_prefix, converter, single), daemon=True
    )
    process.start()
    sender.close()
    try:
        # Raw bytes: unpickling the answer would defeat the purpose of that process.
        answer = receiver.recv_bytes()
    except EOFError:
        process.join()
        raise DamagedData(f"{name}: the process that read it ended with code {process.exitcode}") from None
    finally:
        receiver.close()
        process.join()
    for mark, kind in _FAILURES.items():
        if answer.startswith(mark):
            raise kind(answer[len(mark) :].decode())
    return answer


def without_prefix(content: bytes, prefix: str, name: str) -> bytes:
    """Return the bytes of a safetensors file with a prefix of its names dropped. Raises UsageError if no name begins so."""
    try:
        tensors = safetensors.torch.load(content)
    except Exception as failure:  # noqa: BLE001 - the parser raises nearly anything on damaged bytes
        raise DamagedData(f"{name}: not a safetensors file ({failure})") from None
    return bytes(safetensors.torch.save(_stripped(tensors, prefix, name)))


def fetch(url: str) -> bytes:
    """Download the content of a public https address. Raises CannotEvaluate if that fails, DamagedData if it is too large."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            if urlsplit(response.url).scheme != urlsplit(url).scheme:
                raise CannotEvaluate(f"{url}: redirects to {response.url}")
            content: bytes = response.read(LARGEST + 1)
    except (OSError, urllib.error.URLError, ValueError) as failure:
        raise CannotEvaluate(f"{url}: cannot be downloaded ({failure}); fetch it yourself and name it with --from") from None
    _require_size(len(content), url)
    return content


def _convert_apart(
    pipe: multiprocessing.connection.Connection,
    content: bytes,
    name: str,
    key: str | None,
    strip_prefix: str,
    converter: str | None,
    single: str | None,
) -> None:
    torch.set_num_threads(1)
    try:
        pipe.send_bytes(_convert_here(content, name, key, strip_prefix, converter, single))
    except (UsageError, DamagedData) as failure:
        pipe.send_bytes(next(mark for mark, kind in _FAILURES.items() if isinstance(failure, kind)) + str(failure).encode())


def _convert_here(
    content: bytes,
    name: str,
    key: str | None,
    strip_prefix: str = "",
    converter: str | None = None,
    single: str | None = None,
) -> bytes:
    tensors = _stripped(_state_dict(content, name, key, single), strip_prefix, name)
    if converter is not None:
        tensors = CONVERTERS[converter](tensors, name)
    # Copies, because safetensors does not accept tensors that share memory.
    return safetensors.torch.save({key: tensor.contiguous().clone() for key, tensor in tensors.items()})


def _state_dict(content: bytes, name: str, key: str | None, single: str | None = None) -> Tensors:
    if not content.startswith((b"PK\x03\x04", b"\x80")):
        raise DamagedData(f"{name}: {describe_content(content)}, not a torch.save file")
    value = _unpickle(content, name)
    for part in key.split(".") if key is not None else ():
        if not isinstance(value, Mapping) or part not in value:
            raise UsageError(f"{name}: has no key {part!r}; {_describe_value(value)}")
        value = value[part]
    if single is not None:
        value = _as_mapping(value, single)
    if not isinstance(value, Mapping) or not value or not all(isinstance(entry, str) for entry in value):
        raise DamagedData(f"{name}: holds no state dict; {_describe_value(value)}")
    if wrong := [entry for entry, held in value.items() if not isinstance(held, Tensor)]:
        inner = [entry for entry in wrong if isinstance(value[entry], Mapping)]
        hint = f"; --key {inner[0]} may be where it is" if inner else ""
        raise DamagedData(f"{name}: {wrong[0]!r} is no tensor, so this is no state dict{hint}; {_describe_value(value)}")
    tensors = dict(value)
    _require_size(sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()), name)
    for entry, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
            raise DamagedData(f"{name}: {entry} is no plain tensor ({tensor.layout}, {tensor.dtype})")
    return tensors


def _as_mapping(value: object, single: str) -> object:
    """Return a tensor alone as {single: tensor}, and of (images, predictions), which AutoAttack saves, the images."""
    entries = value if isinstance(value, Mapping) else {single: value}
    return {
        name: entry[0] if isinstance(entry, list | tuple) and entry and all(isinstance(one, Tensor) for one in entry) else entry
        for name, entry in entries.items()
    }


def _describe_value(value: object) -> str:
    if not isinstance(value, Mapping):
        return f"it holds a {type(value).__name__}"
    keys = [f"{key!r}" for key in list(value)[:5]]
    return f"it holds {', '.join(keys)}{' and more' if len(value) > 5 else ''}" if value else "it is empty"


def _unpickle(content: bytes, name: str) -> object:
    if content.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                _require_size(sum(part.file_size for part in archive.infolist()), name)
        except zipfile.BadZipFile as failure:
            raise DamagedData(f"{name}: a damaged zip archive ({failure})") from None
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as failure:  # noqa: BLE001 - damaged bytes raise nearly anything
        reason = str(failure)
        if blamed := re.search(r"GLOBAL ([\w.]+)", reason):
            raise DamagedData(
                f"{name}: its pickle asks for {blamed[1]}, which is code and is not run; save a plain state dict: "
                "torch.save(model.state_dict(), FILE)"
            ) from None
        lines = reason.strip().splitlines()
        raise DamagedData(f"{name}: not a readable torch.save file ({lines[0] if lines else type(failure).__name__})") from None


def _stripped(tensors: Tensors, prefix: str, name: str) -> Tensors:
    if not prefix:
        return tensors
    if not any(key.startswith(prefix) for key in tensors):
        raise UsageError(f"{name}: no key begins with {prefix!r}; the first is {next(iter(tensors))!r}")
    stripped: Tensors = {}
    for key, tensor in tensors.items():
        short = key.removeprefix(prefix)
        if short in stripped:
            raise DamagedData(f"{name}: without {prefix!r}, two tensors are called {short!r}")
        stripped[short] = tensor
    return stripped


def _panousis2021_wide_resnet(tensors: Tensors, name: str) -> Tensors:
    """Rename the authors' keys to ours. Their forward pass uses neither `sub_block1` nor the `temp` of their activations."""
    used = {key: tensor for key, tensor in tensors.items() if not key.startswith("sub_block1.") and not key.endswith(".temp")}
    matches = [match for key in used if (match := re.fullmatch(r"block[123]\.layer\.(\d+)\..+", key))]
    if not matches:
        raise DamagedData(f"{name}: not a WideResNet of panousis2021: key 'block1.layer.0.bn1.weight' is missing")
    blocks = 1 + max(int(match[1]) for match in matches)
    converted: Tensors = {}
    for key, tensor in used.items():
        match = re.fullmatch(r"block([123])\.layer\.(\d+)\.(.+)", key)
        ours = f"blocks.{(int(match[1]) - 1) * blocks + int(match[2])}.{match[3]}" if match else key
        converted[ours.replace(".convShortcut.", ".shortcut.")] = tensor
    return converted


def _autoattack_resnet(tensors: Tensors, name: str) -> Tensors:
    """Rename the keys of the ResNet-18 in AutoAttack's examples to ours: four layers of two blocks become eight blocks."""
    converted: Tensors = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(r"layer([1-4])\.([01])\.(.+)", key)
        ours = f"blocks.{2 * (int(match[1]) - 1) + int(match[2])}.{match[3]}" if match else key
        converted[re.sub(r"^linear\.", "fc.", ours)] = tensor
    if "fc.weight" not in converted:
        raise DamagedData(f"{name}: not the ResNet-18 of AutoAttack's examples: key 'linear.weight' is missing")
    return converted


# By the name in registry entries: functions from a published state dict to one with the keys of our networks.
CONVERTERS: dict[str, Callable[[Tensors, str], Tensors]] = {
    "autoattack-resnet": _autoattack_resnet,
    "panousis2021-wide-resnet": _panousis2021_wide_resnet,
}


def _read(file: Path) -> bytes:
    try:
        _require_size(file.stat().st_size, str(file))
        return read_file(file)
    except OSError as failure:
        raise CannotEvaluate(f"{file}: cannot be read ({failure.strerror})") from None


def _require(digest: str, pinned: str, name: str, description: str) -> None:
    if digest != pinned:
        raise DamagedData(f"{name}: {description} with sha256 {digest}, but the registry pins {pinned}")


def _require_size(size: int, name: str) -> None:
    if size > LARGEST:
        raise DamagedData(f"{name}: more than {LARGEST >> 30} GiB, which no checkpoint needs")


def _has_source(registry: Registry) -> str:
    published = [name for name, entry in registry.entries.items() if entry.checkpoint and entry.checkpoint.source]
    return f"these have one: {', '.join(published)}" if published else "none of the registry has one"
