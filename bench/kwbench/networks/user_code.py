"""Import a user's code as its own program would: its folder on the path, its package, its arguments and settings."""

import ast
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from kwbench.errors import UsageError
from kwbench.networks.code import is_installed
from kwbench.networks.user_names import HOW, is_path


@contextmanager
def surroundings(source: str) -> Iterator[None]:
    """Give a user's code the arguments of a program without any, and take back what it changes for the whole process.

    Taken back are torch's defaults for types, devices, gradients, threads and rounding, NumPy's error handling, and filters of
    warnings: they are the user's, and kwbench computes with its own.
    """
    arguments, main = sys.argv, sys.modules["__main__"]
    threads, errors = torch.get_num_threads(), np.geterr()
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    flags = [(owner, name, getattr(owner, name)) for owner, name in _flags()]
    anomalies = torch.is_anomaly_enabled()
    sys.argv = [source]
    try:
        with warnings.catch_warnings(), torch.set_grad_enabled(True):
            yield
    finally:
        sys.argv, sys.modules["__main__"] = arguments, main
        torch.set_num_threads(threads)
        np.seterr(**errors)
        torch.set_default_dtype(dtype)
        torch.set_default_device(None if device == torch.device("cpu") else device)
        torch.autograd.set_detect_anomaly(anomalies)
        for owner, name, value in flags:
            setattr(owner, name, value)


def import_code(source: str) -> tuple[ModuleType, Path]:
    """Return the module of path/to/file.py or package.module, and the folder of the user's code.

    It stands for `__main__` until `surroundings` end, so that objects pickled by the script find their classes. A file that
    imports relatively belongs to the package of its folder. Raises UsageError if there is no such file or module, and whatever
    the code raises.
    """
    return _import_file(Path(source)) if is_path(source) else _import_dotted(source)


def imported_sources(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the modules of these names that are the user's; see `is_users`."""
    for name in names:
        file = Path(getattr(sys.modules.get(name), "__file__", None) or folder).resolve()
        if file.is_file() and is_users(file, folder):
            yield name, file.read_bytes()


def is_users(file: Path, folder: Path) -> bool:
    """Whether a file of code belongs to the user: it is not installed, or it lies in the folder of an installed model."""
    return not is_installed(file) or (is_installed(folder) and file.resolve().is_relative_to(folder))


def _import_file(path: Path) -> tuple[ModuleType, Path]:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; a model of your own is written {HOW}")
    folder = path.resolve().parent
    packages = _packages(path.resolve())
    root = packages[0].parent if packages else folder
    name = ".".join([*map(_package_name, packages), path.stem])
    sys.path[:0] = [str(folder)] if root == folder else [str(root), str(folder)]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: Python cannot import it")
    _import_packages(packages)
    namespace = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, namespace)
    sys.modules["__main__"] = namespace
    spec.loader.exec_module(namespace)
    return namespace, root


def _import_dotted(source: str) -> tuple[ModuleType, Path]:
    sys.path.insert(0, str(Path.cwd()))
    try:
        namespace = importlib.import_module(source)
    except ModuleNotFoundError as failure:
        if failure.name is not None and f"{source}.".startswith(f"{failure.name}."):
            raise UsageError(
                f"{source}: there is no module {failure.name!r} in the current folder or on PYTHONPATH; "
                f"a model of your own is written {HOW}"
            ) from None
        raise
    sys.modules["__main__"] = namespace
    file = getattr(namespace, "__file__", None)
    levels = source.count(".") + (Path(file).name == "__init__.py" if file else 0)
    folder = Path(file).resolve().parents[levels] if file else Path.cwd()
    return namespace, folder if not is_installed(folder) else Path(str(file)).resolve().parent


def _packages(path: Path) -> list[Path]:
    """Return the folders that make up the package of a file, the outermost first; empty if it stands alone.

    A file without relative imports stands alone. Otherwise they are the folders around it with an `__init__.py`, and at least
    as many folders as its imports climb.
    """
    levels, packages = _levels(path), list[Path]()
    folder = path.parent
    while levels and (len(packages) < levels or (folder / "__init__.py").is_file()):
        packages.insert(0, folder)
        folder = folder.parent
    return packages


def _package_name(folder: Path) -> str:
    return folder.name.replace(".", "_")


def _levels(path: Path) -> int:
    """Return how many folders the relative imports of a file climb, its own being the first; 0 without any."""
    try:
        nodes = ast.walk(ast.parse(path.read_bytes()))
    except (SyntaxError, ValueError):  # importing it raises it again
        return 0
    return max((node.level for node in nodes if isinstance(node, ast.ImportFrom)), default=0)


def _import_packages(folders: Sequence[Path]) -> None:
    """Import the packages of nested folders; one without `__init__.py` becomes a package."""
    name = ""
    for folder in folders:
        name = f"{name}.{_package_name(folder)}".lstrip(".")
        if name in sys.modules:
            continue
        if (folder / "__init__.py").is_file():
            importlib.import_module(name)
        else:
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__path__ = [str(folder)]


def _flags() -> list[tuple[object, str]]:
    """Return the switches of torch that trade bits for speed."""
    backends = torch.backends
    return [
        (backends.cuda.matmul, "allow_tf32"),
        (backends.cudnn, "allow_tf32"),
        (backends.cudnn, "benchmark"),
        (backends.cudnn, "deterministic"),
    ]
