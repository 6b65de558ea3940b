"""Figures of networks: fits, training curves, jumps of the loss and activation patterns."""

from collections.abc import Sequence

import numpy as np

from kwbench.record.measurement import Array, Measurement
from kwbench.report.drawing.lines import Line, Panel, panels_picture
from kwbench.report.figures.figure import Figure, described, figure_of, short

# The style number of black lines.
_BLACK = 6
# The number of distinguishable curves in one panel.
_CURVES = 8


def fits(group: Sequence[Measurement]) -> list[Figure]:
    """Return a figure for each measurement: the function, the training points and both networks."""
    drawn = []
    for measurement in group:
        arrays, parameters = measurement.arrays, measurement.spec["parameters"]
        grid = arrays["place"]
        # Interrupt the line where the pattern changes, because the function may jump there.
        kwta = np.where(np.diff(arrays["pattern"], prepend=arrays["pattern"][0]) > 0, np.nan, arrays["kwta"])
        points = Line("points to fit", arrays["x"], arrays["y"], 1, kind="points")
        target = Line("the function", grid, arrays["target"], 2, kind="dotted")
        panels = [
            Panel(title, "x", "y", (target, Line("the network", grid, y, 0), points))
            for title, y in ((f"k-WTA, γ = {parameters['gamma']:g}", kwta), ("ReLU", arrays["relu"]))
        ]
        title = "Fit of a one-dimensional function"
        pieces = int(arrays["pattern"][-1]) + 1
        caption = (
            f"Networks of {parameters['hidden']} layers of {parameters['width']} units, trained on the points only. The k-WTA "
            f"network is linear on each of at least {pieces} pieces and jumps between them. Compare figure 1 of xiao2020."
        )
        picture = panels_picture(title, panels, description=described([measurement]))
        drawn.append(figure_of([measurement], "", caption, picture))
    return drawn


def learning(group: Sequence[Measurement]) -> list[Figure]:
    """Return figures of the loss and accuracy of each epoch, `_CURVES` networks in each."""
    drawn = []
    for start in range(0, len(group), _CURVES):
        runs = group[start : start + _CURVES]
        panels = [
            Panel(
                "",
                "epoch",
                label,
                tuple(
                    Line(short(run.model), run.arrays["epoch"], factor * run.arrays[name], number, kind="line")
                    for number, run in enumerate(runs)
                ),
                y_max=100.0 if name == "accuracy" else None,
            )
            for name, label, factor in (("loss", "training loss", 1.0), ("accuracy", "training accuracy, %", 100.0))
        ]
        title = f"Loss during training: {runs[0].dataset}"
        caption = (
            "Mean loss and accuracy of each epoch on its training inputs, which are adversarial examples in adversarial "
            "training. Compare figure 3 (c) of xiao2020, which claims that training is smooth despite the jumps of k-WTA."
        )
        drawn.append(figure_of(runs, "", caption, panels_picture(title, panels, description=described(runs))))
    return drawn


def weights(group: Sequence[Measurement]) -> list[Figure]:
    """Return one figure with a panel for each network: along both lines, the mean loss and the loss of one image."""
    panels, roughness = [], []
    for measurement in group:
        arrays, model = measurement.arrays, short(measurement.model)
        lines = []
        for number, (name, legend) in enumerate((("weights", "the weights move"), ("images", "the images move"))):
            mean = arrays[name].mean(axis=0)
            lines.append(Line(f"{legend}: mean of all images", arrays["place"], mean, number))
            lines.append(Line(f"{legend}: one image", arrays["place"], arrays[name][0], number, kind="dotted", width=0.8))
            roughness.append(f"{model} as {legend} {_roughness(mean):.2f}")
        panels.append(Panel(model, "fraction of the line", "loss", tuple(lines)))
    first = group[0]
    title = f"Loss as weights and images move: {first.dataset}, {len(first.spec['samples'])} images"
    caption = (
        "Cross-entropy along two lines of ascent. The weights move along the gradient of the mean loss, which training "
        f"descends, by {first.spec['parameters']['length']:g} of their l2 norm; each image moves along its own gradient, "
        "by eps. Total variation of the mean over its range (1: monotonic): "
        f"{', '.join(roughness)}. Compare figure 3 (c) and theorem 2 of xiao2020."
    )
    return [figure_of(group, "", caption, panels_picture(title, panels, description=described(group)))]


def _roughness(values: Array) -> float:
    """The total variation over the range; 1 if the values are monotonic."""
    return float(np.abs(np.diff(values)).sum() / max(float(values.max() - values.min()), 1e-12))


def layers(group: Sequence[Measurement]) -> list[Figure]:
    """Return one figure of the distances and jumps of random layers, against the width and against γ."""
    arrays, parameters = group[0].arrays, group[0].spec["parameters"]
    width, gamma = arrays["width"], arrays["gamma"]

    def over_width(name: str, reference: float | None) -> tuple[Line, ...]:
        lines = [_quartiles(f"γ = {g:g}", width, arrays[name][:, number], number) for number, g in enumerate(gamma)]
        if reference is not None:
            middle = float(np.median(arrays[name][0, -1]))
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
        Panel("Nearest other pattern", "width", "distance", over_width("nearest", None), log_x=True, log_y=True),
        Panel("Random direction: median", "width", "distance", over_width("typical", 1), log_x=True, log_y=True),
        Panel("Random direction: largest", "width", "distance", over_width("farthest", 1), log_x=True, log_y=True),
        Panel("Jump of the next layer", "width", "jump / output", over_width("jump", None), log_x=True, log_y=True),
        Panel(
            "Value at the swap, x*",
            r"$\gamma$",
            "x* / deviation",
            (_quartiles(f"width {width[-1]:g}", gamma, arrays["threshold"][-1], len(gamma)),),
        ),
    ]
    title = "Random layers under k-WTA: theorem 1 and appendix B"
    caption = (
        f"Layers W x with W from N(0, 1 / width) and inputs of dimension {parameters['inputs']} and length 1. Medians and "
        f"quartiles over {parameters['draws']} draws with {parameters['directions']} directions perpendicular to x each. "
        "Theorem 1 of xiao2020 bounds the distance that an input can move before its activation pattern must change, by about "
        "1 / (γ width). By appendix B the jump grows with x*, the value at which two units swap, which grows as γ falls."
    )
    return [figure_of(group, "", caption, panels_picture(title, panels, description=described(group)))]


def _quartiles(name: str, x: Array, values: Array, number: int) -> Line:
    """The medians of values (m, draws) with a band between their quartiles."""
    low, middle, high = (np.quantile(values, share, axis=-1) for share in (0.25, 0.5, 0.75))
    return Line(name, x, middle, number, low, high, kind="line and points")


def patterns(group: Sequence[Measurement]) -> list[Figure]:
    """Return one figure with the cumulative distributions of distances and jumps over all images and directions."""
    panels = []
    for name, title, x_label in (
        ("distance", "Distance to the next pattern", "distance / norm of the image"),
        ("jump", "Jump of the logits there", "jump / range of the logits"),
    ):
        lines = []
        for number, measurement in enumerate(group):
            array = measurement.arrays[name]
            # Values below the resolution of float64 are drawn at 1e-12.
            values = np.maximum(np.sort(array[np.isfinite(array)]), 1e-12)
            share = np.arange(1, len(values) + 1) / max(array.size, 1)
            lines.append(Line(short(measurement.model), np.repeat(values, 2)[1:], np.repeat(share, 2)[:-1], number))
        panels.append(Panel(title, x_label, "share of directions", tuple(lines), log_x=True, y_max=1.0))
    first = group[0]
    parameters = first.spec["parameters"]
    title = f"Activation patterns: {first.dataset}, {len(first.spec['samples'])} images"
    medians = ", ".join(
        f"{short(run.model)} {np.nanmedian(run.arrays['distance']):.2g} and {np.nanmedian(run.arrays['jump']):.2g}"
        for run in group
    )
    caption = (
        f"Along {parameters['directions']} random directions perpendicular to each image: the l2 distance at which a unit of "
        "any layer first switches on or off, over the norm of the image, and the l2 norm of the jump of the logits there, over "
        "their range at the image. Values that float64 cannot distinguish from 0 are drawn at 1e-12: the jumps of ReLU, and "
        "distances of 0, where units tie at the image itself, as on a uniform background. "
        f"Medians of both: {medians}. Compare theorem 1 and appendix B of xiao2020."
    )
    return [figure_of(group, "", caption, panels_picture(title, panels, wide=True, description=described(group)))]
