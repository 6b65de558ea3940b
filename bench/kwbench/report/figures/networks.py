"""Figures about networks themselves: how they fit and learn, and where their activations jump."""

from collections.abc import Sequence

import numpy as np

from kwbench.record.measurement import Array, Measurement
from kwbench.report.figures.figure import Figure, described, figure_of, short
from kwbench.report.svg.lines import Line, Panel, panels_svg

# The number of the curve that is black.
_BLACK = 6
# Curves in one panel that can be told apart.
_CURVES = 8


def fits(group: Sequence[Measurement]) -> list[Figure]:
    drawn = []
    for each in group:
        found, parameters = each.arrays, each.spec["parameters"]
        kwta = np.where(np.diff(found["pattern"], prepend=found["pattern"][0]) > 0, np.nan, found["kwta"])
        points = Line("points to fit", found["x"], found["y"], 1, kind="points")
        target = Line("the function", found["place"], found["target"], 2, kind="dotted")
        panels = [
            Panel(title, "x", "y", (target, Line("the network", found["place"], y, 0), points))
            for title, y in ((f"k-WTA, γ = {parameters['gamma']:g}", kwta), ("ReLU", found["relu"]))
        ]
        title = "A function of one number, fitted"
        pieces = int(found["pattern"][-1]) + 1
        caption = (
            f"Networks of {parameters['hidden']} layers of {parameters['width']} units, trained on the points alone. The k-WTA "
            f"network is a straight line in each of at least {pieces} pieces, and jumps between them. As figure 1 of xiao2020."
        )
        drawn.append(figure_of([each], "", title, caption, panels_svg(title, panels, description=described([each]))))
    return drawn


def learning(group: Sequence[Measurement]) -> list[Figure]:
    drawn = []
    for start in range(0, len(group), _CURVES):
        some = group[start : start + _CURVES]
        panels = [
            Panel(
                name,
                "epoch",
                name,
                tuple(
                    Line(short(each.model), each.arrays["epoch"], each.arrays[name], number, kind="line")
                    for number, each in enumerate(some)
                ),
                y_max=1.0 if name == "accuracy" else None,
            )
            for name in ("loss", "accuracy")
        ]
        title = f"Loss along training: {some[0].dataset}"
        caption = (
            "Mean loss and accuracy of each epoch on what was trained on in it, adversarial examples where training is "
            "adversarial. As figure 3 (c) of xiao2020, which has the jumps of k-WTA leave training smooth."
        )
        drawn.append(figure_of(some, "", title, caption, panels_svg(title, panels, description=described(some))))
    return drawn


def weights(group: Sequence[Measurement]) -> list[Figure]:
    """The mean loss along each line, and that of one image, for every network."""
    panels, rough = [], []
    for each in group:
        place, found = each.arrays["place"], each.arrays
        lines = []
        for number, (name, what) in enumerate((("weights", "the weights move"), ("images", "the images move"))):
            mean = found[name].mean(axis=0)
            lines.append(Line(f"{what}: mean of all images", place, mean, number))
            lines.append(Line(f"{what}: one image", place, found[name][0], number, kind="dotted", width=1.4))
            rough.append(f"{short(each.model)} as {what} {_roughness(mean):.2f}")
        panels.append(Panel(short(each.model), "share of the way", "loss", tuple(lines)))
    first = group[0]
    title = f"Loss as weights and images move: {first.dataset}, {len(first.spec['samples'])} images"
    caption = (
        "Cross-entropy uphill along two lines: the weights move along the gradient of its mean, which training follows "
        f"downhill, by {first.spec['parameters']['length']:g} of their length in l2; each image moves along its own gradient, "
        "by eps. How far the mean goes up and down, over the range that it covers (1: always one way): "
        f"{', '.join(rough)}. Figure 3 (c) and theorem 2 of xiao2020."
    )
    return [figure_of(group, "", title, caption, panels_svg(title, panels, description=described(group)))]


def _roughness(values: Array) -> float:
    return float(np.abs(np.diff(values)).sum() / max(float(values.max() - values.min()), 1e-12))


def layers(group: Sequence[Measurement]) -> list[Figure]:
    each = group[0]
    width, gamma, parameters = each.arrays["width"], each.arrays["gamma"], each.spec["parameters"]

    def over_width(name: str, reference: float | None) -> tuple[Line, ...]:
        lines = [_quartiles(f"γ = {g:g}", width, each.arrays[name][:, at], at) for at, g in enumerate(gamma)]
        if reference is not None:
            middle = float(np.median(each.arrays[name][0, -1]))
            lines.append(
                Line(
                    f"∝ 1 / width{'²' * (reference == 2)}",
                    width,
                    middle * (width[0] / width) ** reference,
                    _BLACK,
                    kind="dotted",
                )
            )
        return tuple(lines)

    panels = [
        Panel("The nearest other pattern", "width", "distance", over_width("nearest", None), log_x=True, log_y=True),
        Panel("Random direction: median", "width", "distance", over_width("typical", 1), log_x=True, log_y=True),
        Panel("Random direction: largest", "width", "distance", over_width("farthest", 1), log_x=True, log_y=True),
        Panel("Jump of the next layer", "width", "jump / output", over_width("jump", None), log_x=True, log_y=True),
        Panel(
            "The value that swaps, x*",
            "γ",
            "x* / deviation",
            (_quartiles(f"width {width[-1]:g}", gamma, each.arrays["threshold"][-1], 0),),
        ),
    ]
    title = "Random layers under k-WTA: theorem 1 and appendix B"
    caption = (
        f"Layers W x with W from N(0, 1 / width) and inputs of dimension {parameters['inputs']} and length 1; medians and "
        f"quartiles over {parameters['draws']} draws, {parameters['directions']} directions perpendicular to x each. Theorem 1 "
        "of xiao2020 bounds how far an input may move before its activation pattern must change, by about 1 / (γ width); "
        "appendix B has the jump grow with x*, the value at which two units swap, which grows as γ falls."
    )
    return [figure_of(group, "", title, caption, panels_svg(title, panels, description=described(group)))]


def _quartiles(name: str, x: Array, values: Array, number: int) -> Line:
    low, middle, high = (np.quantile(values, share, axis=-1) for share in (0.25, 0.5, 0.75))
    return Line(name, x, middle, number, low, high, kind="line and points")


def patterns(group: Sequence[Measurement]) -> list[Figure]:
    panels = []
    for name, title, across in (
        ("distance", "How far to the next pattern", "distance / length of the image"),
        ("jump", "How far the logits jump there", "jump / spread of the logits"),
    ):
        lines = []
        for number, each in enumerate(group):
            values = np.sort(each.arrays[name][np.isfinite(each.arrays[name])])
            # What float64 leaves of no jump at all is drawn at one place.
            values = np.maximum(values, 1e-12)
            share = np.arange(1, len(values) + 1) / max(each.arrays[name].size, 1)
            lines.append(Line(short(each.model), np.repeat(values, 2)[1:], np.repeat(share, 2)[:-1], number))
        panels.append(Panel(title, across, "share of directions", tuple(lines), log_x=True, y_max=1.0))
    first = group[0]
    parameters = first.spec["parameters"]
    title = f"Activation patterns: {first.dataset}, {len(first.spec['samples'])} images"
    medians = ", ".join(
        f"{short(each.model)} {np.nanmedian(each.arrays['distance']):.2g} and {np.nanmedian(each.arrays['jump']):.2g}"
        for each in group
    )
    caption = (
        f"Along {parameters['directions']} random directions perpendicular to each image: the l2 distance at which a unit of "
        "any layer first starts or stops, over the image's length, and by how much the logits jump there in l2, over their "
        "spread at the image. 1e-12 stands for what float64 cannot tell from nothing: the jumps of ReLU, and the distance "
        "where units tie at the image itself, as those of a uniform background do. "
        f"Medians of both: {medians}. Theorem 1 and appendix B of xiao2020."
    )
    return [figure_of(group, "", title, caption, panels_svg(title, panels, description=described(group)))]
