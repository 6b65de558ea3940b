"""The record survives repeated and concurrent writes, damage and full disks, and refuses impossible rows."""

import json
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray

from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.finding import Finding
from kwbench.outcome import Example, Outcome, Status
from kwbench.record.database.schema import SCHEMA_VERSION
from kwbench.record.database.sqlite_file import APPLICATION_ID
from kwbench.record.measurement import Measurement
from kwbench.record.store import Store
from kwbench.record.verification import verify
from support.damage import FORMER, former_record
from support.records import deterministic, drawn, record, rows, specification


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store.open(str(path), create=True)
    yield opened
    opened.close()


def test_outcomes_are_read_as_they_were_appended(store: Store) -> None:
    outcomes = [
        *rows("whbie", surrogate_prediction=3),
        replace(rows("h", start=5)[0], distance=None, note="ü\n", prediction=None),
    ]
    evaluation = record(store, specification(n=6), {"pgd": outcomes})
    assert store.outcomes(evaluation.attack_runs["pgd"]) == outcomes


def test_appending_twice_changes_nothing(store: Store) -> None:
    evaluation = deterministic(store, {"clean": "whhh", "pgd": "whbh"})
    before = store.outcomes(evaluation.attack_runs["pgd"])
    store.append(evaluation.attack_runs["pgd"], rows("whbhh"))
    assert store.outcomes(evaluation.attack_runs["pgd"])[:4] == before
    # Rows on record never change.
    store.append(evaluation.attack_runs["pgd"], rows("hhhhh"))
    assert store.outcomes(evaluation.attack_runs["pgd"])[:4] == before


def test_registering_twice_returns_the_same_evaluation(store: Store) -> None:
    first, second = (store.register(specification()) for _ in range(2))
    assert (first.id, first.attack_runs, first.spec) == (second.id, second.attack_runs, second.spec)
    assert len(store.evaluations()) == 1
    assert second.asked >= first.asked


def test_evaluations_share_equal_attack_runs(store: Store) -> None:
    spec = specification(attacks=["clean", "pgd"])
    small = store.register(spec)
    store.append(small.attack_runs["clean"], rows("whhh"))
    (extra,) = specification(attacks=["cw"]).attacks
    more = replace(specification(attacks=["clean", "pgd", "cw"]), attacks=(*spec.attacks, extra))
    large = store.register(more)
    assert large.attack_runs["clean"] == small.attack_runs["clean"]
    assert len(store.outcomes(large.attack_runs["clean"])) == 4
    assert list(large.attack_runs) == ["clean", "pgd", "cw"]


def test_findings_are_read_as_recorded_and_replaced_by_check(store: Store) -> None:
    evaluation, other = deterministic(store, {"pgd": "h"}), deterministic(store, {"pgd": "b"}, model="other")
    first = Finding("flat", 0.5, 0.01, True, "Half of the gradients are zero.", ("a", "b"), "masking")
    second = Finding("random", None, 0.0, False, "ü was not measured.")
    store.record_findings(evaluation.id, [first, second])
    store.record_findings(other.id, [second])
    assert store.findings(evaluation.id) == [first, second]
    again = replace(first, figure=0.25, samples=())
    store.record_findings(evaluation.id, [again])
    assert store.findings(evaluation.id) == [second, again]
    assert store.findings(other.id) == [second]
    with pytest.raises(CannotEvaluate, match="check flat: figure and threshold must be finite"):
        store.record_findings(evaluation.id, [replace(first, figure=float("nan"))])
    with pytest.raises(CannotEvaluate):
        store.record_findings(99, [first])
    assert store.findings(evaluation.id) == [second, again]


def test_kept_images_are_read_bit_by_bit_and_never_change(store: Store) -> None:
    image = np.random.default_rng(0).random((3, 4, 5), dtype=np.float32)
    held, broken = rows("hb")
    evaluation = record(store, specification(n=2), {"pgd": [held, replace(broken, image=image)]})
    run = evaluation.attack_runs["pgd"]
    (kept,) = store.adversarials(run).values()
    assert kept.dtype == np.float32
    assert (kept == image).all()
    # A row on record may get its image later, and then keeps it.
    store.append(run, [replace(held, image=image + 1), replace(broken, image=image + 1)])
    assert store.with_adversarials(run) == {held.sample, broken.sample}
    assert (store.adversarials(run)[held.sample] == image + 1).all()
    assert (store.adversarials(run)[broken.sample] == image).all()
    assert store.outcomes(run) == [held, broken]


def test_a_damaged_image_is_reported_with_its_sample(store: Store, path: Path) -> None:
    (row,) = rows("b")
    evaluation = record(store, specification(n=1), {"pgd": [replace(row, image=np.zeros((1, 2, 2), dtype=np.float32))]})
    for change in ("image = x'00'", "width = 3"):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"UPDATE adversarials SET {change}")  # noqa: S608 - a test's own text
            connection.commit()
        with pytest.raises(DamagedData, match=f"the adversarial image of sample {row.sample} is damaged"):
            store.adversarials(evaluation.attack_runs["pgd"])


def _former_outcomes() -> dict[tuple[str, str], list[Outcome]]:
    """The outcomes that the records of former versions hold, by model and attack."""
    content = json.loads((FORMER / "outcomes.json").read_text())
    outcomes = {}
    for run in content["attack_runs"]:
        rows = [dict(zip(content["fields"], values, strict=True)) for values in run["outcomes"]]
        for row in rows:
            row["status"] = Status(row["status"])
            row["other_status"] = None if row["other_status"] is None else Status(row["other_status"])
        outcomes[run["model"], run["attack"]] = [Outcome(**row) for row in rows]
    return outcomes


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_a_database_of_an_earlier_schema_version_is_migrated_and_keeps_its_rows(path: Path, version: int) -> None:
    former_record(version, path)
    store = Store.open(str(path))
    with store._reading() as connection:
        assert connection.exec_driver_sql("PRAGMA freelist_count").scalar() == 0  # the space of the rows was given back
    evaluations = store.evaluations()
    runs = {(one.spec.model, label): run for one in evaluations for label, run in one.attack_runs.items()}
    assert {key: store.outcomes(run) for key, run in runs.items()} == _former_outcomes()
    assert [one.guarded for one in evaluations] == [version > 3] * 3
    assert len(store.findings(evaluations[0].id)) == (version > 1)
    assert len(store.adversarials(runs["pictured", "pgd"])) == (2 if version > 1 else 0)
    assert len(store.experiments()) == (version > 2)
    assert len(store.examples(runs["pictured", "pgd"])) == (2 if version > 4 else 0)
    assert verify(store).unguarded == (0 if version > 3 else 7)
    (row, *_) = rows("h", start=9)
    store.append(runs["net", "pgd"], [replace(row, image=np.zeros((1, 2, 2), dtype=np.float32))])
    store.record_findings(evaluations[0].id, [Finding("flat", 0.0, 0.01, False, "None is zero.")])
    store.record_experiment(_measured("i1"))
    assert verify(store).outcomes == sum(map(len, _former_outcomes().values())) + 1
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT version_num FROM schema_revision").fetchall() == [(str(SCHEMA_VERSION),)]
    assert _tables(path) == _tables(_new(path.with_name("new.db")))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE outcomes SET distance = 0.2 WHERE attack_run = 2",
        "DELETE FROM outcomes WHERE attack_run = 2",
        "UPDATE outcomes SET status = 'hfld' WHERE attack_run = 2",
    ],
)
def test_damaged_outcomes_of_an_earlier_version_are_named_and_nothing_is_changed(path: Path, change: str) -> None:
    with closing(sqlite3.connect(former_record(5, path))) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        assert connection.execute(change).rowcount
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(DamagedData, match="'pgd' on 'net'"):
        Store.open(str(path))
    assert path.read_bytes() == before


def test_an_impossible_outcome_from_before_checksums_is_named(path: Path) -> None:
    with closing(sqlite3.connect(former_record(2, path))) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("UPDATE outcomes SET status = 'fine' WHERE attack_run = 2")
        connection.commit()
    with pytest.raises(DamagedData, match="'pgd' on 'net'"):
        Store.open(str(path))


def _example(whole: bool) -> Example:
    clean = (np.arange(12, dtype=np.float32) / np.float32(255)).reshape(3, 2, 2)
    moved = (clean + np.float32(0.1)).astype(np.float32)
    residual = np.arange(-6, 6, dtype=np.int8).reshape(3, 2, 2)
    return Example(clean, None if whole else residual, 0.001, moved if whole else None, ((3, 0.9), (1, 0.1)), ((1, 0.7),))


def test_examples_are_read_as_they_were_kept_and_go_with_their_row(store: Store) -> None:
    kept = [replace(row, example=_example(row.index == 0)) for row in rows("bb")]
    evaluation = record(store, specification(n=2), {"pgd": kept})
    run = evaluation.attack_runs["pgd"]
    examples = store.examples(run)
    for row in kept:
        read, written = examples[row.sample], row.example
        assert written is not None
        assert (read.before, read.after) == (written.before, written.after)
        assert (read.clean == written.clean).all()
        assert (read.adversarial == written.adversarial).all()
        assert (read.residual is None) == (written.residual is None)
    store.discard(run, [kept[0].sample])
    assert set(store.examples(run)) == {kept[1].sample}


def test_a_damaged_example_is_reported_with_its_sample(store: Store, path: Path) -> None:
    (row,) = rows("b")
    evaluation = record(store, specification(n=1), {"pgd": [replace(row, example=_example(False))]})
    for change in ("UPDATE examples SET image = x'00'", "UPDATE clean_images SET width = 3"):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(change)
            connection.commit()
        with pytest.raises(DamagedData, match=f"the adversarial example of sample {row.sample} is damaged"):
            store.examples(evaluation.attack_runs["pgd"])


def _measured(identity: str = "i0", **arrays: NDArray[np.float64]) -> Measurement:
    return Measurement(identity, "landscape", "net", "digits", {"points": 2}, {"device": "cpu"}, arrays)


def test_an_experiment_is_read_as_recorded_and_recording_it_again_changes_only_the_order(store: Store) -> None:
    grid = np.array([[0.1, np.nan], [-np.inf, 1e-300]])
    store.record_experiment(_measured(loss=grid, empty=np.zeros((0, 3)), one=np.array(2.5)))
    store.record_experiment(_measured("i1"))
    store.record_experiment(_measured(loss=grid + 1))
    other, measurement = store.experiments()
    assert (other.identity, other.arrays) == ("i1", {})
    assert (measurement.spec, measurement.provenance, measurement.model, measurement.dataset) == (
        {"points": 2},
        {"device": "cpu"},
        "net",
        "digits",
    )
    np.testing.assert_array_equal(measurement.arrays["loss"], grid)
    assert measurement.arrays["empty"].shape == (0, 3)
    assert measurement.arrays["one"].shape == ()
    assert [one.identity for one in store.experiments("i1")] == ["i1"]
    assert store.experiments("i2") == []


@pytest.mark.parametrize("change", ["numbers = x'00'", "shape = '[3]'", "shape = 'no'"])
def test_a_damaged_array_is_reported_with_its_name(store: Store, path: Path, change: str) -> None:
    store.record_experiment(_measured(loss=np.zeros(2)))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"UPDATE arrays SET {change}")  # noqa: S608 - a test's own text
        connection.commit()
    with pytest.raises(DamagedData, match=r"experiment 1 .*: its array 'loss' is damaged"):
        store.experiments()


def _tables(path: Path) -> dict[str, str]:
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT name, sql FROM sqlite_master"))


def _new(path: Path) -> Path:
    Store.open(str(path), create=True).close()
    return path


def _open(path: str, barrier: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    Store.open(path).close()


def test_two_processes_may_migrate_a_database_at_once(path: Path) -> None:
    former_record(1, path)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    openers = [context.Process(target=_open, args=(str(path), barrier)) for _ in range(2)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(60)
    assert [opener.exitcode for opener in openers] == [0, 0]
    assert len(Store.open(str(path)).tallies()) == 7


def _append(path: str, start: int, barrier: object) -> None:
    store = Store.open(path, create=True)
    barrier.wait()  # type: ignore[attr-defined]
    evaluation = store.register(specification(n=200))
    for offset in range(0, 100, 5):
        store.append(evaluation.attack_runs["pgd"], rows("h" * 5, start=start + offset))
        # The other process writes these rows, too.
        store.append(evaluation.attack_runs["clean"], rows("h" * 5, start=offset))
    store.close()


def test_two_processes_may_create_register_and_append_at_once(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    writers = [context.Process(target=_append, args=(str(path), start, barrier)) for start in (0, 100)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    store = Store.open(str(path))
    (evaluation,) = store.evaluations()
    assert [row.index for row in store.outcomes(evaluation.attack_runs["pgd"])] == list(range(200))
    assert [row.index for row in store.outcomes(evaluation.attack_runs["clean"])] == list(range(100))
    store.close()


def test_a_new_database_leaves_nothing_else_in_the_folder(store: Store, path: Path) -> None:
    assert os.listdir(path.parent) == ["results.db"]


@pytest.mark.parametrize(
    "code",
    [
        "CREATE VIEW v AS WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT x FROM r",
        "CREATE TRIGGER t AFTER INSERT ON shards BEGIN DELETE FROM shards; END",
        "CREATE VIRTUAL TABLE f USING fts5(x)",
    ],
    ids=["view", "trigger", "virtual"],
)
def test_a_database_that_holds_code_is_refused(store: Store, path: Path, code: str) -> None:
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(code)
        connection.commit()
    with pytest.raises(DamagedData, match=r"holds the (view|trigger|table) ., which kwbench never writes"):
        Store.open(str(path))


def test_a_packed_array_that_expands_without_bound_is_refused_unread(store: Store, path: Path) -> None:
    store.record_experiment(_measured(loss=np.zeros(2)))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE arrays SET numbers = ?, shape = '[100000000]'", (zlib.compress(bytes(1000)),))
        connection.commit()
    with pytest.raises(DamagedData, match="bytes expand to 800000000"):
        store.experiments()


def test_reading_does_not_create_a_missing_database(path: Path) -> None:
    with pytest.raises(CannotEvaluate, match="no such database"):
        Store.open(str(path))
    assert not path.exists()


def test_an_empty_file_is_refused_and_not_changed(path: Path) -> None:
    path.touch()
    for create in (False, True):
        with pytest.raises(DamagedData, match="0 bytes"):
            Store.open(str(path), create=create)
    assert path.stat().st_size == 0


def test_other_files_are_refused(path: Path) -> None:
    path.write_text("not a database at all\n" * 20)
    with pytest.raises(DamagedData, match="not a kwbench database"):
        Store.open(str(path), create=True)
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE cookies (name)")
        connection.commit()
    with pytest.raises(DamagedData, match="another program"):
        Store.open(str(path), create=True)


def test_a_kwbench_database_without_tables_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("CREATE TABLE other (name)")
        connection.commit()
    with pytest.raises(DamagedData, match="its tables are missing"):
        Store.open(str(path), create=True)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
def test_a_truncated_database_is_refused(path: Path, share: float) -> None:
    store = Store.open(str(path), create=True)
    deterministic(store, {"clean": "h" * 2000, "pgd": "hb" * 1000})
    store.close()
    os.truncate(path, int(path.stat().st_size * share))
    # SQLite itself counts rows in a file that was cut short, hence the check of the length.
    with pytest.raises(DamagedData):
        Store.open(str(path), create=True)


def test_damage_inside_is_reported_when_a_small_file_is_opened_and_a_large_one_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(str(path), create=True)
    deterministic(store, {"clean": "h" * 2000})
    store.close()
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 40_000)
    with pytest.raises(DamagedData, match="SQLite finds"):
        Store.open(str(path))
    monkeypatch.setattr("kwbench.record.database.sqlite_file._SMALL_FILE", 0)
    store = Store.open(str(path))
    with pytest.raises(DamagedData):
        store.tallies()
    store.close()


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        ("99", f"schema version 99, this kwbench reads {SCHEMA_VERSION}; update kwbench"),
        ("0", "schema version 0, .*another file"),
        ("head", "schema version None, .*another file"),
    ],
)
def test_another_schema_version_is_refused(path: Path, version: str, advice: str) -> None:
    Store.open(str(path), create=True).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE schema_revision SET version_num = ?", (version,))
        connection.commit()
    with pytest.raises(DamagedData, match=advice):
        Store.open(str(path))


def test_a_missing_folder_and_a_folder_as_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotEvaluate, match="does not exist"):
        Store.open(str(tmp_path / "nowhere" / "results.db"), create=True)
    with pytest.raises(CannotEvaluate, match="folder"):
        Store.open(str(tmp_path), create=True)


def test_a_folder_that_is_not_writable_is_reported() -> None:
    with pytest.raises(CannotEvaluate, match="/proc"):
        Store.open("/proc/results.db", create=True)


def test_a_malformed_url_is_refused() -> None:
    with pytest.raises(UsageError):
        Store.open("://")
    with pytest.raises(UsageError):
        Store.open("nosuchdatabase://host/name")


def test_a_full_disk_is_reported_and_loses_no_row(store: Store) -> None:
    evaluation = record(store, specification(n=5000), {"pgd": rows("h" * 50)})
    attack_run = evaluation.attack_runs["pgd"]
    # Simulates a full disk: no page may be added. The pragma is a property of the connection.
    sa.event.listen(
        store._engine, "begin", lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1"), insert=True
    )
    with pytest.raises(CannotEvaluate, match="full"):
        store.append(attack_run, rows("h" * 4000, start=50))
    assert len(store.outcomes(attack_run)) == 50


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"distance": float("nan")},
        {"distance": -0.1},
        {"forwards": -1},
        {"fresh_correct": 2, "fresh_draws": 1},
        {"selection_correct": -1},
    ],
)
def test_an_impossible_row_is_refused_with_its_whole_batch(store: Store, change: dict[str, float]) -> None:
    evaluation = store.register(specification())
    good, bad = rows("hh")
    with pytest.raises(CannotEvaluate):
        store.append(evaluation.attack_runs["pgd"], [good, replace(bad, **change)])  # type: ignore[arg-type]
    assert store.outcomes(evaluation.attack_runs["pgd"]) == []


def test_the_database_itself_refuses_empty_shards_and_orphans(store: Store, path: Path) -> None:
    deterministic(store, {"pgd": "h"})
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        for change in ("outcomes = 0", "tally = NULL", "details = NULL", "samples = NULL", "attack_run = 99"):
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute(f"UPDATE shards SET {change}")  # noqa: S608 - a test's own text
    with pytest.raises(CannotEvaluate):
        store.append(99, rows("h"))


def test_after_a_return_to_an_older_checkpoint_its_evaluation_is_the_newest(store: Store) -> None:
    store.register(specification(checkpoint="old"))
    store.register(specification(checkpoint="new"))
    again = store.register(specification(checkpoint="old"))
    assert max(store.evaluations(), key=lambda evaluation: evaluation.recency).id == again.id == 1


def test_the_evaluations_of_one_model_are_read_without_the_others(store: Store, path: Path) -> None:
    ours = [deterministic(store, {"pgd": "h"}, model="ours", n=n) for n in (1, 2)]
    deterministic(store, {"pgd": "h"}, model="theirs")
    store.record_findings(ours[0].id, [Finding("flat", 0.5, 0.01, True, "Half of the gradients are zero.")])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE evaluations SET dataset = 'other' WHERE model = 'theirs'")
    assert [evaluation.id for evaluation in store.evaluations(model="ours")] == [evaluation.id for evaluation in ours]
    assert store.evaluations(model="unknown") == []
    assert list(store.findings_by_evaluation([ours[0].id])) == [ours[0].id]
    assert store.findings_by_evaluation([ours[1].id]) == {}
    with pytest.raises(DamagedData, match="theirs"):
        store.evaluations()


def test_failed_outcomes_and_those_with_a_note_are_remarkable(store: Store) -> None:
    outcomes = [*rows("whbie"), replace(rows("h", start=5)[0], note="judged again")]
    evaluation = record(store, specification(n=6), {"pgd": outcomes})
    arrays = store.outcome_arrays(evaluation.attack_runs["pgd"])
    assert arrays.remarkable().outcomes() == outcomes[3:]


def test_tallies_are_those_of_the_outcomes_also_of_runs_that_were_written_in_parts(store: Store) -> None:
    letters = {"clean": "whhhhhhh", "pgd": "whbeibhh", "cw": "whbhhhbb"}
    first = deterministic(store, {label: text[:1] for label, text in letters.items()}, n=8)
    others = [replace(row, other_status=Status.HELD if row.index % 2 else Status.BROKEN) for row in rows(letters["cw"])]
    for start in (5, 1):
        for label, text in letters.items():
            store.append(first.attack_runs[label], (others if label == "cw" else rows(text, surrogate_prediction=3))[start:])
    second = record(store, specification(model="random", stochastic=True), {"pgd": drawn([9, 8], [7, 6])})
    store.append(second.attack_runs["pgd"], rows("hh", start=2))
    tallies = store.tallies()
    assert set(tallies) == {*first.attack_runs.values(), second.attack_runs["pgd"]}
    for run, tally in tallies.items():
        outcomes = store.outcomes(run)
        assert tally.index.tolist() == [row.index for row in outcomes] == list(range(len(outcomes)))
        assert tally.status.tolist() == [row.status[:1].encode() for row in outcomes]
        for name in ("forwards", "backwards", "seconds"):
            assert getattr(tally, name) == sum(getattr(row, name) for row in outcomes)
        surrogates = [row for row in outcomes if row.surrogate_prediction is not None]
        assert (tally.surrogate_rows, tally.other_rows) == (
            len(surrogates),
            sum(row.other_status is not None for row in outcomes),
        )
        assert tally.surrogate_right == sum(row.surrogate_prediction == row.label for row in surrogates)
        assert tally.other_held == sum(row.other_status is Status.HELD for row in outcomes)
    np.testing.assert_array_equal(tallies[second.attack_runs["pgd"]].selection, [0.09, 0.08, np.nan, np.nan])
    np.testing.assert_array_equal(tallies[second.attack_runs["pgd"]].fresh, [0.07, 0.06, np.nan, np.nan])
    assert len(tallies[first.attack_runs["pgd"]].fresh) == 0


def test_what_follows_in_small_batches_is_gathered_in_few_shards(store: Store, path: Path) -> None:
    run = store.register(specification(n=1000)).attack_runs["pgd"]
    for start in range(0, 1000, 8):
        store.append(run, rows("hbbhhhhb", start=start))
        assert len(store.tallies()[run]) == start + 8
    with closing(sqlite3.connect(path)) as connection:
        shards = [n for (n,) in connection.execute("SELECT outcomes FROM shards ORDER BY id")]
        (samples,) = connection.execute("SELECT count(*) FROM samples").fetchone()
    assert (sum(shards), samples) == (1000, 1000)
    assert len(shards) <= 7  # 125 batches
    assert store.outcomes(run) == [row for start in range(0, 1000, 8) for row in rows("hbbhhhhb", start=start)]


def test_a_shard_has_a_limit(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("shards", "outcomes"):
        monkeypatch.setattr(f"kwbench.record.database.{module}.LARGEST", 30)
    run = store.register(specification(n=100)).attack_runs["pgd"]
    store.append(run, rows("h" * 70))
    store.append(run, rows("b" * 30, start=70))
    with closing(sqlite3.connect(path)) as connection:
        assert [n for (n,) in connection.execute("SELECT outcomes FROM shards ORDER BY id")] == [30, 30, 10, 30]
    assert store.outcomes(run) == rows("h" * 70) + rows("b" * 30, start=70)


def test_concurrent_reading_gives_the_same_tallies(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = "".join(np.random.default_rng(0).choice([*"wbhie"], 40))
    outcomes = {"clean": rows("h" * 40), **{f"attack-{i}": rows(letters[i:] + letters[:i]) for i in range(9)}}
    evaluation = record(store, specification(attacks=list(outcomes), n=40), outcomes)
    whole = store.tallies()
    monkeypatch.setattr("kwbench.record.database.statements.IDS_PER_QUERY", 2)
    parts = store.tallies()
    assert whole.keys() == parts.keys() == set(evaluation.attack_runs.values())
    for label, run in evaluation.attack_runs.items():
        assert whole[run].status.tolist() == parts[run].status.tolist() == [row.status[:1].encode() for row in outcomes[label]]
        # Attack runs on the same samples share one array.
        assert parts[run].index is parts[evaluation.attack_runs["clean"]].index


def test_rendering_a_page_imports_no_slow_library() -> None:
    slow = ("torch", "pandas", "pydantic", "ruamel.yaml")
    code = f"import sys, kwbench.report.page, kwbench.cli.progress; print({{*{slow}}} & {{*sys.modules}})"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "bench")}
    process = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert process.stdout == "set()\n"


def test_importing_the_store_and_the_reports_does_not_import_torch() -> None:
    code = "import sys, kwbench.report, kwbench.regression.gate; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "bench")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
