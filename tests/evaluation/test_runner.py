"""The runner: the same command ends with the same rows, whatever came between, and does nothing twice."""

import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kwbench.config.suite import read_suite
from kwbench.errors import CannotEvaluate, UsageError
from kwbench.evaluation import assignment, description
from kwbench.evaluation.execution.evaluator import LocalEvaluator, open_evaluator
from kwbench.evaluation.request import Request
from kwbench.evaluation.runner import Progress, evaluate
from kwbench.model.forward import Forward
from kwbench.outcome import Outcome, Status
from kwbench.record.evaluation import Evaluation
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.statistics import accuracy_of_values
from support.damage import change_outcomes_of_file, with_values, without
from support.small_registry import count, fast_suite, intact, request, rows, write_registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


def carry_out(what: Request, db: Path, **options: Any) -> Evaluation:
    store = Store.open(str(db), create=True)
    try:
        return evaluate(what, store, **options)
    finally:
        store.close()


def evaluated(what: Request, db: Path, **options: Any) -> dict[str, list[dict[str, Any]]]:
    return rows(db, carry_out(what, db, **options))


@pytest.fixture(scope="module")
def uninterrupted(registry: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The rows of the plain request, without any interruption."""
    found = evaluated(request(registry), tmp_path_factory.mktemp("uninterrupted") / "results.db")
    assert {row["status"] for outcomes in found.values() for row in outcomes} <= {Status.WRONG, Status.BROKEN, Status.HELD}
    return found


class Judged:
    """Records which rows are judged under which label, and can refuse more rows at once than memory holds."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, memory: int | None = None, error: type[Exception] = MemoryError
    ) -> None:
        self.calls: list[tuple[str, int]] = []
        judge_clean, judge = LocalEvaluator.judge_clean, LocalEvaluator.judge

        def watch(label: str, size: int) -> None:
            if memory is not None and size > memory:
                raise error("no memory")
            self.calls.append((label, size))

        def clean(evaluator: LocalEvaluator, chosen: Sequence[int]) -> list[Outcome]:
            watch("clean", len(chosen))
            return judge_clean(evaluator, chosen)

        def attacked(
            evaluator: LocalEvaluator,
            label: str,
            chosen: Sequence[int],
            before: Sequence[Outcome],
            to_beat: Sequence[int] | None,
        ) -> list[Outcome]:
            watch(label, len(chosen))
            return judge(evaluator, label, chosen, before, to_beat)

        monkeypatch.setattr(LocalEvaluator, "judge_clean", clean)
        monkeypatch.setattr(LocalEvaluator, "judge", attacked)

    def rows(self, label: str | None = None) -> int:
        return sum(size for found, size in self.calls if label in (None, found))


class TestTheSameAgain:
    def test_the_same_command_twice_adds_nothing_and_judges_nothing(
        self, registry: Path, db: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        judged = Judged(monkeypatch)
        first = carry_out(request(registry), db)
        assert judged.rows() == 3 * 96
        before = db.read_bytes()
        judged.calls.clear()
        second = carry_out(request(registry), db)
        assert judged.calls == []
        assert second.id == first.id
        assert (count(db), count(db, "evaluations"), count(db, "attack_runs")) == (3 * 96, 1, 3)
        # Only when it was last asked for may differ.
        assert len(db.read_bytes()) == len(before)

    def test_the_second_time_no_row_is_read_one_by_one(self, registry: Path, db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        carry_out(request(registry), db)
        asked: list[int] = []
        monkeypatch.setattr(Store, "outcomes", lambda _, attack_run: asked.append(attack_run))
        carry_out(request(registry), db)
        assert asked == []

    def test_the_second_time_everything_is_reported_as_done(self, registry: Path, db: Path) -> None:
        carry_out(request(registry), db)
        seen: list[Progress] = []
        carry_out(request(registry), db, report=seen.append)
        assert [(each.label, each.done, each.done_in_all, each.rows_in_all) for each in seen] == [
            ("clean", 96, 96, 288),
            ("fgsm", 96, 192, 288),
            ("pgd", 96, 288, 288),
        ]

    def test_progress_counts_batches(self, registry: Path, db: Path) -> None:
        seen: list[Progress] = []
        carry_out(request(registry, batch_size=64), db, report=seen.append)
        assert [each.done for each in seen] == [0, 48, 96] * 3
        assert [each.done_in_all for each in seen] == [0, 48, 96, 96, 144, 192, 192, 240, 288]


class TestInterruption:
    @pytest.mark.parametrize("at", [0, 1, 4, 7, 12, 19])
    def test_an_interrupted_run_continues_where_the_record_ends(
        self,
        registry: Path,
        db: Path,
        at: int,
        uninterrupted: dict[str, list[dict[str, Any]]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        steps = 0

        def interrupt(_: Progress) -> None:
            nonlocal steps
            if steps == at:
                raise KeyboardInterrupt
            steps += 1

        what = request(registry, batch_size=16)
        with pytest.raises(KeyboardInterrupt):
            carry_out(what, db, report=interrupt)
        kept = count(db)
        assert kept < 288
        judged = Judged(monkeypatch)
        assert evaluated(what, db) == uninterrupted
        assert judged.rows() == 288 - kept

    def test_single_rows_that_are_missing_are_made_up_for(
        self, registry: Path, db: Path, uninterrupted: dict[str, list[dict[str, Any]]]
    ) -> None:
        carry_out(request(registry), db)
        # As in a record from before checksums.
        change_outcomes_of_file(db, without(lambda outcomes: outcomes.index % 7 == 3), 3, guarded=False)
        change_outcomes_of_file(db, without(lambda outcomes: outcomes.index == 20), 1, guarded=False)
        assert count(db) == 288 - 15
        assert evaluated(request(registry), db) == uninterrupted

    def test_single_rows_are_made_up_for_in_the_company_that_they_had(self, registry: Path, tmp_path: Path) -> None:
        # A stochastic model's draws belong to a tile, not to a row.
        what = request(registry, "small-random", n=32, suite=fast_suite("noop"))
        whole = evaluated(what, tmp_path / "whole.db")
        carry_out(what, tmp_path / "holes.db")
        change_outcomes_of_file(tmp_path / "holes.db", without(lambda outcomes: outcomes.index % 5 == 1), guarded=False)
        assert evaluated(what, tmp_path / "holes.db") == whole

    def test_what_is_on_record_is_not_overwritten(self, registry: Path, db: Path) -> None:
        carry_out(request(registry), db)
        change_outcomes_of_file(db, with_values(note="first"), 2, guarded=False)
        change_outcomes_of_file(db, without(lambda outcomes: outcomes.index == 5), 2, guarded=False)
        notes = [row["note"] for row in evaluated(request(registry), db)["fgsm"]]
        assert notes == ["first"] * 5 + [""] + ["first"] * 90


class TestInvariance:
    @pytest.mark.parametrize("batch_size", [1, 16, 40, 64, 128, 256])
    def test_rows_are_the_same_at_every_batch_size(
        self, registry: Path, db: Path, batch_size: int, uninterrupted: dict[str, list[dict[str, Any]]]
    ) -> None:
        assert evaluated(request(registry, batch_size=batch_size), db) == uninterrupted

    @pytest.mark.parametrize("model", ["resnet18-relu", "small-random"])
    def test_the_batch_size_changes_no_row_of_real_and_of_stochastic_models(
        self, registry: Path, tmp_path: Path, model: str
    ) -> None:
        suite = fast_suite("pgd", "square", settings=("pgd.steps=5", "square.steps=5"))
        found = [
            evaluated(
                request(registry, model, suite=suite, n=40, tile=16, eps="0.15", batch_size=size), tmp_path / f"{size}.db"
            )
            for size in (16, 32, 64)
        ]
        assert found[0] == found[1] == found[2]
        assert {row["status"] for row in found[0]["pgd"]} >= {Status.BROKEN, Status.HELD}

    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_rows_are_the_same_at_any_order_of_the_batches(
        self,
        registry: Path,
        db: Path,
        seed: int,
        uninterrupted: dict[str, list[dict[str, Any]]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        plan = assignment.pending

        def shuffled(*arguments: Any) -> list[list[int]]:
            return random.Random(seed).sample(found := plan(*arguments), len(found))

        monkeypatch.setattr(assignment, "pending", shuffled)
        assert evaluated(request(registry, batch_size=16), db) == uninterrupted

    def test_work_is_shared_evenly_among_workers(self, registry: Path, db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plan, sizes = assignment.pending, []

        def seen(*arguments: Any) -> list[list[int]]:
            found = plan(*arguments)
            sizes.append([len(batch) for batch in found])
            return found

        monkeypatch.setattr(assignment, "pending", seen)
        evaluated(request(registry, n=20, tile=16, threads=2), db)
        assert sizes == [[10, 10]] * 3
        sizes.clear()
        evaluated(request(registry, n=106, tile=16, threads=2, seed=1, batch_size=32), db)
        assert sizes == [[27, 27, 27, 25]] * 3, "as many batches for each"

    def test_what_takes_long_goes_in_batches_of_few_to_the_same_rows(
        self, registry: Path, db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = evaluated(request(registry, n=40, suite=fast_suite("pgd", "fgsm")), tmp_path / "whole.db")
        judged = Judged(monkeypatch)
        monkeypatch.setattr(assignment, "_LONGEST_BATCH", 1e-9)
        assert evaluated(request(registry, n=40, suite=fast_suite("pgd", "fgsm")), db) == whole
        assert [size for label, size in judged.calls if label == "pgd"] == [8, 8, 8, 8, 8]
        assert [size for label, size in judged.calls if label == "clean"] == [40], "nothing is known yet of what it takes"

    def test_attacks_that_draw_globally_get_the_same_tiles_at_every_batch_size(
        self, registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        judged = Judged(monkeypatch)
        suite = fast_suite("foolbox:LinfPGD", settings=("foolbox:LinfPGD.steps=5",))
        found = [
            evaluated(request(registry, suite=suite, n=40, batch_size=size), tmp_path / f"{size}.db") for size in (16, 256)
        ]
        assert found[0] == found[1]
        assert {size for label, size in judged.calls if label != "clean"} == {16, 8}


class TestIdentity:
    def test_attack_runs_are_shared_between_suites(self, registry: Path, db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        judged = Judged(monkeypatch)
        carry_out(request(registry, suite=fast_suite("fgsm", "pgd")), db)
        judged.calls.clear()
        carry_out(request(registry, suite=fast_suite("pgd")), db)
        assert judged.calls == []
        carry_out(request(registry, suite=fast_suite("pgd", "mim")), db)
        assert {label for label, _ in judged.calls} == {"mim"}
        assert (count(db, "evaluations"), count(db, "attack_runs")) == (3, 4)

    @pytest.mark.parametrize(
        ("options", "runs"),
        [
            ({"seed": 1}, 3),
            ({"eps": "0.11"}, 2),  # but the images themselves
            ({"norm": "l2", "eps": "0.1"}, 2),
            ({"n": 95}, 3),
            ({"tile": 32}, 3),
            ({"model": "small-random"}, 3),
            ({"suite": fast_suite(settings=("pgd.steps=4",))}, 1),
            ({"batch_size": 16}, 0),
            ({"threads": 1}, 0),
            ({"eps": "1/10"}, 0),
            ({"dataset": "digits"}, 0),
        ],
        ids=str,
    )
    def test_what_can_change_a_row_makes_another_run_and_nothing_else_does(
        self, registry: Path, options: dict[str, Any], runs: int
    ) -> None:
        def identities(**changes: Any) -> set[str]:
            what = request(registry, **{"n": 96} | changes)
            return {attack.identity for attack in description.describe(what, open_evaluator(what).facts).attacks}

        assert len(identities(**options) - identities()) == runs

    def test_another_checkpoint_under_the_same_name_is_another_run(self, registry: Path, tmp_path: Path, db: Path) -> None:
        carry_out(request(registry), db)
        carry_out(request(write_registry(tmp_path, epochs=1)), db)
        assert (count(db, "evaluations"), count(db, "attack_runs")) == (2, 6)

    def test_a_part_with_another_revision_makes_another_run(self, registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        what = request(registry)
        before = description.describe(what, open_evaluator(what).facts)
        monkeypatch.setattr("kwbench.judge.REVISION", 2)
        after = description.describe(what, open_evaluator(what).facts)
        assert before.identity != after.identity
        assert not {each.identity for each in before.attacks} & {each.identity for each in after.attacks}


class TestRandomModels:
    def test_the_same_seed_gives_the_same_rows_and_another_seed_other_draws(self, registry: Path, tmp_path: Path) -> None:
        what = request(registry, "small-random", n=32)
        torch.manual_seed(1)
        first = evaluated(what, tmp_path / "first.db")
        # The state of the global generators is nobody's seed.
        torch.manual_seed(2)
        np.random.seed(2)
        random.seed(2)
        assert evaluated(what, tmp_path / "again.db") == first
        other = evaluated(request(registry, "small-random", n=32, seed=1), tmp_path / "other.db")
        for label in first:
            assert [row["fresh_correct"] for row in other[label]] != [row["fresh_correct"] for row in first[label]]
        assert first["clean"][0]["fresh_draws"] == 100

    def test_an_interruption_changes_no_draw(self, registry: Path, tmp_path: Path) -> None:
        what = request(registry, "small-random", n=32)
        done: list[Progress] = []

        def interrupt(progress: Progress) -> None:
            done.append(progress)
            if len(done) % 5 == 0:
                raise KeyboardInterrupt

        for _ in range(9):
            try:
                carry_out(what, tmp_path / "interrupted.db", report=interrupt)
            except KeyboardInterrupt:
                continue
            break
        assert rows(tmp_path / "interrupted.db") == evaluated(what, tmp_path / "plain.db")

    def test_twenty_controls_leave_a_stochastic_model_where_it_was(self, registry: Path, db: Path) -> None:
        # At a radius at which a random corner of the ball does nothing, all that could move A_rob is the harness.
        what = request(registry, "small-random", suite=read_suite("controls"), n=64, tile=64, eps="0.005")
        evaluation = carry_out(what, db)
        store = Store.open(str(db))
        (found,) = summaries(store, [evaluation])
        assert found.stochastic
        assert len(found.attacks) == 20
        assert found.complete
        assert found.a_std is not None
        assert found.a_rob is not None
        assert found.a_std.low <= found.a_rob.value <= found.a_std.high
        # The paired difference is far smaller than the interval; the least of the fresh scores is not.
        fresh = np.stack([store.tallies()[attack_run].fresh for attack_run in evaluation.attack_runs.values()])
        curse = accuracy_of_values(fresh.min(axis=0))
        assert abs(found.a_rob.value - found.a_std.value) < 0.01
        assert found.a_std.value - curse.value > 0.02
        store.close()


class TestMemory:
    @pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
    @pytest.mark.parametrize("memory", [16, 33, 50])
    def test_running_out_of_memory_halves_the_batches_and_changes_no_row(
        self,
        registry: Path,
        db: Path,
        memory: int,
        error: type[Exception],
        uninterrupted: dict[str, list[dict[str, Any]]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        judged = Judged(monkeypatch, memory, error)
        assert evaluated(request(registry), db) == uninterrupted
        assert judged.rows() == 288
        assert max(size for _, size in judged.calls) <= memory

    def test_a_tile_that_does_not_fit_is_said_with_the_remedy(
        self, registry: Path, db: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Judged(monkeypatch, 15, torch.OutOfMemoryError)
        with pytest.raises(CannotEvaluate, match="small: memory does not hold 16 samples at once; give a smaller --tile"):
            carry_out(request(registry), db)

    def test_a_model_that_does_not_fit_at_all_is_said_with_the_remedy(
        self, registry: Path, db: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise torch.OutOfMemoryError("no memory")

        monkeypatch.setattr(Forward, "__call__", full)
        with pytest.raises(CannotEvaluate, match="small: memory does not hold the model and 16 samples at once"):
            carry_out(request(registry), db)


@pytest.mark.parametrize(
    ("options", "limit", "message"),
    [
        ({"batch_size": 0}, None, "--batch-size 0: must be at least 1"),
        ({"tile": 0}, None, "--tile 0: must be at least 1"),
        ({"n": 0}, None, "--n 0: must be at least 1"),
        ({"n": 361}, None, "--n 361: digits has 360 test images"),
        ({}, 0.0, "--time-limit 0: must be above 0"),
        ({}, float("nan"), "--time-limit nan: must be above 0"),
    ],
)
def test_sizes_and_times_that_make_no_sense_are_refused(
    registry: Path, db: Path, options: dict[str, Any], limit: float | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        carry_out(request(registry, **options), db, time_limit=limit)


# --- processes that are killed, and that race ---

# Small tiles and attacks that rarely succeed, so that a run has many batches and takes seconds.
LONG = ("pgd.steps=20", "mim.steps=20")


def long_request(registry: Path, n: int = 96) -> Request:
    suite = fast_suite("fgsm", "pgd", "mim", settings=LONG)
    return request(registry, "resnet18-relu", suite=suite, n=n, tile=16, batch_size=16, eps="0.03", threads=1)


def work(what: Request, db: str, ready: Any) -> None:
    """In a process of its own: the evaluation, from opening the database on."""
    ready.set()
    store = Store.open(db, create=True)
    evaluate(what, store)
    store.close()


@pytest.fixture(scope="module")
def context() -> Any:
    """Starts processes that have everything imported already."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["kwbench.evaluation.runner", "pyautoattack", "foolbox", "sklearn.datasets"])
    return found


def written(db: Path) -> int:
    """Return the number of rows in a database that another process may be about to make."""
    try:
        return count(db) if db.exists() else 0
    except sqlite3.OperationalError:
        return 0


def start(context: Any, what: Request, db: Path) -> Any:
    ready = context.Event()
    process = context.Process(target=work, args=(what, str(db), ready))
    process.start()
    assert ready.wait(120)
    return process


@pytest.mark.heavy
def test_killed_at_twenty_random_moments_a_run_ends_with_the_same_rows(registry: Path, tmp_path: Path, context: Any) -> None:
    what = long_request(registry, n=48)
    expected = evaluated(what, tmp_path / "plain.db")
    in_all = len(expected) * 48
    rng = random.Random(0)
    kills, mid_run, finished, number = 0, 0, 0, 0
    while kills < 20 or not finished:
        db = tmp_path / f"{number}.db"
        before = written(db)
        process = start(context, what, db)
        # By rows rather than by the clock, so that a busy machine is killed as often in the middle as a quiet one.
        enough = before + rng.randrange(in_all // 2) if kills < 20 else in_all + 1
        deadline = time.monotonic() + 120
        while process.exitcode is None and time.monotonic() < deadline and written(db) < enough:
            time.sleep(rng.uniform(0, 0.02))
        if process.exitcode is None:
            process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            if db.exists():
                assert intact(db)
                Store.open(str(db)).close()
                mid_run += before < count(db) < in_all
        else:
            assert process.exitcode == 0
            assert rows(db) == expected
            finished += 1
            number += 1
    assert mid_run >= 5, (kills, mid_run, finished)


@pytest.mark.heavy
def test_killing_the_command_itself_changes_no_row(registry: Path, tmp_path: Path) -> None:
    expected = evaluated(long_request(registry), tmp_path / "plain.db")
    db = tmp_path / "killed.db"
    command = [sys.executable, "-c", "from kwbench.cli.main import main; main()", "evaluate", "resnet18-relu"]
    command += ["--registry", str(registry), "--attack", "fgsm,pgd,mim", "--db", str(db)]
    command += [part for setting in LONG for part in ("--set", setting)]
    command += ["--n", "96", "--tile", "16", "--eps", "0.03", "--precision", "float32"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for enough in (1, 100, 200):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline and written(db) < enough:
            time.sleep(0.05)
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.stderr and process.stderr.read()
        if process.stderr:
            process.stderr.close()
        assert intact(db)
        assert enough <= count(db) < 4 * 96
    finished = subprocess.run(command, capture_output=True, env=environment, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert rows(db) == expected


def test_two_processes_at_once_end_with_one_complete_record(registry: Path, tmp_path: Path, context: Any) -> None:
    what = request(registry, batch_size=16, threads=1)
    processes = [start(context, what, tmp_path / "shared.db") for _ in range(2)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert intact(tmp_path / "shared.db")
    assert (count(tmp_path / "shared.db", "evaluations"), count(tmp_path / "shared.db")) == (1, 288)
    assert rows(tmp_path / "shared.db") == evaluated(what, tmp_path / "plain.db")
