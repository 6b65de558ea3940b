"""Options that stand together: in the panels of a command's help, and as the fields of one object."""

import functools
import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from typing import Any, get_type_hints

import typer

# The groups of options in a command's help, in the order in which they are printed.
ATTACK, MODEL, DATA, THREAT, RUN, OUTPUT = (
    "What to attack with",
    "Model",
    "Data",
    "Threat model",
    "How to run",
    "Output",
)
FORMAT = "Formats"
_PANELS = (None, FORMAT, ATTACK, MODEL, DATA, THREAT, RUN, OUTPUT)


def options_of(
    kind: type[Any], parameter: str, *, without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of a dataclass as options; the command receives them as one object, the parameter named."""
    hints = get_type_hints(kind, include_extras=True)
    shared = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
        for field in fields(kind)
        if field.name not in without
    ]
    return functools.partial(bundled, parameter=parameter, shared=shared, bundle=lambda values: kind(**values))


def bundled(
    command: Callable[..., None],
    parameter: str,
    shared: Sequence[inspect.Parameter],
    bundle: Callable[[dict[str, Any]], object],
) -> Callable[..., None]:
    """Replace one parameter of a command by several options for Typer; `bundle` turns their values into its argument.

    The options are sorted by panel.
    """
    own = [
        option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for option in inspect.signature(command).parameters.values()
        if option.name != parameter
    ]
    options = sorted([*own, *shared], key=_panel_rank)

    @functools.wraps(command)
    def with_options(**values: Any) -> None:
        argument = bundle({option.name: values.pop(option.name) for option in shared})
        command(**{parameter: argument}, **values)

    with_options.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    with_options.__annotations__ = {option.name: option.annotation for option in options}
    return with_options


def _panel_rank(option: inspect.Parameter) -> int:
    """Return the position of an option's panel in the help; -1 for a parameter that another bundle will replace."""
    declared = [
        value for value in getattr(option.annotation, "__metadata__", ()) if isinstance(value, typer.models.ParameterInfo)
    ]
    return _PANELS.index(declared[0].rich_help_panel) if declared else -1
