"""A cascade derived from the record alone: what each attack sees, which attacks are skipped, and the numbers that follow."""

from dataclasses import replace
from typing import Any

import pytest

from kwbench.record.comparability import comparison_key
from kwbench.record.results import to_json
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import Summary
from support.records import deterministic, drawn, record, rows, specification


def only(store: Store) -> Summary:
    (summary,) = summaries(store)
    return summary


def value(interval: Any) -> float:
    return float(interval.value)


def test_a_stochastic_cascade_scores_the_candidate_that_selection_chose(store: Store) -> None:
    labels = ["clean", "noise", "pgd"]
    spec = specification(attacks=labels, n=4, stochastic=True, spec={"cascade": True})
    # Noise lowers samples 0 and 1, which are scored; sample 2 ends after ten draws; sample 3 is wrong on the clean image.
    noise = [
        *drawn([90, 0, 0, 0], [95, 1, 0, 0])[:2],
        replace(drawn([0, 0, 9], [0, 0, 0])[2], selection_draws=10, fresh_draws=0, fresh_correct=0),
    ]
    pgd = [
        replace(drawn([90], [0])[0], fresh_draws=0, fresh_correct=0),
        drawn([0, 0, 20], [0, 0, 25])[2],
    ]
    record(store, spec, {"clean": drawn([96, 80, 70, 0], [97, 81, 72, 2]), "noise": noise, "pgd": pgd})
    summary = only(store)
    assert summary.complete, summary.missing
    assert value(summary.a_rob) == pytest.approx((0.95 + 0.01 + 0.25 + 0.02) / 4)
    assert summary.worst == ("noise", "noise", "pgd", "clean")
    assert [attack.broke for attack in summary.attacks] == [2, 1]
    assert [value(attack.remaining) for attack in summary.attacks] == pytest.approx([0.425, (0.95 + 0.01 + 0.25 + 0.02) / 4])
    assert [attack.accuracy for attack in summary.attacks] == [None, None]


def test_a_stochastic_cascade_without_fresh_draws_of_a_candidate_has_no_a_rob(store: Store) -> None:
    spec = specification(n=1, stochastic=True, spec={"cascade": True})
    row = replace(drawn([20], [0])[0], fresh_draws=0, fresh_correct=0)
    record(store, spec, {"clean": drawn([90], [90]), "pgd": [row]})
    summary = only(store)
    assert summary.missing == ("pgd: rows without draws",)
    assert summary.a_rob is None


def test_an_unbroken_stochastic_sample_that_was_not_attacked_leaves_no_a_rob(store: Store) -> None:
    spec = specification(n=2, stochastic=True, spec={"cascade": True})
    record(store, spec, {"clean": drawn([90, 80], [88, 81]), "pgd": drawn([20], [25])})
    summary = only(store)
    assert summary.missing == ("pgd: 1 of 2 samples",)


def test_an_attack_without_unbroken_samples_is_skipped_unless_the_protocol_has_it(store: Store) -> None:
    deterministic(
        store,
        {"clean": "wh", "pgd": ".b", "apgd": "..", "fgsm": ".."},
        spec={"cascade": True, "protocol_attacks": ["pgd", "apgd"]},
    )
    summary = only(store)
    assert summary.complete
    assert value(summary.a_rob) == 0
    assert [(attack.n, value(attack.remaining), attack.broke) for attack in summary.attacks] == [(1, 0, 1), (0, 0, 0)]
    assert summary.skipped == {"fgsm": "robust accuracy was already below 0.1 %"}


@pytest.mark.parametrize(("share", "skipped"), [(1, True), (2, False)])
def test_attacks_are_skipped_below_a_thousandth_of_accuracy_on_a_stochastic_model(
    store: Store, share: int, skipped: bool
) -> None:
    shares = [0] * 19 + [share]
    spec = specification(attacks=("clean", "pgd", "fgsm"), n=20, stochastic=True, spec={"cascade": True})
    record(store, spec, {"clean": drawn([95] * 20, [95] * 20), "pgd": drawn(shares, shares)})
    summary = only(store)
    assert ("fgsm" in summary.skipped) is skipped
    assert summary.complete is skipped


@pytest.mark.parametrize(
    ("fgsm", "pgd", "skipped"),
    [("whhh", "....", {"pgd": "fgsm gained nothing"}), ("whhb", "whbh", {}), ("wbhh", "....", None)],
)
def test_a_condition_holds_if_the_attack_before_broke_an_unbroken_sample(
    store: Store, fgsm: str, pgd: str, skipped: dict[str, str] | None
) -> None:
    deterministic(store, {"clean": "whhh", "fgsm": fgsm, "pgd": pgd}, spec={"after": {"pgd": ["fgsm"]}})
    summary = only(store)
    assert summary.complete == (skipped is not None)
    if skipped is not None:
        assert summary.skipped == skipped
        assert summary.a_rob is not None
        assert [attack.name for attack in summary.attacks] == ["fgsm"] if skipped else ["fgsm", "pgd"]


def test_a_sample_that_was_broken_before_is_no_gain(store: Store) -> None:
    letters = {"clean": "whhh", "fgsm": "whbb", "again": "whhb", "pgd": "...."}
    deterministic(store, letters, spec={"after": {"pgd": ["again"]}})
    summary = only(store)
    assert summary.skipped == {"pgd": "again gained nothing"}


def test_one_of_several_conditions_is_enough_and_skipped_attacks_gained_nothing(store: Store) -> None:
    letters = {"clean": "hhhh", "a": "hhhh", "b": "....", "c": "hhhb", "d": "hhbb", "e": "...."}
    after = {"b": ["a"], "d": ["b", "c"], "e": ["a", "b", "not for such models"]}
    deterministic(store, letters, spec={"after": after})
    summary = only(store)
    assert summary.complete, summary.missing
    assert summary.skipped == {"b": "a gained nothing", "e": "a, b, not for such models gained nothing"}


def test_an_unfinished_attack_rules_out_no_attack_that_depends_on_it(store: Store) -> None:
    deterministic(store, {"clean": "whhh", "fgsm": "whh.", "pgd": "...."}, spec={"after": {"pgd": ["fgsm"]}})
    summary = only(store)
    assert summary.skipped == {}
    assert set(summary.missing) == {"fgsm: 3 of 4 samples", "pgd: 0 of 4 samples"}


@pytest.mark.parametrize(("drop", "gained"), [(0, False), (1, False), (2, True)])
def test_a_gain_on_a_stochastic_model_is_half_a_point_of_the_mean(store: Store, drop: int, gained: bool) -> None:
    spec = specification(
        attacks=["clean", "fgsm", "pgd"], n=4, stochastic=True, spec={"after": {"pgd": ["fgsm"]}, "cascade": True}
    )
    clean = drawn([90, 90, 90, 90], [90, 90, 90, 90])
    record(store, spec, {"clean": clean, "fgsm": drawn([90 - drop, 99, 95, 90], [90, 90, 90, 90])})
    summary = only(store)
    assert ("pgd" in summary.skipped) != gained


def test_rows_of_a_skipped_attack_do_not_count(store: Store) -> None:
    # The rows may come from another evaluation that shares the attack run.
    letters = {"clean": "hhhh", "fgsm": "hhhh", "pgd": "bbbb"}
    deterministic(store, letters, spec={"after": {"pgd": ["fgsm"]}})
    summary = only(store)
    assert value(summary.a_rob) == 1
    assert summary.skipped == {"pgd": "fgsm gained nothing"}


def test_an_attack_that_does_not_apply_is_skipped_with_the_reason(store: Store) -> None:
    spec = {"not_applicable": {"swap": "there is nothing to swap"}}
    deterministic(store, {"clean": "hh", "swap": "..", "pgd": "hb"}, spec=spec)
    summary = only(store)
    assert summary.complete
    assert to_json(summary)["skipped"] == [{"name": "swap", "reason": "there is nothing to swap"}]


def test_a_protocol_is_the_worst_case_of_the_protocols_attacks_alone(store: Store) -> None:
    letters = {"clean": "whhhh", "pgd": "whbhh", "aa": "whhbh", "square": "wbhhh"}
    deterministic(store, letters, spec={"protocol_attacks": ["pgd", "aa"]})
    summary = only(store)
    assert summary.protocol_values is not None
    assert summary.protocol_values.tolist() == [0, 1, 0, 0, 1]
    assert value(summary.a_protocol) == 0.4
    assert value(summary.a_rob) == 0.2
    shown = to_json(summary)
    assert (shown["protocol"], shown["a_protocol"]["value"]) == (["pgd", "aa"], 0.4)


def test_the_protocols_candidate_on_a_stochastic_model_is_one_of_the_protocols_attacks(store: Store) -> None:
    spec = specification(
        attacks=["clean", "pgd", "es"], n=2, stochastic=True, spec={"protocol_attacks": ["pgd"], "cascade": True}
    )
    scores = {"clean": drawn([90, 80], [91, 81]), "pgd": drawn([50, 70], [51, 71]), "es": drawn([40, 10], [41, 11])}
    record(store, spec, scores)
    summary = only(store)
    assert summary.protocol_values is not None
    assert summary.protocol_values.tolist() == [0.51, 0.71]
    assert summary.robust_values is not None
    assert summary.robust_values.tolist() == [0.41, 0.11]


def test_a_protocol_with_missing_rows_has_no_accuracy(store: Store) -> None:
    deterministic(store, {"clean": "whh", "pgd": "wh.", "aa": "whh"}, spec={"protocol_attacks": ["pgd"]})
    assert summaries(store)[0].a_protocol is None


def test_budgets_are_summed_over_the_attacks_that_ran(store: Store) -> None:
    spec = specification(
        attacks=["clean", "pgd", "es", "es x2"],
        n=4,
        spec={"cascade": True, "passes": {"pgd": 80, "es": 100, "es x2": 200}, "after": {"es x2": ["es"]}},
    )
    es = rows("hh", start=2, forwards=60, backwards=0)
    record(store, spec, {"clean": rows("hhhh"), "pgd": rows("bbhh", forwards=20, backwards=10), "es": es})
    summary = only(store)
    assert (summary.budget, summary.used) == (180, (4 * 30 + 2 * 60) / 4)
    assert [(attack.budget, attack.used) for attack in summary.attacks] == [(80, 30), (100, 60)]
    assert to_json(summary)["passes"] == {"budget": 180, "used": 60}
    assert to_json(summary)["attacks"][0]["passes"] == {"budget": 80, "used": 30}


@pytest.mark.parametrize(("seen", "goes_on"), [("hhhh", False), ("hhbh", True)])
def test_a_screen_sees_some_unbroken_samples_and_a_gain_extends_it_to_all(store: Store, seen: str, goes_on: bool) -> None:
    spec = specification(
        attacks=["clean", "es", "es x2"],
        n=10,
        spec={"cascade": True, "screens": {"es": 4}, "after": {"es x2": ["es"]}},
    )
    # Seven samples are unbroken. The screen is the first, the last and two between them.
    screened = [3, 5, 7, 9]
    es = [replace(rows("h" * 10)[index], status=rows(letter)[0].status) for index, letter in zip(screened, seen, strict=True)]
    record(store, spec, {"clean": rows("wwwhhhhhhh"), "es": es})
    summary = only(store)
    assert ("es x2" not in summary.skipped) == goes_on
    assert summary.complete != goes_on
    if goes_on:
        assert summary.missing == ("es: 4 of 7 samples", "es x2: 0 of 6 samples")


def test_the_gain_of_a_screen_is_scaled_up_to_all_unbroken_samples(store: Store) -> None:
    # One of 4 screened samples stands for a quarter of 400; one of 400 is less than half a point.
    for screens, goes_on in (({"es": 4}, True), ({}, False)):
        spec = specification(
            attacks=["clean", "es", "es x2"],
            n=400,
            checkpoint=f"c{len(screens)}",
            spec={"cascade": True, "screens": screens, "after": {"es x2": ["es"]}},
        )
        chosen = [0, 133, 266, 399] if screens else range(400)
        all_rows = rows("b" + "h" * 399)
        evaluation = record(store, spec, {"clean": rows("h" * 400), "es": [all_rows[index] for index in chosen]})
        (summary,) = summaries(store, [evaluation])
        assert ("es x2" not in summary.skipped) == goes_on


def test_a_protocol_with_escalations_for_stochastic_models_is_one_protocol(store: Store) -> None:
    protocol = [{"label": "pgd", "when": "always"}, {"label": "es", "when": "stochastic", "escalate": 1}]
    plain = store.register(specification(spec={"protocol": protocol}))
    labels = ["clean", "pgd", "es", "es x2"]
    random = store.register(specification(attacks=labels, stochastic=True, spec={"protocol": protocol}))
    assert comparison_key(plain) == comparison_key(random)
