"""Queries on the adversarial examples that were kept for people to look at."""

import json
from collections.abc import Sequence

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from kwbench.errors import DamagedData
from kwbench.outcome import Example, Outcome, Probabilities
from kwbench.record.database import schema
from kwbench.record.database.statements import insert, pack_array, unpack_array

_CLEAN = "clean image of "


def insert_examples(connection: sa.Connection, attack_run: int, outcomes: Sequence[Outcome]) -> None:
    """Insert the examples of those outcomes that carry one, with their clean images, where they are missing."""
    kept = {outcome.sample: outcome.example for outcome in outcomes if outcome.example is not None}
    insert(connection, schema.clean_images, [_clean_row(sample, example.clean) for sample, example in kept.items()])
    rows = []
    for sample, example in kept.items():
        packed = (
            pack_array(example.adversarial, "<f4", sample)
            if example.residual is None
            else pack_array(example.residual, "|i1", sample)
        )
        rows.append(
            {
                "attack_run": attack_run,
                "sample": sample,
                "scale": None if example.residual is None else example.scale,
                "image": packed,
                "before": json.dumps(example.before),
                "after": json.dumps(example.after),
            }
        )
    insert(connection, schema.examples, rows)


def select_examples(connection: sa.Connection, attack_run: int) -> dict[str, Example]:
    """Return the examples of an attack run by sample. Raises DamagedData for damaged ones."""
    table, clean = schema.examples, schema.clean_images
    query = (
        sa.select(table.c.sample, table.c.scale, table.c.image, table.c.before, table.c.after)
        .add_columns(clean.c.channels, clean.c.height, clean.c.width, clean.c.bytes, clean.c.image)
        .join(clean, clean.c.sample == table.c.sample)
        .where(table.c.attack_run == attack_run)
        .order_by(table.c.sample)
    )
    examples = {}
    for sample, scale, packed, before, after, c, h, w, is_bytes, packed_clean in connection.execute(query):
        try:
            image = unpack_array(packed, "<f4" if scale is None else "|i1", (c, h, w), sample)
            unpacked = unpack_array(packed_clean, "|u1" if is_bytes else "<f4", (c, h, w), _CLEAN + sample)
            examples[sample] = Example(
                clean=unpacked.astype(np.float32) / np.float32(255) if is_bytes else unpacked.astype(np.float32),
                residual=None if scale is None else image.astype(np.int8),
                scale=scale or 0.0,
                image=image.astype(np.float32) if scale is None else None,
                before=_probabilities(before),
                after=_probabilities(after),
            )
        except (ValueError, TypeError) as failure:
            raise DamagedData(f"the adversarial example of sample {sample} is damaged ({failure})") from None
    return examples


def _clean_row(sample: str, image: NDArray[np.float32]) -> dict[str, object]:
    whole = np.rint(image * 255)
    exact = bool((whole.astype(np.float32) / np.float32(255) == image).all())
    packed = pack_array(whole, "|u1", _CLEAN + sample) if exact else pack_array(image, "<f4", _CLEAN + sample)
    return {
        "sample": sample,
        **dict(zip(("channels", "height", "width"), image.shape, strict=True)),
        "bytes": exact,
        "image": packed,
    }


def _probabilities(text: str) -> Probabilities:
    return tuple((int(number), float(probability)) for number, probability in json.loads(text))
