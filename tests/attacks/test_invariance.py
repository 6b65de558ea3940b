"""A row of the record depends on its sample only: not on the other samples, their order, or which of them are attacked."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from kwbench.attacks import ATTACKS, build_attack, default_parameters, parameters_of
from kwbench.data import Batch
from kwbench.errors import UsageError
from kwbench.judge import judge, judge_clean
from kwbench.outcome import Outcome, Status
from kwbench.threat import ThreatModel
from support.small_models import Noisy, broken, cnn, first_images, run, sharp, trained_cnn, wrapped

SHORT: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 5, "restarts": 2, "relative_step_size": 0.2},
    "cw": {"steps": 20, "step_size": 0.05},
    "apgd": {"steps": 6, "restarts": 2, "targets": 2},
    "apgd, untargeted": {"steps": 6, "restarts": 2},
    "square": {"steps": 120, "restarts": 2},
    "rays": {"queries": 150},
    "local-search": {"steps": 4, "flips": 20, "restarts": 2, "targets": 3},
    "complete-search": {"steps": 4, "restarts": 2, "targets": 1, "branches": 4},
    "gaussian-noise": {"steps": 10},
    "transfer": {"steps": 5},
    "grid": {"steps": 4, "targets": 2, "selection_draws": 3},
    "student": {"queries": 64, "steps": 3, "targets": 2, "selection_draws": 3},
    "autoattack": {"version": "custom", "attacks": ["apgd-ce"]},
    "foolbox": {"attack": "LinfProjectedGradientDescentAttack", "parameters": {"steps": 5}},
}

# Natural perturbations ignore the ball and stay in the pixel range.
NATURAL = {"gaussian-blind", "translation", "rotation", "colour-jitter"}


def _timeless(outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    return {outcome.sample: replace(outcome, seconds=0.0) for outcome in outcomes}


def _pieces(name: str, pieces: list[Batch], norm: str) -> dict[str, Outcome]:
    threat = ThreatModel.of(norm, "1" if name in NATURAL else {"linf": "0.12", "l2": "0.6"}[norm])
    rows: dict[str, Outcome] = {}
    for piece in pieces:
        rows |= _timeless(run(name.partition(",")[0], SHORT.get(name, {}), piece, threat, model=cnn(tile=32)))
    return rows


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", [*ATTACKS, "apgd, untargeted"])
def test_rows_are_the_same_at_any_batch_size_and_order(name: str, norm: str) -> None:
    attack = ATTACKS[name.partition(",")[0]]
    if name == "foolbox" and norm == "l2":
        pytest.skip("the chosen attack is in linf")
    if norm not in attack.norms:
        pytest.skip(f"{name} is not in {norm}")
    # Linear programs and trees of branches take their time.
    count = 32 if name == "complete-search" else 128
    batch = first_images(count)
    tiles = batch.tiles(count // 4)
    whole = _pieces(name, [batch], norm)
    assert _pieces(name, tiles[::-1], norm) == whole
    assert _pieces(name, [batch.take(range(count // 2)), batch.take(range(count // 2, count))], norm) == whole
    if not attack.whole_tiles:
        shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(1)).tolist()
        assert _pieces(name, [batch.take(shuffled[: count // 3]), batch.take(shuffled[count // 3 :])], norm) == whole
    assert {outcome.status for outcome in whole.values()} <= {Status.BROKEN, Status.HELD, Status.WRONG}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_stochastic_model_gives_the_same_rows_twice_and_in_any_order_of_tiles(name: str) -> None:
    batch, threat = first_images(48), ThreatModel.of("linf", "1" if name in NATURAL else "0.12")
    parameters = {
        **SHORT,
        "apgd": {"steps": 5, "selection_draws": 3},
        "square": {"steps": 5, "draws": 2},
        "rays": {"queries": 20, "draws": 2},
        "local-search": {"steps": 3, "flips": 4, "restarts": 1, "targets": 2, "draws": 2},
        "complete-search": {"steps": 3, "restarts": 2, "targets": 1},
        "cw": {"steps": 5},
        "deepfool": {"steps": 8},
    }.get(name, {})

    def rows(pieces: list[Batch]) -> dict[str, Outcome]:
        model = wrapped(Noisy(trained_cnn(), 0.1), tile=16)
        model.stochastic = True
        outcomes: dict[str, Outcome] = {}
        for piece in pieces:
            outcomes |= _timeless(run(name, parameters, piece, threat, model=model))
        return outcomes

    whole = rows([batch])
    assert rows(batch.tiles(16)[::-1]) == whole
    assert all(outcome.fresh_draws > 0 for outcome in whole.values())


def test_another_seed_gives_other_random_starts() -> None:
    batch, threat = sharp(first_images(32)), ThreatModel.of("linf", "0.12")
    distances = [
        [outcome.distance for outcome in run("pgd", {"steps": 1, "step_size": 1e-3}, batch, threat, seed=seed)]
        for seed in (0, 1)
    ]
    assert distances[0] != distances[1]


def test_early_exit_breaks_no_fewer_samples_with_fewer_passes() -> None:
    batch, threat = sharp(first_images(96)), ThreatModel.of("linf", "0.12")
    for name in ("pgd", "mim"):
        plain, early = (run(name, {"early_exit": early}, batch, threat) for early in (False, True))
        assert bool((broken(early) | ~broken(plain)).all())
        assert sum(row.forwards for row in early) < sum(row.forwards for row in plain)


@pytest.mark.parametrize("early_exit", [True, False])
def test_restarts_keep_the_first_success(early_exit: bool) -> None:
    batch, threat = sharp(first_images(96)), ThreatModel.of("linf", "0.11")
    parameters = {"steps": 10, "relative_step_size": 0.1, "early_exit": early_exit}
    one = broken(run("pgd", parameters, batch, threat))
    many = broken(run("pgd", {**parameters, "restarts": 5}, batch, threat))
    assert bool((many | ~one).all())
    assert many.sum() > one.sum()


def test_work_counts_of_pgd_are_exact() -> None:
    batch, threat = first_images(40), ThreatModel.of("linf", "0.12")
    clean = judge_clean(cnn(), batch, 0)
    assert {(outcome.forwards, outcome.backwards) for outcome in clean} == {(1, 0)}
    for outcome in run("pgd", {"steps": 7, "early_exit": False}, batch, threat):
        expected = (0, 0) if outcome.status is Status.WRONG else (7, 7)
        assert (outcome.forwards, outcome.backwards) == expected
    for outcome in run("pgd", {"steps": 7, "early_exit": False, "restarts": 3}, batch, threat):
        if outcome.status is Status.HELD:
            assert (outcome.forwards, outcome.backwards) == (24, 21)
        elif outcome.status is Status.BROKEN:
            assert outcome.forwards in (8, 16, 24)
    for outcome in run("transfer", {"steps": 7}, batch, threat):
        assert outcome.forwards == (0 if outcome.status is Status.WRONG else 7), "the surrogate's work is the attack's"


def test_square_drops_a_sample_as_soon_as_it_is_broken() -> None:
    batch, threat = sharp(first_images(32)), ThreatModel.of("linf", "0.2")
    outcomes = run("square", {"steps": 200}, batch, threat)
    for outcome in outcomes:
        if outcome.status is Status.HELD:
            assert outcome.forwards == 201
    assert any(1 < outcome.forwards < 201 for outcome in outcomes)
    assert all(outcome.backwards == 0 for outcome in outcomes)


def test_square_follows_the_papers_schedule() -> None:
    shares = build_attack("square", {})._share  # type: ignore[attr-defined]
    halved = [shares(step) / 0.8 for step in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001)]
    assert halved == [2.0**-k for k in (0, 0, 1, 2, 3, 4, 5, 6, 7)]
    rescaled = build_attack("square", {"steps": 100, "rescale_schedule": True})._share  # type: ignore[attr-defined]
    assert rescaled(99) / 0.8 == 2.0**-9


@pytest.mark.parametrize("name", ["noop", "random-sign", "gaussian-noise"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_controls_stay_in_the_ball_and_break_little(name: str, norm: str) -> None:
    batch = sharp(first_images(96))
    threat = ThreatModel.of(norm, {"linf": "0.1", "l2": "0.5", "l1": "3"}[norm])
    outcomes = run(name, {}, batch, threat)
    assert broken(outcomes).double().mean() < 0.1
    far = [outcome.distance or 0.0 for outcome in outcomes]
    assert max(far) <= threat.radius + 1e-6
    assert (max(far) == 0) == (name == "noop")


def test_transfer_needs_no_query_of_the_victim_and_records_the_surrogates() -> None:
    torch.manual_seed(0)
    victim = wrapped(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    batch = first_images(200)
    batch = sharp(batch, victim)
    outcomes = run("transfer", {"steps": 10, "relative_step_size": 0.2}, batch, ThreatModel.of("linf", "0.15"), model=victim)
    fooled = sum(outcome.surrogate_prediction != outcome.label for outcome in outcomes) / len(outcomes)
    assert fooled > 0.5


def test_a_transfer_attack_without_its_surrogate_is_refused() -> None:
    with pytest.raises(UsageError, match="surrogate"):
        build_attack("transfer", {})


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("pdg", {}, "did you mean 'pgd'"),
        ("pgd", {"step": 3}, "did you mean 'steps'"),
        ("pgd", {"steps": "3"}, r"pgd\.steps"),
        ("pgd", {"steps": 0}, "at least 1"),
        ("pgd", {"step_size": -0.1}, "positive"),
        ("pgd", {"restarts": 2, "random_start": False}, "same path"),
        ("mim", {"steps": 0}, "at least 1"),
        ("mim", {"decay": -1.0}, "decay"),
        ("mim", {"relative_step_size": 0.0}, "positive"),
        ("deepfool", {"candidates": 1}, "candidates"),
        ("deepfool", {"overshoot": -0.1}, "overshoot"),
        ("cw", {"tau_factor": 1.0}, "tau_factor"),
        ("cw", {"confidence": -1.0}, "confidence"),
        ("cw", {"step_size": 0.0}, "positive"),
        ("square", {"p_init": 1.5}, "p_init"),
        ("square", {"draws": 0}, "at least 1"),
        ("autoattack", {"version": "custom"}, "list of attacks"),
        ("autoattack", {"attacks": ["fab"]}, "custom"),
        ("gaussian-noise", {"steps": 0}, "at least 1"),
        ("foolbox", {}, "needs the parameter 'attack'"),
        ("foolbox:LinfPDG", {}, "did you mean 'LinfPGD'"),
        ("foolbox:LinfPGD", {"stepz": 3}, "stepz"),
        ("pgd:LinfPGD", {}, "unknown"),
    ],
)
def test_wrong_names_and_values_are_refused_with_the_reason(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_attack(name, parameters)


def test_every_parameter_of_an_attack_is_plain_data_and_part_of_its_identity() -> None:
    attack = build_attack("pgd", {"step_size": "2/255", "gradient": {"kind": "eot", "draws": 3}})
    parameters = parameters_of(attack)
    assert parameters["step_size"] == 2 / 255
    assert parameters["gradient"] == {"kind": "eot", "draws": 3, "unreachable": "raise"}
    assert set(parameters) == set(default_parameters("pgd"))
    assert "source" not in default_parameters("transfer")
    named = build_attack("foolbox:LinfPGD", {"steps": 3})
    assert parameters_of(named) == {"attack": "LinfPGD", "parameters": {"steps": 3}, "judged": "distance"}
    assert named == build_attack("foolbox", {"attack": "LinfPGD", "parameters": {"steps": 3}})


def test_a_foolbox_attack_knows_its_norm_and_kind() -> None:
    fixed, nearest = build_attack("foolbox:L2PGD", {}), build_attack("foolbox:L0FMNAttack", {})
    assert (set(fixed.norms), fixed.minimum_norm) == ({"l2"}, False)
    assert (set(nearest.norms), nearest.minimum_norm) == ({"linf", "l2", "l1"}, True)
    with pytest.raises(UsageError, match="not in linf"):
        judge(cnn(), fixed, "x", first_images(2), ThreatModel.of("linf", "0.1"), 0, judge_clean(cnn(), first_images(2), 0))


@pytest.mark.parametrize("name", ["L2FMNAttack", "DDNAttack", "InversionAttack", "L2CarliniWagnerAttack", "HopSkipJumpAttack"])
def test_foolbox_attacks_of_other_kinds_run(name: str) -> None:
    parameters = {"L2CarliniWagnerAttack": {"steps": 20}, "HopSkipJumpAttack": {"steps": 2}}.get(name, {})
    batch = sharp(first_images(12))
    outcomes = run(f"foolbox:{name}", parameters, batch, ThreatModel.of("l2", "3"), model=cnn(tile=12))
    assert {outcome.status for outcome in outcomes} <= {Status.BROKEN, Status.HELD}
