"""Figures of attacks: loss landscapes, logits, true-class probabilities and examples."""

from collections.abc import Mapping, Sequence

import numpy as np

from kwbench.record.measurement import Array, Measurement
from kwbench.report.figures.figure import Figure, described, figure_of, short
from kwbench.report.svg.lines import Line, Panel, panels_svg
from kwbench.report.svg.pixels import Example, Strip, gallery_svg
from kwbench.report.svg.surfaces import Surface, maps_svg, surfaces_svg
from kwbench.threat import ThreatModel

# The style number of black lines.
_BLACK = 6


def landscapes(group: Sequence[Measurement]) -> list[Figure]:
    """Return a surface and a map for each image, the networks side by side."""
    first, parameters = group[0], group[0].spec["parameters"]
    drawn = []
    for row, image in enumerate(first.spec["images"]):
        surfaces = []
        for measurement in group:
            loss = measurement.arrays["loss"][row]
            step = max(float(np.abs(np.diff(loss, axis=axis)).max()) for axis in (0, 1))
            note = f"loss {loss.min():.2g} to {loss.max():.2g}, largest step {step:.2g}"
            correct = measurement.arrays["right"][row]
            surfaces.append(Surface(short(measurement.model), measurement.arrays["e"], loss, correct, note))
        unit = "sign vectors, so ε is an linf distance" if parameters["directions"] == "sign" else "of l2 norm 1"
        stochastic = any(measurement.spec["origin"].get("draws") for measurement in group)
        noise = "A stochastic network draws anew at every point, so part of its roughness is noise. " if stochastic else ""
        caption = (
            f"Cross-entropy of image {image} of {first.dataset} (class {first.arrays['label'][row]:.0f}) at x + ε₁ g₁ + ε₂ g₂. "
            f"g₁ is the direction of the loss gradient at x and g₂ a random direction, both {unit}. There are "
            f"{parameters['points']} by {parameters['points']} points, and each network has its own scale. The largest step is "
            f"the largest difference between neighbouring points. {noise}Compare figures 5 and 7 of xiao2020."
        )
        for suffix, draw, addition in (
            ("", surfaces_svg, ""),
            ("map", maps_svg, " White lines separate correct from wrong predictions."),
        ):
            title = f"Loss {'map' if suffix else 'landscape'}: {first.dataset}, image {image}"
            svg = draw(title, surfaces, description=described(group))
            name = "-".join(filter(None, (suffix, f"image{image}")))
            drawn.append(figure_of(group, name, title, caption + addition, svg))
    return drawn


def logits(group: Sequence[Measurement]) -> list[Figure]:
    """Return a figure for each image, with a panel for each network."""
    first = group[0]
    drawn = []
    for row, image in enumerate(first.spec["images"]):
        panels = []
        for measurement in group:
            logits, true = measurement.arrays["logits"][row], int(measurement.arrays["label"][row])
            steps = np.arange(len(logits), dtype=float)
            # The true class is drawn last, on top of the others.
            order = [*(number for number in range(logits.shape[1]) if number != true), true]
            lines = [
                Line("true class" if c == true else f"class {c}", steps, logits[:, c], _BLACK, width=3.0)
                if c == true
                else Line("other classes" if logits.shape[1] > 10 else f"class {c}", steps, logits[:, c], c % 6 + 7 * (c // 6))
                for c in order
            ]
            panels.append(Panel(short(measurement.model), "step", "logit", tuple(lines)))
        title = f"Logits along PGD: {_setting(first)}, image {image}"
        size = float(first.arrays["distance"][row, -1])
        caption = (
            f"Logits of image {image} of {first.dataset} at each step of untargeted PGD without a random start. The "
            f"perturbation reaches {size:.3g} in {first.spec['origin']['norm']} at the last step. The black line is the true "
            "class; the prediction is wrong where another line is above it. Compare figure 3 (a, b) of xiao2020."
        )
        svg = panels_svg(title, panels, description=described(group))
        drawn.append(figure_of(group, f"image{image}", title, caption, svg))
    return drawn


def answers(group: Sequence[Measurement]) -> list[Figure]:
    """Return a figure of probabilities for each network, and one of examples if there are any."""
    drawn = []
    edges = np.linspace(0, 1, 21)
    for measurement in group:
        arrays, model = measurement.arrays, measurement.model
        labels, n = ["clean", *measurement.spec["labels"]], arrays["label"].size
        panels = []
        for number, label in enumerate(labels):
            share = np.histogram(arrays["probability"][number], edges)[0] / n
            accuracy = 100 * float((arrays["prediction"][number] == arrays["label"]).mean())
            line = Line("", (edges[:-1] + edges[1:]) / 2, 100 * share, 0 if number == 0 else 1, kind="bars")
            panels.append(
                Panel(f"{label}: {accuracy:.1f} % right", "probability of the true class", "images, %", (line,), y_max=100.0)
            )
        subject = f"{short(model)}: {_setting(measurement)}, n = {n}"
        title = f"True-class probabilities of {subject}"
        caption = (
            f"Probability that {model} gives to the true class, on {n} clean images and on the proposals of each attack. A "
            "proposal outside the ball is replaced by the clean image. Compare the figures of hicheur2024."
        )
        svg = panels_svg(title, panels, description=described([measurement]))
        drawn.append(figure_of([measurement], f"probabilities-{short(model)}", title, caption, svg))
        strips = [strip for number, label in enumerate(labels[1:]) for strip in _strips(arrays, number, label)]
        if any(strip.examples for strip in strips):
            title = f"Examples of {subject}"
            caption = (
                "Pairs of a clean image with its class and the attacked image with the predicted class: the first that fool "
                "the model, and the first that do not. Compare the examples of correct and incorrect classification in "
                "hicheur2024."
            )
            svg = gallery_svg(title, strips, description=described([measurement]))
            drawn.append(figure_of([measurement], f"examples-{short(model)}", title, caption, svg))
    return drawn


def _strips(arrays: Mapping[str, Array], number: int, label: str) -> list[Strip]:
    """The examples of the attack with this number: those that fool the model, and those that do not."""
    strips = []
    for kind, kind_name in enumerate(("fooled", "not fooled")):
        examples = []
        for position, row in enumerate(arrays["example"][number, kind].astype(int)):
            if row >= 0:
                before, after = (arrays[name][number, kind, position] for name in ("image", "adversarial"))
                true, predicted = int(arrays["label"][row]), int(arrays["prediction"][number + 1, row])
                captions = (f"class {true}", f"predicted {predicted}")
                examples.append(Example(before, after, captions, predicted != true))
        strips.append(Strip(f"{label}: {kind_name}", tuple(examples)))
    return strips


def _setting(measurement: Measurement) -> str:
    """The data set and the threat model as text."""
    origin = measurement.spec["origin"]
    return f"{measurement.dataset}, {ThreatModel.of(origin['norm'], origin['eps'])}"
