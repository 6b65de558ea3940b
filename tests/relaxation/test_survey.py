"""The survey: relaxed operations, and operations that no gradient passes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from defences.hiding import HIDING, N
from defences.spellings import KWTA, LWTA, kwta, slwta
from kwbench.networks.activations import Kwta
from kwbench.relaxation import relaxed, survey
from support.relaxation import FunctionModule, evaluate, gradient, rows, seeded, zoo
from support.small_models import first_images


@pytest.mark.parametrize("way", HIDING)
def test_the_survey_reports_every_relaxed_operation(way: str) -> None:
    report = survey(FunctionModule(HIDING[way]), rows())
    # Reading by a boolean mask gives a shape that depends on the pixels, which no relaxation can follow.
    assert report.unseen == (("the gradient ends at index",) if way == "writes where true" else ())
    assert report.relaxed or way == "data"


@pytest.mark.parametrize("name", ["resnet18-slwta2", "resnet18-kwta0.1", "resnet18-lwta0.2"])
def test_every_gradient_of_the_zoo_is_followed(name: str) -> None:
    module, x = zoo(name), first_images(8).x.contiguous(memory_format=torch.channels_last)
    expected = seeded(evaluate, module, x)
    assert torch.equal(seeded(relaxed, module, x.clone().requires_grad_()), expected)
    report = survey(module, x)
    assert report.unseen == ()
    assert any("layers" in relaxation.where or "blocks" in relaxation.where for relaxation in report.relaxed), report.relaxed


@pytest.mark.parametrize(("family", "way"), [*[("lwta", way) for way in LWTA], *[("kwta", way) for way in KWTA]])
def test_every_spelling_is_followed_except_numpy(family: str, way: str) -> None:
    module, x = (slwta if family == "lwta" else kwta)(way), first_images(4).x
    expected = seeded(evaluate, module, x)
    torch.manual_seed(1)
    np.random.seed(0)
    if way != "numpy":
        assert torch.equal(seeded(relaxed, module, x.clone().requires_grad_()), expected)
    unseen = survey(module, x).unseen
    assert [text for text in unseen if "leave PyTorch" in text] if way == "numpy" else unseen == ()


def test_an_operation_without_a_gradient_is_named_with_its_module() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            counts = torch.stack([torch.histc(row, bins=4, min=-1, max=1) for row in x])
            return x[:, :4] + counts

    module, x = nn.Sequential(nn.Identity(), Inner()), rows()
    assert torch.equal(relaxed(module, x.clone().requires_grad_()), module(x))
    assert survey(module, x).unseen == ("the gradient ends at histc in 1, 8 times",)


@torch.library.custom_op("kwbench_tests::halve", mutates_args=())
def _halve(x: Tensor) -> Tensor:
    return x * 0.5


def test_a_custom_operation_without_a_gradient_is_named() -> None:
    module, x = FunctionModule(lambda x: _halve(x) + 0.1 * x), rows()
    assert torch.equal(relaxed(module, x.clone().requires_grad_()), module(x))
    assert survey(module, x).unseen == ("the gradient ends at kwbench_tests.halve",)
    assert survey(FunctionModule(_halve), x).unseen[-1] == "no gradient at all reaches the pixels"


def test_control_flow_that_depends_on_the_pixels_is_followed_and_reported() -> None:
    module, x = FunctionModule(lambda x: x.sign() if bool(x.sum() > 0) else x * (x > 0)), 0.5 + 0.1 * rows()
    for images in (x, x - 2):
        assert torch.equal(relaxed(module, images.clone().requires_grad_()), module(images))
        assert bool((gradient(module, images) != 0).any())
    assert "which operations run depends on the pixels" in survey(module, x + 1).unseen


def test_ties_do_not_change_which_operations_k_wta_runs() -> None:
    x = torch.linspace(0.1, 0.8, 16).repeat(2, 1).view(2, 1, 4, 4)
    x[0].view(-1)[-2:] = 0.9
    assert survey(nn.Sequential(Kwta("1/16"), nn.Flatten()), x).unseen == ()


EYE = torch.eye(N)
READING: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "a list of labels": ("tolist", lambda z: z + torch.stack([EYE[label] for label in z.argmax(1).tolist()])),
    "an array of labels": ("numpy", lambda z: z + torch.stack([EYE[int(label)] for label in z.argmax(1).numpy()])),
    "a number": ("item", lambda z: z * z.abs().amax().item()),
    "an index": ("item", lambda z: z + torch.stack([EYE[row.argmax()] for row in z])),
    "a condition": ("item", lambda z: torch.stack([row * (2 if row.argmax() < N // 2 else 1) for row in z])),
}


@pytest.mark.parametrize("way", READING)
def test_values_that_python_reads_are_unseen(way: str) -> None:
    how, function = READING[way]
    unseen = survey(FunctionModule(function), rows()).unseen
    assert [text for text in unseen if text.startswith(f"Python reads values that depend on the pixels ({how})")], unseen


def test_a_check_of_the_images_that_always_passes_reads_nothing() -> None:
    def guarded(z: Tensor) -> Tensor:
        if z.isnan().any() or z.abs().max() > 1e6:
            raise ValueError("no image")
        return z + torch.nn.functional.one_hot(z.argmax(1), N)

    assert survey(FunctionModule(guarded), rows()).unseen == ()
