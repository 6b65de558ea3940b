"""Figures of attacks: loss landscapes, logits, true-class probabilities and examples."""

from collections.abc import Sequence

import numpy as np

from kwbench.record.measurement import Measurement
from kwbench.report.drawing.gallery import Example, Strip, gallery_picture
from kwbench.report.drawing.lines import Line, Panel, panels_picture
from kwbench.report.drawing.surfaces import Surface, maps_picture, surfaces_picture
from kwbench.report.figures.conventions import class_name, distance_scale, distance_text
from kwbench.report.figures.figure import Figure, described, figure_of, short
from kwbench.threat import ThreatModel, exact_fraction

# The style number of black lines.
_BLACK = 6


def landscapes(group: Sequence[Measurement]) -> list[Figure]:
    """Return a surface and a map for each image, the networks side by side."""
    first, parameters = group[0], group[0].spec["parameters"]
    signs = parameters["directions"] == "sign"
    scale, unit = distance_scale(first.dataset, "linf" if signs else "l2")
    drawn = []
    for row, image in enumerate(first.spec["images"]):
        surfaces = []
        for measurement in group:
            loss = measurement.arrays["loss"][row]
            step = max(float(np.abs(np.diff(loss, axis=axis)).max()) for axis in (0, 1))
            note = f"loss {loss.min():.2g} to {loss.max():.2g}, largest step {step:.2g}"
            correct = measurement.arrays["right"][row]
            surfaces.append(Surface(short(measurement.model), scale * measurement.arrays["e"], loss, correct, note))
        length = "sign vectors, so ε is an linf distance" if signs else "of l2 norm 1"
        stochastic = any(measurement.spec["origin"].get("draws") for measurement in group)
        noise = "A stochastic network draws anew at every point, so part of its roughness is noise. " if stochastic else ""
        caption = (
            f"Cross-entropy of image {image} of {first.dataset} ({_class_of(first, row)}) at x + ε₁ g₁ + ε₂ g₂. "
            f"g₁ is the direction of the loss gradient at x and g₂ a random direction, both {length}. There are "
            f"{parameters['points']} by {parameters['points']} points. All networks share the colours. The largest step is "
            f"the largest difference between neighbouring points. {noise}Compare figures 5 and 7 of xiao2020."
        )
        for suffix, draw, addition in (
            ("", surfaces_picture, " Heights are the loss as well, each on an axis of its own."),
            ("map", maps_picture, " White lines separate correct from wrong predictions."),
        ):
            title = f"Loss {'map' if suffix else 'landscape'}: {first.dataset}, image {image}"
            picture = draw(title, surfaces, unit=unit, description=described(group))
            name = "-".join(filter(None, (suffix, f"image{image}")))
            drawn.append(figure_of(group, name, caption + addition, picture))
    return drawn


def logits(group: Sequence[Measurement]) -> list[Figure]:
    """Return a figure for each image, with a panel for each network."""
    first = group[0]
    norm = first.spec["origin"]["norm"]
    scale, unit = distance_scale(first.dataset, norm)
    drawn = []
    for row, image in enumerate(first.spec["images"]):
        panels = []
        for measurement in group:
            logits, true = measurement.arrays["logits"][row], int(measurement.arrays["label"][row])
            sizes = scale * measurement.arrays["distance"][row]
            # The true class is drawn last, on top of the others.
            order = [*(number for number in range(logits.shape[1]) if number != true), true]
            lines = [
                Line(f"true class: {_name(first, c)}", sizes, logits[:, c], _BLACK, width=1.8)
                if c == true
                else Line(_legend(first, c, logits.shape[1]), sizes, logits[:, c], c % 6 + 7 * (c // 6))
                for c in order
            ]
            label = f"perturbation{unit}"
            panels.append(Panel(short(measurement.model), label, "logit", tuple(lines)))
        title = f"Logits along PGD: {_setting(first)}, image {image}"
        size = distance_text(float(first.arrays["distance"][row, -1]), first.dataset, norm)
        caption = (
            f"Logits of image {image} of {first.dataset} along {first.arrays['distance'].shape[1] - 1} steps of untargeted PGD "
            f"without a random start. The perturbation reaches {size} in {norm} at the last step. The black line is the true "
            "class; the prediction is wrong where another line is above it. Compare figure 3 (a, b) of xiao2020."
        )
        picture = panels_picture(title, panels, description=described(group))
        drawn.append(figure_of(group, f"image{image}", caption, picture))
    return drawn


def _legend(measurement: Measurement, label: int, classes: int) -> str:
    return "other classes" if classes > 10 else _name(measurement, label)


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
            name = f"{label}: {accuracy:.1f} % right"
            panels.append(Panel(name, "probability of the true class", "images, %", (line,), y_max=100.0))
        subject = f"{short(model)}: {_setting(measurement)}, n = {n}"
        title = f"True-class probabilities of {subject}"
        caption = (
            f"Probability that {model} gives to the true class, on {n} clean images and on the proposals of each attack. A "
            "proposal outside the ball is replaced by the clean image. Compare the figures of hicheur2024."
        )
        picture = panels_picture(title, panels, description=described([measurement]))
        drawn.append(figure_of([measurement], f"probabilities-{short(model)}", caption, picture))
        strips = [strip for number, label in enumerate(labels[1:]) for strip in _strips(measurement, number, label)]
        if any(strip.examples for strip in strips):
            title = f"Examples of {subject}"
            caption = (
                "Pairs of a clean image with its class and the attacked image with the predicted class: the first that fool "
                "the model, and the first that do not. Below, the probability p of the true class and the distance "
                f"in {measurement.spec['origin']['norm']}. "
                "Compare the examples of correct and incorrect classification in hicheur2024."
            )
            picture = gallery_picture(title, strips, description=described([measurement]))
            drawn.append(figure_of([measurement], f"examples-{short(model)}", caption, picture))
    return drawn


def _strips(measurement: Measurement, number: int, label: str) -> list[Strip]:
    """The examples of the attack with this number: those that fool the model, and those that do not."""
    arrays, dataset, norm = measurement.arrays, measurement.dataset, measurement.spec["origin"]["norm"]
    strips = []
    for kind, kind_name in enumerate(("fooled", "not fooled")):
        examples = []
        for position, row in enumerate(arrays["example"][number, kind].astype(int)):
            if row >= 0:
                before, after = (arrays[name][number, kind, position] for name in ("image", "adversarial"))
                true, predicted = int(arrays["label"][row]), int(arrays["prediction"][number + 1, row])
                confident, left = (float(arrays["probability"][column, row]) for column in (0, number + 1))
                distance = distance_text(float(arrays["moved"][number + 1, row]), dataset, norm)
                captions = (
                    f"{_name(measurement, true)}\np = {confident:.2f}",
                    f"predicted {_name(measurement, predicted)}\np = {left:.2f}, {distance}",
                )
                examples.append(Example(before, after, captions, predicted != true))
        strips.append(Strip(f"{label}: {kind_name}", tuple(examples)))
    return strips


def _name(measurement: Measurement, label: int) -> str:
    return class_name(measurement.dataset, label, measurement.provenance)


def _class_of(measurement: Measurement, row: int) -> str:
    label = int(measurement.arrays["label"][row])
    name = _name(measurement, label)
    return name if name != str(label) else f"class {name}"


def _setting(measurement: Measurement) -> str:
    """The data set and the threat model as text."""
    origin = measurement.spec["origin"]
    return f"{measurement.dataset}, {ThreatModel.of(origin['norm'], exact_fraction(origin['eps']))}"
