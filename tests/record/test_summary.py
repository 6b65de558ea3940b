"""The numbers of an evaluation follow their definitions."""

import json

import numpy as np
import pytest

from kwbench.outcome import Status
from kwbench.record.comparability import comparison_key
from kwbench.record.results import to_json
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import Summary
from support.records import deterministic, drawn, record, rows, specification


def only(store: Store) -> Summary:
    (summary,) = summaries(store)
    return summary


def value(interval: object) -> float:
    return interval.value  # type: ignore[attr-defined, no-any-return]


def test_the_accuracy_of_a_deterministic_model_is_the_share_that_held(store: Store) -> None:
    deterministic(store, {"clean": "whhhh", "pgd": "whbhh", "fgsm": "wbhhh"})
    summary = only(store)
    assert summary.complete
    assert value(summary.a_std) == 0.8
    assert [value(attack.accuracy) for attack in summary.attacks] == [0.6, 0.6]


def test_a_rob_is_the_worst_case_per_sample_not_per_attack(store: Store) -> None:
    deterministic(store, {"clean": "whhhh", "pgd": "whbhh", "fgsm": "wbhhh"})
    summary = only(store)
    assert value(summary.a_rob) == 0.4
    assert value(summary.a_rob_as_in_paper) == 0.6


def test_a_rob_as_in_the_paper_takes_only_the_papers_attacks(store: Store) -> None:
    letters = {"clean": "hhhh", "pgd": "hhbb", "fgsm": "hhhb"}
    deterministic(store, letters, spec={"paper_attacks": ["fgsm"]})
    assert value(only(store).a_rob_as_in_paper) == 0.75


def test_a_rob_as_in_the_paper_is_none_while_one_of_its_attacks_is_missing(store: Store) -> None:
    deterministic(store, {"clean": "hhhh", "pgd": "hhb.", "fgsm": "hhhb"}, spec={"paper_attacks": ["pgd", "fgsm"]})
    assert only(store).a_rob_as_in_paper is None


@pytest.mark.parametrize("letters", ["whb.", "whbi", "whbe", "...."])
def test_missing_invalid_and_error_rows_leave_an_attack_without_accuracy(store: Store, letters: str) -> None:
    deterministic(store, {"clean": "whhh", "fgsm": "whhb", "pgd": letters})
    summary = only(store)
    assert not summary.complete
    assert summary.a_rob is None
    assert summary.robust_values is None
    assert summary.missing[0].startswith("pgd: ")
    assert value(summary.a_std) == 0.75
    assert [attack.accuracy is None for attack in summary.attacks] == [False, True]


def test_without_the_clean_images_there_is_no_accuracy(store: Store) -> None:
    deterministic(store, {"pgd": "hhbb"})
    summary = only(store)
    assert summary.a_std is summary.a_rob is None
    assert not summary.complete


def test_without_an_attack_there_is_no_robust_accuracy(store: Store) -> None:
    deterministic(store, {"clean": "hhhh"})
    summary = only(store)
    assert value(summary.a_std) == 1
    assert summary.a_rob is None
    assert summary.missing == ("there is no attack",)


def test_an_attack_on_other_samples_leaves_no_a_rob(store: Store) -> None:
    spec = specification(n=3)
    record(store, spec, {"clean": rows("hhh"), "pgd": rows("hhh", start=5)})
    summary = only(store)
    assert summary.a_rob is None
    assert "other samples" in summary.missing[0]


def test_the_accuracy_of_a_stochastic_model_is_the_mean_of_its_fresh_draws(store: Store) -> None:
    spec = specification(n=3, stochastic=True)
    record(store, spec, {"clean": drawn([90, 80, 70], [88, 81, 72]), "pgd": drawn([90, 20, 75], [10, 25, 70])})
    summary = only(store)
    assert value(summary.a_std) == pytest.approx((0.88 + 0.81 + 0.72) / 3)
    assert value(summary.attacks[0].accuracy) == pytest.approx((0.10 + 0.25 + 0.70) / 3)


def test_a_stochastic_a_rob_scores_the_selected_candidate_and_the_earliest_in_a_tie(store: Store) -> None:
    spec = specification(n=3, stochastic=True)
    # Sample 0 ties: the clean image is first. Sample 1: pgd. Sample 2: the clean image, although pgd's fresh draws are worse.
    record(store, spec, {"clean": drawn([90, 80, 70], [88, 81, 72]), "pgd": drawn([90, 20, 75], [10, 25, 70])})
    assert value(only(store).a_rob) == pytest.approx((0.88 + 0.25 + 0.72) / 3)


def test_twenty_attacks_that_do_nothing_leave_a_rob_at_a_std(store: Store) -> None:
    rng = np.random.default_rng(0)
    n, p = 360, rng.beta(4, 1, 360)
    labels = ["clean", *(f"noop-{number}" for number in range(20))]
    outcomes = {label: drawn(rng.binomial(50, p) * 2, rng.binomial(100, p)) for label in labels}
    record(store, specification(attacks=labels, n=n, stochastic=True), outcomes)
    summary = only(store)
    assert summary.a_std is not None
    assert summary.a_std.low <= value(summary.a_rob) <= summary.a_std.high
    # Guard: the minimum over fresh draws, which this test rules out, is far lower.
    scored = np.array([[row.fresh_correct / 100 for row in rows_] for rows_ in outcomes.values()])
    assert scored.min(axis=0).mean() < summary.a_std.low - 0.03


def test_an_attack_that_works_on_a_stochastic_model_lowers_a_rob(store: Store) -> None:
    rng = np.random.default_rng(1)
    p = rng.beta(4, 1, 360)
    record(
        store,
        specification(n=360, stochastic=True),
        {
            "clean": drawn(rng.binomial(100, p), rng.binomial(100, p)),
            "pgd": drawn(rng.binomial(100, p / 2), rng.binomial(100, p / 2)),
        },
    )
    assert value(only(store).a_rob) == pytest.approx(p.mean() / 2, abs=0.02)


def test_stochastic_rows_without_draws_leave_no_a_rob(store: Store) -> None:
    record(store, specification(n=2, stochastic=True), {"clean": drawn([50, 50], [50, 50]), "pgd": rows("hh")})
    summary = only(store)
    assert summary.a_rob is None
    assert summary.missing == ("pgd: rows without draws",)


def test_a_cascade_has_the_remaining_accuracy_after_each_attack(store: Store) -> None:
    deterministic(store, {"clean": "whhh", "pgd": ".hbh", "fgsm": ".b.h"}, spec={"cascade": True})
    summary = only(store)
    assert summary.cascade
    assert summary.complete
    assert value(summary.a_rob) == 0.25
    assert [attack.accuracy for attack in summary.attacks] == [None, None]
    assert [value(attack.remaining) for attack in summary.attacks] == [0.5, 0.25]
    assert [attack.n for attack in summary.attacks] == [3, 2]


def test_a_cascade_is_incomplete_if_an_unbroken_sample_has_no_row(store: Store) -> None:
    deterministic(store, {"clean": "whhh", "pgd": ".hbh", "fgsm": ".b.."}, spec={"cascade": True})
    assert only(store).a_rob is None


def test_missing_rows_are_allowed_in_cascades_only(store: Store) -> None:
    deterministic(store, {"clean": "whhh", "pgd": ".hbh"})
    assert not only(store).complete


def test_statuses_and_costs_are_summed_over_the_rows(store: Store) -> None:
    spec = specification(n=5)
    record(store, spec, {"clean": rows("whhhh"), "pgd": rows("whbie", forwards=7, backwards=5, seconds=0.1)})
    (attack,) = only(store).attacks
    assert attack.statuses == {"wrong": 1, "broken": 1, "held": 1, "invalid": 1, "error": 1}
    assert (attack.forwards, attack.backwards, attack.seconds) == (35, 25, 0.5)


def test_minimum_norm_attacks_show_the_other_judging_rule(store: Store) -> None:
    spec = specification(n=3, attacks={"clean": {}, "deepfool": {"judged": "distance"}})
    both = [*rows("h", start=1, other_status=Status.BROKEN), *rows("h", start=2, other_status=Status.HELD)]
    record(
        store,
        spec,
        {
            "clean": rows("whh"),
            "deepfool": [*rows("w"), *both],
        },
    )
    (attack,) = only(store).attacks
    assert value(attack.accuracy) == pytest.approx(2 / 3)
    assert value(attack.other_accuracy) == pytest.approx(1 / 3)
    shown = to_json(only(store))["attacks"][0]
    assert shown["judged"] == "distance"
    assert shown["other_accuracy"]["value"] == pytest.approx(1 / 3)


def test_transfer_shows_the_accuracy_of_the_surrogate_on_its_own_adversarial_examples(store: Store) -> None:
    spec = specification(n=4, attacks={"clean": {}, "transfer": {"surrogate": "vgg"}})
    proposals = [*rows("w"), *rows("hbh", start=1, surrogate_prediction=1)]
    record(store, spec, {"clean": rows("whhh"), "transfer": proposals})
    (attack,) = only(store).attacks
    assert attack.surrogate == "vgg"
    right = sum(row.surrogate_prediction == row.label for row in proposals)
    assert value(attack.surrogate_accuracy) == pytest.approx(right / 3)
    assert to_json(only(store))["attacks"][0]["surrogate"]["name"] == "vgg"


def test_the_order_of_the_rows_does_not_matter(store: Store) -> None:
    spec = specification(n=4)
    record(store, spec, {"clean": rows("whhh")[::-1], "pgd": rows("whbh")[::-1]})
    assert only(store).robust_values is not None
    assert only(store).robust_values.tolist() == [0, 1, 0, 1]  # type: ignore[union-attr]


def test_the_json_has_the_documented_keys_and_null_where_there_is_no_number(store: Store) -> None:
    evaluation = deterministic(store, {"clean": "whhh", "pgd": "whb."})
    shown = json.loads(json.dumps(to_json(only(store)), allow_nan=False))
    documented = {"model", "dataset", "n", "threat", "stochastic", "complete", "run", "a_std", "a_rob", "cascade"}
    assert documented | {"a_rob_as_in_paper", "attacks"} <= set(shown)
    assert shown["threat"]["norm"] == "linf"
    assert shown["threat"]["eps"] == pytest.approx(8 / 255)
    assert shown["run"] == evaluation.spec.identity
    assert shown["a_rob"] is None
    assert set(shown["a_std"]) == {"value", "low", "high"}
    (attack,) = shown["attacks"]
    assert {"name", "n", "accuracy", "statuses", "forwards", "backwards", "seconds"} <= set(attack)
    assert attack["name"] == "pgd"
    assert attack["n"] == 3
    assert attack["accuracy"] is None
    assert set(attack["statuses"]) == {"wrong", "broken", "held", "invalid", "error"}


def test_an_evaluation_by_an_earlier_version_is_marked_and_compared_by_its_protocol(store: Store) -> None:
    earlier = deterministic(store, {"clean": "whhh", "pgd": "whbh"}, origin={"engine": None, "code_sha256": "0" * 64})
    current = deterministic(store, {"clean": "whhh", "pgd": "whhh"})
    assert not set(earlier.attack_runs.values()) & set(current.attack_runs.values())
    assert [summary.earlier_version for summary in summaries(store)] == [True, False]
    assert [to_json(summary)["earlier_version"] for summary in summaries(store)] == [True, False]
    assert comparison_key(earlier) == comparison_key(current)


def test_only_equal_protocols_on_equal_data_are_comparable(store: Store) -> None:
    def key(**options: object) -> object:
        return comparison_key(store.register(specification(**options)))  # type: ignore[arg-type]

    assert key(model="a", checkpoint="1") == key(model="b", checkpoint="2")
    base = key(model="a", checkpoint="1")
    for options in (
        {"n": 5},
        {"eps": "0.1"},
        {"norm": "l2"},
        {"suite": "strong"},
        {"dataset": "mnist"},
        {"attacks": {"clean": {}, "pgd": {"steps": 10}}},
        {"origin": {"data_sha256": "other"}},
        {"spec": {"cascade": True}},
        {"stochastic": True, "origin": {"prediction": {"kind": "mean_logits", "draws": 10}}},
    ):
        assert key(**options) != base, options
    # One draw of a stochastic model and the prediction of a deterministic one are the same rule.
    assert key(stochastic=True) == base


def test_a_suite_with_attacks_for_stochastic_models_only_is_one_protocol(store: Store) -> None:
    protocol = [{"label": "pgd", "when": "always"}, {"label": "pgd-eot", "when": "stochastic"}]
    plain = store.register(specification(spec={"protocol": protocol}))
    random = store.register(specification(attacks=["clean", "pgd", "pgd-eot"], stochastic=True, spec={"protocol": protocol}))
    assert comparison_key(plain) == comparison_key(random)
