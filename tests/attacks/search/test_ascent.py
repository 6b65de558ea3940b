"""The search of PGD and MIM: samples enter and leave full tiles, and a faster precision never confirms a success."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kwbench.attacks import build_attack, default_parameters, parameters_of
from kwbench.errors import UsageError
from kwbench.model import Model
from kwbench.outcome import Status
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel
from support.modules import Watched
from support.small_models import broken, cnn, first_images, normed_cnn, run, sharp, trained_cnn, wrapped

LINF = ThreatModel.of("linf", "0.12")


@pytest.mark.parametrize("name", ["pgd", "mim"])
def test_a_finished_sample_makes_room_for_the_next(name: str) -> None:
    batch = sharp(first_images(120))
    module = Watched(trained_cnn())
    model = wrapped(module, tile=16)
    attack = build_attack(name, {"steps": 12, "relative_step_size": 0.15})
    with model.metering(len(batch)):
        attack(model, batch.x, batch.y, LINF, SampleRandom(0, name, batch.samples))
        work = sum(model.work()[0])
    assert set(module.sizes) == {16}
    # Tiles are padded only when no sample waits, for at most as many passes as there are steps.
    assert work / 16 <= len(module.sizes) <= work / 16 + 12


@pytest.mark.parametrize("early_exit", [True, False])
@pytest.mark.parametrize("name", ["pgd", "mim"])
def test_proposals_do_not_depend_on_the_samples_in_a_tile(name: str, early_exit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Passes that take no time: every batch size with equal bits is used, whatever else the machine does.
    monkeypatch.setattr(time, "process_time", lambda: 0.0)
    batch = first_images(100)
    attack = build_attack(name, {"steps": 8, "early_exit": early_exit})

    def proposed(rows: list[int], measured: bool) -> Tensor:
        model, part = cnn(tile=16), batch.take(rows)
        if measured:
            model.plan_passes(batch.x[:16])
            assert len(model.batch_sizes(gradients=True)) > 1
        return attack(model, part.x, part.y, LINF, SampleRandom(0, name, part.samples))

    whole = proposed(list(range(100)), measured=False)
    for measured in (False, True):
        backwards = proposed(list(range(100))[::-1], measured)
        assert torch.equal(backwards.flip(0), whole)
        assert torch.equal(proposed([7, 90, 3], measured), whole[[7, 90, 3]])


@pytest.mark.parametrize("kind", ["smooth", "es"])
def test_noise_depends_on_the_step_and_not_on_finished_samples(kind: str) -> None:
    batch = first_images(40)
    gradient = {"kind": kind, "sigma": 0.02, "draws": 2}
    attack = build_attack("pgd", {"steps": 6, "relative_step_size": 0.3, "gradient": gradient})

    def proposed(rows: list[int]) -> Tensor:
        part = batch.take(rows)
        return attack(cnn(tile=16), part.x, part.y, LINF, SampleRandom(0, "pgd", part.samples))

    rows = list(range(40))
    whole = proposed(rows)
    assert torch.equal(proposed(rows[::-1]).flip(0), whole)
    assert torch.equal(proposed(rows[:9]), whole[:9])


def test_all_steps_are_taken_and_no_more() -> None:
    batch = first_images(40)
    model = cnn(tile=16)
    for steps in (1, 5):
        attack = build_attack("pgd", {"steps": steps, "early_exit": False, "random_start": False, "step_size": 0.01})
        z = attack(model, batch.x, batch.y, LINF, SampleRandom(0, "pgd", batch.samples))
        far = (z - batch.x).abs().flatten(1).amax(dim=1)
        torch.testing.assert_close(far, torch.full((40,), 0.01 * steps))


class Misled(nn.Module):
    """Wrong about every image in bfloat16 and, from the second pass on, with folded batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.passes = normed_cnn(), 0

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x).float()
        self.passes += not any(isinstance(layer, nn.BatchNorm2d) for layer in self.network.children())
        return logits.roll(1, dims=1) if torch.is_autocast_enabled("cpu") or self.passes > 1 else logits


def misled() -> Model:
    """Return the model, planned while folding still looked exact."""
    model = wrapped(Misled(), tile=16)
    model.plan_passes(first_images(16).x)
    assert model.effective_precision("folded") == "folded"
    return model


@pytest.mark.parametrize("precision", ["folded", "bfloat16"])
def test_a_search_in_lower_precision_stops_only_at_successes_confirmed_in_float32(precision: str) -> None:
    batch = sharp(first_images(48))
    for restarts in (1, 2):
        parameters = {"steps": 6, "precision": precision, "step_size": 1e-4, "restarts": restarts}
        outcomes = run("pgd", parameters, batch, ThreatModel.of("linf", "0.001"), model=misled())
        assert all(outcome.status is Status.HELD for outcome in outcomes)
        assert all(outcome.backwards == 6 * restarts for outcome in outcomes), "they must be attacked to the end"
        budget = build_attack("pgd", parameters).passes(False)
        assert all(outcome.forwards + outcome.backwards == budget for outcome in outcomes)


@pytest.mark.parametrize("name", ["pgd", "mim"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_search_in_lower_precision_breaks_as_many_samples(name: str, norm: str) -> None:
    batch, model = first_images(200), wrapped(normed_cnn())
    model.plan_passes(batch.x[:64])
    assert model.effective_precision("folded") == "folded"
    threat = ThreatModel.of(norm, {"linf": "0.12", "l2": "0.6"}[norm])
    plain, *quicker = (
        run(name, {"precision": precision}, batch, threat, model=model) for precision in ("float32", "folded", "bfloat16")
    )
    assert all(broken(search).sum() >= broken(plain).sum() for search in quicker)
    assert 0 < broken(plain).sum() < len(broken(plain))


def test_the_precision_of_a_search_is_part_of_an_attacks_identity() -> None:
    for name in ("pgd", "mim", "apgd", "square"):
        assert default_parameters(name)["precision"] == "float32"
        rough: Any = build_attack(name, {"precision": "bfloat16"})
        assert parameters_of(rough)["precision"] == "bfloat16"
    with pytest.raises(UsageError, match="precision"):
        build_attack("pgd", {"precision": "float16"})
