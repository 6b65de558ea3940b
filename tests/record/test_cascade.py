"""Cascades: each attack sees what still stands, conditions are decided by the record, and nothing else changes a row."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kwbench.attacks import ATTACKS
from kwbench.attacks.attack import Attack
from kwbench.config.registry import read_registry
from kwbench.config.suite import Suite, SuiteAttack
from kwbench.errors import CannotEvaluate, NotApplicable, UsageError
from kwbench.evaluation.evaluator import LocalEvaluator
from kwbench.evaluation.request import Request
from kwbench.evaluation.runner import Progress, evaluate
from kwbench.geometry import TOLERANCE
from kwbench.judge import FRESH_DRAWS, SCREENING_DRAWS, SELECTION_DRAWS
from kwbench.model import Model
from kwbench.networks.entries import load_entry
from kwbench.outcome import Outcome
from kwbench.randomness import SampleRandom
from kwbench.record.comparability import comparison_key
from kwbench.record.evaluation import Evaluation
from kwbench.record.results import to_json
from kwbench.record.store import Store
from kwbench.record.summary import Summary, summaries
from kwbench.report.leaderboard import boards
from kwbench.threat import ThreatModel
from support.records import deterministic, drawn, record, rows, specification
from support.small_models import digits
from support.small_registry import count, request, write_registry
from support.small_registry import rows as recorded


@dataclass(frozen=True)
class Corners(Attack):
    """Tries random corners of the ball; the last that fools, else the last."""

    norms = frozenset({"linf"})
    needs = "labels"
    tries: int = 1

    def doubled(self, times: int) -> "Corners":
        return replace(self, tries=self.tries * 2**times)

    def other_half(self) -> "Corners":
        return self

    def passes(self, stochastic: bool) -> int:
        return self.tries

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        best = x
        for number in range(self.tries):
            corner = (x + threat.radius * (rng.uniform(number, x.shape[1:], -1, 1).sign().to(x))).clamp(0, 1)
            fooled = model.predict(corner)[0] != y
            best = torch.where((fooled | (best == x).flatten(1).all(dim=1)).view(-1, 1, 1, 1), corner, best)
        return best


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(str(tmp_path / "results.db"), create=True)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def _corners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTACKS, "corners", Corners)


def suite(*attacks: SuiteAttack, cascade: bool = True, **options: Any) -> Suite:
    return Suite("mine", attacks, cascade=cascade, **options)


def staged(
    label: str,
    attack: str | None = None,
    after: tuple[str, ...] = (),
    escalate: int = 0,
    screen: int | None = None,
    **parameters: Any,
) -> SuiteAttack:
    return SuiteAttack(label, attack or label, parameters=parameters, after=after, escalate=escalate, screen=screen)


def falling(*, cascade: bool = True, **options: Any) -> Suite:
    """Attacks of which nearly each breaks some samples, and conditions that hold and do not hold."""
    screen = 9 if cascade else None
    return suite(
        staged("corners", escalate=2, screen=screen, tries=3),
        staged("nothing", "noop", screen=screen),
        staged("fgsm"),
        staged("pgd", steps=4, step_size=0.08, after=("fgsm",)),
        staged("never", "pgd", after=("nothing",)),
        cascade=cascade,
        **options,
    )


def falling_request(registry: Path, model: str = "small", **options: Any) -> Request:
    return request(registry, model, **{"suite": falling(), "n": 40, "eps": "0.2"} | options)


@pytest.fixture(scope="module", params=["small", "small-random"])
def whole(request: pytest.FixtureRequest, registry: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A model, and the record of its cascade, carried out at one go, with images."""
    db = tmp_path_factory.mktemp(request.param) / "results.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS, "corners", Corners)
        carry_out(falling_request(registry, request.param, keep_adversarials=True), db)
    return request.param, db


def copy(db: Path, folder: Path, *changes: str) -> Path:
    """A copy of a record, changed by SQL."""
    made = Path(shutil.copy(db, folder / "copy.db"))
    connection = sqlite3.connect(made)
    for change in changes:
        connection.execute(change)
    connection.commit()
    connection.close()
    return made


def carry_out(what: Request, db: Path, **options: Any) -> Evaluation:
    store = Store.open(str(db), create=True)
    try:
        return evaluate(what, store, **options)
    finally:
        store.close()


def found(db: Path, evaluation: Evaluation | None = None) -> Summary:
    store = Store.open(str(db))
    try:
        return summaries(store, [evaluation] if evaluation is not None else None)[-1]
    finally:
        store.close()


def value(interval: Any) -> float:
    return float(interval.value)


class TestTheRecordAlone:
    def test_a_stochastic_cascade_scores_the_candidate_that_selection_chose(self, store: Store) -> None:
        labels = ["clean", "noise", "pgd"]
        spec = specification(attacks=labels, n=4, stochastic=True, spec={"cascade": True})
        # Of noise, samples 0 and 1 are below and scored; sample 2 is left after ten draws; sample 3 fell on the clean image.
        noise = [
            *drawn([90, 0, 0, 0], [95, 1, 0, 0])[:2],
            replace(drawn([0, 0, 9], [0, 0, 0])[2], selection_draws=10, fresh_draws=0, fresh_correct=0),
        ]
        pgd = [
            replace(drawn([90], [0])[0], fresh_draws=0, fresh_correct=0),
            drawn([0, 0, 20], [0, 0, 25])[2],
        ]
        record(store, spec, {"clean": drawn([96, 80, 70, 0], [97, 81, 72, 2]), "noise": noise, "pgd": pgd})
        (it,) = summaries(store)
        assert it.complete, it.missing
        assert value(it.a_rob) == pytest.approx((0.95 + 0.01 + 0.25 + 0.02) / 4)
        assert it.worst == ("noise", "noise", "pgd", "clean")
        assert [attack.broke for attack in it.attacks] == [2, 1]
        assert [value(attack.remaining) for attack in it.attacks] == pytest.approx([0.425, (0.95 + 0.01 + 0.25 + 0.02) / 4])
        assert [attack.accuracy for attack in it.attacks] == [None, None]

    def test_a_stochastic_cascade_without_the_scores_that_it_needs_has_no_number(self, store: Store) -> None:
        spec = specification(n=1, stochastic=True, spec={"cascade": True})
        row = replace(drawn([20], [0])[0], fresh_draws=0, fresh_correct=0)
        record(store, spec, {"clean": drawn([90], [90]), "pgd": [row]})
        (it,) = summaries(store)
        assert it.missing == ("pgd: rows without draws",)
        assert it.a_rob is None

    def test_a_stochastic_sample_that_still_stands_and_was_not_attacked_leaves_no_number(self, store: Store) -> None:
        spec = specification(n=2, stochastic=True, spec={"cascade": True})
        record(store, spec, {"clean": drawn([90, 80], [88, 81]), "pgd": drawn([20], [25])})
        (it,) = summaries(store)
        assert it.missing == ("pgd: 1 of 2 samples",)

    def test_an_attack_with_nothing_left_to_attack_does_not_run_unless_it_is_the_protocols(self, store: Store) -> None:
        deterministic(
            store,
            {"clean": "wh", "pgd": ".b", "apgd": "..", "fgsm": ".."},
            spec={"cascade": True, "protocol_attacks": ["pgd", "apgd"]},
        )
        (it,) = summaries(store)
        assert it.complete
        assert value(it.a_rob) == 0
        assert [(attack.n, value(attack.remaining), attack.broke) for attack in it.attacks] == [(1, 0, 1), (0, 0, 0)]
        assert it.skipped == {"fgsm": "robust accuracy was already below 0.1 %"}

    @pytest.mark.parametrize(("share", "skipped"), [(1, True), (2, False)])
    def test_less_than_a_thousandth_of_a_stochastic_model_is_not_worth_an_attack(
        self, store: Store, share: int, skipped: bool
    ) -> None:
        shares = [0] * 19 + [share]
        spec = specification(attacks=("clean", "pgd", "fgsm"), n=20, stochastic=True, spec={"cascade": True})
        record(store, spec, {"clean": drawn([95] * 20, [95] * 20), "pgd": drawn(shares, shares)})
        (it,) = summaries(store)
        assert ("fgsm" in it.skipped) is skipped
        assert it.complete is skipped

    @pytest.mark.parametrize(
        ("fgsm", "pgd", "skipped"),
        [("whhh", "....", {"pgd": "fgsm gained nothing"}), ("whhb", "whbh", {}), ("wbhh", "....", None)],
    )
    def test_a_condition_holds_if_the_attack_before_broke_a_sample_that_stood(
        self, store: Store, fgsm: str, pgd: str, skipped: dict[str, str] | None
    ) -> None:
        deterministic(store, {"clean": "whhh", "fgsm": fgsm, "pgd": pgd}, spec={"after": {"pgd": ["fgsm"]}})
        (it,) = summaries(store)
        assert it.complete == (skipped is not None)
        if skipped is not None:
            assert it.skipped == skipped
            assert it.a_rob is not None
            assert [attack.name for attack in it.attacks] == ["fgsm"] if skipped else ["fgsm", "pgd"]

    def test_what_was_broken_before_is_no_gain(self, store: Store) -> None:
        letters = {"clean": "whhh", "fgsm": "whbb", "again": "whhb", "pgd": "...."}
        deterministic(store, letters, spec={"after": {"pgd": ["again"]}})
        (it,) = summaries(store)
        assert it.skipped == {"pgd": "again gained nothing"}

    def test_of_several_conditions_one_is_enough_and_what_did_not_run_gained_nothing(self, store: Store) -> None:
        letters = {"clean": "hhhh", "a": "hhhh", "b": "....", "c": "hhhb", "d": "hhbb", "e": "...."}
        after = {"b": ["a"], "d": ["b", "c"], "e": ["a", "b", "not for such models"]}
        deterministic(store, letters, spec={"after": after})
        (it,) = summaries(store)
        assert it.complete, it.missing
        assert it.skipped == {"b": "a gained nothing", "e": "a, b, not for such models gained nothing"}

    def test_while_an_attack_is_unfinished_nothing_that_waits_for_it_is_ruled_out(self, store: Store) -> None:
        deterministic(store, {"clean": "whhh", "fgsm": "whh.", "pgd": "...."}, spec={"after": {"pgd": ["fgsm"]}})
        (it,) = summaries(store)
        assert it.skipped == {}
        assert set(it.missing) == {"fgsm: 3 of 4 samples", "pgd: 0 of 4 samples"}

    @pytest.mark.parametrize(("drop", "gained"), [(0, False), (1, False), (2, True)])
    def test_a_stochastic_model_gives_way_by_half_a_point_of_the_mean(self, store: Store, drop: int, gained: bool) -> None:
        spec = specification(
            attacks=["clean", "fgsm", "pgd"], n=4, stochastic=True, spec={"after": {"pgd": ["fgsm"]}, "cascade": True}
        )
        clean = drawn([90, 90, 90, 90], [90, 90, 90, 90])
        record(store, spec, {"clean": clean, "fgsm": drawn([90 - drop, 99, 95, 90], [90, 90, 90, 90])})
        (it,) = summaries(store)
        assert ("pgd" in it.skipped) != gained

    def test_rows_of_a_run_that_was_ruled_out_here_do_not_count_here(self, store: Store) -> None:
        # Another evaluation that shares the attack run may have had it done.
        letters = {"clean": "hhhh", "fgsm": "hhhh", "pgd": "bbbb"}
        deterministic(store, letters, spec={"after": {"pgd": ["fgsm"]}})
        (it,) = summaries(store)
        assert value(it.a_rob) == 1
        assert it.skipped == {"pgd": "fgsm gained nothing"}

    def test_what_cannot_be_made_for_a_model_is_skipped_with_the_reason(self, store: Store) -> None:
        spec = {"not_applicable": {"swap": "there is nothing to swap"}}
        deterministic(store, {"clean": "hh", "swap": "..", "pgd": "hb"}, spec=spec)
        (it,) = summaries(store)
        assert it.complete
        assert to_json(it)["skipped"] == [{"name": "swap", "reason": "there is nothing to swap"}]

    def test_the_protocols_accuracy_is_the_worst_case_of_its_attacks_alone(self, store: Store) -> None:
        letters = {"clean": "whhhh", "pgd": "whbhh", "aa": "whhbh", "square": "wbhhh"}
        deterministic(store, letters, spec={"protocol_attacks": ["pgd", "aa"]})
        (it,) = summaries(store)
        assert it.protocol_values is not None
        assert it.protocol_values.tolist() == [0, 1, 0, 0, 1]
        assert value(it.a_protocol) == 0.4
        assert value(it.a_rob) == 0.2
        shown = to_json(it)
        assert (shown["protocol"], shown["a_protocol"]["value"]) == (["pgd", "aa"], 0.4)

    def test_the_protocols_candidate_of_a_stochastic_model_is_chosen_among_its_attacks_alone(self, store: Store) -> None:
        spec = specification(
            attacks=["clean", "pgd", "es"], n=2, stochastic=True, spec={"protocol_attacks": ["pgd"], "cascade": True}
        )
        scores = {"clean": drawn([90, 80], [91, 81]), "pgd": drawn([50, 70], [51, 71]), "es": drawn([40, 10], [41, 11])}
        record(store, spec, scores)
        (it,) = summaries(store)
        assert it.protocol_values is not None
        assert it.protocol_values.tolist() == [0.51, 0.71]
        assert it.robust_values is not None
        assert it.robust_values.tolist() == [0.41, 0.11]

    def test_a_protocol_that_lacks_rows_has_no_accuracy(self, store: Store) -> None:
        deterministic(store, {"clean": "whh", "pgd": "wh.", "aa": "whh"}, spec={"protocol_attacks": ["pgd"]})
        assert summaries(store)[0].a_protocol is None

    def test_budgets_are_summed_over_what_ran(self, store: Store) -> None:
        spec = specification(
            attacks=["clean", "pgd", "es", "es x2"],
            n=4,
            spec={"cascade": True, "passes": {"pgd": 80, "es": 100, "es x2": 200}, "after": {"es x2": ["es"]}},
        )
        es = rows("hh", start=2, forwards=60, backwards=0)
        record(store, spec, {"clean": rows("hhhh"), "pgd": rows("bbhh", forwards=20, backwards=10), "es": es})
        (it,) = summaries(store)
        assert (it.budget, it.used) == (180, (4 * 30 + 2 * 60) / 4)
        assert [(attack.budget, attack.used) for attack in it.attacks] == [(80, 30), (100, 60)]
        assert to_json(it)["passes"] == {"budget": 180, "used": 60}
        assert to_json(it)["attacks"][0]["passes"] == {"budget": 80, "used": 30}

    @pytest.mark.parametrize(("seen", "goes_on"), [("hhhh", False), ("hhbh", True)])
    def test_a_screen_sees_some_of_what_stands_and_where_it_gains_all_are_seen(
        self, store: Store, seen: str, goes_on: bool
    ) -> None:
        spec = specification(
            attacks=["clean", "es", "es x2"],
            n=10,
            spec={"cascade": True, "screens": {"es": 4}, "after": {"es x2": ["es"]}},
        )
        # Seven stand; the first, the last and two between them are looked at.
        looked_at = [3, 5, 7, 9]
        es = [replace(rows("h" * 10)[at], status=rows(letter)[0].status) for at, letter in zip(looked_at, seen, strict=True)]
        record(store, spec, {"clean": rows("wwwhhhhhhh"), "es": es})
        (it,) = summaries(store)
        assert ("es x2" not in it.skipped) == goes_on
        assert it.complete != goes_on
        if goes_on:
            assert it.missing == ("es: 4 of 7 samples", "es x2: 0 of 6 samples")

    def test_what_a_screen_gains_counts_for_all_that_stood(self, store: Store) -> None:
        # One of 4 seen, of 400 that stand: far more than the half point that one of 400 is not.
        for screens, goes_on in (({"es": 4}, True), ({}, False)):
            spec = specification(
                attacks=["clean", "es", "es x2"],
                n=400,
                checkpoint=f"c{len(screens)}",
                spec={"cascade": True, "screens": screens, "after": {"es x2": ["es"]}},
            )
            chosen = [0, 133, 266, 399] if screens else range(400)
            every = rows("b" + "h" * 399)
            evaluation = record(store, spec, {"clean": rows("h" * 400), "es": [every[at] for at in chosen]})
            (it,) = summaries(store, [evaluation])
            assert ("es x2" not in it.skipped) == goes_on

    def test_a_protocol_with_escalations_for_stochastic_models_is_one_protocol(self, store: Store) -> None:
        protocol = [{"label": "pgd", "when": "always"}, {"label": "es", "when": "stochastic", "escalate": 1}]
        plain = store.register(specification(spec={"protocol": protocol}))
        labels = ["clean", "pgd", "es", "es x2"]
        random = store.register(specification(attacks=labels, stochastic=True, spec={"protocol": protocol}))
        assert comparison_key(plain) == comparison_key(random)


class TestDeterministicModels:
    def test_each_attack_sees_what_still_stands_and_its_rows_are_those_of_the_plain_suite(
        self, registry: Path, tmp_path: Path
    ) -> None:
        ours, theirs = tmp_path / "cascade.db", tmp_path / "plain.db"
        ran = recorded(ours, carry_out(falling_request(registry, n=96), ours))
        plain = recorded(theirs, carry_out(falling_request(registry, n=96, suite=falling(cascade=False)), theirs))
        assert ran["clean"] == plain["clean"]
        stand = {row["sample"] for row in plain["clean"] if row["status"] == "held"}
        broke = {}
        for label in [label for label in ran if label != "clean"]:
            # What broke none of the few that it saw first did not see the others.
            if ran[label] and label != "nothing":
                assert ran[label] == [row for row in plain[label] if row["sample"] in stand]
            fell = {row["sample"] for row in ran[label] if row["status"] == "broken"}
            broke[label] = len(fell)
            stand -= fell
        it = found(ours)
        assert it.cascade
        assert it.complete, it.missing
        assert it.a_rob == found(theirs).a_rob
        assert value(it.a_rob) == len(stand) / 96
        assert {attack.name: attack.broke for attack in it.attacks} == {label: broke[label] for label in broke if ran[label]}
        assert min(broke["corners"], broke["fgsm"], broke["pgd"]) > 0
        assert (len(ran["nothing"]), len(ran["corners"])) == (9, round(96 * value(it.a_std)))
        sizes = [attack.n for attack in it.attacks if attack.name != "nothing"]
        assert sizes == sorted(sizes, reverse=True)
        assert it.skipped["never"] == "nothing gained nothing"
        assert found(theirs).skipped["never"] == "nothing gained nothing"

    def test_a_cascade_may_follow_plain_attacks_which_keep_every_row(self, registry: Path, tmp_path: Path) -> None:
        ours, theirs = tmp_path / "followed.db", tmp_path / "plain.db"
        last = tuple(each.label for each in falling().attacks[1:])
        followed = replace(falling(cascade=False), then=last)
        ran = recorded(ours, carry_out(falling_request(registry, n=96, suite=followed), ours))
        plain = recorded(theirs, carry_out(falling_request(registry, n=96, suite=falling(cascade=False)), theirs))
        first = [label for label in ran if label.startswith("corners")]
        assert [ran[label] for label in first] == [plain[label] for label in first]
        it = found(ours)
        assert it.cascade
        assert it.a_rob == found(theirs).a_rob
        assert [attack.n < 96 and attack.remaining is not None for attack in it.attacks] == [
            attack.name not in first for attack in it.attacks
        ]
        (board,) = boards([it])
        assert set(board.labels) <= set(first)

    def test_an_attack_escalates_as_long_as_it_gains_with_twice_the_budget_and_other_numbers(
        self, registry: Path, tmp_path: Path
    ) -> None:
        what = request(registry, suite=suite(staged("corners", escalate=3, tries=4)), eps="0.3")
        evaluation = carry_out(what, tmp_path / "results.db")
        ran = recorded(tmp_path / "results.db", evaluation)
        tries = {spec.label: spec.spec["parameters"]["tries"] for spec in evaluation.spec.attacks[1:]}
        assert tries == {"corners": 4, "corners x2": 8, "corners x4": 16, "corners x8": 32}
        it = found(tmp_path / "results.db")
        before = True
        for label in tries:
            assert bool(ran[label]) == before
            before = any(row["status"] == "broken" for row in ran[label])
        assert ran["corners x2"]
        assert it.budget == sum(tries[label] for label in tries if ran[label])
        assert it.used <= it.budget

    def test_a_cascade_shares_no_attack_run_with_other_protocols_but_the_clean_images(
        self, registry: Path, tmp_path: Path
    ) -> None:
        attacks = (staged("fgsm"), staged("pgd", steps=2))
        db = tmp_path / "results.db"
        for cascade, order in ((True, 1), (False, 1), (True, -1), (False, -1)):
            carry_out(request(registry, suite=suite(*attacks[::order], cascade=cascade)), db)
        # Each order of the cascade has two runs of its own; the plain suites share theirs.
        assert count(db, "attack_runs") == 1 + 2 + 2 + 2
        # The first attack sees the same, whatever comes later.
        carry_out(request(registry, suite=suite(attacks[0], staged("mim", steps=2))), db)
        assert count(db, "attack_runs") == 8

    def test_a_condition_makes_another_cascade(self, registry: Path, tmp_path: Path) -> None:
        db = tmp_path / "results.db"
        for after in ((), ("fgsm",)):
            carry_out(request(registry, suite=suite(staged("fgsm"), staged("pgd", after=after), staged("mim"))), db)
        assert count(db, "attack_runs") == 2 + 2 + 2

    def test_an_attack_that_cannot_escalate_is_refused_by_name(self, registry: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="attack 'fgsm' cannot escalate: fgsm does not say what to double"):
            carry_out(request(registry, suite=suite(staged("fgsm", escalate=1))), tmp_path / "results.db")

    def test_an_attack_that_cannot_be_made_is_skipped_in_a_suite_and_refused_by_name(
        self, registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(evaluator: LocalEvaluator, label: str) -> Any:
            def load(name: str) -> Model:
                raise NotApplicable(f"{name} finds no winner-take-all layers")

            return load

        monkeypatch.setattr(LocalEvaluator, "_surrogate_loader", refuse)
        db = tmp_path / "results.db"
        swap = staged("swap", "transfer", surrogate="swap:relu")
        carry_out(request(registry, suite=suite(swap, staged("fgsm"))), db)
        assert found(db).skipped == {"swap": "swap:relu finds no winner-take-all layers"}
        assert found(db).complete
        for names, message in ((True, "attack 'swap' cannot be made for small: swap:relu finds"), (False, "has no attack for")):
            with pytest.raises(UsageError, match=message):
                carry_out(request(registry, suite=suite(swap, by_name=names)), db)


class TestNothingElseChangesARow:
    @pytest.mark.parametrize("size", [16, 32])
    def test_the_batch_size(self, whole: tuple[str, Path], registry: Path, tmp_path: Path, size: int) -> None:
        model, db = whole
        evaluation = carry_out(falling_request(registry, model, batch_size=size), tmp_path / "results.db")
        assert recorded(tmp_path / "results.db", evaluation) == recorded(db)

    def test_interruptions(self, whole: tuple[str, Path], registry: Path, tmp_path: Path) -> None:
        model, db = whole
        ours, interruptions = tmp_path / "results.db", 0
        what = falling_request(registry, model, batch_size=16)
        for _ in range(100):
            before = count(ours) if ours.exists() else 0
            try:
                carry_out(what, ours, report=_interrupting(after=2))
            except KeyboardInterrupt:
                interruptions += 1
                assert count(ours) > before
                continue
            break
        assert interruptions >= 4
        assert recorded(ours) == recorded(db)

    def test_rows_that_are_lost_are_made_up_for(self, whole: tuple[str, Path], registry: Path, tmp_path: Path) -> None:
        model, db = whole
        holes = copy(db, tmp_path, "DELETE FROM adversarials", 'DELETE FROM outcomes WHERE "index" % 7 = 1 AND attack_run > 2')
        assert not found(holes).complete
        assert recorded(holes, carry_out(falling_request(registry, model), holes)) == recorded(db)

    def test_the_second_time_nothing_is_judged(
        self, whole: tuple[str, Path], registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, db = whole
        monkeypatch.setattr(LocalEvaluator, "judge", lambda *_: pytest.fail("judged again"))
        monkeypatch.setattr(LocalEvaluator, "judge_clean", lambda *_: pytest.fail("judged again"))
        seen: list[Progress] = []
        carry_out(falling_request(registry, model, keep_adversarials=True), copy(db, tmp_path), report=seen.append)
        assert all(each.done == each.samples for each in seen)
        assert {"clean", "corners", "fgsm"} <= {each.label for each in seen}


def _interrupting(after: int) -> Callable[[Progress], None]:
    """Interrupts as soon as rows have come in so many times."""
    seen: list[Progress] = []
    came = 0

    def show(progress: Progress) -> None:
        nonlocal came
        came += bool(seen) and seen[-1].label == progress.label and progress.done > seen[-1].done
        seen.append(progress)
        if came == after:
            raise KeyboardInterrupt

    return show


class TestStochasticModels:
    @pytest.mark.parametrize("whole", ["small-random"], indirect=True)
    def test_draws_end_where_a_proposal_cannot_be_chosen(self, whole: tuple[str, Path]) -> None:
        ran = recorded(whole[1])
        best = {row["sample"]: row["selection_correct"] for row in ran["clean"]}
        draws = set()
        for label, outcomes in ran.items():
            if label == "clean":
                continue
            if outcomes:
                seen, standing = {row["sample"] for row in outcomes}, {sample for sample in best if best[sample] > 0}
                assert seen < standing if label == "nothing" else seen == standing
            for row in outcomes:
                below = row["selection_draws"] == SELECTION_DRAWS and row["selection_correct"] < best[row["sample"]]
                assert row["fresh_draws"] == (FRESH_DRAWS if below else 0)
                if row["selection_draws"] != SELECTION_DRAWS:
                    assert row["selection_draws"] == SCREENING_DRAWS
                    assert row["selection_correct"] >= best[row["sample"]]
                draws.add(row["selection_draws"])
                if below:
                    best[row["sample"]] = row["selection_correct"]
        assert draws == {SCREENING_DRAWS, SELECTION_DRAWS}
        it = found(whole[1])
        assert it.complete, it.missing
        assert value(it.a_std) > value(it.a_rob)

    def test_a_cascade_comes_to_what_the_plain_suite_does(self, registry: Path, tmp_path: Path) -> None:
        attacks, ours = (staged("fgsm"), staged("pgd", steps=4, step_size=0.06)), []
        for cascade in (True, False):
            what = suite(*attacks, cascade=cascade, protocol=("fgsm",))
            carry_out(request(registry, "small-random", suite=what, n=32, eps="0.15"), tmp_path / f"{cascade}.db")
            ours.append(found(tmp_path / f"{cascade}.db"))
        for it in ours:
            assert value(it.a_std) > value(it.a_protocol) > value(it.a_rob)
        # Draws that end elsewhere are other draws.
        assert abs(value(ours[0].a_protocol) - value(ours[1].a_protocol)) < 0.06
        assert ours[1].a_rob is not None
        assert ours[1].a_rob.low < value(ours[0].a_rob) < ours[1].a_rob.high

    def test_controls_in_a_cascade_leave_a_stochastic_model_where_it_was(self, registry: Path, tmp_path: Path) -> None:
        controls = suite(*(staged(f"noop-{number}", "noop") for number in range(8)))
        carry_out(request(registry, "small-random", suite=controls, n=64, tile=64), tmp_path / "results.db")
        it = found(tmp_path / "results.db")
        assert abs(value(it.a_rob) - value(it.a_std)) < 0.01
        # The more that was tried, the fewer candidates are below the best so far.
        assert sum(attack.broke for attack in it.attacks[-4:]) < 32


class TestKeptImages:
    @pytest.mark.parametrize("cascade", [True, False])
    def test_every_success_is_confirmed_from_the_stored_image(
        self, whole: tuple[str, Path], registry: Path, tmp_path: Path, cascade: bool
    ) -> None:
        model, db = whole
        if not cascade:
            db = tmp_path / "results.db"
            plain = suite(staged("fgsm"), staged("pgd", steps=3), cascade=False)
            carry_out(falling_request(registry, model, suite=plain, keep_adversarials=True), db)
        evaluation = found(db).evaluation
        network = _fresh(registry, model)
        clean = {outcome.sample: outcome.selection_correct for outcome in _outcomes(db, evaluation)["clean"]}
        images, confirmed = _images(db, evaluation), 0
        for label, outcomes in _outcomes(db, evaluation).items():
            successes = [each for each in outcomes if _success(each, clean)] if label != "clean" else []
            assert images[label].keys() == {each.sample for each in successes}
            for outcome in successes:
                image = images[label][outcome.sample]
                assert image.dtype == np.float32
                x = digits().test.batch([outcome.index]).x[0].numpy()
                assert np.abs(image.astype(np.float64) - x.astype(np.float64)).max() <= 0.2 + TOLERANCE
                assert 0 <= image.min() <= image.max() <= 1
                answers = [_answer(network, image) for _ in range(1 if model == "small" else 100)]
                right = np.mean([answer == outcome.label for answer in answers])
                if model == "small":
                    assert right == 0
                else:
                    # Binomial, at odds of one in a thousand million.
                    assert abs(right - outcome.fresh_correct / outcome.fresh_draws) < 0.45
                confirmed += 1
        assert confirmed > 20

    def test_images_that_a_record_lacks_are_added_and_its_rows_stay(
        self, whole: tuple[str, Path], registry: Path, tmp_path: Path
    ) -> None:
        model, db = whole
        ours = copy(db, tmp_path, "DELETE FROM adversarials WHERE attack_run != 2 OR sample > '8'")
        evaluation = carry_out(falling_request(registry, model, keep_adversarials=True), ours)
        assert recorded(ours, evaluation) == recorded(db)
        added, kept = _images(ours, evaluation), _images(db, found(db).evaluation)
        assert {label: list(images) for label, images in added.items()} == {label: list(each) for label, each in kept.items()}
        assert all((added[label][sample] == kept[label][sample]).all() for label in kept for sample in kept[label])

    def test_an_image_that_does_not_bear_its_row_out_is_refused(
        self, registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        db = tmp_path / "results.db"
        what = request(registry, suite=suite(staged("fgsm")), n=32, eps="0.15")
        carry_out(what, db)
        monkeypatch.setattr(Model, "predict", _always_right(Model.predict))
        with pytest.raises(CannotEvaluate, match="attacked again to keep its image, has status held, on record is broken"):
            carry_out(replace(what, keep_adversarials=True), db)

    def test_a_users_own_file_can_have_its_images_kept(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.py"
        file.write_text(
            "import torch\n"
            "def make():\n"
            "    torch.manual_seed(0)\n"
            "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
        )
        what = Request(f"{file}:make", suite(staged("fgsm")), dataset="digits", n=64, eps="0.1", keep_adversarials=True)
        evaluation = carry_out(what, tmp_path / "results.db")
        broken = {each.sample for each in _outcomes(tmp_path / "results.db", evaluation)["fgsm"] if each.status == "broken"}
        assert broken
        assert _images(tmp_path / "results.db", evaluation)["fgsm"].keys() == broken


def _success(outcome: Outcome, best: dict[str, int]) -> bool:
    """Whether a row is a success; `best` remembers the fewest right selection draws of a stochastic model so far."""
    if not outcome.selection_draws:
        return outcome.status == "broken"
    below = outcome.selection_draws == SELECTION_DRAWS and outcome.selection_correct < best[outcome.sample]
    if below:
        best[outcome.sample] = outcome.selection_correct
    return below


def _fresh(registry: Path, model: str) -> torch.nn.Module:
    found = read_registry(registry)
    name, entry = found.find(model)
    return load_entry(found, name, entry, digits()).module.eval()


def _answer(network: torch.nn.Module, image: Any) -> int:
    with torch.no_grad():
        return int(network(torch.from_numpy(image)[None]).argmax())


def _outcomes(db: Path, evaluation: Evaluation) -> dict[str, list[Outcome]]:
    store = Store.open(str(db))
    try:
        return {label: store.outcomes(run) for label, run in evaluation.attack_runs.items()}
    finally:
        store.close()


def _images(db: Path, evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    store = Store.open(str(db))
    try:
        return {label: store.adversarials(run) for label, run in evaluation.attack_runs.items()}
    finally:
        store.close()


def _always_right(predict: Any) -> Any:
    """A prediction that knows the label: what the model says of the nearest clean image of the slice."""
    clean = digits().test.batch(range(32))

    def knowing(model: Model, x: Tensor) -> Any:
        nearest = (x[:, None] - clean.x[None]).flatten(2).norm(dim=2).argmin(dim=1)
        return clean.y[nearest], predict(model, x)[1]

    return knowing
