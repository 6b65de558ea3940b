"""Search in bfloat16: rounding, and the modules that tolerate it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.model import require_exact_float32
from support.modules import input_gradient
from support.small_models import first_images, normed_cnn, trained_cnn, wrapped


def test_a_search_in_bfloat16_rounds_and_ends_with_its_block() -> None:
    class Image(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, torch.ones(10, 2, 8, 8)).flatten(1)

    class Vector(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x.view(len(x), -1), torch.ones(10, 128))  # fails with channels last

    x = torch.rand((6, 2, 8, 8), generator=torch.Generator().manual_seed(0))
    for module in (Image(), Vector()):
        model = wrapped(module, tile=8, shape=(2, 8, 8))
        model.plan_passes(x)
        exact = model(x)
        with model.computing_in("bfloat16"):
            rough, gradient = model(x), input_gradient(model, x)
            assert torch.equal(model(x[2:3]), rough[2:3])
        assert rough.dtype == gradient.dtype == torch.float32
        assert not torch.equal(rough, exact)
        torch.testing.assert_close(rough, exact, rtol=0.02, atol=0)
        assert torch.equal(model(x), exact)


class Refusing(nn.Module):
    """Works in float32 only."""

    def __init__(self) -> None:
        super().__init__()
        self.network = trained_cnn()

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise TypeError("float32, please")
        logits: Tensor = self.network(x)
        return logits


class Astray(Refusing):
    """Predicts other classes in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x).float()
        return logits.roll(1, dims=1) if torch.is_autocast_enabled("cpu") else logits


@pytest.mark.parametrize(
    ("module", "has", "tolerates"),
    [(trained_cnn, True, True), (trained_cnn, False, False), (Refusing, True, False), (Astray, True, False)],
)
def test_bfloat16_is_tolerated_only_if_device_and_module_allow_it(
    module: Callable[[], nn.Module], has: bool, tolerates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kwbench.model.search_precision.has_bfloat16", lambda device: has)
    model = wrapped(module(), tile=16)
    assert model.tolerates("bfloat16", first_images(40).x) is tolerates
    model.stochastic = True
    assert not model.tolerates("bfloat16", first_images(40).x)


def test_tf32_is_allowed_in_the_blocks_of_a_search_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kwbench.model.search_precision.has_tf32", lambda device: True)
    seen: list[tuple[bool, bool]] = []

    def switches() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(switches())
            return x.flatten(1)[:, :10]

    before = switches()
    model, x = wrapped(Watching(), tile=4), first_images(4).x
    require_exact_float32()
    try:
        model(x)
        with model.computing_in("tf32"):
            model(x)
            with model.computing_in("float32"):
                model(x)
            with model.computing_in("tf32"):
                model(x)
        with pytest.raises(ValueError, match="in a search"), model.computing_in("tf32"):
            raise ValueError("in a search")
        model(x)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    assert seen == [(False, False), (True, True), (False, False), (True, True), (False, False)]


def test_tf32_is_chosen_on_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    images = first_images(16).x
    model = wrapped(normed_cnn(), tile=16)
    model.plan_passes(images)
    assert not model.tolerates("tf32", images)
    assert model.effective_precision("tf32") == "folded"
    with model.computing_in("folded"), torch.no_grad():
        folded = model(images)
    with model.computing_in("tf32"), torch.no_grad():
        assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.equal(model(images), folded)
    monkeypatch.setattr("kwbench.model.search_precision.has_tf32", lambda device: True)
    assert model.tolerates("tf32", images)
    assert model.effective_precision("tf32") == "tf32"
