"""Values that leave PyTorch: a second pass guesses their gradients."""

import numpy as np
import torch
from torch import nn

from defences.hiding import HIDING, through_numpy
from kwbench.gradients import Relaxed
from kwbench.randomness import SampleRandom
from kwbench.relaxation import relaxed, relaxed_pass, survey
from support.relaxation import FunctionModule, gradient, rows
from support.small_models import first_images, wrapped


def test_a_detour_through_numpy_is_guessed_in_a_second_pass() -> None:
    module, x = FunctionModule(through_numpy), rows()
    answer, passes = relaxed_pass(module, x.clone().requires_grad_())
    assert torch.equal(answer, module(x))
    assert passes == 2
    guessed = gradient(module, x)
    assert bool((guessed != 0).any(dim=1).all())
    assert any("leave PyTorch" in text for text in survey(module, x).unseen)
    assert relaxed_pass(FunctionModule(HIDING["sign"]), x.clone().requires_grad_())[1] == 1


def test_a_second_pass_has_the_same_randomness() -> None:
    module = FunctionModule(lambda x: through_numpy(x + torch.randn_like(x)) + float(np.random.rand()))
    x = rows()
    torch.manual_seed(1)
    np.random.seed(1)
    expected = module(x)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(relaxed(module, x.clone().requires_grad_()), expected)


def test_the_second_pass_is_counted() -> None:
    def forwards(module: nn.Module) -> int:
        model = wrapped(module)
        x = first_images(4).x
        with model.metering(4):
            Relaxed()(model, x, lambda logits: logits.amax(dim=1)[None], SampleRandom(0, "test", ("a", "b", "c", "d")))
        return model.work()[0][0]

    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert forwards(linear) == 1
    assert forwards(nn.Sequential(FunctionModule(lambda x: through_numpy(x.flatten(1))), nn.Linear(64, 10))) == 2
