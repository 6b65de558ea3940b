"""The contract of the record: what holds on every backend, also for several programs at once and on lost connections."""

import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from kwbench.errors import CannotEvaluate, DamagedData
from kwbench.finding import Finding
from kwbench.outcome import Example
from kwbench.record.database.schema import SCHEMA_VERSION
from kwbench.record.measurement import Measurement
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.transfer import transfer
from kwbench.record.verification import verify
from support.damage import change_outcomes, copy_record, former_record, with_values
from support.postgres import Server
from support.records import deterministic, drawn, record, rows, specification

# A record in memory is that of one store, and ends with it.
OUTLIVING = pytest.mark.parametrize("url", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = Store.open(url, create=True)
    yield opened
    opened.close()


def measured(value: float = 0.5, identity: str = "i0") -> Measurement:
    arrays = {"loss": np.array([[value, np.nan], [-np.inf, 1e-300]]), "none": np.zeros((0, 3))}
    return Measurement(identity, "landscape", "net", "digits", {"points": 2}, {"device": "cpu"}, arrays)


def pictured() -> list[Any]:
    """Outcomes with an image and an example each."""
    clean = (np.arange(12, dtype=np.float32) / np.float32(255)).reshape(3, 2, 2)
    example = Example(clean, np.arange(12, dtype=np.int8).reshape(3, 2, 2), 0.001, None, ((3, 0.9),), ((1, 0.7),))
    return [replace(row, image=clean + np.float32(0.1), example=example) for row in rows("bb")]


def contents(store: Store) -> dict[str, Any]:
    """Everything on record, in a form that does not depend on the ids that a database gives."""
    evaluations = {}
    for evaluation in store.evaluations():
        evaluations[evaluation.spec.identity] = {
            "spec": evaluation.spec,
            "dates": (evaluation.created, evaluation.asked),
            "findings": sorted(store.findings(evaluation.id), key=lambda finding: finding.check),
            "outcomes": {label: store.outcomes(run) for label, run in evaluation.attack_runs.items()},
            "images": {
                label: {sample: image.tobytes() for sample, image in store.adversarials(run).items()}
                for label, run in evaluation.attack_runs.items()
            },
            "examples": {
                label: {sample: example.adversarial.tobytes() for sample, example in store.examples(run).items()}
                for label, run in evaluation.attack_runs.items()
            },
        }
    experiments = {
        measurement.identity: {name: array.tobytes() for name, array in measurement.arrays.items()}
        for measurement in store.experiments()
    }
    return {"evaluations": evaluations, "experiments": experiments}


def full(store: Store) -> None:
    """Record some of everything."""
    evaluation = deterministic(store, {"clean": "whhh", "pgd": "whbe"})
    store.record_findings(evaluation.id, [Finding("flat", 0.5, 0.01, True, "Half of it is zero. ü", ("a",), "masking")])
    record(
        store, specification("random", n=3, stochastic=True, attacks=["clean", "pgd"]), {"pgd": drawn([50, 40, 3], [99, 60, 2])}
    )
    record(store, specification("pictured", n=2), {"pgd": pictured()})
    store.record_experiment(measured())


class TestRecord:
    @OUTLIVING
    def test_what_is_read_is_what_was_written(self, store: Store, url: str) -> None:
        full(store)
        before = contents(store)
        store.close()
        again = Store.open(url)
        assert contents(again) == before
        assert len(before["evaluations"]) == 3
        assert {label: len(found) for label, found in before["evaluations"][specification().identity]["outcomes"].items()} == {
            "clean": 4,
            "pgd": 4,
        }
        again.close()

    def test_rows_never_change_but_errors_give_way(self, store: Store) -> None:
        evaluation = deterministic(store, {"pgd": "whbe"})
        run = evaluation.attack_runs["pgd"]
        store.append(run, rows("hhhh"))
        assert [row.status[0] for row in store.outcomes(run)] == ["w", "h", "b", "h"]
        store.discard(run, [store.outcomes(run)[0].sample])
        assert [row.status[0] for row in store.outcomes(run)] == ["h", "b", "h"]
        with pytest.raises(CannotEvaluate, match="finite"):
            store.append(run, rows("h", start=9, seconds=float("nan")))
        with pytest.raises(CannotEvaluate, match="an impossible row was refused"):
            store.append(run, rows("h", start=9, forwards=-1))
        assert len(store.outcomes(run)) == 3

    def test_tallies_outcomes_and_summaries_agree(self, store: Store) -> None:
        full(store)
        (summary,) = [summary for summary in summaries(store) if summary.model == "net"]
        assert summary.attacks[0].statuses["broken"] == 1
        tallies = store.tallies()
        runs = [run for evaluation in store.evaluations() for run in evaluation.attack_runs.values()]
        assert tallies.keys() == {run for run in runs if store.outcomes(run)}
        for run, tally in tallies.items():
            outcomes = store.outcome_arrays(run)
            assert tally.status.tobytes() == outcomes.status.tobytes()
            with np.errstate(invalid="ignore"):
                selection = outcomes.selection_correct / outcomes.selection_draws
            np.testing.assert_array_equal(tally.selection, selection if outcomes.selection_draws.any() else [])
            assert (tally.forwards, tally.backwards) == (outcomes.forwards.sum(), outcomes.backwards.sum())

    def test_the_newest_evaluation_is_the_one_asked_for_last(self, store: Store) -> None:
        for checkpoint in ("a", "b", "a"):
            store.register(specification(checkpoint=checkpoint))
        newest = max(store.evaluations(), key=lambda evaluation: evaluation.recency)
        assert newest.spec.identity == specification(checkpoint="a").identity
        store.record_experiment(measured())
        store.record_experiment(measured(identity="i1"))
        store.record_experiment(measured())
        assert [measurement.identity for measurement in store.experiments()] == ["i1", "i0"]

    def test_verification_counts_everything_and_names_what_was_changed(self, store: Store) -> None:
        full(store)
        verified = verify(store)
        assert (verified.evaluations, verified.outcomes, verified.images, verified.findings) == (3, 13, 4, 1)
        assert (verified.experiments, verified.unguarded) == (1, 0)
        (run,) = [one.attack_runs["pgd"] for one in store.evaluations() if one.spec.model == "net"]
        change_outcomes(store, with_values(lambda outcomes: outcomes.status == b"b", prediction=9), run)
        with pytest.raises(DamagedData, match="the outcomes of attack 'pgd' on 'net'"):
            verify(store)

    @OUTLIVING
    def test_two_programs_may_create_register_and_append_at_once(self, url: str) -> None:
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(2)
        writers = [context.Process(target=_append, args=(url, start, barrier)) for start in (0, 40)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(60)
        assert [writer.exitcode for writer in writers] == [0, 0]
        store = Store.open(url)
        (evaluation,) = store.evaluations()
        assert [row.index for row in store.outcomes(evaluation.attack_runs["pgd"])] == list(range(80))
        assert [row.index for row in store.outcomes(evaluation.attack_runs["clean"])] == list(range(40))
        assert verify(store).outcomes == 120
        store.close()

    @OUTLIVING
    def test_readers_see_whole_transactions_while_another_writes(self, store: Store, url: str) -> None:
        evaluation = deterministic(store, {"pgd": "h"}, n=400)
        run = evaluation.attack_runs["pgd"]
        ended = threading.Event()
        seen: list[int] = []
        failures: list[BaseException] = []

        def read() -> None:
            reader = Store.open(url)
            try:
                while not ended.is_set():
                    seen.append(len(reader.outcomes(run)))
            except BaseException as failure:  # noqa: BLE001 - raised below
                failures.append(failure)
            finally:
                reader.close()

        thread = threading.Thread(target=read)
        thread.start()
        for start in range(1, 101, 10):
            store.append(run, rows("h" * 10, start=start))
        ended.set()
        thread.join(30)
        assert failures == []
        assert {count % 10 for count in seen} <= {1}

    @OUTLIVING
    def test_a_record_of_an_earlier_version_is_brought_up_to_date(self, url: str, tmp_path: Path) -> None:
        former = former_record(5, tmp_path / "former.db")
        if "://" in url:
            copy_record(former, url)
        else:
            former.replace(url)
        old = Store.open(url, upgraded=False)
        assert old.schema_version() == 5
        old.close()
        upgraded = Store.open(url, create=True)
        assert upgraded.schema_version() == SCHEMA_VERSION
        verified = verify(upgraded)
        assert (verified.evaluations, verified.outcomes, verified.images, verified.findings) == (3, 28, 4, 1)
        assert (verified.experiments, verified.unguarded) == (1, 0)
        with closing(Store.open(str(former_record(5, tmp_path / "other.db")))) as same:
            assert contents(upgraded) == contents(same)
        upgraded.close()


class TestMemory:
    def test_a_record_in_memory_is_its_own_and_leaves_no_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DamagedData, match="its tables are missing"):
            Store.open("sqlite://")
        for url in ("sqlite://", "sqlite:///:memory:", ":memory:"):
            with closing(Store.open(url, create=True)) as one, closing(Store.open(url, create=True)) as other:
                full(one)
                assert verify(one).outcomes == 13
                assert other.evaluations() == []
        assert list(tmp_path.iterdir()) == []

    def test_threads_take_turns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("kwbench.record.database.statements.IDS_PER_QUERY", 2)
        with closing(Store.open("sqlite://", create=True)) as store:
            evaluation = store.register(specification(attacks=[f"attack-{number}" for number in range(9)], n=40))
            runs = list(evaluation.attack_runs.values())
            threads = [threading.Thread(target=store.append, args=(run, rows("hb" * 20))) for run in runs]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert {run: len(tally) for run, tally in store.tallies().items()} == dict.fromkeys(runs, 40)


class TestTransfer:
    @pytest.fixture
    def other(self, tmp_path: Any) -> Iterator[Store]:
        opened = Store.open(str(tmp_path / "other.db"), create=True)
        yield opened
        opened.close()

    def test_a_transfer_takes_everything_once_and_keeps_dates_and_bits(self, store: Store, other: Store) -> None:
        full(store)
        first = transfer(store, other)
        assert (first.evaluations, first.outcomes, first.findings, first.experiments, first.conflicts) == (3, 13, 1, 1, [])
        assert contents(other) == contents(store)
        again = transfer(store, other)
        assert (again.evaluations, again.outcomes, again.findings, again.experiments, again.conflicts) == (0, 0, 0, 0, [])
        assert contents(other) == contents(store)
        assert verify(other) == verify(store)

    def test_records_of_two_machines_become_one_without_doubles(self, store: Store, other: Store) -> None:
        deterministic(store, {"clean": "hhhh", "pgd": "hb.."}, n=4)
        deterministic(other, {"clean": "hhhh", "pgd": ".bbh"}, n=4)
        deterministic(other, {"clean": "hh", "pgd": "hb"}, model="another")
        added = transfer(other, store)
        assert (added.evaluations, added.outcomes, added.conflicts) == (1, 6, [])
        by_model = {evaluation.spec.model: evaluation for evaluation in store.evaluations()}
        assert [row.status[0] for row in store.outcomes(by_model["net"].attack_runs["pgd"])] == ["h", "b", "b", "h"]
        assert max(by_model.values(), key=lambda evaluation: evaluation.recency).spec.model == "another"

    def test_conflicts_are_named_and_nothing_of_the_run_is_taken(self, store: Store, other: Store) -> None:
        deterministic(store, {"clean": "hhhh", "pgd": "hbe."}, n=4)
        evaluation = deterministic(other, {"clean": "hhhh", "pgd": "hhhh"}, n=4)
        other.record_findings(evaluation.id, [Finding("flat", 0.5, 0.01, True, "It is.")])
        store.record_findings(store.evaluations()[0].id, [Finding("flat", 0.0, 0.01, False, "It is not.")])
        store.record_experiment(measured(1.0))
        other.record_experiment(measured(2.0))
        before = contents(store)
        conflicts = transfer(other, store).conflicts
        assert contents(store) == before
        assert len(conflicts) == 3
        assert "net, attack 'pgd'" in conflicts[0]
        assert "has status broken and held; none of its outcomes were taken" in conflicts[0]
        assert "check 'flat' fires in one record only" in conflicts[1]
        assert "experiment landscape on 'net' (run i0): its arrays differ" in conflicts[2]

    def test_an_error_gives_way_to_an_outcome_and_takes_no_place(self, store: Store, other: Store) -> None:
        deterministic(store, {"pgd": "eb"}, n=2)
        deterministic(other, {"pgd": "he"}, n=2)
        assert transfer(other, store).conflicts == []
        (evaluation,) = store.evaluations()
        assert [row.status[0] for row in store.outcomes(evaluation.attack_runs["pgd"])] == ["h", "b"]

    def test_a_transfer_of_some_models_leaves_the_others(self, store: Store, other: Store) -> None:
        full(store)
        transfer(store, other, ["random"])
        assert [evaluation.spec.model for evaluation in other.evaluations()] == ["random"]
        assert other.experiments() == []


class TestServer:
    def test_a_connection_lost_within_a_transaction_leaves_nothing_of_it(self, postgres: Server) -> None:
        store = Store.open(postgres.database("lost"), create=True)
        evaluation = deterministic(store, {"pgd": "hb"}, n=4)
        run, killed = evaluation.attack_runs["pgd"], list[int]()

        def cut(connection: sa.Connection, _cursor: object, statement: str, *_: object) -> None:
            """End the connection at its server, before the checksums of the new rows are written."""
            if not killed and statement.startswith("INSERT INTO attack_run_checksums"):
                killed.append(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
                other = sa.create_engine(store._engine.url, poolclass=sa.NullPool)
                with other.begin() as killer:
                    killer.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": killed[0]})

        sa.event.listen(store._engine, "before_cursor_execute", cut)
        with pytest.raises(CannotEvaluate, match="the database cannot be used"):
            store.append(run, rows("bb", start=2))
        assert killed
        assert len(store.outcomes(run)) == 2
        store.append(run, rows("bb", start=2))
        assert verify(store).outcomes == 4
        store.close()

    def test_after_a_restart_of_the_server_the_same_store_works_on(self, postgres: Server) -> None:
        store = Store.open(postgres.database("restarted"), create=True)
        evaluation = deterministic(store, {"pgd": "hb"}, n=4)
        postgres.stop()
        with pytest.raises(CannotEvaluate, match="the database cannot be used"):
            store.append(evaluation.attack_runs["pgd"], rows("bb", start=2))
        postgres.start()
        store.append(evaluation.attack_runs["pgd"], rows("bb", start=2))
        assert verify(store).outcomes == 4
        store.close()

    def test_a_database_of_another_program_is_refused(self, postgres: Server) -> None:
        with pytest.raises(DamagedData, match="not a kwbench database, its tables are missing"):
            Store.open(postgres.database("empty"))
        with pytest.raises(CannotEvaluate, match="the database cannot be used"):
            Store.open(f"postgresql+psycopg://kwbench@127.0.0.1:{postgres.port}/missing")


def _append(url: str, start: int, barrier: Any) -> None:
    barrier.wait()
    store = Store.open(url, create=True)
    evaluation = store.register(specification(n=200))
    for offset in range(0, 40, 5):
        store.append(evaluation.attack_runs["pgd"], rows("h" * 5, start=start + offset))
        # The other process writes these rows, too.
        store.append(evaluation.attack_runs["clean"], rows("h" * 5, start=offset))
    store.close()
