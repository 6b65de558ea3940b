"""Names of models of the user's own: path/to/file.py:factory, or package.module:factory, perhaps with arguments."""

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kwbench.errors import UsageError

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_CALL = re.compile(rf"(?P<source>.+?\.py|{_DOTTED.pattern}):(?P<factory>[^\W\d][\w.]*)\((?P<arguments>.*)\)", re.DOTALL)
_WEIGHTS = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".safetensors", ".ts"}
# Files that an adapter reads.
_READ_AS = {".onnx": "onnx", ".pt2": "export"}
HOW = "path/to/file.py:factory or package.module:factory"


@dataclass(frozen=True)
class FileModel:
    """The parts of a model's name: file or module, factory, and the arguments that the factory gets, which are literals."""

    source: str
    factory: str
    positional: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)

    @property
    def call(self) -> str:
        """The factory with its arguments, written in one way only; without parentheses if there is no argument."""
        arguments = [*map(repr, self.positional), *(f"{name}={value!r}" for name, value in self.named.items())]
        return f"{self.factory}({', '.join(arguments)})" if arguments else self.factory


def is_file_model(name: str) -> bool:
    """Whether a model's name refers to the user's code, written path/to/file.py:factory or package.module:factory.

    Arguments of the factory may follow in parentheses.
    """
    source, factory, _ = _split(name)
    return source.endswith(".py") or bool(_DOTTED.fullmatch(source) and _DOTTED.fullmatch(factory))


def parse_file_model(name: str) -> FileModel:
    """Return the parts of the name of a model in the user's code. Raises UsageError for arguments that are no literals."""
    source, factory, arguments = _split(name)
    if arguments is None:
        return FileModel(source, factory)
    try:
        call = ast.parse(f"factory({arguments})", mode="eval").body
        if not isinstance(call, ast.Call) or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError
        positional = tuple(ast.literal_eval(value) for value in call.args)
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UsageError(
            f"{name}: the arguments of {factory} must be literals, such as {factory}(depth=28, checkpoint='w.pt')"
        ) from None
    return FileModel(source, factory, positional, named)


def _split(name: str) -> tuple[str, str, str | None]:
    """Return file or module, factory, and what stands in parentheses behind it; None without them."""
    if called := _CALL.fullmatch(name):
        return called["source"], called["factory"], called["arguments"]
    source, _, factory = name.rpartition(":")
    return source, factory, None


def is_path(source: str) -> bool:
    """Whether what comes before the colon is a file, not a dotted name."""
    return source.endswith(".py")


def require_model_name(name: str) -> None:
    """Raise UsageError that says how to write it, if a name is that of a file: of code without a factory, or of weights."""
    path = Path(name)
    if path.suffix == ".py":
        if not path.is_file():
            raise UsageError(f"{name}: no such file; a model of your own is written {HOW}")
        makers = candidates(path.read_text(encoding="utf-8", errors="replace"))
        named = f"such as {name}:{makers[0]}" if makers else f"{name}:factory"
        others = f"; it defines {', '.join(makers)}" if len(makers) > 1 else "" if makers else "; it defines nothing callable"
        raise UsageError(f"{name}: name the function, class or module of the file that is the model, {named}{others}")
    if path.suffix in _READ_AS:
        raise UsageError(f"{name}: evaluate {_READ_AS[path.suffix]}:{name}")
    if path.suffix in _WEIGHTS:
        raise UsageError(
            f"{name}: a file of weights, not of code; write a file net.py with a function net() that builds the network, "
            f"and evaluate net.py:net with --checkpoint {name}"
        )
    if path.is_dir() and "/" in name:
        raise UsageError(f"{name}: a folder; a model of your own is written {HOW}")


def candidates(source: str) -> list[str]:
    """Return the names in Python code that may be models: functions and classes without required arguments, and objects.

    Functions come first. The code is not run.
    """
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):
        return []
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef) and not _required(node.args)]
    classes = [node.name for node in body if isinstance(node, ast.ClassDef) and _is_module(node)]
    objects = [
        target.id
        for node in body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    return [name for name in dict.fromkeys([*functions, *classes, *objects]) if not name.startswith("_")]


def _required(arguments: ast.arguments, bound: int = 0) -> bool:
    positional = len(arguments.posonlyargs) + len(arguments.args) - bound
    return positional > len(arguments.defaults) or None in arguments.kw_defaults


def _is_module(node: ast.ClassDef) -> bool:
    """Whether a class has a forward pass and can be made without arguments."""
    methods = {method.name: method for method in node.body if isinstance(method, ast.FunctionDef)}
    made = "__init__" not in methods or not _required(methods["__init__"].args, bound=1)
    return made and ("forward" in methods or any("Module" in ast.unparse(base) for base in node.bases))
