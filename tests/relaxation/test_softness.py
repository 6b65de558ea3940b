"""The softness of the relaxation, and what attacks gain by it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defences.hiding import HIDING
from kwbench.gradients import EXACT, Relaxed
from kwbench.randomness import SampleRandom
from kwbench.relaxation import relaxed
from support.relaxation import FunctionModule, gradient, rows
from support.small_models import first_images, trained_cnn, wrapped


def test_more_softness_makes_gradients_flatter() -> None:
    def steepest(softness: float) -> float:
        return (
            gradient(FunctionModule(HIDING["sign"]), rows(), lambda module, x: relaxed(module, x, softness)).abs().max().item()
        )

    assert steepest(0.1) > steepest(1.0) > steepest(10.0) > 0


def test_automatic_softness_depends_on_whether_the_model_is_random() -> None:
    batch = first_images(4)
    rng = SampleRandom(0, "test", ("a", "b", "c", "d"))
    for module, softness in (
        (nn.Sequential(FunctionModule(torch.sign), trained_cnn()), 0.3),
        (nn.Sequential(FunctionModule(lambda x: (x + 0.1 * torch.randn_like(x)).sign()), trained_cnn()), 1.0),
    ):
        model = wrapped(module)
        model.measure_randomness(batch.x)
        estimates = []
        for estimator in (Relaxed(), Relaxed(softness=softness)):
            model.reseed("again")
            estimates.append(estimator(model, batch.x, lambda logits: logits.amax(dim=1)[None], rng).gradients)
        assert torch.equal(*estimates)
    assert Relaxed().softness == "auto"
    with pytest.raises(ValueError, match="must be positive"):
        Relaxed(softness=0)


def test_relaxed_gradients_break_what_exact_ones_cannot() -> None:
    batch = first_images(32)
    model = wrapped(nn.Sequential(FunctionModule(lambda x: (x * 4).round() / 4), trained_cnn()))
    rng = SampleRandom(0, "test", tuple(map(str, range(32))))

    def margin(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, batch.y, reduction="none")[None]

    exact, soft = (kind(model, batch.x, margin, rng) for kind in (EXACT, Relaxed()))
    assert torch.equal(exact.logits, soft.logits)
    assert bool((exact.gradients == 0).all())
    moved = (batch.x + 0.2 * soft.gradients[0].sign()).clamp(0, 1)
    assert (model.predict(moved)[0] == batch.y).float().mean() < (model.predict(batch.x)[0] == batch.y).float().mean() - 0.4
