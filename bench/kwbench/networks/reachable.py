"""Everything that a module can reach and that can change its answers: a digest of it, and the modules in it.

Followed are attributes, slots, containers, arrays, tensors of any kind, random generators, functions with their closures and
defaults, the globals that functions use, and the attributes of classes. Left out is what belongs to a process rather than to a
model: addresses, locks, files, loggers, devices, the wrappers of compilers, and the code of installed libraries, which take
part in a run's identity by their version.
"""

import functools
import hashlib
import inspect
import io
import itertools
import logging
import re
import sys
import threading
import types
import warnings
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, ItemsView, Iterable, KeysView, ValuesView
from contextlib import suppress
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kwbench.networks.code import code_content, global_names, is_installed
from kwbench.networks.values import GENERATORS, array_content, generator_state, script_content, tensor_content

# Objects visited before the walk ends; it takes some seconds. The fingerprint of the answers covers what is beyond.
LIMIT = 300_000

_CONTAINERS = (dict, types.MappingProxyType, list, tuple, set, frozenset, deque, bytearray, memoryview)
# The flag of classes that were made by a class statement, or as one; others are part of the interpreter.
_HEAP_TYPE = 1 << 9
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})
_BY_NAME = (
    *(torch.dtype, torch.layout, torch.memory_format, torch._ops.OpOverload, torch._ops.OpOverloadPacket),
    *(np.dtype, np.ufunc, types.EllipsisType, range, slice, re.Pattern),
)
_PROCESS_BOUND = (
    *(types.ModuleType, types.FrameType, types.TracebackType, types.GeneratorType, types.CoroutineType),
    *(logging.Logger, logging.Handler, logging.LoggerAdapter, threading.Thread, weakref.ref, torch.device),
    *(type(threading.Lock()), type(threading.RLock()), threading.local),
)
# By the installed module of their class: of the standard library, and of torch's tracers and compilers.
_PROCESS_BOUND_MODULES = re.compile(
    r"(_?io|_?thread(ing)?|_?weakref\w*|multiprocessing|concurrent|asyncio|_?socket|_?contextvars|subprocess|tempfile|sqlite3"
    r"|mmap|select\w*|_?ssl|_?ctypes|typing|torch\.(_dynamo|_inductor|_guards|_functorch|_C|fx|export|utils\._pytree|cuda))(\.|$)"
)
# Generated or documentary attributes of a class, and descriptors of its instances' attributes.
_OF_EVERY_CLASS = frozenset(
    {
        *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__slots__"),
        *("__firstlineno__", "__static_attributes__", "__parameters__", "__orig_bases__", "__match_args__"),
        *("__dataclass_fields__", "__dataclass_params__", "__abstractmethods__", "_abc_impl", "__annotate__"),
    }
)
_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)
# They have run, or run for people alone: what they look up does not change an answer, other than through what they made.
_RUN_BEFORE = frozenset({"__init__", "__new__", "__post_init__", "__init_subclass__", "__repr__", "__str__", "extra_repr"})
# Of a GraphModule: its parts. Beside its code, the other attributes belong to tracing.
_GRAPH_PARTS = ("_parameters", "_buffers", "_modules", "training")


class Walk:
    """One walk through everything that some roots can reach.

    Attributes:
        modules: the modules found, in the order of the walk.
        draws: whether random generators were found, other than the global ones.
        truncated: whether the walk ended at `LIMIT`.

    `is_own` says whether a file's code belongs to the user. Code in the files `covered` is taken by name, since its source is
    hashed elsewhere. `folder` is written as a dot in texts, so that it does not matter where a model lies. Without `hashing`,
    only modules are found, which is faster.
    """

    def __init__(
        self,
        *,
        is_own: Callable[[Path], bool] = lambda file: not is_installed(file),
        covered: frozenset[Path] = frozenset(),
        folder: Path | None = None,
        hashing: bool = True,
    ) -> None:
        self.modules: list[nn.Module] = []
        self.draws = False
        self.truncated = False
        self._is_own = functools.lru_cache(maxsize=4096)(lambda name: is_own(Path(name)))
        self._is_covered = functools.lru_cache(maxsize=4096)(lambda name: Path(name).resolve() in covered)
        folders = {str(path) for path in (folder, folder and folder.resolve()) if path is not None}
        self._folders = sorted(folders, key=len, reverse=True)
        self._hashing = hashing
        self._digest = hashlib.sha256()
        # Numbers of the objects seen, by id, and the objects, so that no other takes their ids.
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []
        self._own_classes: dict[type, bool] = {}

    def follow(self, *roots: Any) -> "Walk":
        """Walk through everything that the roots can reach, and return this walk."""
        stack = list(reversed(roots))
        while stack:
            if len(self._alive) > LIMIT:
                self.truncated = True
                break
            children = self._visit(stack.pop())
            stack.extend(reversed(children))
        return self

    def hexdigest(self) -> str:
        """Return the SHA-256 of what was reached."""
        return self._digest.hexdigest()

    def _write(self, *parts: object) -> None:
        """Add parts to the digest, each with its length, so that no two sequences of parts give the same bytes."""
        if self._hashing:
            for part in parts:
                content = part if isinstance(part, bytes | memoryview) else str(part).encode("utf-8", "surrogatepass")
                self._digest.update(f"{content.nbytes if isinstance(content, memoryview) else len(content)}:".encode())
                self._digest.update(content)

    def _visit(self, value: Any) -> list[Any]:  # noqa: PLR0911 - one case after the other
        """Write what is peculiar to a value, and return the values to visit next."""
        kind = type(value)
        if kind in _PLAIN:
            self._write(kind.__name__, self._text(value) if kind is str else value if kind is bytes else repr(value))
            return []
        if id(value) in self._numbers:
            self._write("seen", self._numbers[id(value)])
            return []
        self._numbers[id(value)] = len(self._numbers)
        self._alive.append(value)
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, Tensor | np.ndarray | np.generic):
            return self._numbers_in(value)
        if isinstance(value, GENERATORS):
            state = generator_state(value)
            self.draws |= state is not None
            return self._written(kind.__qualname__, state)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if self._is_process_bound(value):
            return self._left_out(value)
        for follow in (self._wrapper, self._container, self._instance):
            if (children := follow(value)) is not None:
                return children
        raise AssertionError

    def _written(self, name: str, *children: Any) -> list[Any]:
        self._write(name, len(children))
        return list(children)

    def _text(self, text: str) -> str:
        for folder in self._folders:
            text = text.replace(folder, ".")
        return text

    def _numbers_in(self, value: Any) -> list[Any]:
        if isinstance(value, np.generic):
            return self._written(repr(value))
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            return self._written(f"array {value.shape}", *value.ravel().tolist())
        if self._hashing:
            self._write("tensor" if isinstance(value, Tensor) else "array")
            with suppress(RuntimeError, NotImplementedError):  # a tensor without values, as in tracing
                self._write(*(tensor_content(value) if isinstance(value, Tensor) else array_content(value)))
        return []

    def _is_own_class(self, kind: type) -> bool:
        """Whether a class is the user's, or a library's that the user has given a method."""
        if not kind.__flags__ & _HEAP_TYPE:
            return False
        if kind not in self._own_classes:
            functions = (member for member in vars(kind).values() if isinstance(member, types.FunctionType))
            codes = (getattr(inspect.unwrap(function), "__code__", function.__code__) for function in functions)
            files = {code.co_filename for code in codes}
            module = sys.modules.get(kind.__module__)
            if getattr(getattr(module, "__spec__", None), "origin", None) not in ("built-in", "frozen"):
                files.add(getattr(module, "__file__", None) or "<not in a file>")
            # The name of its module may be that of another module, too.
            self._own_classes[kind] = any(self._is_own(file) for file in files)
        return self._own_classes[kind]

    def _module(self, module: nn.Module) -> list[Any]:
        self.modules.append(module)
        kind = type(module)
        if kind.__module__.startswith("torch._dynamo"):
            return self._written("compiled", module._modules)
        if isinstance(module, torch.jit.ScriptModule):
            self.modules += [part for part in module.modules() if part is not module]
            if self._hashing:
                self._write("scripted", *script_content(module))
            return []
        attributes = vars(module)
        if isinstance(module, torch.fx.GraphModule):
            functions = [node.target for node in module.graph.nodes if isinstance(node.target, types.FunctionType)]
            self._write("graph", module.code)
            return self._written("parts", functions, *(attributes.get(name) for name in _GRAPH_PARTS))
        names = [name for name in attributes if not name.startswith(("_torchdynamo", "_compiled_call"))]
        self._write("module", kind.__module__, kind.__qualname__, *names)
        children = [list(attributes[name].values()) if _keyed_by_ids(name) else attributes[name] for name in names]
        if kind._save_to_state_dict is not nn.Module._save_to_state_dict:  # a quantised one packs its weights
            packed: dict[str, Any] = {}
            module._save_to_state_dict(packed, "", keep_vars=False)
            children.append(packed)
        return [kind, *children]

    def _class(self, kind: type) -> list[Any]:
        self._write("class", kind.__module__, kind.__qualname__)
        if not self._is_own_class(kind):
            return []
        members = {
            name: member
            for name, member in vars(kind).items()
            if name not in _OF_EVERY_CLASS and not isinstance(member, _DESCRIPTORS)
        }
        self._write(*members)
        return [*kind.__bases__, *members.values()]

    def _function(self, function: types.FunctionType) -> list[Any]:
        code, name = function.__code__, function.__name__
        self._write("function", function.__module__, function.__qualname__)
        closure = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        if not self._is_own(code.co_filename):
            # A decorator of a library holds the user's function.
            compiled = vars(function).get("_torchdynamo_orig_callable")
            return self._written("library", *([compiled] if compiled is not None else closure))
        if not self._is_covered(code.co_filename):
            self._write(code_content(code))
        if name in _RUN_BEFORE:
            return []
        names = tuple(dict.fromkeys(global_names(code)))
        used = [name for name in names if name in function.__globals__]
        self._write(*used)
        values = (function.__globals__[name] for name in used)
        found = itertools.chain.from_iterable(self._used_of(value, names) for value in values)
        attributes = {key: held for key, held in vars(function).items() if not key.startswith("_torchdynamo")}
        return [function.__defaults__, function.__kwdefaults__, closure, attributes, list(found)]

    def _used_of(self, value: Any, names: tuple[str, ...]) -> Iterable[Any]:
        """Yield a global; of the user's modules, which are read by attribute, the attributes that the code names."""
        pending, seen = [value], set[int]()
        while pending:
            used = pending.pop()
            if not isinstance(used, types.ModuleType):
                yield used
            elif id(used) not in seen and self._is_own(getattr(used, "__file__", None) or "<frozen module>"):
                seen.add(id(used))
                pending += [vars(used)[name] for name in names if name in vars(used)]

    def _is_process_bound(self, value: Any) -> bool:
        kind = type(value)
        listed = _PROCESS_BOUND_MODULES.match(kind.__module__) is not None and not self._is_own_class(kind)
        return listed or isinstance(value, _PROCESS_BOUND)

    def _left_out(self, value: Any) -> list[Any]:
        """Write the name of the class of what belongs to the process, and return the parts of it that do not."""
        self._write("left out", type(value).__module__, type(value).__qualname__)
        if isinstance(value, io.BytesIO | io.StringIO):
            return [value.getvalue()]
        if isinstance(value, torch.export.ExportedProgram):
            return [value.graph_module, dict(value.state_dict), dict(value.constants)]
        return []

    def _wrapper(self, value: Any) -> list[Any] | None:  # noqa: PLR0911 - one case after the other
        """Return the children of a method, of something that wraps a function, or of a constant; None for anything else."""
        if isinstance(value, types.MethodType):
            return self._written("method", value.__self__, value.__func__)
        if isinstance(value, types.BuiltinFunctionType):
            bound = value.__self__
            return self._written(value.__qualname__, *([] if isinstance(bound, type | types.ModuleType | None) else [bound]))
        if isinstance(value, functools.partial | functools.partialmethod):
            return self._written("partial", value.func, value.args, value.keywords)
        if isinstance(value, property):
            return self._written("property", value.fget, value.fset)
        if isinstance(value, functools.cached_property):
            return self._written("cached property", value.func)
        if isinstance(value, staticmethod | classmethod):
            return self._written(type(value).__name__, value.__func__)
        if isinstance(value, functools._lru_cache_wrapper):
            return self._written("cache", value.__wrapped__)
        if isinstance(value, Enum):
            return self._written(f"{type(value).__qualname__}.{value.name}", value.value)
        if isinstance(value, PurePath):
            return self._written("path", value.as_posix())
        if isinstance(value, types.CodeType):
            return self._written("code", code_content(value))
        if isinstance(value, torch.jit.ScriptFunction):
            return self._written("scripted function", value.code)
        if isinstance(value, _BY_NAME):
            return self._written(repr(value))
        return None

    def _container(self, value: Any) -> list[Any] | None:  # noqa: PLR0911 - one case after the other
        """Return the elements of a list, tuple, set or mapping, and the attributes of a subclass; None for anything else."""
        beside: list[Any] = []
        if isinstance(value, _CONTAINERS) and type(value) not in _CONTAINERS:
            beside = [type(value), *self._attributes(value)]
            if isinstance(value, defaultdict):
                beside.append(value.default_factory)
        if isinstance(value, dict | types.MappingProxyType):
            if _all_plain(value.values()) and _all_plain(value):
                return self._written("plain dict", self._text(repr(list(value.items()))), *beside)
            return self._written("dict", *itertools.chain.from_iterable(value.items()), *beside)
        if isinstance(value, list | tuple | deque | KeysView | ValuesView | ItemsView):
            if _all_plain(value):
                return self._written("plain list", self._text(repr(list(value))), *beside)
            return self._written("list", *value, *beside)
        if isinstance(value, set | frozenset):
            # Their order changes from process to process.
            elements = sorted(map(repr, value)) if _all_plain(value) else sorted(self._digest_of(element) for element in value)
            return self._written("set", self._text(repr(elements)), *beside)
        if isinstance(value, bytearray | memoryview):
            return self._written("bytes", bytes(value))
        return None

    def _digest_of(self, element: Any) -> str:
        """Return the digest of an element on its own, which knows what this walk has seen."""
        before = self._digest, self._numbers, len(self._alive)
        self._digest, self._numbers = hashlib.sha256(), dict(self._numbers)
        self.follow(element)
        digest = self.hexdigest()
        self._digest, self._numbers = before[:2]
        return digest

    def _instance(self, value: Any) -> list[Any]:
        kind = type(value)
        self._write("instance", kind.__module__, kind.__qualname__)
        in_c = _pickles_itself(kind) and not self._is_own_class(kind)
        attributes = [] if in_c else self._attributes(value)
        return [kind, *(attributes or self._pickled(value))]

    def _attributes(self, value: Any) -> list[Any]:
        """Write the names of the attributes and slots of an object, and return their values."""
        attributes = dict(getattr(value, "__dict__", {}))
        for kind in type(value).__mro__:
            slots = vars(kind).get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else tuple(slots):
                name = f"_{kind.__name__.lstrip('_')}{slot}" if slot.startswith("__") and not slot.endswith("__") else slot
                if slot not in ("__dict__", "__weakref__"):
                    with suppress(Exception):  # it may have no value yet
                        attributes[name] = getattr(value, name)
        names = sorted(name for name in attributes if not str(name).startswith("_torchdynamo"))
        self._write(*names)
        return [attributes[name] for name in names]

    def _pickled(self, value: Any) -> list[Any]:
        """Return what an object that is written in C gives to pickle; nothing, if it cannot be pickled."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parts = value.__reduce_ex__(4) if not isinstance(value, torch.ScriptObject) else value.__getstate__()
        except Exception:  # noqa: BLE001 - foreign code may raise anything
            return []
        if not isinstance(parts, tuple):
            return [parts]
        # The items of a list and of a dictionary come as iterators made for this call.
        return [*parts[:3], *(list(items or ()) for items in parts[3:5])]


def _all_plain(values: Iterable[Any]) -> bool:
    return _PLAIN.issuperset(map(type, values))


def _keyed_by_ids(name: str) -> bool:
    """Whether an attribute of a module has keys that count the hooks registered in the process."""
    return name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _pickles_itself(kind: type) -> bool:
    """Whether a class defines what pickle stores of its instances."""
    return any(
        getattr(kind, name, None) is not getattr(object, name, None) for name in ("__reduce__", "__reduce_ex__", "__getstate__")
    )
