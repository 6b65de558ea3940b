"""Detection of foreign code that replaces parts of kwbench in its own process, such as the judge of its outcomes.

It finds replaced functions, classes and methods. Code that hides better is evaluated from outside its process; see `outside`.
"""

import builtins
import sys
from types import FunctionType, ModuleType
from typing import Any

# An object, and what it does if it is a function.
_State = tuple[object, object, object]


class Integrity:
    """The functions, classes and methods of the modules of kwbench that are imported now."""

    def __init__(self) -> None:
        self._modules = {
            name: (module, _states(module))
            for name, module in list(sys.modules.items())
            if module is not None and f"{name}.".startswith("kwbench.")
        }

    def replaced(self) -> str | None:
        """Return the name of one that is another now, or that is gone; None if all are as they were."""
        for name, (module, states) in self._modules.items():
            if sys.modules.get(name) is not module:
                return name
            if (part := _difference(states, _states(module))) is not None:
                return f"{name}.{part}"
        return None


def _difference(before: dict[str, _State], now: dict[str, _State]) -> str | None:
    for part, state in before.items():
        if part not in now or any(one is not other for one, other in zip(state, now[part], strict=True)):
            return part
    # A new name replaces what the module had from Python itself.
    return next((part for part in now.keys() - before.keys() if hasattr(builtins, part)), None)


def _states(module: ModuleType) -> dict[str, _State]:
    """Return the state of everything in a module that can be called, and of the methods of its own classes."""
    states: dict[str, _State] = {}
    for name, value in list(vars(module).items()):
        if not callable(value) or name.startswith("__"):
            continue
        states[name] = _state(value)
        if isinstance(value, type) and value.__module__ == module.__name__:
            for method, function in list(vars(value).items()):
                if callable(function) or isinstance(function, property | staticmethod | classmethod):
                    states[f"{name}.{method}"] = _state(function)
    return states


def _state(value: Any) -> _State:
    if isinstance(value, FunctionType):
        return value, value.__code__, value.__defaults__
    return value, None, None
