"""torchvision is imported with a torch that its extension was not built for; otherwise nothing is defined."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kwbench import torchvision_schemas
from kwbench.torchvision_schemas import import_torchvision

BENCH = Path(__file__).resolve().parents[1] / "bench"


def fresh(code: str) -> str:
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env={"PYTHONPATH": str(BENCH)}, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_a_fresh_process_imports_torchvision_and_defines_schemas_only_where_the_extension_is_missing() -> None:
    answer = fresh(
        """
import torch
from kwbench.torchvision_schemas import _fragments, import_torchvision
first, second = import_torchvision(), import_torchvision()
assert first is second
import torchvision.extension
first.datasets.MNIST, first.transforms.ToTensor, first.models.resnet18
torch.ops.torchvision.nms
print(torchvision.extension._has_ops(), len(_fragments))
"""
    )
    assert answer.split() in (["True", "0"], ["False", "1"])


def test_an_extension_that_loads_gets_no_second_schemas() -> None:
    """Simulate a machine where the operators exist before torchvision is imported."""
    answer = fresh(
        """
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from kwbench.torchvision_schemas import _fragments, import_torchvision
import_torchvision()
print(len(_fragments))
"""
    )
    assert answer.split() == ["0"]


def test_other_failures_of_torchvision_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "torchvision":
                raise RuntimeError("out of luck")

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    before = len(torchvision_schemas._fragments)
    with pytest.raises(RuntimeError, match="out of luck"):
        import_torchvision()
    assert len(torchvision_schemas._fragments) == before


def test_images_are_transformed_by_the_imported_torchvision() -> None:
    transforms = import_torchvision().transforms
    assert transforms.CenterCrop(2)(torch.zeros(1, 4, 4)).shape == (1, 2, 2)
