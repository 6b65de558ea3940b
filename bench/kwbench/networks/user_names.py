"""Names of models of the user's own: path/to/file.py:factory, or package.module:factory."""

import ast
import re
from pathlib import Path

from kwbench.errors import UsageError

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_WEIGHTS = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".safetensors", ".ts", ".pt2"}
HOW = "path/to/file.py:factory or package.module:factory"


def is_file_model(name: str) -> bool:
    """Whether a model's name refers to the user's code, written path/to/file.py:factory or package.module:factory."""
    source, colon, factory = name.rpartition(":")
    return bool(colon) and (source.endswith(".py") or bool(_DOTTED.fullmatch(source) and _DOTTED.fullmatch(factory)))


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
    if path.suffix == ".onnx":
        raise UsageError(
            f"{name}: an ONNX file; write a file net.py with `def net(): return onnx2torch.convert({path.name!r})` "
            "and evaluate net.py:net (pip install onnx2torch)"
        )
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
