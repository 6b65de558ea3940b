"""Pictures of what breaks a board's best model."""

import base64
import io
from types import SimpleNamespace

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from kwbench.outcome import Example
from kwbench.record.store import Store
from kwbench.record.summary import Summary
from kwbench.report.figures.conventions import class_name
from kwbench.report.html.samples import worst_examples

# Pictures of a board, the longest side on the page in pixels, and the longest side of an image that is put on the page.
_PICTURES, _SIDE, _LARGEST = 3, 80, 256


def worst_pictures(store: Store, summary: Summary) -> list[SimpleNamespace]:
    """Return the adversarial examples on record of which the model is most certain: the clean and the adversarial image, and
    their difference times 10 around grey."""
    known = [found for found in worst_examples(store, summary) if found[2].after and max(found[2].clean.shape[1:]) <= _LARGEST]
    known.sort(key=lambda found: (-found[2].after[0][1], found[0]))
    return [_picture(summary, *found) for found in known[:_PICTURES]]


def _picture(summary: Summary, position: int, attack: str, example: Example) -> SimpleNamespace:
    spec = summary.evaluation.spec
    height, width = example.clean.shape[1:]

    def said(answers: tuple[tuple[int, float], ...]) -> str:
        label, probability = answers[0]
        return f"{class_name(summary.dataset, label, spec.provenance)} {100 * probability:.0f} %"

    return SimpleNamespace(
        position=position,
        attack=attack,
        clean=_embedded(example.clean),
        adversarial=_embedded(example.adversarial),
        difference=_embedded(0.5 + 10 * (example.adversarial - example.clean)),
        before=said(example.before) if example.before else "–",
        after=said(example.after),
        width=round(_SIDE * width / max(width, height)),
        height=round(_SIDE * height / max(width, height)),
    )


def _embedded(pixels: NDArray[np.float32]) -> Markup:
    """Return an image (c, h, w) with pixels in [0, 1] as the address of a PNG; other than three channels as grey."""
    rounded = np.rint(255 * np.clip(np.nan_to_num(pixels), 0, 1)).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(rounded.transpose(1, 2, 0) if len(rounded) == 3 else rounded[0]).save(content, "PNG", optimize=True)
    return Markup("data:image/png;base64," + base64.b64encode(content.getvalue()).decode())
