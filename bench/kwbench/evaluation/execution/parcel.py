"""What an evaluation reads from this machine's disk, packed for machines that lack its files."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from kwbench.attacks import build_attack
from kwbench.attacks.external import EXTERNAL
from kwbench.attacks.user_attacks import is_user_attack
from kwbench.config.registry import Registry, read_registry
from kwbench.data import AS_IT_IS, dataset_names
from kwbench.errors import CannotEvaluate, NotApplicable, UsageError
from kwbench.evaluation.request import Request
from kwbench.model import Model
from kwbench.networks.adapters import is_adapted
from kwbench.networks.user_names import is_path, parse_file_model

# Bytes of the files of one evaluation, beside its images.
MOST_BYTES = 2 << 30
# The folder of the registry and the checkpoint in a parcel, beside the user's own files.
_OURS = Path(".kwbench")
_PREFIX = "kwbench-parcel-"


@dataclass(frozen=True)
class Parcel:
    """A request whose images are in memory and whose files are `files`: contents by path, relative to where it is unpacked."""

    request: Request
    files: dict[str, bytes]

    def unpack(self) -> tuple[Request, Path]:
        """Write the files into a new temporary folder, and return the request that reads them from there, and the folder.

        The names of the user's own files stay relative, so the caller makes the folder its working folder. Folders that
        processes left here when they were killed are removed.
        """
        _remove_folders_of_the_dead()
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

        def here(path: Path | None) -> Path | None:
            return None if path is None else folder / path

        return replace(self.request, registry=here(self.request.registry), checkpoint=here(self.request.checkpoint)), folder


def pack(request: Request) -> Parcel:
    """Return everything that a request needs from this machine.

    The checkpoints of the registry's model and of the surrogates of its attacks go along. Of models and attacks in the user's
    own code, everything in the folder of the file goes along, except hidden files.

    Raises:
        UsageError: the model is in memory, or the user's code is not below the working folder.
        CannotEvaluate: the files are too large, or images are missing; and what else reading data raises.
    """
    if request.module is not None:
        raise UsageError(f"{request.model}: a module in memory is evaluated in this process; write a file of code for Ray")
    images = request.load_images()
    files: dict[Path, Path] = {}
    registry = read_registry(request.registry)
    registry_file = None
    if registry.fallback is not None:
        registry_file = _OURS / "registry" / registry.path.name
        files[registry_file] = registry.path
        names = [request.model] if request.in_registry and request.checkpoint is None else []
        for name in (*names, *_surrogates(request, registry)):
            files |= _checkpoint(registry, registry.find(name)[0])
    checkpoint = None
    if request.checkpoint is not None:
        checkpoint = _OURS / "checkpoint" / request.checkpoint.name
        files[checkpoint] = request.checkpoint
    model = request.model
    if not request.in_registry:
        model = _relative(model)
        files |= _code(_source(model))
    for stage in request.suite.attacks:
        if is_user_attack(stage.attack):
            files |= _code(stage.attack.rpartition(":")[0])
    if (size := sum(file.stat().st_size for file in files.values() if file.exists())) > MOST_BYTES:
        largest = max(files.values(), key=lambda file: file.stat().st_size)
        raise CannotEvaluate(
            f"{request.model}: its files hold {size >> 20} MiB, at most {MOST_BYTES >> 20} MiB are sent to other machines; the "
            f"largest is {largest}; put the code into a folder of its own, with nothing but what it needs"
        )
    packed = replace(
        request,
        model=model,
        images=images,
        dataset=request.dataset_name,
        data=None,
        classes=None,
        form=AS_IT_IS,
        data_dir=None,
        registry=registry_file,
        checkpoint=checkpoint,
    )
    return Parcel(packed, {name.as_posix(): file.read_bytes() for name, file in files.items() if file.exists()})


def _surrogates(request: Request, registry: Registry) -> list[str]:
    """Return the names of the registry's models that attacks of the suite use as surrogates."""
    names: list[str] = []

    def note(name: str) -> Model:
        names.append(name)
        raise NotApplicable

    for attack in (attack for attack in request.suite.attacks if attack.attack != EXTERNAL):
        # Whoever evaluates raises again what is wrong with an attack.
        with suppress(NotApplicable, UsageError, CannotEvaluate):
            build_attack(attack.attack, attack.parameters, note)
    known = request.dataset_name in dataset_names()
    full = [f"{request.dataset_name}/{name}" if known and "/" not in name else name for name in names]
    surrogates = []
    for name in full:
        with suppress(UsageError):
            surrogates.append(registry.find(name)[0])
    return surrogates


def _checkpoint(registry: Registry, name: str) -> dict[Path, Path]:
    """Return the file of an entry's checkpoint, by its name in a parcel; empty for what comes with kwbench."""
    owner = registry.owner_of(name)
    if owner is not registry or owner.own[name].checkpoint is None:
        return {}
    file = registry.checkpoint_path(name)
    return {_OURS / "registry" / file.relative_to(registry.path.parent): file}


def _source(model: str) -> str:
    """Return the file, folder or dotted name in the name of a user's model, or of one of another library."""
    return model.partition(":")[2] if is_adapted(model) else parse_file_model(model).source


def _relative(model: str) -> str:
    """Return the name of a model with its file relative to the working folder. Raises UsageError if it is elsewhere."""
    source = _source(model)
    if not is_path(source) and not Path(source).exists():
        return model
    path, folder = Path(os.path.abspath(source)), Path.cwd()
    if not path.is_relative_to(folder):
        raise UsageError(f"{model}: with --executor ray, code lies below the working folder, so that nodes name it alike")
    return model.replace(source, path.relative_to(folder).as_posix(), 1)


def _code(source: str) -> dict[Path, Path]:
    """Return the files around a user's code: the folder of a file, or the package of a dotted name in the working folder."""
    path = Path(source)
    if not path.exists():
        package = source.partition(".")[0]
        path = Path(package) if Path(package).is_dir() else Path(f"{package}.py")
        if not path.exists():
            return {}  # installed, here and there, or none
    folder = path if path.is_dir() else path.parent
    return {file: file for file in _visible_files(folder)}


def _visible_files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        # A virtual environment belongs to its machine.
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__")) and not _is_environment(root, name)]
        yield from (Path(root) / name for name in names if not name.startswith("."))


def _is_environment(root: str, name: str) -> bool:
    return (Path(root) / name / "pyvenv.cfg").exists()


def _remove_folders_of_the_dead() -> None:
    """Remove the folders that processes of this machine left when they were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        process = folder.name.removeprefix(_PREFIX).split("-")[0]
        with suppress(ValueError, OSError, OverflowError):
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                shutil.rmtree(folder, ignore_errors=True)
