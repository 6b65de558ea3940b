"""Models that users define in Python files of their own."""

import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import nn

from kwbench.errors import CannotEvaluate, UsageError
from kwbench.networks.loaded import Loaded, held_values, is_installed


def is_file_model(name: str) -> bool:
    """Whether a model's name refers to a user's file, written path/to/file.py:factory."""
    return name.rpartition(":")[0].endswith(".py")


def load_file_model(name: str) -> Loaded:
    """Return the module that `factory()` of path/to/file.py:factory makes, in evaluation mode and in its own precision.

    The file's folder comes first on the import path. The hash covers the file, the modules that it imported other than
    installed ones, and the tensors, arrays and plain values that the module and its parts hold. It does not cover what
    `forward` alone reads or imports.

    This runs the user's code, so call it in a process of its own. Raises UsageError if there is no such file or factory, or
    if the factory does not return a module; CannotEvaluate if the file or the factory raises.
    """
    path, factory_name = Path(name.rpartition(":")[0]), name.rpartition(":")[2]
    if not path.is_file():
        raise UsageError(f"{path}: no such file; a model of your own is written path/to/file.py:factory")
    content = path.read_bytes()
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: Python cannot import it")
    namespace = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.modules.setdefault(path.stem, namespace)
    try:
        spec.loader.exec_module(namespace)
    except (Exception, SystemExit) as failure:  # noqa: BLE001 - foreign code
        raise CannotEvaluate(f"{path}: importing it raised {type(failure).__name__}: {failure}") from None
    factory = getattr(namespace, factory_name, None)
    if not callable(factory):
        public = (name for name, value in vars(namespace).items() if callable(value) and name[0] != "_")
        defined = ", ".join(sorted(public))
        raise UsageError(f"{path}: has no factory {factory_name!r}; it defines: {defined or 'nothing callable'}")
    try:
        module = factory()
    except (Exception, SystemExit) as failure:  # noqa: BLE001 - foreign code
        raise CannotEvaluate(f"{path}:{factory_name} raised {type(failure).__name__}: {failure}") from None
    if not isinstance(module, nn.Module):
        raise UsageError(f"{path}:{factory_name} returned {type(module).__name__}; it must return a torch.nn.Module")
    module = module.eval()
    digest = hashlib.sha256(content)
    for imported, source in sorted(imported_sources(path.resolve().parent, set(sys.modules) - before)):
        digest.update(imported.encode() + source)
    # The file alone does not determine the weights.
    for address, value in held_values(module):
        digest.update(address.encode() + value)
    return Loaded(module, digest.hexdigest())


def imported_sources(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the modules of these names that lie in the folder, or elsewhere without being installed."""
    for name in names:
        file = Path(getattr(sys.modules.get(name), "__file__", None) or folder).resolve()
        if file.is_file() and (file.is_relative_to(folder) or not is_installed(file)):
            yield name, file.read_bytes()
