"""Other people's checkpoints, as safetensors: read without running their code, hashed before and after.

A `.pt` file is a pickle. It is opened with `weights_only`, which builds tensors and refuses everything else, in a process
of its own, and only if its bytes are the pinned ones where a registry entry pins them.
"""

import hashlib
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

from kwbench.config.registry import Registry
from kwbench.errors import CannotEvaluate, DamagedData, KwbenchError, UsageError, did_you_mean
from kwbench.files import write_whole
from kwbench.networks.loading import describe_content

# Larger than the weights of any classifier that kwbench can evaluate; a file that unpacks to more is not opened.
LARGEST = 4 << 30

Tensors = dict[str, Tensor]

# How the reading process begins an answer that is not a safetensors file; such a file begins with its header's length.
_FAILURES: dict[bytes, type[KwbenchError]] = {b"use\xff" * 4: UsageError, b"bad\xff" * 4: DamagedData}


def convert_entry(
    registry: Registry, name: str, output: Path | None = None, *, file: Path | None = None, download: bool = False
) -> tuple[Path, str]:
    """Make the checkpoint that an entry pins out of what its authors published, and say where it lies and its SHA-256.

    The published file is `file`, or else downloaded from the entry's address. Both its hash and that of the result must be
    the pinned ones. Raises UsageError if the entry names no source or no file is given, DamagedData where a hash differs.
    """
    short, entry = registry.find(name)
    checkpoint = entry.checkpoint
    if checkpoint is None or checkpoint.source is None:
        raise UsageError(f"model {short!r} has no published checkpoint to convert; {_has_source(registry)}")
    source = checkpoint.source
    if file is None and not download:
        raise UsageError(f"{short}: --download fetches {source.url}, --from FILE takes a copy of it")
    content, where = (_read(file), str(file)) if file is not None else (fetch(source.url), source.url)
    _require(hashlib.sha256(content).hexdigest(), source.sha256, where, describe_content(content))
    converted = convert(content, where, key=source.key, converter=source.converter)
    digest = hashlib.sha256(converted).hexdigest()
    _require(digest, checkpoint.sha256, f"{where}, converted", f"{len(converted)} bytes")
    path = output or registry.checkpoint_path(short)
    write_whole(path, converted)
    return path, digest


def convert_pretrained(url: str, *, file: Path | None = None, download: bool = False) -> bytes:
    """The weights that torchvision publishes at `url`, from a copy of the file or the address, as safetensors.

    Their SHA-256 must begin with the eight digits that end the file's name, as torchvision's names do. Raises UsageError if
    there is neither a file nor leave to download, DamagedData where the hash differs.
    """
    if file is None and not download:
        raise UsageError(f"--download fetches {url}, --weights FILE takes a copy of it")
    content, where = (_read(file), str(file)) if file is not None else (fetch(url), url)
    begins = url.rpartition("-")[2].removesuffix(".pth")
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(begins):
        raise DamagedData(f"{where}: {describe_content(content)} with sha256 {found}, which must begin with {begins}")
    return convert(content, where)


def convert_file(file: Path, output: Path, *, key: str | None = None, strip_prefix: str = "") -> str:
    """Write the state dict in a `.pt` file as safetensors; return the SHA-256. `key` is where the file keeps it.

    Raises DamagedData if the file holds no plain state dict, or code.
    """
    converted = convert(_read(file), str(file), key=key, strip_prefix=strip_prefix)
    write_whole(output, converted)
    return hashlib.sha256(converted).hexdigest()


def convert(
    content: bytes, name: str, *, key: str | None = None, strip_prefix: str = "", converter: str | None = None
) -> bytes:
    """The bytes of a `.pt` file as those of a safetensors file: the same tensors give the same bytes.

    The pickle is read in a freshly spawned process. Raises UsageError for an unknown converter, DamagedData otherwise.
    """
    if converter is not None and converter not in CONVERTERS:
        raise UsageError(f"converter {converter!r} is unknown; {did_you_mean(converter, CONVERTERS)}")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_convert_apart, args=(theirs, content, name, key, strip_prefix, converter), daemon=True)
    process.start()
    theirs.close()
    try:
        # Plain bytes: unpickling what that process says would undo what it is for.
        answer = ours.recv_bytes()
    except EOFError:
        process.join()
        raise DamagedData(f"{name}: the process that read it ended with code {process.exitcode}") from None
    finally:
        ours.close()
        process.join()
    for mark, kind in _FAILURES.items():
        if answer.startswith(mark):
            raise kind(answer[len(mark) :].decode())
    return answer


def fetch(url: str) -> bytes:
    """What lies at a public https address. Raises CannotEvaluate if it cannot be had, DamagedData if it is too large."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            if urlsplit(answer.url).scheme != urlsplit(url).scheme:
                raise CannotEvaluate(f"{url}: redirects to {answer.url}")
            content: bytes = answer.read(LARGEST + 1)
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
) -> None:
    torch.set_num_threads(1)
    try:
        pipe.send_bytes(_convert_here(content, name, key, strip_prefix, converter))
    except (UsageError, DamagedData) as failure:
        pipe.send_bytes(next(mark for mark, kind in _FAILURES.items() if isinstance(failure, kind)) + str(failure).encode())


def _convert_here(content: bytes, name: str, key: str | None, strip_prefix: str = "", converter: str | None = None) -> bytes:
    tensors = _stripped(_state_dict(content, name, key), strip_prefix, name)
    if converter is not None:
        tensors = CONVERTERS[converter](tensors, name)
    # Copies: safetensors refuses tensors that share memory.
    return safetensors.torch.save({each: tensor.contiguous().clone() for each, tensor in tensors.items()})


def _state_dict(content: bytes, name: str, key: str | None) -> Tensors:
    if not content.startswith((b"PK\x03\x04", b"\x80")):
        raise DamagedData(f"{name}: {describe_content(content)}, not a torch.save file")
    found = _unpickle(content, name)
    for part in key.split(".") if key is not None else ():
        if not isinstance(found, Mapping) or part not in found:
            raise UsageError(f"{name}: has no key {part!r}; {_what_it_holds(found)}")
        found = found[part]
    if not isinstance(found, Mapping) or not found or not all(isinstance(each, str) for each in found):
        raise DamagedData(f"{name}: holds no state dict; {_what_it_holds(found)}")
    if wrong := [each for each, value in found.items() if not isinstance(value, Tensor)]:
        inner = [each for each in wrong if isinstance(found[each], Mapping)]
        hint = f"; --key {inner[0]} may be where it is" if inner else ""
        raise DamagedData(f"{name}: {wrong[0]!r} is no tensor, so this is no state dict{hint}; {_what_it_holds(found)}")
    tensors = dict(found)
    _require_size(sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()), name)
    for each, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
            raise DamagedData(f"{name}: {each} is no plain tensor ({tensor.layout}, {tensor.dtype})")
    return tensors


def _what_it_holds(found: object) -> str:
    if not isinstance(found, Mapping):
        return f"it holds a {type(found).__name__}"
    kinds = [f"{each!r}" for each in list(found)[:5]]
    return f"it holds {', '.join(kinds)}{' and more' if len(found) > 5 else ''}" if found else "it is empty"


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
    if not any(each.startswith(prefix) for each in tensors):
        raise UsageError(f"{name}: no key begins with {prefix!r}; the first is {next(iter(tensors))!r}")
    stripped: Tensors = {}
    for each, tensor in tensors.items():
        short = each.removeprefix(prefix)
        if short in stripped:
            raise DamagedData(f"{name}: without {prefix!r}, two tensors are called {short!r}")
        stripped[short] = tensor
    return stripped


def _panousis2021_wide_resnet(tensors: Tensors, name: str) -> Tensors:
    """The authors' keys in ours. Their forward pass uses neither `sub_block1` nor the `temp` of their activations."""
    used = {key: each for key, each in tensors.items() if not key.startswith("sub_block1.") and not key.endswith(".temp")}
    places = [match for key in used if (match := re.fullmatch(r"block[123]\.layer\.(\d+)\..+", key))]
    if not places:
        raise DamagedData(f"{name}: not a WideResNet of panousis2021: key 'block1.layer.0.bn1.weight' is missing")
    blocks = 1 + max(int(match[1]) for match in places)
    converted: Tensors = {}
    for key, tensor in used.items():
        found = re.fullmatch(r"block([123])\.layer\.(\d+)\.(.+)", key)
        ours = f"blocks.{(int(found[1]) - 1) * blocks + int(found[2])}.{found[3]}" if found else key
        converted[ours.replace(".convShortcut.", ".shortcut.")] = tensor
    return converted


# By the name that registry entries use: from the keys of a published state dict to those of our networks.
CONVERTERS: dict[str, Callable[[Tensors, str], Tensors]] = {"panousis2021-wide-resnet": _panousis2021_wide_resnet}


def _read(file: Path) -> bytes:
    try:
        _require_size(file.stat().st_size, str(file))
        return file.read_bytes()
    except OSError as failure:
        raise CannotEvaluate(f"{file}: cannot be read ({failure.strerror})") from None


def _require(digest: str, pinned: str, name: str, found: str) -> None:
    if digest != pinned:
        raise DamagedData(f"{name}: {found} with sha256 {digest}, but the registry pins {pinned}")


def _require_size(size: int, name: str) -> None:
    if size > LARGEST:
        raise DamagedData(f"{name}: more than {LARGEST >> 30} GiB, which no checkpoint needs")


def _has_source(registry: Registry) -> str:
    published = [name for name, entry in registry.entries.items() if entry.checkpoint and entry.checkpoint.source]
    return f"these have one: {', '.join(published)}" if published else "none of the registry has one"
