"""Data sets from arrays and tensors in memory."""

from typing import Any

import numpy as np
import pytest
import torch

from kwbench.data import dataset_from_arrays
from kwbench.errors import UsageError
from kwbench.threat import ThreatModel

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 6), dtype=np.uint8)
UNIT = (PIXELS / np.float32(255)).astype(np.float32)
LABELS = np.array([0, 2, 1, 2])


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (PIXELS, LABELS),
        (UNIT, LABELS.astype(np.uint8)),
        (UNIT.astype(">f4"), LABELS.astype(np.int32)),
        (UNIT.astype(np.float64), LABELS),
        (torch.from_numpy(PIXELS), torch.from_numpy(LABELS)),
        (torch.from_numpy(UNIT).requires_grad_(), torch.from_numpy(LABELS).to(torch.uint8)),
        (torch.from_numpy(UNIT).double(), torch.from_numpy(LABELS)),
    ],
)
def test_arrays_and_tensors_of_all_types_are_the_same_samples(x: Any, y: Any) -> None:
    dataset = dataset_from_arrays(x, y)
    assert (dataset.name, dataset.classes, dataset.shape, dataset.fixed_classes) == ("tensors", 3, (3, 5, 6), False)
    assert (len(dataset.test), len(dataset.train), len(dataset.validation)) == (4, 0, 0)
    batch = dataset.test.batch(range(4))
    assert batch.samples == dataset_from_arrays(UNIT, LABELS).test.batch(range(4)).samples
    assert torch.equal(batch.x, torch.from_numpy(UNIT))
    assert batch.y.tolist() == LABELS.tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tensors_in_half_precision_become_float32(dtype: torch.dtype) -> None:
    x = torch.from_numpy(UNIT).to(dtype)
    batch = dataset_from_arrays(x, LABELS).test.batch(range(4))
    assert torch.equal(batch.x, x.float())


def test_float32_images_are_not_copied() -> None:
    tensor = torch.from_numpy(UNIT.copy())
    for x in (UNIT, tensor):
        assert np.shares_memory(dataset_from_arrays(x, LABELS).test.images, np.asarray(x))
    before = tensor.clone()
    dataset_from_arrays(tensor, LABELS).test.batch(range(4)).x.zero_()
    assert torch.equal(tensor, before), "a batch is a copy"


def test_name_and_threat_model_are_those_given() -> None:
    assert dataset_from_arrays(UNIT, LABELS).threat == ThreatModel.of("linf", "8/255")
    dataset = dataset_from_arrays(UNIT, LABELS, "mine", ThreatModel.of("l2", "0.5"))
    assert (dataset.name, dataset.threat) == ("mine", ThreatModel.of("l2", "0.5"))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (UNIT[0], LABELS, r"^x has shape \(3, 5, 6\)"),
        (torch.from_numpy(UNIT).permute(0, 2, 3, 1), LABELS, r"^x has shape \(4, 5, 6, 3\).*channels"),
        (PIXELS.astype(np.float32), LABELS, "^x ranges from 0 to 255; .* must be uint8"),
        (np.clip(UNIT * 2, 0, np.float32(1.000001)), LABELS, r"^x ranges from 0 to 1\.000001; .* numpy\.clip\(x, 0, 1\)"),
        (UNIT * 2 - 1 - 1e-9, LABELS, "^x ranges from -1"),
        (torch.from_numpy(UNIT) - 0.5, LABELS, "^x ranges from -0.5 to 0.5"),
        (np.where(UNIT < 0.1, np.nan, UNIT), LABELS, "^x holds NaN or infinity"),
        (torch.from_numpy(PIXELS).long(), LABELS, "^x is int64; it must be uint8"),
        (UNIT[:0], LABELS[:0], "^x is empty"),
        (UNIT, LABELS[:3], "^4 images in x, 3 labels in y"),
        (UNIT, torch.eye(4), r"^y is float32 of shape \(4, 4\)"),
        (UNIT, LABELS - 1, "^y holds the label -1"),
        (UNIT, LABELS + 10**6, "^y holds the label 1000002; labels count from 0, to 999999"),
    ],
)
def test_arrays_are_refused_by_name_and_reason(x: Any, y: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataset_from_arrays(x, y)
