"""A rule: what to do instead of one operation, so that its result gets a useful gradient. Rules register themselves here."""

from collections.abc import Callable
from typing import Any

from kwbench.relaxation.context import Context
from kwbench.relaxation.operation import Call
from kwbench.relaxation.tensors import aten, is_float, writes_into

Rule = Callable[[Context, Call], Any]
RULES: dict[Any, Rule] = {}


def rule(*names: str, unless: Callable[[Context, Call], bool] | None = None) -> Callable[[Rule], Rule]:
    """Register a rule for operations, written `name.overload`, and for their in-place forms.

    Later registrations replace earlier ones. A rule always sees the out-of-place form. A call for which `unless` is true has
    nothing to relax and runs unchanged.
    """

    def register(function: Rule) -> Rule:
        def guarded(context: Context, call: Call) -> Any:
            if unless is not None and unless(context, call):
                return context.run(call)
            return context.run_out_of_place(call, function) if writes_into(call.operation) else function(context, call)

        for name in names:
            packet, _, overload = name.partition(".")
            for spelling in (packet, f"{packet}_"):
                operation = getattr(getattr(aten, spelling, None), overload, None)
                if operation is not None:
                    RULES[operation] = guarded
        return function

    return register


def has_no_gradient(context: Context, call: Call) -> bool:
    """For `unless`: the first argument is not a float tensor with a gradient."""
    return not (is_float(call.args[0]) and call.args[0].requires_grad)
