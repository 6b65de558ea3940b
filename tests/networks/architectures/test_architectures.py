"""The networks: their published sizes and shapes, and that they contain the chosen activation only."""

from typing import Any

import pytest
import torch
from torch import nn

from kwbench.errors import UsageError
from kwbench.networks.activations import ACTIVATIONS, Kwta, Lwta, StochasticLwta, activation_factory, stochastic_divergence
from kwbench.networks.architectures import ARCHITECTURES, GatedConv2d, Normalised, Smoothed, build_network
from kwbench.networks.architectures.imagenet import scaled_up
from kwbench.networks.architectures.noise import NoiseInjection
from kwbench.networks.architectures.wide_resnet import PreActivationBlock
from kwbench.torchvision_schemas import import_torchvision

RELU = activation_factory("relu", {})
SMALL: dict[str, dict[str, Any]] = {
    "resnet18": {"width": 4},
    "wide_resnet": {"depth": 10, "widen": 1},
    "wide_resnet_ibp": {"depth": 10, "widen": 1},
    "resnet18_imagenet": {"width": 4, "pixels": 64},
    "densenet121": {"growth": 2},
    "alexnet": {"width": 4, "hidden": 16, "pixels": 64},
    "vgg11": {"width": 4},
    "vgg13": {"width": 4},
    "vgg16": {"width": 4},
    "vgg19": {"width": 4},
    "cnn3": {"width": 4, "hidden": 8},
    "lenet": {},
    "lenet_pni": {},
}
# Activations that each network has: one after every norm or hidden layer.
ACTIVATION_COUNTS = {
    "resnet18": 17,
    "resnet18_imagenet": 17,
    "wide_resnet": 7,
    "wide_resnet_ibp": 7,
    "densenet121": 2 * 58 + 3 + 1,
    "vgg11": 8,
    "vgg13": 10,
    "vgg16": 13,
    "vgg19": 16,
    "alexnet": 7,
    "cnn3": 3,
    "lenet": 4,
    "lenet_pni": 4,
}
# The papers run it on 32 x 32 pixels only; its unpadded convolutions need 16.
UNPADDED = {"lenet", "lenet_pni"}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture
def _no_memory() -> Any:
    """Build on the meta device: shapes without memory for weights."""
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
        ("densenet121", {}, 3, 10, 6_956_298),
        # torchvision's, minus 990 classes
        ("alexnet", {}, 3, 10, 61_100_840 - 990 * 4097),
        ("alexnet", {}, 3, 1000, 61_100_840),
        ("resnet18_imagenet", {}, 3, 1000, 11_689_512),
        ("lenet", {}, 3, 10, 62_006),
        ("lenet_pni", {}, 3, 10, 62_006 + 3),
    ],
)
def test_networks_have_their_published_number_of_parameters(
    name: str, sizes: dict[str, int], channels: int, classes: int, count: int
) -> None:
    assert parameters(build_network(name, sizes, RELU, channels, classes)) == count


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_networks_turn_images_of_every_usual_size_into_logits(name: str, shape: tuple[int, int, int]) -> None:
    if name in UNPADDED and shape[1] < 16:
        pytest.skip("too small for it")
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
    layers = [module for module in network.modules() if isinstance(module, kinds)]
    assert {type(module) for module in layers} == {ACTIVATIONS[activation]}
    assert len(layers) == ACTIVATION_COUNTS[name]
    # Each activation is used once a pass, and no function applies a ReLU.
    used: list[nn.Module] = []
    for module in layers:
        module.register_forward_hook(lambda module, *_: used.append(module))
    for stray in ("relu", "relu_"):
        monkeypatch.setattr(torch, stray, None)
        monkeypatch.setattr(torch.Tensor, stray, None)
        monkeypatch.setattr(nn.functional, stray, None)
    with torch.no_grad():
        network(torch.rand(2, 1, 32, 32))
    assert sorted(map(id, used)) == sorted(map(id, layers))


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


@pytest.mark.parametrize(("depth", "widen"), [(22, 10), (22, 12), (34, 1), (34, 5), (34, 10)])
@pytest.mark.usefixtures("_no_memory")
def test_the_papers_wide_networks_are_as_deep_and_as_wide_as_their_names_say(depth: int, widen: int) -> None:
    network = build_network("wide_resnet", {"depth": depth, "widen": widen}, RELU, 3, 10)
    blocks = [module for module in network.modules() if isinstance(module, PreActivationBlock)]
    assert 2 * len(blocks) + 4 == depth
    assert blocks[-1].conv2.out_channels == 64 * widen


@pytest.mark.parametrize("name", ["alexnet", "resnet18_imagenet"])
@pytest.mark.usefixtures("_no_memory")
def test_networks_for_imagenet_weights_have_torchvisions_keys_and_shapes(name: str) -> None:
    models = import_torchvision().models
    published = {"alexnet": models.alexnet, "resnet18_imagenet": models.resnet18}[name]().state_dict()
    state = build_network(name, {}, RELU, 3, 1000).state_dict()
    assert {key: tensor.shape for key, tensor in state.items()} == {key: tensor.shape for key, tensor in published.items()}


@pytest.mark.parametrize("name", ["alexnet", "resnet18_imagenet"])
def test_networks_with_torchvisions_weights_give_torchvisions_logits(name: str) -> None:
    models = import_torchvision().models
    torch.manual_seed(0)
    published = {"alexnet": models.alexnet, "resnet18_imagenet": models.resnet18}[name](num_classes=10).eval()
    network = build_network(name, {}, RELU, 3, 10).eval()
    network.load_state_dict(published.state_dict())
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(network(x), published(scaled_up(x, 224)), atol=1e-4)
    assert scaled_up(x, 224).shape == (2, 3, 224, 224)


def test_injected_noise_is_a_share_of_each_samples_own_deviation_and_can_be_learned() -> None:
    layer = NoiseInjection().eval()
    x = torch.cat([torch.zeros(1, 4000), 3 * torch.randn(1, 4000)])
    with torch.no_grad():
        noise = layer(x) - x
        torch.manual_seed(1)
        together = layer(x)
    assert bool((noise[0] == 0).all())
    assert noise[1].std().item() == pytest.approx(0.25 * x[1].std().item(), rel=0.1)
    layer(x).square().sum().backward()
    assert layer.alpha.grad is not None
    torch.manual_seed(1)
    assert torch.equal(layer(torch.cat([x[:1] + 5, x[1:]]))[1], together[1]), "a sample's noise depends on its company"


def test_noise_is_added_after_each_pooling_and_after_flattening() -> None:
    network = build_network("lenet_pni", {}, RELU, 3, 10).eval()
    shapes: list[tuple[int, ...]] = []
    for module in network.modules():
        if isinstance(module, NoiseInjection):
            module.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    with torch.no_grad():
        network(torch.rand(1, 3, 32, 32))
    assert shapes == [(1, 6, 14, 14), (1, 16, 5, 5), (1, 400)]


def test_a_smoothed_network_adds_noise_to_its_images_in_every_pass() -> None:
    smoothed = Smoothed(nn.Identity(), 0.5).eval()
    x = torch.full((1, 3, 40, 40), 0.5)
    first, second = smoothed(x), smoothed(x)
    assert not torch.equal(first, second)
    assert (first - x).std().item() == pytest.approx(0.5, rel=0.1)
    assert not smoothed.state_dict()


class TestConnectionsUnderTheIndianBuffetProcess:
    def test_kernels_pass_two_by_two_drawn_for_every_sample(self) -> None:
        torch.manual_seed(0)
        layer = GatedConv2d(3, 7, 3, 1, 1, bias=False).eval()
        with torch.no_grad():
            layer.utility.zero_()
            out = layer(torch.rand(200, 3, 4, 4))
        passed = (out != 0).flatten(2).any(dim=2).float()
        assert torch.equal(passed[:, 0:6:2], passed[:, 1:6:2])
        assert passed.mean().item() == pytest.approx(0.5, abs=0.1)
        plain = nn.functional.conv2d(x := torch.rand(5, 3, 4, 4), layer.weight, padding=1)
        with torch.no_grad():
            layer.utility.fill_(50.0)
            assert torch.allclose(layer(x), plain, atol=1e-6)
            layer.utility.fill_(-50.0)
            assert not layer(x).any()

    def test_the_divergence_is_that_of_the_bernoulli_gates_and_of_the_kumaraswamy_sticks(self) -> None:
        """Compare with 200,000 draws from the densities."""
        torch.manual_seed(0)
        layer = GatedConv2d(3, 2, 3)  # one gate, one stick
        with torch.no_grad():
            layer.utility.fill_(0.4)
            layer.stick.copy_(torch.tensor([[1.5], [0.7]]))
        with torch.no_grad():
            mean = sum(float(layer._divergence()) for _ in range(4000)) / 4000
        a, b = nn.functional.softplus(torch.tensor([1.5, 0.7], dtype=torch.float64))
        u = (1 - (1 - torch.rand(200_000, dtype=torch.float64)).pow(1 / b)).pow(1 / a).clamp(1e-6, 1 - 1e-6)
        sticks = ((a * b).log() + (a - 1) * u.log() + (b - 1) * (1 - u**a).log()).mean()  # the prior's density is 1
        q = torch.sigmoid(torch.tensor(0.4, dtype=torch.float64))
        gates = (q * (q.log() - u.log()) + (1 - q) * ((1 - q).log() - (1 - u).log())).mean()
        assert mean == pytest.approx(float(sticks + gates), abs=0.06)

    def test_the_divergence_of_gates_and_sticks_is_part_of_the_elbo_and_stays_finite(self) -> None:
        network = build_network("wide_resnet_ibp", {"depth": 10, "widen": 4}, activation_factory("stochastic_lwta", {}), 3, 10)
        network(torch.rand(2, 3, 8, 8)).sum().backward(retain_graph=True)
        layers = [module for module in network.modules() if isinstance(module, GatedConv2d)]
        assert len(layers) == 6
        total = stochastic_divergence(network)
        competing = sum(layer.kl.detach() for layer in network.modules() if isinstance(layer, StochasticLwta))
        of_gates = sum(layer.kl.detach() for layer in layers)
        assert total.item() == pytest.approx(float(competing + of_gates), rel=1e-5)
        total.backward()
        for layer in layers:
            assert layer.utility.grad is not None
            assert layer.stick.grad is not None
            assert bool(layer.utility.grad.isfinite().all() and layer.stick.grad.isfinite().all())
            assert bool(layer.stick.grad.any())


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


def test_normalisation_is_applied_inside_the_network_channel_by_channel() -> None:
    normalised = Normalised(nn.Flatten(), [0.5, 0.0], [0.25, 2.0])
    x = torch.tensor([[[[0.75]], [[1.0]]]])
    assert normalised(x).tolist() == [[1.0, 0.5]]
    assert not normalised.state_dict(), "mean and deviation belong to the registry entry, not to the checkpoint"
