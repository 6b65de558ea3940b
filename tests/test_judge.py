"""No behaviour of an attack or a model may be mistaken for robustness, or for success of the attack."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kwbench import evaluate
from kwbench.attacks import build_attack
from kwbench.attacks.attack import Attack, JudgingRule
from kwbench.attacks.search.losses import fooled
from kwbench.data import Batch
from kwbench.errors import CannotEvaluate
from kwbench.judge import FRESH_DRAWS, SELECTION_DRAWS, judge, judge_clean
from kwbench.model import Model
from kwbench.outcome import Outcome, Status
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel
from support.small_models import Noisy, broken, cnn, digits, first_images, run, sharp, trained_cnn, wrapped

LINF = ThreatModel.of("linf", "0.12")


@dataclass(frozen=True)
class Proposing(Attack):
    """Proposes the result of a function of (x, y)."""

    propose: Callable[[Tensor, Tensor], Any]
    minimum_norm: bool = False
    whole_tiles: bool = False
    judged: JudgingRule = "distance"
    norms = frozenset({"linf", "l2", "l1"})
    needs = "nothing"

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Any:
        return self.propose(x, y)


def _judged(
    propose: Callable[[Tensor, Tensor], Any], batch: Batch, model: Model | None = None, threat: ThreatModel = LINF, **kind: Any
) -> list[Outcome]:
    victim = model or cnn()
    return judge(victim, Proposing(propose, **kind), "test", batch, threat, 0, judge_clean(victim, batch, 0))


class NotANumberNear(nn.Module):
    """The network with logits of not-a-number unless the first pixel is black, as it is in every digit."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.network, self.value = trained_cnn(), value

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x) * torch.where(x[:, 0, 0, :1] > 0, self.value, 1.0)
        return logits


def _brighter(x: Tensor, y: Tensor) -> Tensor:
    return (x + 0.1).clamp(0, 1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_under_attack_are_broken_and_flagged(value: float) -> None:
    model = wrapped(NotANumberNear(value))
    for outcome in _judged(_brighter, sharp(first_images(64), model), model):
        assert outcome.status is Status.BROKEN
        assert "not finite" in outcome.note


@pytest.mark.parametrize("name", ["pgd", "mim", "fgsm", "square", "deepfool", "cw", "gaussian-noise", "random-sign"])
def test_no_defence_gains_robustness_from_logits_of_not_a_number(name: str) -> None:
    model = wrapped(NotANumberNear(torch.nan))
    batch = sharp(first_images(48), model)
    parameters: dict[str, Any] = {"square": {"steps": 300}, "cw": {"steps": 60}}.get(name, {})
    outcomes = run(name, parameters, batch, ThreatModel.of("linf", "0.3"), model=model)
    fallen = sum(outcome.status is not Status.HELD for outcome in outcomes) / len(outcomes)
    plain = sum(outcome.status is not Status.HELD for outcome in run(name, parameters, batch, ThreatModel.of("linf", "0.3")))
    assert fallen >= min(0.9, plain / len(outcomes) - 0.05)
    if name in ("pgd", "mim"):
        assert {outcome.status for outcome in outcomes} == {Status.BROKEN}
        # Without early exit: from a point with logits of not-a-number no step leads on, and none is needed.
        outcomes = run(name, {"early_exit": False}, batch, ThreatModel.of("linf", "0.3"), model=model)
        assert Status.INVALID not in {outcome.status for outcome in outcomes}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "mim", "deepfool", "cw"])
def test_gradients_that_are_nowhere_a_number_cost_no_proposal(name: str, norm: str) -> None:
    class Smeared(nn.Module):
        """Adds the square root of 0, whose slope is infinite, times 0."""

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = trained_cnn()(x) + (0 * x).abs().sqrt().flatten(1).sum(dim=1, keepdim=True)
            return logits

    model, threat = wrapped(Smeared()), ThreatModel.of(norm, "0.3")
    outcomes = run(name, {}, sharp(first_images(8)), threat, model=model)
    assert {outcome.status for outcome in outcomes} <= {Status.BROKEN, Status.HELD}
    # Relaxed gradients leave the root out, and break what the network alone does not hold.
    if name != "cw":
        outcomes = run(name, {"gradient": {"kind": "relaxed"}}, sharp(first_images(8)), threat, model=model)
        alone = run(name, {}, sharp(first_images(8)), threat)
        assert [outcome.status for outcome in outcomes] == [outcome.status for outcome in alone]


def test_a_prediction_is_fooled_by_another_class_or_by_not_a_number() -> None:
    logits = torch.tensor([[2.0, 1.0], [1.0, 2.0], [torch.nan, torch.nan], [torch.inf, 0.0]])
    assert fooled(logits, torch.zeros(4, dtype=torch.long)).tolist() == [False, True, True, True]


def test_a_model_with_logits_of_not_a_number_on_a_clean_image_is_refused() -> None:
    batch = first_images(70)
    batch.x[67, 0, 0, 0] = 1.0
    with pytest.raises(CannotEvaluate, match="clean image 67 are not finite"):
        judge_clean(wrapped(NotANumberNear(torch.nan)), batch, 0)


def test_a_stochastic_model_with_rare_logits_of_not_a_number_is_refused() -> None:
    class Sometimes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(torch.rand(len(x), 1) < 0.02, torch.nan, trained_cnn()(x))

    model = wrapped(Sometimes())
    model.stochastic = True
    with pytest.raises(CannotEvaluate, match="not finite"):
        judge_clean(model, first_images(64), 0)


def test_a_model_that_raises_on_clean_images_is_refused_by_name() -> None:
    class Raising(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no GPU here")

    with pytest.raises(CannotEvaluate, match="small: the model raised RuntimeError: no GPU here"):
        judge_clean(wrapped(Raising()), first_images(3), 0)


def test_proposals_that_are_not_images_inside_the_ball_are_invalid() -> None:
    batch = sharp(first_images(40))

    def propose(x: Tensor, y: Tensor) -> Tensor:
        z = x.clone()
        z[0] += 0.2
        z[1, 0, 0, 0] = torch.nan
        z[2, 0, 0, 0] = torch.inf
        z[3, 0, 0, 0] = -0.05
        z[4] = (z[4] + LINF.radius + 1e-4).clamp(0, 1)
        z[5] = (z[5] + LINF.radius).clamp(0, 1)
        return z

    outcomes = _judged(propose, batch)
    assert [outcome.status for outcome in outcomes[:5]] == [Status.INVALID] * 5
    notes = [outcome.note for outcome in outcomes[:5]]
    assert "outside [0, 1]" in notes[0]
    assert "not finite" in notes[1]
    assert "not finite" in notes[2]
    assert "outside [0, 1]" in notes[3]
    assert "outside the ball" in notes[4]
    assert outcomes[5].status in (Status.BROKEN, Status.HELD)
    assert [outcome.distance is None for outcome in outcomes[:6]] == [False, True, True, False, False, False]


def test_a_proposal_beyond_the_pixel_range_is_invalid_even_for_minimum_norm_attacks() -> None:
    outcomes = _judged(lambda x, y: x + 1, sharp(first_images(8)), minimum_norm=True)
    assert {outcome.status for outcome in outcomes} == {Status.INVALID}
    assert {outcome.status for outcome in outcomes} == {Status.INVALID}


@pytest.mark.parametrize("proposal", [None, "image", torch.zeros(1, 1, 8, 8), torch.zeros(8, 3, 8, 8)], ids=str)
def test_a_proposal_that_is_not_a_batch_of_images_is_invalid(proposal: Any) -> None:
    outcomes = _judged(lambda x, y: proposal, sharp(first_images(8)))
    assert {outcome.status for outcome in outcomes} == {Status.INVALID}
    assert {outcome.status for outcome in outcomes} == {Status.INVALID}
    assert all("where" in outcome.note for outcome in outcomes)


def test_an_attack_that_raises_on_one_sample_leaves_the_others_judged() -> None:
    batch = sharp(first_images(40))
    victim = batch.x[7]

    def propose(x: Tensor, y: Tensor) -> Tensor:
        if bool((x == victim).flatten(1).all(dim=1).any()):
            raise ZeroDivisionError("bad luck")
        return _brighter(x, y)

    outcomes = _judged(propose, batch)
    assert outcomes[7].status is Status.ERROR
    assert "ZeroDivisionError: bad luck" in outcomes[7].note
    assert Status.ERROR not in {outcome.status for row, outcome in enumerate(outcomes) if row != 7}
    whole = _judged(propose, batch, whole_tiles=True)
    assert {outcome.status for outcome in whole} == {Status.ERROR}, "a tile that must stay whole cannot be taken apart"


def test_a_model_that_raises_on_an_adversarial_image_is_an_error() -> None:
    class Detecting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if bool((x[:, 0, 0, 0] > 0).any()):
                raise ValueError("attack detected")
            logits: Tensor = trained_cnn()(x)
            return logits

    outcomes = _judged(_brighter, sharp(first_images(8)), wrapped(Detecting()))
    assert {outcome.status for outcome in outcomes} == {Status.ERROR}


def test_running_out_of_gpu_memory_is_raised_to_the_runner() -> None:
    def propose(x: Tensor, y: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        _judged(propose, sharp(first_images(8)))


def test_running_out_of_cpu_memory_is_raised_to_the_runner() -> None:
    with pytest.raises(MemoryError, match="can't allocate"):
        _judged(lambda x, y: torch.empty(2**50), sharp(first_images(8)))


def test_an_attack_cannot_move_the_images_it_is_measured_against() -> None:
    batch = sharp(first_images(8))
    before = batch.x.clone()

    def propose(x: Tensor, y: Tensor) -> Tensor:
        y.zero_()
        return x.copy_(torch.rand_like(x))

    outcomes = _judged(propose, batch)
    assert torch.equal(batch.x, before)
    assert {outcome.status for outcome in outcomes} == {Status.INVALID}
    assert {outcome.status for outcome in outcomes} == {Status.INVALID}


def test_misclassified_samples_are_not_attacked() -> None:
    batch = first_images(200)
    seen: list[int] = []

    def propose(x: Tensor, y: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    outcomes = _judged(propose, batch)
    wrong = sum(outcome.status is Status.WRONG for outcome in outcomes)
    assert 0 < wrong < 20
    assert seen == [200 - wrong]
    seen.clear()
    assert _judged(propose, batch, whole_tiles=True) is not None
    assert seen == [64, 64, 64, 8], "a library that draws for the whole tile must see it whole"
    assert all(outcome.clean_prediction != outcome.label for outcome in outcomes if outcome.status is Status.WRONG)


def _mixed(x: Tensor, y: Tensor) -> Tensor:
    """Return adversarial examples outside the ball, found by a long PGD."""
    far = ThreatModel.of("linf", "0.4")
    samples = tuple(str(row) for row in range(len(x)))
    return build_attack("pgd", {"early_exit": False})(cnn(), x, y, far, SampleRandom(0, "far", samples))


def test_minimum_norm_attacks_are_judged_by_their_rule_and_the_other_one_is_recorded() -> None:
    batch = sharp(first_images(40))
    by_distance = _judged(_mixed, batch, minimum_norm=True)
    clipped = _judged(_mixed, batch, minimum_norm=True, judged="clipped")
    assert {outcome.status for outcome in by_distance} == {Status.HELD}, "all lie beyond the ball"
    assert sum(outcome.status is Status.BROKEN for outcome in clipped) > 10
    assert [outcome.other_status for outcome in by_distance] == [outcome.status for outcome in clipped]
    assert [outcome.other_status for outcome in clipped] == [outcome.status for outcome in by_distance]
    assert all((outcome.distance or 0) > 0.12 for outcome in by_distance)
    fixed = _judged(_brighter, batch)
    assert {outcome.other_status for outcome in fixed} == {None}


def test_a_minimum_norm_attack_without_an_adversarial_example_has_no_distance() -> None:
    outcomes = _judged(lambda x, y: x, sharp(first_images(8)), minimum_norm=True)
    assert {(outcome.status, outcome.distance) for outcome in outcomes} == {(Status.HELD, None)}
    assert all("no adversarial image" in outcome.note for outcome in outcomes)


def test_a_stochastic_model_gets_selection_and_fresh_counts_for_every_sample() -> None:
    model = wrapped(Noisy(trained_cnn(), 0.4), tile=32)
    model.stochastic = True
    batch = first_images(70)
    clean = judge_clean(model, batch, 0)
    outcomes = judge(model, Proposing(_brighter), "test", batch, LINF, 0, clean)
    for outcome in [*clean, *outcomes]:
        assert (outcome.selection_draws, outcome.fresh_draws) == (SELECTION_DRAWS, FRESH_DRAWS)
        if outcome.status is not Status.WRONG:
            assert (outcome.status is Status.BROKEN) == (2 * outcome.fresh_correct < FRESH_DRAWS)
    assert len({outcome.fresh_correct for outcome in clean}) > 5
    assert any(row.selection_correct != row.fresh_correct / 2 for row in clean), "the draws are independent"
    assert judge(model, Proposing(_brighter), "test", batch, LINF, 0, clean) is not None


def test_controls_that_do_nothing_leave_the_accuracy_of_a_stochastic_model_unchanged() -> None:
    model = wrapped(Noisy(trained_cnn(), 0.3))
    model.stochastic = True
    batch = first_images(192)
    clean = judge_clean(model, batch, 0)
    controls = [judge(model, build_attack("noop", {}), f"noop-{k}", batch, LINF, 0, clean) for k in range(10)]
    standard = sum(row.fresh_correct for row in clean) / (FRESH_DRAWS * len(batch))
    chosen = 0
    for rows in zip(clean, *controls, strict=True):
        chosen += min(rows, key=lambda row: row.selection_correct).fresh_correct
    assert abs(chosen / (FRESH_DRAWS * len(batch)) - standard) < 0.01
    winners_curse = sum(min(row.fresh_correct for row in rows) for rows in zip(clean, *controls, strict=True))
    assert winners_curse / (FRESH_DRAWS * len(batch)) < standard - 0.02, "which is why fresh draws score"


def test_the_majority_over_fresh_draws_decides_a_stochastic_status() -> None:
    class Coin(nn.Module):
        """Correct with the probability given by the first pixel."""

        def forward(self, x: Tensor) -> Tensor:
            heads = torch.rand(len(x)) < x[:, 0, 0, 0]
            return torch.stack([heads.float(), 1 - heads.float()], dim=1)

    model = wrapped(Coin(), classes=2)
    model.stochastic = True
    x = torch.zeros(2, 1, 8, 8)
    x[:, 0, 0, 0] = torch.tensor([0.9, 0.3])
    batch = Batch(("a" * 32, "b" * 32), (0, 1), x, torch.zeros(2, dtype=torch.long))
    clean = judge_clean(model, batch, 0)
    assert [outcome.status for outcome in clean] == [Status.HELD, Status.WRONG]
    darker = judge(model, Proposing(lambda x, y: (x - 0.5).clamp(0, 1)), "t", batch, ThreatModel.of("linf", "0.5"), 0, clean)
    assert [outcome.status for outcome in darker] == [Status.BROKEN, Status.WRONG]


def test_the_clean_outcomes_identify_every_sample() -> None:
    batch = first_images(5)
    for row, outcome in enumerate(judge_clean(cnn(), batch, 0)):
        assert (outcome.sample, outcome.index, outcome.label) == (batch.samples[row], row, int(batch.y[row]))
        assert outcome.distance == 0.0
    assert len(digits().test) == 360
    assert broken(run("noop", {}, batch, LINF)).sum() == 0


class RandomFarAway(nn.Module):
    """A network whose logits are random where many pixels moved, and exact on images and on small noise."""

    def __init__(self, network: nn.Module, images: Tensor, sigma: float) -> None:
        super().__init__()
        self.network, self.images, self.sigma = network, images, sigma

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.flatten(1), self.images.flatten(1), p=torch.inf).argmin(dim=1)
        moved = ((x - self.images[nearest]).abs() > 0.11).flatten(1).float().mean(dim=1, keepdim=True) > 0.25
        logits: Tensor = self.network(x)
        return logits + moved * self.sigma * torch.randn_like(logits)


def _corners(x: Tensor, _: Tensor) -> Tensor:
    return (x + 0.12 * torch.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.5, -1, 1)).clamp(0, 1)


def test_a_lucky_answer_of_a_model_that_is_random_where_attacks_end_is_no_break() -> None:
    batch = sharp(first_images(48))
    torch.manual_seed(0)
    lucky = _judged(_corners, batch, wrapped(RandomFarAway(trained_cnn(), batch.x, 3.0)))
    sure = _judged(_corners, batch)
    asked_again = [outcome for outcome in lucky if outcome.note.startswith("asked again")]
    assert len(asked_again) >= 5
    assert (
        sum(outcome.status is Status.BROKEN for outcome in lucky)
        <= sum(outcome.status is Status.BROKEN for outcome in sure) + 3
    )


@pytest.mark.parametrize(("of_known_layers", "passes"), [(True, 1), (False, 2)])
def test_a_network_of_known_layers_is_asked_once_and_another_twice_about_a_broken_image(
    of_known_layers: bool, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = sharp(first_images(16))
    model = wrapped(trained_cnn() if of_known_layers else RandomFarAway(trained_cnn(), batch.x, 0.0))
    sizes = list[int]()
    call = Model.__call__

    def counted(model: Model, x: Tensor, rows: Tensor | None = None) -> Tensor:
        sizes.append(len(x))
        return call(model, x, rows)

    clean = judge_clean(model, batch, 0)
    monkeypatch.setattr(Model, "__call__", counted)
    outcomes = judge(model, Proposing(_corners), "t", batch, ThreatModel.of("linf", "0.12"), 0, clean)
    broken = sum(outcome.status is Status.BROKEN for outcome in outcomes)
    attacked = sum(outcome.status is not Status.WRONG for outcome in outcomes)
    assert 0 < broken < attacked
    assert sizes == [attacked, broken][:passes]


def test_a_model_that_is_random_only_at_corners_is_taken_for_random() -> None:
    batch = first_images(16)
    network = RandomFarAway(trained_cnn(), batch.x, 1.0)
    assert not wrapped(network).measure_randomness(batch.x)
    result = evaluate(network, batch.x, batch.y, attacks=["noop"], eps="0.12")
    assert result.summary.stochastic
