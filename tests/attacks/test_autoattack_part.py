"""Single parts of AutoAttack agree with the package, and their proposals give its count."""

import logging
from typing import Any

import numpy as np
import pyautoattack
import pytest
import torch

from kwbench.attacks import build_attack
from kwbench.attacks.model_module import ModelModule
from kwbench.errors import CannotEvaluate
from kwbench.judge import judge, judge_clean
from kwbench.model import Model
from kwbench.randomness import SampleRandom, seeded_globally
from kwbench.record.single_draw_protocol import single_draw_accuracy
from kwbench.threat import ThreatModel
from support.small_models import Linear, Noisy, cnn, first_images, sharp, trained_cnn, wrapped

LINF = ThreatModel.of("linf", "0.1")


class Short(pyautoattack.AutoAttack):  # type: ignore[misc]
    """The package with a tenth of its steps."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 10
        self.square.n_queries = 300
        self.logger.disabled = True


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyautoattack, "AutoAttack", Short)
    monkeypatch.setattr(logging.getLogger("auto-attack"), "disabled", True)


def package(model: Model, threat: ThreatModel, version: str, parts: list[str], seed: int) -> pyautoattack.AutoAttack:
    """The package with the settings of a version, but only these parts."""
    adversary = Short(ModelModule(model), eps=threat.radius, norm="Linf", seed=seed, version=version, device="cpu")
    adversary.attacks_to_run = parts
    return adversary


@pytest.mark.parametrize(
    ("part", "version"),
    [("apgd-ce", "standard"), ("apgd-t", "standard"), ("fab-t", "standard"), ("square", "standard"), ("apgd-dlr", "rand")],
)
def test_a_part_gives_the_results_of_the_authors_package(part: str, version: str) -> None:
    model = cnn(tile=8)
    few = sharp(first_images(12)).take(range(8))
    attack_part = build_attack("autoattack-part", {"part": part, "version": version})
    rng = SampleRandom(7, "part", few.samples)
    proposal = attack_part(model, few.x, few.y, LINF, rng)
    direct = package(model, LINF, version, [part], 7)
    with seeded_globally(rng.batch_seed()):
        expected, _ = direct.run_standard_evaluation(few.x, few.y, batch_size=len(few))
    assert torch.equal(proposal, expected)
    assert (model.predict(proposal)[0] != few.y).any()


def test_the_count_from_the_parts_is_the_packages_own_on_average() -> None:
    model, few, threat = wrapped(Noisy(trained_cnn(), 0.35), tile=48), first_images(48), ThreatModel.of("linf", "0.04")
    assert model.measure_randomness(few.x)
    clean = judge_clean(model, few, 0)
    attacks = {part: build_attack("autoattack-part", {"part": part}) for part in ("apgd-ce", "apgd-t")}
    accuracy = single_draw_accuracy(
        clean, [judge(model, attack, part, few, threat, 0, clean) for part, attack in attacks.items()]
    )
    assert accuracy.checks == 3
    counts = []
    for seed in range(4):
        direct = package(model, threat, "standard", list(attacks), seed)
        model.reseed("package", seed)
        with seeded_globally(seed):
            _, answers = direct.run_standard_evaluation(few.x, few.y, batch_size=len(few))
        counts.append(float((answers == few.y).double().mean()))
    # Four runs over 48 images: a standard error of at most 3.6 points, and the proposals differ from run to run.
    assert accuracy.expected.value == pytest.approx(np.mean(counts), abs=0.1)
    assert accuracy.expected.value < accuracy.expected_noop.value < 1
    assert accuracy.corrected > accuracy.expected.value


def test_a_part_that_needs_more_classes_is_refused() -> None:
    model, few = wrapped(Linear(torch.rand(3, 64), torch.zeros(3)), classes=3), first_images(4)
    attack = build_attack("autoattack-part", {"part": "apgd-t"})
    with pytest.raises(CannotEvaluate, match="autoattack-part: apgd-t needs 4 classes, there are 3"):
        attack(model, few.x, few.y % 3, LINF, SampleRandom(0, "part", few.samples))
