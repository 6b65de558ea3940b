"""The networks: their published sizes, their shapes, and that nothing but the chosen activation is in them."""

from typing import Any

import pytest
import torch
from torch import nn

from kwbench.activations import ACTIVATIONS, Kwta, Lwta, StochasticLwta, activation_factory
from kwbench.architectures import ARCHITECTURES, Normalised, build_network
from kwbench.architectures.wide_resnet import PreActivationBlock
from kwbench.errors import UsageError

RELU = activation_factory("relu", {})
SMALL: dict[str, dict[str, Any]] = {
    "resnet18": {"width": 4},
    "wide_resnet": {"depth": 10, "widen": 1},
    "vgg11": {"width": 4},
    "vgg13": {"width": 4},
    "vgg16": {"width": 4},
    "vgg19": {"width": 4},
    "cnn3": {"width": 4, "hidden": 8},
}
# Activations that each network has: one after every norm or hidden layer.
ACTIVATION_COUNTS = {"resnet18": 17, "wide_resnet": 7, "vgg11": 8, "vgg13": 10, "vgg16": 13, "vgg19": 16, "cnn3": 3}


def parameters(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


@pytest.fixture
def _no_memory() -> Any:
    """Builds on the meta device: sizes without weights."""
    with torch.device("meta"):
        yield


@pytest.mark.usefixtures("_no_memory")
@pytest.mark.parametrize(
    ("name", "sizes", "channels", "classes", "count"),
    [
        ("resnet18", {}, 3, 10, 11_173_962),
        ("resnet18", {"width": 64}, 3, 100, 11_220_132),
        ("wide_resnet", {"depth": 28, "widen": 10}, 3, 10, 36_479_194),
        ("wide_resnet", {"depth": 34, "widen": 10}, 3, 10, 46_160_474),
        ("wide_resnet", {"depth": 16, "widen": 8}, 3, 10, 10_961_370),
    ],
)
def test_networks_have_their_published_number_of_parameters(
    name: str, sizes: dict[str, int], channels: int, classes: int, count: int
) -> None:
    assert parameters(build_network(name, sizes, RELU, channels, classes)) == count


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_networks_turn_images_of_every_usual_size_into_logits(name: str, shape: tuple[int, int, int]) -> None:
    network = build_network(name, SMALL[name], RELU, shape[0], 7).eval()
    with torch.no_grad():
        logits = network(torch.rand(3, *shape))
    assert logits.shape == (3, 7)
    assert bool(logits.isfinite().all())


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    ("activation", "options"), [("kwta", {"gamma": 0.1}), ("lwta", {"gamma": 0.2}), ("stochastic_lwta", {}), ("softplus", {})]
)
def test_every_activation_of_a_network_is_of_the_chosen_kind(
    name: str, activation: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build_network(name, SMALL[name], activation_factory(activation, options), 1, 10).eval()
    kinds = (nn.ReLU, nn.Softplus, Kwta, Lwta, StochasticLwta)
    found = [module for module in network.modules() if isinstance(module, kinds)]
    assert {type(module) for module in found} == {ACTIVATIONS[activation]}
    assert len(found) == ACTIVATION_COUNTS[name]
    # Each is used, once a pass, and no ReLU hides in a function.
    used: list[nn.Module] = []
    for module in found:
        module.register_forward_hook(lambda module, *_: used.append(module))
    for stray in ("relu", "relu_"):
        monkeypatch.setattr(torch, stray, None)
        monkeypatch.setattr(torch.Tensor, stray, None)
        monkeypatch.setattr(nn.functional, stray, None)
    with torch.no_grad():
        network(torch.rand(2, 1, 8, 8))
    assert sorted(map(id, used)) == sorted(map(id, found))


def test_kwta_layers_leave_the_chosen_share_of_every_activation() -> None:
    network = build_network("resnet18", {"width": 8}, activation_factory("kwta", {"gamma": 0.1}), 1, 10).eval()
    shares: list[tuple[int, int]] = []
    for module in network.modules():
        if isinstance(module, Kwta):
            module.register_forward_hook(lambda _, __, out: shares.append((int((out[0] != 0).sum()), out[0].numel())))
    with torch.no_grad():
        network(torch.rand(1, 1, 8, 8))
    assert len(shares) == 17
    assert all(survivors == max(1, n // 10) for survivors, n in shares)


@pytest.mark.parametrize("depth", [4, 12, 27, 35])
def test_wide_resnet_refuses_other_depths(depth: int) -> None:
    with pytest.raises(UsageError, match=f"depth: {depth} is not 6 n"):
        build_network("wide_resnet", {"depth": depth}, RELU, 3, 10)


def test_a_wide_block_adds_its_input_where_shapes_agree_and_otherwise_a_convolution_of_the_activated_input() -> None:
    x = torch.randn(2, 4, 6, 6)
    for outputs, stride in ((4, 1), (8, 1), (4, 2)):
        block = PreActivationBlock(4, outputs, stride, RELU).eval()
        nn.init.zeros_(block.conv2.weight)
        expected = x if block.shortcut is None else block.shortcut(block.bn1(x).clamp(min=0))
        assert (block.shortcut is None) == ((outputs, stride) == (4, 1))
        assert torch.allclose(block(x), expected)


def test_vgg_refuses_other_depths() -> None:
    with pytest.raises(UsageError, match="depth: 12 is none of 11, 13, 16, 19"):
        build_network("vgg11", {"depth": 12}, RELU, 3, 10)


@pytest.mark.parametrize("value", [0, -1, 2.5, "8", True, None])
@pytest.mark.parametrize(("name", "parameter"), [("resnet18", "width"), ("wide_resnet", "widen"), ("cnn3", "hidden")])
def test_sizes_must_be_positive_whole_numbers(name: str, parameter: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{parameter}: {value!r} is not a positive whole number"):
        build_network(name, {parameter: value}, RELU, 3, 10)


def test_unknown_networks_and_parameters_come_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="'resnet81' is unknown; did you mean 'resnet18'"):
        build_network("resnet81", {}, RELU, 3, 10)
    with pytest.raises(UsageError, match="no parameter 'widht'; did you mean 'width'"):
        build_network("resnet18", {"widht": 8}, RELU, 3, 10)
    with pytest.raises(UsageError, match="no parameter 'classes'"):
        build_network("resnet18", {"classes": 8}, RELU, 3, 10)


def test_normalisation_stands_inside_the_network_channel_by_channel() -> None:
    normalised = Normalised(nn.Flatten(), [0.5, 0.0], [0.25, 2.0])
    x = torch.tensor([[[[0.75]], [[1.0]]]])
    assert normalised(x).tolist() == [[1.0, 0.5]]
    assert not normalised.state_dict(), "mean and deviation belong to the registry entry, not to the checkpoint"
