"""Training images: adversaries within the ball, mixtures, and fast and free training."""

import pytest
import torch
from torch import Tensor, nn

from kwbench.config.recipe import Fast, Mixture, Trades, TrainingAttack
from kwbench.data import DataSet
from kwbench.networks.entries import build_module
from kwbench.training import Epoch, train
from kwbench.training.adversaries import kl_divergence, mixture_examples, pgd_examples, trades_examples
from support.training import entry, quiet


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_adversarial_training_images_stay_in_the_ball_and_the_pixel_range(few: DataSet, epoch: int) -> None:
    attack = TrainingAttack.model_validate({"eps": "0.2", "steps": 5, "step_size": "0.15", "warmup_epochs": 3})
    module = build_module(entry(), (1, 8, 8), 10)
    batch = few.train.batch(range(64))
    torch.manual_seed(0)
    z = pgd_examples(module, batch.x, batch.y, attack, epoch)
    radius = 0.2 * min(1, (epoch + 1) / 4)
    distances = (z.double() - batch.x.double()).flatten(1).abs().amax(dim=1)
    assert distances.max() <= radius + 1e-6
    assert distances.max() >= 0.9 * radius
    assert z.min() >= 0
    assert z.max() <= 1
    assert not z.requires_grad
    loss = nn.functional.cross_entropy
    assert loss(module(z), batch.y) > loss(module(batch.x), batch.y)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_steps_of_the_adversary_warm_up_with_its_radius(few: DataSet) -> None:
    attack = TrainingAttack.model_validate({"eps": "0.2", "steps": 1, "step_size": "0.02", "warmup_epochs": 3})
    batch = few.train.batch(range(64))
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    torch.manual_seed(0)
    start = (batch.x + torch.empty_like(batch.x).uniform_(-0.05, 0.05)).clamp(0, 1)
    torch.manual_seed(0)
    z = pgd_examples(linear, batch.x, batch.y, attack, 0)
    assert (z - start).abs().max().item() == pytest.approx(0.005, abs=1e-6)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize("number", range(8))
def test_each_attack_of_the_mixture_follows_the_paper_and_stays_in_the_pixel_range(few: DataSet, number: int) -> None:
    attacks = ["noise", "fgsm", "pgd", "cw"]
    mixture = Mixture.model_validate({"eps": "0.3", "steps": 3, "step_size": "0.01", "attacks": attacks})
    batch = few.train.batch(range(64))
    module = linear()
    z = mixture_examples(module, batch.x, batch.y, mixture, number, 0)
    moved = (z - batch.x).abs().flatten(1).amax(dim=1)
    assert z.min() >= 0
    assert z.max() <= 1
    assert not z.requires_grad
    if number > 3:
        assert torch.equal(z, batch.x)
    else:
        assert bool((moved > 0).all())
    if number == 1:
        assert moved.min().item() == pytest.approx(0.3)
    if number == 2:  # three steps of 0.01 from a random start
        assert moved.max() <= 0.3 + 1e-6
    if number == 3:  # three steps of Adam at a tiny constant hardly move
        assert moved.max() < 0.05
    without = Mixture.model_validate(
        {"eps": "0.3", "steps": 3, "step_size": "0.01", "attacks": [name for name in attacks if name != attacks[number % 4]]}
    )
    if number < 4:
        assert torch.equal(mixture_examples(module, batch.x, batch.y, without, number, 0), batch.x)


def test_trades_examples_maximise_the_divergence_within_the_ball(few: DataSet) -> None:
    trades = Trades.model_validate({"eps": "0.2", "steps": 5, "step_size": "0.1"})
    assert trades.beta == 6
    batch, module = few.train.batch(range(64)), linear()
    with torch.no_grad():
        natural = module(batch.x).log_softmax(dim=1)
    z = trades_examples(module, batch.x, natural, trades, 0)
    assert (z - batch.x).abs().max() <= 0.2 + 1e-6
    with torch.no_grad():
        adversarial_divergence, clean_divergence = kl_divergence(module(z), natural), kl_divergence(module(batch.x), natural)
    assert clean_divergence.item() == pytest.approx(0, abs=1e-6)
    assert adversarial_divergence > 0.01


def test_fast_training_takes_one_step_of_1_25_eps_and_projects_it_onto_the_ball(few: DataSet) -> None:
    batch, module = few.train.batch(range(64)), linear()
    calls: list[int] = []

    def answer(x: Tensor) -> Tensor:
        calls.append(len(x))
        logits: Tensor = module(x)
        return logits

    z = pgd_examples(answer, batch.x, batch.y, Fast.model_validate({"eps": "0.2"}), 0)
    assert len(calls) == 1
    assert (z - batch.x).abs().max().item() == pytest.approx(0.2, abs=1e-6)


def test_free_training_replays_each_batch_and_counts_every_replay(few: DataSet) -> None:
    epochs: list[Epoch] = []
    steps: list[float] = []
    plain = torch.optim.SGD.step

    def counted(self: torch.optim.SGD) -> None:
        steps.append(self.param_groups[0]["lr"])
        plain(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", counted)
        train(entry(free={"eps": 0.1, "replays": 3}, epochs=1), few, epochs.append)
    assert len(steps) == 3 * 7  # 200 images in batches of 32
    assert epochs[-1].done == 1


@pytest.mark.parametrize(("said", "expected"), [({}, 0.1), ({"step_size": "0.02"}, 0.02)])
def test_the_step_size_of_free_training_is_eps_unless_the_recipe_sets_it(
    said: dict[str, str], expected: float, few: DataSet
) -> None:
    inputs_seen: list[Tensor] = []

    def record_input(module: nn.Module, inputs: tuple[Tensor]) -> None:
        if isinstance(module, nn.Conv2d) and module.in_channels == 1 and len(inputs[0]) > 1:
            inputs_seen.append(inputs[0].detach().clone())

    handle = nn.modules.module.register_module_forward_pre_hook(record_input)
    try:
        train(entry(free={"eps": 0.1, "replays": 2, **said}, epochs=1, shift=0), few, quiet)
    finally:
        handle.remove()
    assert (inputs_seen[1] - inputs_seen[0]).abs().max().item() == pytest.approx(expected, abs=1e-6)
