"""Networks without hard operations keep their exact gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from kwbench.relaxation import survey
from support.relaxation import FunctionModule, exact, gradient, zoo
from support.small_models import first_images, trained_cnn


def transformer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unfold(2, stride=2),
        FunctionModule(lambda x: x.transpose(1, 2)),
        nn.Linear(4, 16),
        nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True, norm_first=True),
        nn.LayerNorm(16),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def softplus() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Softplus(), nn.Linear(32, 10))


def mobile() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8)]
    return nn.Sequential(*layers, nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))


def clamping() -> nn.Module:
    torch.manual_seed(0)
    rectify = FunctionModule(lambda x: x.clamp(min=0))
    return nn.Sequential(nn.Conv2d(1, 8, 3), rectify, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10))


SOUND: dict[str, Callable[[], nn.Module]] = {
    "resnet18-relu": lambda: zoo("resnet18-relu"),
    "vgg11": lambda: zoo("vgg11"),
    "small": trained_cnn,
    "transformer": transformer,
    "softplus": softplus,
    "mobile": mobile,
    "clamping": clamping,
}


@pytest.mark.parametrize("name", SOUND)
def test_the_gradient_of_a_sound_network_is_the_exact_one(name: str) -> None:
    module, x = SOUND[name]().eval().requires_grad_(False), first_images(16).x
    torch.testing.assert_close(gradient(module, x), gradient(module, x, exact), rtol=1e-4, atol=1e-6)
    report = survey(module, x)
    assert (report.relaxed, report.unseen) == ((), ())
