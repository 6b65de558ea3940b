"""Models that users define in Python code of their own."""

import contextlib
import hashlib
import io
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from kwbench.errors import CannotEvaluate, KwbenchError, UsageError
from kwbench.model.evaluation_mode import enter_evaluation_mode
from kwbench.networks.checkpoints import load_checkpoint
from kwbench.networks.loaded import Loaded
from kwbench.networks.opened_files import recorded_reads
from kwbench.networks.reachable import Walk
from kwbench.networks.user_code import import_code, imported_sources, is_users, surroundings
from kwbench.networks.user_names import FileModel, candidates, parse_file_model
from kwbench.torchvision_schemas import make_torchvision_importable

# The most characters of an exception that a message quotes.
_QUOTED = 400


def load_file_model(name: str, checkpoint: Path | None = None, *, key: str | None = None, strip_prefix: str = "") -> Loaded:
    """Return the module of path/to/file.py:factory or package.module:factory, in evaluation mode and in its own precision.

    The factory is a function or class that makes the module, called with the arguments in the name, or the module itself.
    Weights come from `checkpoint` if it is given, strictly; `key` and `strip_prefix` as for `load_checkpoint`. The file's
    folder comes first on the import path, for a dotted name the current folder.

    The hash covers the file, the modules that it imported other than installed ones, the files that it read meanwhile, and all
    that the module can reach. It does not cover what `forward` alone reads or imports.

    This runs the user's code, so call it in a process of its own. Raises UsageError if there is no such file or factory, or
    if the factory does not return a module; CannotEvaluate if the code raises; and what `load_checkpoint` raises.
    """
    model = parse_file_model(name)
    source, factory = model.source, model.factory
    before = set(sys.modules)
    make_torchvision_importable()
    with recorded_reads() as read, surroundings(source), naming_failures(source) as failing:
        failing.append("importing it")
        namespace, folder = import_code(source)
        failing.append(factory)
        module = _made(namespace, model)
        dtype, device = torch.get_default_dtype(), torch.get_default_device()
    if checkpoint is not None:
        load_checkpoint(module, checkpoint, key=key, strip_prefix=strip_prefix)
    if (dtype, device) != (torch.get_default_dtype(), torch.get_default_device()):
        _Defaults(dtype, device).during_passes_of(module)
    own = Path(namespace.__file__) if namespace.__file__ else folder
    sources = dict(imported_sources(folder, set(sys.modules) - before))
    files = (getattr(sys.modules.get(imported), "__file__", None) for imported in sources)
    covered = frozenset(Path(file).resolve() for file in (own, *files) if file is not None)
    digest = hashlib.sha256(own.read_bytes() if own.is_file() else b"")
    for imported, content in sorted(sources.items()):
        digest.update(imported.encode() + content)
    for content in read.contents(folder, without=covered):
        digest.update(content)
    return loaded(module, digest, covered=covered, folder=folder)


def loaded(module: nn.Module, digest: Any, *, covered: frozenset[Path] = frozenset(), folder: Path | None = None) -> Loaded:
    """Put a module and all modules that it can reach into evaluation mode, and add what it can reach to the hash `digest`.

    `covered` are files whose code is in the hash already, `folder` is that of the user's code.
    """
    options: dict[str, Any] = {"covered": covered, "folder": folder}
    if folder is not None:
        options["is_own"] = lambda file: is_users(file, folder)
    reachable = Walk(hashing=False, **options).follow(module)
    modes = enter_evaluation_mode(module, reachable.modules)
    walk = Walk(**options).follow(module)
    digest.update(walk.hexdigest().encode())
    notes = []
    if modes.unreached:
        were = "was" if len(modes.unreached) == 1 else "were"
        notes.append(f"eval() does not reach {_counted(modes.unreached)} that it uses, which {were} put into evaluation mode")
    if modes.training:
        trains = _counted(modes.training)
        notes.append(f"warning: {trains} cannot be put into evaluation mode; answers may be random, or depend on the batch")
    if walk.truncated:
        notes.append("warning: the model holds so many objects that a change of the last of them may go unnoticed")
    registered = {id(part) for part in module.modules()}
    hidden = [part for part in walk.modules if id(part) not in registered]
    inner = {id(part) for outer in hidden for part in outer.modules() if part is not outer}
    outermost = tuple(part for part in hidden if id(part) not in inner)
    return Loaded(module, digest.hexdigest(), tuple(notes), outermost, walk.draws)


class _Defaults:
    """Torch's defaults that a user's code has set: its passes run with them, kwbench does not."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._kept: list[tuple[torch.dtype, torch.device]] = []

    def during_passes_of(self, module: nn.Module) -> None:
        """Set the defaults before each forward pass of a module, and take them back after it."""
        module.register_forward_pre_hook(self._set)
        module.register_forward_hook(self._take_back, always_call=True)

    def _set(self, module: nn.Module, inputs: Any) -> None:
        self._kept.append((torch.get_default_dtype(), torch.get_default_device()))
        _set_defaults(self.dtype, self.device)

    def _take_back(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        _set_defaults(*self._kept.pop())


def _set_defaults(dtype: torch.dtype, device: torch.device) -> None:
    torch.set_default_dtype(dtype)
    torch.set_default_device(None if device == torch.device("cpu") else device)


def _made(namespace: ModuleType, model: FileModel) -> nn.Module:
    """Return the module that a factory makes, or that has its name. Raises UsageError if there is none."""
    source, factory = model.source, model.factory
    maker: Any = namespace
    for name in factory.split("."):
        maker = getattr(maker, name, None)
    if not callable(maker):
        text = Path(namespace.__file__).read_text(encoding="utf-8") if namespace.__file__ else ""
        defined = ", ".join(candidates(text)) or "nothing callable"
        state = f" ({factory} is {_kind(maker)})" if isinstance(maker, dict) else ""
        raise UsageError(f"{source}: has no factory {factory!r}{state}; it defines: {defined}")
    if isinstance(maker, nn.Module) and (model.positional or model.named):
        raise UsageError(f"{source}:{model.call}: {factory} is a module, not a function or class that takes arguments")
    module = maker if isinstance(maker, nn.Module) else maker(*model.positional, **model.named)
    if not isinstance(module, nn.Module):
        raise UsageError(f"{source}:{factory} returned {_kind(module)}; it must return a torch.nn.Module")
    return module


def _kind(value: object) -> str:
    if isinstance(value, dict) and value and all(isinstance(entry, Tensor) for entry in value.values()):
        return "a state dict; build the network and load it"
    return "None, perhaps for want of a return statement" if value is None else type(value).__name__


def _counted(modules: Sequence[nn.Module]) -> str:
    """Return how many modules there are of each class: 2 CNN and 1 Dropout."""
    counts = Counter(type(module).__name__ for module in modules)
    return " and ".join(f"{count} {name}" for name, count in sorted(counts.items()))


@contextlib.contextmanager
def naming_failures(source: str) -> Iterator[list[str]]:
    """Raise whatever the code of `source` raises as CannotEvaluate that names the step, the last one of the yielded list."""
    steps: list[str] = []
    errors = _Tee(sys.stderr)
    try:
        with contextlib.redirect_stderr(errors):
            yield steps
    except KwbenchError:
        raise
    except (Exception, SystemExit) as failure:  # noqa: BLE001 - foreign code may raise anything
        step = f"{source}: importing it" if steps[-1:] == ["importing it"] else f"{source}:{steps[-1]}"
        raise CannotEvaluate(f"{step} raised {_described(failure, errors.text(), source)}") from None


class _Tee(io.TextIOBase):
    """Passes on what is written, and keeps the end of it."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._kept = stream, ""

    def write(self, text: str) -> int:
        self._stream.write(text)
        self._kept = (self._kept + text)[-_QUOTED:]
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        number: int = self._stream.fileno()
        return number

    def text(self) -> str:
        return self._kept


def _described(failure: BaseException, printed: str, source: str) -> str:
    """Return an exception in one line, with what to do about it where that is known."""
    name, reason = type(failure).__name__, " ".join(str(failure).split())
    if isinstance(failure, SystemExit):
        last = printed.strip().splitlines()[-1:] if failure.code == 2 else []
        said = f" ({last[0].strip()}); it gets no arguments: give them defaults, or parse_args([])" if last else ""
        return f"SystemExit: {reason}{said}"
    if missing := re.search(r"Can't get attribute '([^']+)' on <module '([^']+)'", reason):
        return (
            f"{name}: a pickled object needs the class {missing[1]!r} of the script that saved it, which {source} lacks; "
            f"define or import {missing[1]} there, or save the weights alone: torch.save(model.state_dict(), FILE)"
        )
    if "Weights only load failed" in reason:
        return (
            f"{name}: the file holds more than weights, such as a whole pickled model; if you trust it, "
            "torch.load(FILE, weights_only=False), or save the weights alone: torch.save(model.state_dict(), FILE)"
        )
    # Where its package is there, a file is missing, not an installation.
    if isinstance(failure, ModuleNotFoundError) and failure.name and failure.name.rpartition(".")[0] not in sys.modules:
        reason += f"; install {failure.name.partition('.')[0]} beside kwbench, or put the module beside {Path(source).name}"
    if isinstance(failure, TypeError) and re.search(r"missing \d+ required positional argument", reason):
        reason += f"; give it in the name, as {source}:factory(NAME=VALUE), or give it a default"
    return f"{name}: {reason if len(reason) <= _QUOTED else reason[: _QUOTED - 1] + '…'}"
