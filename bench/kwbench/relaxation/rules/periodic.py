"""Functions that oscillate over the range of a pixel, and nearest-neighbour sampling: exact gradients mean nothing there."""

from typing import Any

from kwbench.relaxation.backward import straight_through
from kwbench.relaxation.context import Context
from kwbench.relaxation.operation import Call
from kwbench.relaxation.rule import has_no_gradient, rule

# About a quarter of a period, within which a slope is meaningful.
_QUARTER = 1.57


@rule("sin.default", "cos.default", unless=has_no_gradient)
def _wave(context: Context, call: Call) -> Any:
    # Over the periods that x spans, slopes cancel except for the share of one period.
    reach = context.scale(call.args[0])
    if not bool((reach > _QUARTER).any()):
        return call.exact()
    context.count(call)
    return straight_through(call.hard(), call.exact() / reach.clamp_min(1))


@rule("tan.default", unless=has_no_gradient)
def _tangent(context: Context, call: Call) -> Any:
    # The branches of tan are steep everywhere. With the gradient of x, that of x - atan(tan(x)) does not vanish.
    x = call.args[0]
    if not bool((context.scale(x) > _QUARTER).any()):
        return call.exact()
    context.count(call)
    return straight_through(call.hard(), x)


_NEAREST, _BILINEAR = 1, 0


@rule("grid_sampler_2d.default", "grid_sampler_3d.default")
def _sampled(context: Context, call: Call) -> Any:
    image, grid, mode, *rest = call.args
    if mode != _NEAREST or not grid.requires_grad:
        return context.run(call)
    context.count(call)
    interpolated = call.operation(image.detach(), grid, _BILINEAR, *rest)
    return straight_through(call.exact(), interpolated)
