"""Figures about what an attacker meets: loss landscapes, logits, true-class probabilities and examples."""

from collections.abc import Sequence

import numpy as np

from kwbench.record.measurement import Measurement
from kwbench.report.figures.figure import Figure, described, figure_of, short
from kwbench.report.svg.lines import Line, Panel, panels_svg
from kwbench.report.svg.pixels import Example, Strip, gallery_svg
from kwbench.report.svg.surfaces import Surface, maps_svg, surfaces_svg
from kwbench.threat import ThreatModel

# The number of the curve that is black.
_BLACK = 6


def landscapes(group: Sequence[Measurement]) -> list[Figure]:
    first, parameters = group[0], group[0].spec["parameters"]
    drawn = []
    for row, place in enumerate(first.spec["images"]):
        surfaces = []
        for each in group:
            loss = each.arrays["loss"][row]
            jump = max(float(np.abs(np.diff(loss, axis=axis)).max()) for axis in (0, 1))
            note = f"loss {loss.min():.2g} to {loss.max():.2g}, steepest step {jump:.2g}"
            surfaces.append(Surface(short(each.model), each.arrays["e"], loss, each.arrays["right"][row], note))
        unit = "signs, so that ε is in the unit of linf" if parameters["directions"] == "sign" else "of length 1 in l2"
        random = any(each.spec["origin"].get("draws") for each in group)
        noise = "A random network answers each point anew, so that some of its roughness is noise. " if random else ""
        words = (
            f"Cross-entropy of image {place} of {first.dataset} (class {first.arrays['label'][row]:.0f}) at x + ε₁ g₁ + ε₂ g₂: "
            f"g₁ is the direction of the loss's gradient at x, g₂ a random one, both {unit}; {parameters['points']} by "
            f"{parameters['points']} points, each network on its own scale. The steepest step is the largest difference "
            f"between neighbouring points. {noise}As figures 5 and 7 of xiao2020."
        )
        for suffix, draw, more in (
            ("", surfaces_svg, ""),
            ("map", maps_svg, " White lines part where the model is right from where it is wrong."),
        ):
            title = f"Loss {'map' if suffix else 'landscape'}: {first.dataset}, image {place}"
            svg = draw(title, surfaces, description=described(group))
            drawn.append(figure_of(group, "-".join(filter(None, (suffix, f"image{place}"))), title, words + more, svg))
    return drawn


def logits(group: Sequence[Measurement]) -> list[Figure]:
    first = group[0]
    drawn = []
    for row, place in enumerate(first.spec["images"]):
        panels = []
        for each in group:
            logits, true = each.arrays["logits"][row], int(each.arrays["label"][row])
            steps = np.arange(len(logits), dtype=float)
            # The true class last, on top of all others.
            order = [*(number for number in range(logits.shape[1]) if number != true), true]
            lines = [
                Line("true class" if c == true else f"class {c}", steps, logits[:, c], _BLACK, width=3.0)
                if c == true
                else Line("other classes" if logits.shape[1] > 10 else f"class {c}", steps, logits[:, c], c % 6 + 7 * (c // 6))
                for c in order
            ]
            panels.append(Panel(short(each.model), "step", "logit", tuple(lines)))
        title = f"Logits along PGD: {_terms_in_words(first)}, image {place}"
        reach = float(first.arrays["distance"][row, -1])
        caption = (
            f"The logits of image {place} of {first.dataset} at each step of untargeted PGD from the image itself; the "
            f"perturbation grows to {reach:.3g} in {first.spec['origin']['norm']} at the last step. Black: the true class; the "
            "model is wrong where another line is above it. As figure 3 (a, b) of xiao2020."
        )
        svg = panels_svg(title, panels, description=described(group))
        drawn.append(figure_of(group, f"image{place}", title, caption, svg))
    return drawn


def answers(group: Sequence[Measurement]) -> list[Figure]:
    drawn = []
    edges = np.linspace(0, 1, 21)
    for each in group:
        labels = ["clean", *each.spec["labels"]]
        found, n = each.arrays, each.arrays["label"].size
        panels = []
        for number, label in enumerate(labels):
            share = np.histogram(found["probability"][number], edges)[0] / n
            right = 100 * float((found["prediction"][number] == found["label"]).mean())
            line = Line("", (edges[:-1] + edges[1:]) / 2, 100 * share, 0 if number == 0 else 1, kind="bars")
            panels.append(
                Panel(f"{label}: {right:.1f} % right", "probability of the true class", "images, %", (line,), y_max=100.0)
            )
        where = f"{short(each.model)}: {_terms_in_words(each)}, n = {n}"
        title = f"True-class probabilities of {where}"
        caption = (
            f"How sure {each.model} is of the true class, on {n} images and on what each attack makes of them; where an attack "
            "proposes what lies outside the ball, the image itself counts. As hicheur2024 shows for its networks."
        )
        svg = panels_svg(title, panels, description=described([each]))
        drawn.append(figure_of([each], f"probabilities-{short(each.model)}", title, caption, svg))
        strips = [strip for number, label in enumerate(labels[1:]) for strip in _strips(each, number, label)]
        if any(strip.examples for strip in strips):
            title = f"Examples of {where}"
            caption = (
                "Pairs of an image, with its class, and of what the attack made of it, with what the model says then: the "
                "first that fool the model, and the first that do not. As hicheur2024's examples of correct and incorrect "
                "classification."
            )
            svg = gallery_svg(title, strips, description=described([each]))
            drawn.append(figure_of([each], f"examples-{short(each.model)}", title, caption, svg))
    return drawn


def _strips(each: Measurement, number: int, label: str) -> list[Strip]:
    found = each.arrays
    strips = []
    for kind, words in enumerate(("fooled", "not fooled")):
        examples = []
        for place, row in enumerate(found["example"][number, kind].astype(int)):
            if row >= 0:
                before, after = (found[name][number, kind, place] for name in ("image", "adversarial"))
                true, said = int(found["label"][row]), int(found["prediction"][number + 1, row])
                examples.append(Example(before, after, (f"class {true}", f"says {said}"), said != true))
        strips.append(Strip(f"{label}: {words}", tuple(examples)))
    return strips


def _terms_in_words(each: Measurement) -> str:
    origin = each.spec["origin"]
    return f"{each.dataset}, {ThreatModel.of(origin['norm'], origin['eps'])}"
