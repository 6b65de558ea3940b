"""Which networks run known code only, and so repeat their answers if they draw nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from kwbench.config.suite import suite_of
from kwbench.evaluation.execution.evaluator import LocalEvaluator
from kwbench.evaluation.preparation.prepare import _probes
from kwbench.evaluation.request import Request
from kwbench.model import Model
from kwbench.model.known_code import is_known_code
from kwbench.networks.activations import Kwta, StochasticLwta
from kwbench.threat import ThreatModel
from support.small_models import first_images, trained_cnn


def network(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), *more, nn.Flatten(), nn.Linear(4 * 36, 10)).eval()


class Mine(nn.ReLU):
    """A layer of somebody else, whatever it is derived from."""


class Odd(nn.Parameter):
    """A parameter that may compute as it likes."""


def with_hook(module: nn.Module) -> None:
    module.register_forward_hook(lambda *_: None)


def with_earlier_hook(module: nn.Module) -> None:
    module.register_forward_pre_hook(lambda *_: None)


def with_other_forward(module: nn.Module) -> None:
    module.forward = lambda x: x


def with_other_function(module: nn.Module) -> None:
    vars(module)["_conv_forward"] = lambda x, weight, bias: x


def with_parametrization(module: nn.Module) -> None:
    parametrizations.weight_norm(module)


def with_special_tensor(module: nn.Module) -> None:
    assert isinstance(module.weight, nn.Parameter)
    module.weight = Odd(module.weight.detach())


def test_layers_of_torch_and_activations_of_kwbench_are_known() -> None:
    assert is_known_code(network(nn.ReLU(), nn.Dropout()))
    assert is_known_code(network(Kwta(0.2)))
    assert is_known_code(trained_cnn())


@pytest.mark.parametrize(("name", "random"), [("resnet18-relu", False), ("resnet18-kwta0.1", False), ("resnet18-slwta2", True)])
def test_networks_of_the_registry_are_known_and_random_only_if_they_draw(name: str, random: bool) -> None:
    model = LocalEvaluator(Request(name, suite_of(("noop",)), n=4)).model
    assert model.is_known
    assert model.stochastic == random


@pytest.mark.parametrize(("layer", "images"), [(nn.ReLU(), 1), (StochasticLwta(2), 3), (Mine(), 3)])
def test_what_may_be_random_where_attacks_end_is_probed_there(layer: nn.Module, images: int) -> None:
    model = Model(network(layer), name="net", classes=10, shape=(1, 8, 8), tile=4)
    assert len(_probes(model, first_images(3), ThreatModel.of("linf", "0.1"))) == images


@pytest.mark.parametrize(
    "change", [with_hook, with_earlier_hook, with_other_forward, with_other_function, with_parametrization, with_special_tensor]
)
def test_a_layer_that_has_been_changed_is_not_known(change: Callable[[nn.Module], None]) -> None:
    module = network()
    change(module[0])
    assert not is_known_code(module)


def test_layers_of_somebody_else_are_not_known() -> None:
    assert not is_known_code(network(Mine()))
    assert not is_known_code(torch.export.export(network(), (torch.rand(1, 1, 8, 8),)).module())


def test_a_hook_of_all_modules_leaves_none_known() -> None:
    module = network()
    hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not is_known_code(module)
    finally:
        hook.remove()
    assert is_known_code(module)


@pytest.mark.parametrize(
    ("layer", "repeats"),
    [(nn.ReLU(), True), (Mine(), False), (StochasticLwta(2), False), (nn.FractionalMaxPool2d(1, output_size=6), False)],
)
def test_an_answer_is_certain_to_repeat_if_known_code_has_drawn_nothing(layer: nn.Module, repeats: bool) -> None:
    model = Model(network(layer), name="net", classes=10, shape=(1, 8, 8), tile=4)
    x: Tensor = torch.rand(3, 1, 8, 8)
    logits, certain = model.answer(x)
    assert certain == repeats
    assert model.draws_nothing(x) == repeats
    assert torch.equal(logits, model(x)) or not repeats
    assert not logits.requires_grad
