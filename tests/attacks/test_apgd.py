"""Auto-PGD: as strong as the authors' code, exact in its cost, and sound under noise and NaN."""

from dataclasses import replace
from typing import Any

import pyautoattack
import pytest
import torch
from torch import Tensor, nn

from attacks.search.test_ascent import misled
from kwbench.attacks import ATTACKS, build_attack
from kwbench.attacks.apgd import Apgd
from kwbench.attacks.local_search import LocalSearch
from kwbench.attacks.model_module import ModelModule
from kwbench.attacks.pgd import Pgd
from kwbench.attacks.rays import Rays
from kwbench.attacks.search.lookahead import most_lookaheads
from kwbench.attacks.search.losses import LOSSES
from kwbench.attacks.search.parallel_climb import checkpoints
from kwbench.attacks.search.targets import nearest_classes
from kwbench.attacks.square import Square
from kwbench.gradients import EXACT, Eot, Es, Smooth
from kwbench.model import Precision
from kwbench.outcome import Status
from kwbench.randomness import SampleRandom, seeded_globally
from kwbench.threat import ThreatModel
from support.modules import Watched
from support.small_models import Linear, Noisy, broken, cnn, first_images, normed_cnn, run, sharp, trained_cnn, wrapped

THREATS = [ThreatModel.of("linf", "0.11"), ThreatModel.of("l2", "0.55")]


def _robust_accuracy(fallen: Tensor) -> float:
    return 100 * (1 - fallen.double().mean().item())


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize(
    ("part", "parameters"), [("apgd-ce", {}), ("apgd-dlr", {"loss": "dlr"}), ("apgd-t", {"loss": "dlr", "targets": 9})]
)
def test_robust_accuracy_is_no_higher_than_that_of_the_authors_attack_at_equal_budget(
    part: str, parameters: dict[str, Any], threat: ThreatModel
) -> None:
    batch = sharp(first_images(128))
    results = broken(run("apgd", {"steps": 25, **parameters}, batch, threat))
    with seeded_globally(0):
        adversary = pyautoattack.AutoAttack(
            ModelModule(cnn()),
            norm=threat.norm.capitalize(),
            eps=threat.radius,
            seed=0,
            version="custom",
            attacks=[part],
            device="cpu",
        )
        for part_attack in (adversary.apgd, adversary.apgd_targeted):
            part_attack.n_iter, part_attack.n_restarts = 25, 1
        proposal, _ = adversary.run_standard_evaluation(batch.x, batch.y, batch_size=len(batch))
    rival = _robust_accuracy(cnn().predict(proposal)[0] != batch.y)
    assert 20 <= rival <= 80
    assert _robust_accuracy(results) <= rival + 2


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("targets", [0, 2])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_every_loss_breaks_as_many_samples_as_plain_pgd(loss: str, targets: int, threat: ThreatModel) -> None:
    batch = sharp(first_images(96))
    plain = broken(run("pgd", {"steps": 20, "relative_step_size": 0.1}, batch, threat))
    results = broken(run("apgd", {"steps": 30, "loss": loss, "targets": targets}, batch, threat))
    assert _robust_accuracy(results) <= _robust_accuracy(plain) + (4 if targets == 0 else 0)


def test_checkpoints_are_those_of_the_authors() -> None:
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sorted(checkpoints(3)) == [1, 2, 3]


def test_one_step_costs_a_forward_and_a_backward_pass() -> None:
    batch, threat = sharp(first_images(40)), ThreatModel.of("linf", "0.02")
    for outcome in run("apgd", {"steps": 12}, batch, threat):
        if outcome.status is Status.HELD:
            assert outcome.backwards == 12
            assert 13 <= outcome.forwards <= 13 + most_lookaheads(12)
    for outcome in run("apgd", {"steps": 12, "targets": 3, "restarts": 2}, batch, threat):
        if outcome.status is Status.HELD:
            # Before the climbs, one forward pass for the likeliest classes, and one with nine backward passes for their
            # distances.
            assert (outcome.forwards, outcome.backwards) == (2 + 6 * 13, 9 + 6 * 12)


def test_more_restarts_and_targets_keep_every_success() -> None:
    batch, threat = sharp(first_images(96)), THREATS[0]
    for more in ({"restarts": 4}, {"early_exit": False, "restarts": 2}):
        one = broken(run("apgd", {"steps": 8, "early_exit": more.get("early_exit", True)}, batch, threat))
        many = broken(run("apgd", {"steps": 8, **more}, batch, threat))
        assert bool((many | ~one).all())
    few = broken(run("apgd", {"steps": 8, "targets": 1}, batch, threat))
    many = broken(run("apgd", {"steps": 8, "targets": 5}, batch, threat))
    assert bool((many | ~few).all())


def test_with_focus_only_samples_close_to_success_get_all_steps() -> None:
    batch, threat = first_images(64), THREATS[0]
    once, everywhere, focused = (
        run("apgd", {"steps": 6, "restarts": restarts, "focus": focus}, batch, threat)
        for restarts, focus in ((1, None), (3, None), (3, 0.5))
    )
    stand = [row for row, outcome in enumerate(once) if outcome.status is Status.HELD]
    close = {row for row in stand if focused[row].forwards > once[row].forwards}
    assert 0 < len(close) < len(stand)
    for row in range(len(batch)):
        if row in stand and row not in close:
            # At the start, and after each step of the first third.
            assert (focused[row].status, focused[row].backwards) == (Status.HELD, 1 + 2)
            assert 1 + 2 <= focused[row].forwards <= 1 + 2 + most_lookaheads(2)
        else:
            assert (focused[row].status, focused[row].forwards) == (everywhere[row].status, everywhere[row].forwards)


def test_a_sample_continues_if_it_would_break_at_its_present_pace() -> None:
    # The 5 steps from a sixth of 30 steps to a third are a quarter of the 20 remaining steps.
    before, closest = torch.tensor([-0.09, -0.50, -0.49, -1.0]), torch.tensor([-0.09, -0.38, -0.40, -1.0])
    assert Apgd(steps=30, focus=0.1).narrowing.goes_on(before, closest).tolist() == [True, True, False, False]
    assert Apgd(steps=30, focus=0.5).narrowing.goes_on(before, closest).tolist() == [True, True, True, False]
    assert Apgd(steps=30).narrowing.goes_on(before, closest).all()
    assert Apgd(steps=1, focus=0.1).narrowing.goes_on(before[:1], closest[:1]).all()


def test_finalists_cost_less_and_break_the_samples_that_all_targets_break() -> None:
    batch, threat = first_images(96), ThreatModel.of("linf", "0.02")
    everything, few = (
        run("apgd", {"steps": 12, "loss": "probability_margin", "targets": 9, "finalists": finalists}, batch, threat)
        for finalists in (None, 2)
    )
    stand = [row for row, outcome in enumerate(few) if outcome.status is Status.HELD]
    # Nine climbs for 3 passes, six for 2, two for the other 7 and a last pass; choosing nine targets of nine costs nothing.
    assert {few[row].forwards for row in stand} == {9 * 3 + 6 * 2 + 2 * 7 + 2}
    assert all(few[row].forwards < everything[row].forwards for row in stand)
    assert 0 < len(stand) <= sum(outcome.status is Status.HELD for outcome in everything) + 1


class OneOpenClass(nn.Module):
    """Digits, all of class 0. Class 1 ties with it everywhere and never wins; class 9 wins near one point inside the ball."""

    point: Tensor

    def __init__(self, point: Tensor) -> None:
        super().__init__()
        self.register_buffer("point", point)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (b, 10) of x (b, 1, 8, 8)."""
        far = (x - self.point).square().flatten(1).sum(dim=1)
        logits = x.new_full((len(x), 10), -4.0)
        logits[:, :2] = 0.0
        return logits.index_copy(1, torch.tensor([9]), (0.02 - far)[:, None])


def test_finalists_are_the_targets_that_came_nearest_to_their_own_class() -> None:
    batch = first_images(1)
    batch = replace(batch, x=batch.x / 2 + 0.25, y=torch.zeros_like(batch.y))
    model = wrapped(OneOpenClass(batch.x[0] + 0.1 * torch.rand((1, 8, 8), generator=torch.Generator().manual_seed(0)) - 0.05))
    parameters = {"steps": 60, "loss": "margin", "targets": 9, "finalists": 2}
    (outcome,) = run("apgd", parameters, batch, ThreatModel.of("linf", "0.1"), model=model)
    assert outcome.status is Status.BROKEN
    assert outcome.prediction == 9
    assert outcome.forwards > 9 * 60 // 6, "it must not be broken before targets are given up"


@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize("targets", [0, 2])
@pytest.mark.parametrize("precision", ["folded", "bfloat16"])
def test_a_search_in_lower_precision_ends_only_at_successes_confirmed_in_float32(
    precision: Precision, targets: int, restarts: int
) -> None:
    batch = sharp(first_images(48))
    parameters = {"steps": 6, "restarts": restarts, "targets": targets, "precision": precision}
    outcomes = run("apgd", parameters, batch, ThreatModel.of("linf", "0.001"), model=misled())
    assert all(outcome.status is Status.HELD for outcome in outcomes)
    steps = restarts * 6 * max(targets, 1)
    assert all(outcome.backwards == steps + 9 * (targets > 0) for outcome in outcomes), "they must be attacked to the end"
    budget = Apgd(steps=6, restarts=restarts, targets=targets, precision=precision).passes(False)
    looking = 0 if targets else restarts * most_lookaheads(6 - 1)
    assert all(budget - looking <= outcome.forwards + outcome.backwards <= budget for outcome in outcomes)


@pytest.mark.parametrize("targets", [{}, {"targets": 3, "finalists": 1, "restarts": 2, "loss": "probability_margin"}])
def test_a_search_by_signs_in_lower_precision_breaks_as_many_samples(targets: dict[str, Any]) -> None:
    batch, model = first_images(200), wrapped(normed_cnn())
    model.plan_passes(batch.x[:64])
    assert model.effective_precision("folded") == "folded"
    plain, *quicker = (
        run("apgd", {"steps": 20, "precision": precision, **targets}, batch, THREATS[0], model=model)
        for precision in ("float32", "folded", "bfloat16")
    )
    assert all(broken(search).sum() >= broken(plain).sum() for search in quicker)
    assert 0 < broken(plain).sum() < len(broken(plain))


def test_a_success_with_one_target_ends_the_others() -> None:
    batch, threat = first_images(32), ThreatModel.of("linf", "0.2")
    for outcome in run("apgd", {"steps": 20, "targets": 9}, batch, threat):
        if outcome.status is Status.BROKEN:
            # All nine climbs take the same number of passes and end when one of them succeeds.
            assert outcome.forwards % 9 == 0
            assert outcome.forwards < 2 + 9 * 21


def test_the_result_for_a_target_does_not_depend_on_other_samples_or_targets() -> None:
    threat = ThreatModel.of("linf", "0.02")
    whole = run("apgd", {"steps": 6, "targets": 9, "finalists": 2, "restarts": 2}, first_images(40), threat)
    part = run("apgd", {"steps": 6, "targets": 9, "finalists": 2, "restarts": 2}, first_images(40).take(range(20, 40)), threat)
    assert [(outcome.status, outcome.prediction, outcome.forwards) for outcome in whole[20:]] == [
        (outcome.status, outcome.prediction, outcome.forwards) for outcome in part
    ]


def test_further_restarts_run_no_more_parallel_climbs_than_the_first() -> None:
    threat, batch = ThreatModel.of("linf", "0.02"), first_images(20)
    module = Watched(trained_cnn())
    model = wrapped(module, tile=256)

    def outcomes(rows: range, **parameters: int) -> list[tuple[Status, int | None, float | None, int]]:
        module.sizes.clear()
        rows_of = run("apgd", {"steps": 6, "restarts": 4, **parameters}, batch.take(rows), threat, model=model)
        return [(outcome.status, outcome.prediction, outcome.distance, outcome.forwards) for outcome in rows_of]

    # Two of nine targets are left: the six climbs of three restarts share the passes of one restart, after those of the first.
    together = outcomes(range(20), targets=9, finalists=2)
    assert len(module.sizes) < 3 * 7 + 5
    assert [outcome for row in range(20) for outcome in outcomes(range(row, row + 1), targets=9, finalists=2)] == together
    # Three restarts with as many climbs as the first take three times as many passes.
    assert outcomes(range(20)) == [outcome for row in range(20) for outcome in outcomes(range(row, row + 1))]
    outcomes(range(20))
    assert len(module.sizes) > 4 * 6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_first_target_is_the_nearest_class_of_a_linear_model(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    # The boundaries of classes with long weights are near even if their logits are small.
    weight = torch.randn((10, 64), generator=generator) * torch.linspace(0.2, 3, 10)[:, None]
    model = wrapped(Linear(weight, torch.randn(10, generator=generator)))
    x = first_images(30).x
    y = model.predict(x)[0]
    logits = model(x)
    gaps = logits.gather(1, y[:, None]) - logits
    slopes = (weight[y][:, None] - weight[None]).norm(p=1 if norm == "linf" else 2, dim=2)
    near = (gaps / slopes).scatter(1, y[:, None], torch.inf).argsort(dim=1)
    rng = SampleRandom(0, "test", tuple(str(row) for row in range(30)))
    chosen = nearest_classes(model, x, y, ThreatModel.of(norm, "0.1").norm, EXACT, 4, rng)
    assert torch.equal(chosen, near[:, :4])
    assert not torch.equal(chosen[:, 0], logits.scatter(1, y[:, None], -torch.inf).argmax(1))


def test_targets_of_a_flat_model_come_in_the_order_of_their_logits() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.arange(10.0).expand(len(x), 10) + 0 * x.sum()

    x, y = first_images(3).x, torch.tensor([9, 0, 8])
    rng = SampleRandom(0, "test", ("a", "b", "c"))
    chosen = nearest_classes(wrapped(Flat()), x, y, "linf", EXACT, 3, rng)
    assert chosen.tolist() == [[8, 7, 6], [9, 8, 7], [9, 7, 6]]


def test_with_two_classes_there_is_one_target() -> None:
    generator = torch.Generator().manual_seed(0)
    model = wrapped(Linear(torch.randn((2, 64), generator=generator), torch.zeros(2)), classes=2)
    x = first_images(20).x
    y = model.predict(x)[0]
    rng = SampleRandom(0, "test", tuple(str(row) for row in range(20)))
    for loss in LOSSES:
        z = Apgd(targets=9, loss=loss, steps=10)(model, x, y, ThreatModel.of("linf", "0.5"), rng)
        assert bool((model.predict(z)[0] != y).all())


def test_noise_does_not_change_the_step_size() -> None:
    noisy, plain = wrapped(Noisy(trained_cnn(), 0.3)), cnn()
    noisy.stochastic = True
    assert not Apgd().adapts(noisy)
    assert Apgd(schedule="adaptive").adapts(noisy)
    assert Apgd().adapts(plain)
    for gradient in (Smooth(sigma=0.1), Es(sigma=0.1)):
        assert not Apgd(gradient=gradient).adapts(plain)


def test_against_noise_a_proposal_fails_more_often_than_one_of_plain_pgd() -> None:
    model, batch = wrapped(Noisy(trained_cnn(), 0.3), tile=32), first_images(32)
    model.stochastic = True

    def accuracy(name: str, parameters: dict[str, Any]) -> float:
        outcomes = run(name, {"steps": 10, **parameters}, batch, THREATS[0], model=model)
        return sum(outcome.fresh_correct for outcome in outcomes) / sum(outcome.fresh_draws for outcome in outcomes)

    gradient = {"kind": "eot", "draws": 4}
    apgd_accuracy = accuracy("apgd", {"gradient": gradient})
    assert apgd_accuracy < accuracy("pgd", {"gradient": gradient}) + 0.02
    # Choosing among its own proposals must not select luck: at a tiny radius, nothing may be gained.
    nothing = run("apgd", {"steps": 5, "restarts": 3}, batch, ThreatModel.of("linf", "0.001"), model=model)
    clean = run("noop", {}, batch, THREATS[0], model=model)
    lost = sum(row.fresh_correct for row in clean) - sum(row.fresh_correct for row in nothing)
    assert abs(lost) / sum(row.fresh_draws for row in clean) < 0.02


class _Treacherous(nn.Module):
    """Adds a term of value 0 and gradient NaN to the logits."""

    def forward(self, x: Tensor) -> Tensor:
        trap = (x.sum(dim=(1, 2, 3)) * 0).sqrt()
        logits: Tensor = trained_cnn()(x) + trap[:, None]
        return logits


def test_a_gradient_of_not_a_number_costs_no_sample_its_number() -> None:
    batch, threat = sharp(first_images(8)), ThreatModel.of("linf", "0.3")
    outcomes = run("apgd", {"steps": 3}, batch, threat, model=wrapped(_Treacherous()))
    assert {outcome.status for outcome in outcomes} <= {Status.HELD, Status.BROKEN}
    relaxed = {"steps": 3, "gradient": {"kind": "relaxed"}}
    outcomes = run("apgd", relaxed, batch, threat, model=wrapped(_Treacherous()))
    assert {outcome.status for outcome in outcomes} == {Status.BROKEN}


@pytest.mark.parametrize("early_exit", [True, False])
def test_logits_of_not_a_number_are_a_success(early_exit: bool) -> None:
    class Fragile(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            off = x[:, 0, 0, :1] > 0.05  # black in every digit
            return torch.where(off, torch.nan, trained_cnn()(x))

    batch = sharp(first_images(16))
    for loss in LOSSES:
        parameters = {"steps": 3, "loss": loss, "early_exit": early_exit}
        outcomes = run("apgd", parameters, batch, ThreatModel.of("linf", "0.1"), model=wrapped(Fragile()))
        assert {outcome.status for outcome in outcomes} <= {Status.BROKEN, Status.HELD}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"targets": -1}, "targets"),
        ({"restarts": 2, "random_start": False}, "same path"),
        ({"schedule": "linear"}, "schedule"),
        ({"loss": "hinge"}, "loss"),
        ({"focus": 0.0}, "focus"),
        ({"finalists": 2}, "finalists"),
        ({"targets": 3, "finalists": 0}, "finalists"),
    ],
)
def test_meaningless_parameters_are_refused(parameters: dict[str, Any], message: str) -> None:
    from kwbench.errors import UsageError

    with pytest.raises(UsageError, match=message):
        build_attack("apgd", parameters)


# Attacks that spend their whole budget on samples that they do not break.
WHOLE_BUDGET = ("pgd", "apgd", "fgsm", "mim", "transfer", "square")


@pytest.mark.heavy
def test_no_attack_costs_more_passes_than_declared() -> None:
    batch = first_images(3)
    parameters: dict[str, dict[str, Any]] = {
        "pgd": {"steps": 3, "restarts": 2, "restart_draws": 4},
        "apgd": {"steps": 7, "restarts": 2, "targets": 2, "finalists": 1, "selection_draws": 4},
        "transfer": {"steps": 3},
        "deepfool": {"steps": 4},
        "cw": {"steps": 2, "tau_factor": 0.5},
        "square": {"steps": 20, "restarts": 2, "draws": 2},
        "gaussian-noise": {"steps": 5},
        "rays": {"queries": 60, "draws": 3},
        "local-search": {"steps": 3, "flips": 10, "restarts": 2, "targets": 2, "draws": 2},
        "complete-search": {"steps": 3, "restarts": 2, "targets": 1},
    }
    for stochastic in (False, True):
        model = wrapped(Noisy(trained_cnn(), 0.1), tile=3) if stochastic else cnn(tile=3)
        model.stochastic = stochastic
        for name in ATTACKS:
            if name in ("autoattack", "autoattack-part", "foolbox"):
                continue
            given = parameters.get(name, {})
            # With lookaheads the number of passes varies; otherwise samples that hold cost the whole budget.
            looks_first = name in ("pgd", "mim") and not stochastic
            cases: list[tuple[dict[str, Any], bool]] = [(given, name in WHOLE_BUDGET and not looks_first)]
            if name in ("pgd", "mim", "apgd"):
                cases += [(given | {"early_exit": False}, True)]
            if name == "apgd":
                cases += [({"steps": 7, "restarts": 2, "selection_draws": 4}, stochastic)]
                cases += [({"steps": 7, "restarts": 2, "selection_draws": 4, "early_exit": False}, True)]
            for chosen, exact in cases:
                attack = build_attack(name, chosen, lambda _: cnn(tile=3))
                budget = attack.passes(stochastic)
                assert budget is not None, name
                outcomes = run(name, chosen, batch, ThreatModel.of("linf", "0.02"), model=model)
                spent = max(outcome.forwards + outcome.backwards for outcome in outcomes)
                assert spent <= budget, name
                assert spent == budget or not exact, name


@pytest.mark.parametrize("precision", ["folded", "bfloat16", "auto"])
@pytest.mark.parametrize("stochastic", [False, True])
def test_a_search_in_lower_precision_costs_no_more_than_declared(stochastic: bool, precision: str) -> None:
    batch = first_images(8)
    model = wrapped(Noisy(normed_cnn(), 0.1) if stochastic else normed_cnn(), tile=8)
    model.stochastic = stochastic
    model.plan_passes(batch.x)
    for name, parameters in (
        ("apgd", {"steps": 6, "selection_draws": 4, "early_exit": False}),
        ("apgd", {"steps": 6, "selection_draws": 4, "targets": 2, "restarts": 2}),
        ("square", {"steps": 10, "draws": 2}),
        ("pgd", {"steps": 6, "restart_draws": 4}),
    ):
        if name == "pgd" and precision == "auto":
            continue
        attack = build_attack(name, parameters | {"precision": precision})
        budget = attack.passes(stochastic)
        assert budget is not None
        outcomes = run(name, parameters | {"precision": precision}, batch, ThreatModel.of("linf", "0.1"), model=model)
        assert all(outcome.forwards + outcome.backwards <= budget for outcome in outcomes), name


def test_a_doubled_attack_spends_twice_as_much_where_it_helps() -> None:
    eot = Eot(draws=4)
    assert Apgd(restarts=2).doubled(2) == Apgd(restarts=8)
    assert Apgd(random_start=False, steps=50).doubled(1) == Apgd(random_start=False, steps=100)
    assert Apgd(gradient=eot).doubled(1) == Apgd(gradient=Eot(draws=8))
    assert Pgd(gradient=Eot(draws="auto")).doubled(1) == Pgd(gradient=Eot(draws="auto"), restarts=2)
    assert Pgd(gradient=EXACT, random_start=False).doubled(3).steps == 320
    assert Square(restarts=3).doubled(1).restarts == 6
    for name in ("apgd", "pgd", "square", "rays", "local-search"):
        attack = build_attack(name, {})
        twice = attack.doubled(1)
        assert twice is not None
        budgets = twice.passes(False), attack.passes(False)
        assert budgets[0] is not None
        assert budgets[1] is not None
        assert 1.9 < budgets[0] / budgets[1] < 2.1


def test_the_second_half_of_the_doubled_budget_repeats_the_attack_if_restarts_are_alike() -> None:
    averaged, still = Pgd(gradient=Eot(draws=4)), Apgd(random_start=False)
    for alike in (Pgd(restarts=3), Apgd(), Square(restarts=2), LocalSearch(), LocalSearch(restarts=2, softness=(0.1,))):
        assert alike.other_half() == alike
    # Restarts of the last attack alternate between losses.
    for unlike in (averaged, still, Rays(), LocalSearch(restarts=3)):
        assert unlike.other_half() == unlike.doubled(1) != unlike
