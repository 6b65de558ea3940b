"""Cascades on real models: each attack sees what is unbroken, and nothing else changes a row."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kwbench.attacks import ATTACKS
from kwbench.errors import NotApplicable, UsageError
from kwbench.evaluation.execution.evaluator import LocalEvaluator
from kwbench.evaluation.preparation.suite_attacks import SuiteAttacks
from kwbench.evaluation.runner import Progress
from kwbench.judge import FRESH_DRAWS, SCREENING_DRAWS, SELECTION_DRAWS
from kwbench.model import Model
from kwbench.report.leaderboard import boards
from support.cascades import Corners, changed_copy, falling, falling_request, run, staged, suite, summary_of, value
from support.damage import change_outcomes_of_file, without
from support.small_registry import count, request, write_registry
from support.small_registry import rows as recorded


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture(autouse=True)
def _corners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTACKS, "corners", Corners)


@pytest.fixture(scope="module", params=["small", "small-random"])
def whole(request: pytest.FixtureRequest, registry: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A model, and the record of its cascade, run without interruption, with images."""
    db = tmp_path_factory.mktemp(request.param) / "results.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS, "corners", Corners)
        run(falling_request(registry, request.param, keep_adversarials=True), db)
    return request.param, db


class TestDeterministicModels:
    def test_each_attack_sees_the_unbroken_samples_and_gives_the_rows_of_the_plain_suite(
        self, registry: Path, tmp_path: Path
    ) -> None:
        ours, theirs = tmp_path / "cascade.db", tmp_path / "plain.db"
        ran = recorded(ours, run(falling_request(registry, n=96), ours))
        plain = recorded(theirs, run(falling_request(registry, n=96, suite=falling(cascade=False)), theirs))
        assert ran["clean"] == plain["clean"]
        unbroken = {row["sample"] for row in plain["clean"] if row["status"] == "held"}
        broke = {}
        for label in [label for label in ran if label != "clean"]:
            # An attack that broke none of its screen did not see the other samples.
            if ran[label] and label != "nothing":
                assert ran[label] == [row for row in plain[label] if row["sample"] in unbroken]
            fell = {row["sample"] for row in ran[label] if row["status"] == "broken"}
            broke[label] = len(fell)
            unbroken -= fell
        summary = summary_of(ours)
        assert summary.cascade
        assert summary.complete, summary.missing
        assert summary.a_rob == summary_of(theirs).a_rob
        assert value(summary.a_rob) == len(unbroken) / 96
        assert {attack.name: attack.broke for attack in summary.attacks} == {
            label: broke[label] for label in broke if ran[label]
        }
        assert min(broke["corners"], broke["fgsm"], broke["pgd"]) > 0
        assert (len(ran["nothing"]), len(ran["corners"])) == (9, round(96 * value(summary.a_std)))
        sizes = [attack.n for attack in summary.attacks if attack.name != "nothing"]
        assert sizes == sorted(sizes, reverse=True)
        assert summary.skipped["never"] == "nothing gained nothing"
        assert summary_of(theirs).skipped["never"] == "nothing gained nothing"

    def test_a_cascade_may_follow_plain_attacks_which_keep_all_their_rows(self, registry: Path, tmp_path: Path) -> None:
        ours, theirs = tmp_path / "followed.db", tmp_path / "plain.db"
        last = tuple(attack.label for attack in falling().attacks[1:])
        followed = replace(falling(cascade=False), then=last)
        ran = recorded(ours, run(falling_request(registry, n=96, suite=followed), ours))
        plain = recorded(theirs, run(falling_request(registry, n=96, suite=falling(cascade=False)), theirs))
        first = [label for label in ran if label.startswith("corners")]
        assert [ran[label] for label in first] == [plain[label] for label in first]
        summary = summary_of(ours)
        assert summary.cascade
        assert summary.a_rob == summary_of(theirs).a_rob
        assert [attack.n < 96 and attack.remaining is not None for attack in summary.attacks] == [
            attack.name not in first for attack in summary.attacks
        ]
        (board,) = boards([summary])
        assert set(board.labels) <= set(first)

    def test_an_attack_escalates_to_twice_the_budget_as_long_as_it_gains(self, registry: Path, tmp_path: Path) -> None:
        what = request(registry, suite=suite(staged("corners", escalate=3, tries=4)), eps="0.3")
        evaluation = run(what, tmp_path / "results.db")
        ran = recorded(tmp_path / "results.db", evaluation)
        tries = {spec.label: spec.spec["parameters"]["tries"] for spec in evaluation.spec.attacks[1:]}
        assert tries == {"corners": 4, "corners x2": 8, "corners x4": 16, "corners x8": 32}
        summary = summary_of(tmp_path / "results.db")
        before = True
        for label in tries:
            assert bool(ran[label]) == before
            before = any(row["status"] == "broken" for row in ran[label])
        assert ran["corners x2"]
        assert summary.budget == sum(tries[label] for label in tries if ran[label])
        assert summary.budget is not None
        assert summary.used <= summary.budget

    def test_a_cascade_shares_only_the_clean_images_with_other_protocols(self, registry: Path, tmp_path: Path) -> None:
        attacks = (staged("fgsm"), staged("pgd", steps=2))
        db = tmp_path / "results.db"
        for cascade, order in ((True, 1), (False, 1), (True, -1), (False, -1)):
            run(request(registry, suite=suite(*attacks[::order], cascade=cascade)), db)
        # Each order of the cascade has two runs of its own; the plain suites share theirs.
        assert count(db, "attack_runs") == 1 + 2 + 2 + 2
        # The first attack sees the same samples, whatever follows.
        run(request(registry, suite=suite(attacks[0], staged("mim", steps=2))), db)
        assert count(db, "attack_runs") == 8

    def test_a_condition_makes_another_cascade(self, registry: Path, tmp_path: Path) -> None:
        db = tmp_path / "results.db"
        for after in ((), ("fgsm",)):
            run(request(registry, suite=suite(staged("fgsm"), staged("pgd", after=after), staged("mim"))), db)
        assert count(db, "attack_runs") == 2 + 2 + 2

    def test_an_attack_that_cannot_escalate_is_refused_by_name(self, registry: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="attack 'fgsm' cannot escalate: fgsm does not say what to double"):
            run(request(registry, suite=suite(staged("fgsm", escalate=1))), tmp_path / "results.db")

    def test_an_attack_that_does_not_apply_is_skipped_in_a_suite_and_refused_by_name(
        self, registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(attacks: SuiteAttacks, label: str) -> Any:
            def load(name: str) -> Model:
                raise NotApplicable(f"{name} finds no winner-take-all layers")

            return load

        monkeypatch.setattr(SuiteAttacks, "_surrogate_loader", refuse)
        db = tmp_path / "results.db"
        swap = staged("swap", "transfer", surrogate="swap:relu")
        run(request(registry, suite=suite(swap, staged("fgsm"))), db)
        assert summary_of(db).skipped == {"swap": "swap:relu finds no winner-take-all layers"}
        assert summary_of(db).complete
        for names, message in ((True, "attack 'swap' cannot be made for small: swap:relu finds"), (False, "has no attack for")):
            with pytest.raises(UsageError, match=message):
                run(request(registry, suite=suite(swap, by_name=names)), db)


class TestNothingElseChangesARow:
    @pytest.mark.parametrize("size", [16, 32])
    def test_the_batch_size(self, whole: tuple[str, Path], registry: Path, tmp_path: Path, size: int) -> None:
        model, db = whole
        evaluation = run(falling_request(registry, model, batch_size=size), tmp_path / "results.db")
        assert recorded(tmp_path / "results.db", evaluation) == recorded(db)

    def test_interruptions(self, whole: tuple[str, Path], registry: Path, tmp_path: Path) -> None:
        model, db = whole
        ours, interruptions = tmp_path / "results.db", 0
        what = falling_request(registry, model, batch_size=16)
        for _ in range(100):
            before = count(ours) if ours.exists() else 0
            try:
                run(what, ours, report=_interrupting(after=2))
            except KeyboardInterrupt:
                interruptions += 1
                assert count(ours) > before
                continue
            break
        assert interruptions >= 4
        assert recorded(ours) == recorded(db)

    def test_lost_rows_are_computed_again(self, whole: tuple[str, Path], registry: Path, tmp_path: Path) -> None:
        model, db = whole
        holes = changed_copy(db, tmp_path, "DELETE FROM adversarials")
        change_outcomes_of_file(holes, without(lambda outcomes: outcomes.index % 7 == 1), *range(3, 20), guarded=False)
        assert not summary_of(holes).complete
        assert recorded(holes, run(falling_request(registry, model), holes)) == recorded(db)

    def test_a_second_run_judges_nothing(
        self, whole: tuple[str, Path], registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, db = whole
        monkeypatch.setattr(LocalEvaluator, "judge", lambda *_: pytest.fail("judged again"))
        monkeypatch.setattr(LocalEvaluator, "judge_clean", lambda *_: pytest.fail("judged again"))
        seen: list[Progress] = []
        run(falling_request(registry, model, keep_adversarials=True), changed_copy(db, tmp_path), report=seen.append)
        assert all(progress.done == progress.samples for progress in seen)
        assert {"clean", "corners", "fgsm"} <= {progress.label for progress in seen}


def _interrupting(after: int) -> Callable[[Progress], None]:
    """Return a report function that interrupts once rows have arrived `after` times."""
    seen: list[Progress] = []
    arrivals = 0

    def show(progress: Progress) -> None:
        nonlocal arrivals
        arrivals += bool(seen) and seen[-1].label == progress.label and progress.done > seen[-1].done
        seen.append(progress)
        if arrivals == after:
            raise KeyboardInterrupt

    return show


class TestStochasticModels:
    @pytest.mark.parametrize("whole", ["small-random"], indirect=True)
    def test_drawing_stops_where_a_proposal_cannot_be_chosen(self, whole: tuple[str, Path]) -> None:
        ran = recorded(whole[1])
        best = {row["sample"]: row["selection_correct"] for row in ran["clean"]}
        draws = set()
        for label, outcomes in ran.items():
            if label == "clean":
                continue
            if outcomes:
                seen, unbroken = {row["sample"] for row in outcomes}, {sample for sample in best if best[sample] > 0}
                assert seen < unbroken if label == "nothing" else seen == unbroken
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
        summary = summary_of(whole[1])
        assert summary.complete, summary.missing
        assert value(summary.a_std) > value(summary.a_rob)

    def test_a_cascade_agrees_with_the_plain_suite(self, registry: Path, tmp_path: Path) -> None:
        attacks, results = (staged("fgsm"), staged("pgd", steps=4, step_size=0.06)), []
        for cascade in (True, False):
            what = suite(*attacks, cascade=cascade, protocol=("fgsm",))
            run(request(registry, "small-random", suite=what, n=32, eps="0.15"), tmp_path / f"{cascade}.db")
            results.append(summary_of(tmp_path / f"{cascade}.db"))
        for summary in results:
            assert value(summary.a_std) > value(summary.a_protocol) > value(summary.a_rob)
        # Drawing stops elsewhere, so the draws differ.
        assert abs(value(results[0].a_protocol) - value(results[1].a_protocol)) < 0.06
        assert results[1].a_rob is not None
        assert results[1].a_rob.low < value(results[0].a_rob) < results[1].a_rob.high

    def test_controls_in_a_cascade_do_not_lower_the_accuracy_of_a_stochastic_model(
        self, registry: Path, tmp_path: Path
    ) -> None:
        controls = suite(*(staged(f"noop-{number}", "noop") for number in range(8)))
        run(request(registry, "small-random", suite=controls, n=64, tile=64), tmp_path / "results.db")
        summary = summary_of(tmp_path / "results.db")
        assert abs(value(summary.a_rob) - value(summary.a_std)) < 0.01
        # The more candidates were tried, the fewer are below the best so far.
        assert sum(attack.broke for attack in summary.attacks[-4:]) < 32
