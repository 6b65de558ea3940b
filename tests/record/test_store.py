"""The record survives repeated and concurrent writes, damage and full disks, and refuses impossible rows."""

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
from kwbench.outcome import Example
from kwbench.record.database.schema import SCHEMA_VERSION
from kwbench.record.database.sqlite_file import APPLICATION_ID
from kwbench.record.measurement import Measurement
from kwbench.record.store import Store
from kwbench.record.tally import pack
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


_CHECKSUMS = ("attack_run_checksums", "evaluation_checksums", "experiment_checksums")
_EXAMPLES = ("examples", "clean_images")
_SINCE = {
    1: ("arrays", "experiments", "findings", "adversarials", *_CHECKSUMS, *_EXAMPLES),
    2: ("arrays", "experiments", *_CHECKSUMS, *_EXAMPLES),
    3: (*_CHECKSUMS, *_EXAMPLES),
    4: _EXAMPLES,
}


def _as_version(path: Path, version: int) -> list[tuple[object, ...]]:
    """Turn the database into one of an earlier schema version, and return its outcomes."""
    with closing(sqlite3.connect(path)) as connection:
        for table in _SINCE[version]:
            connection.execute(f"DROP TABLE {table}")
        connection.execute("UPDATE schema_version SET version = ?", (version,))
        connection.commit()
        return connection.execute("SELECT * FROM outcomes").fetchall()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_database_of_an_earlier_schema_version_is_migrated_and_keeps_its_rows(store: Store, path: Path, version: int) -> None:
    deterministic(store, {"clean": "whhh", "pgd": "whbe"})
    before = store.evaluations()
    store.close()
    outcomes = _as_version(path, version)
    store = Store.open(str(path))
    (migrated,) = store.evaluations()
    assert (migrated.position, migrated.guarded) == (0, False)
    assert replace(migrated, position=before[0].position, guarded=True) == before[0]
    store.record_findings(before[0].id, [Finding("flat", 0.0, 0.01, False, "None is zero.")])
    (row, *_) = rows("h", start=9)
    store.append(before[0].attack_runs["pgd"], [replace(row, image=np.zeros((1, 2, 2), dtype=np.float32))])
    store.record_experiment(_measured())
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(SCHEMA_VERSION,)]
        assert set(outcomes) < set(connection.execute("SELECT * FROM outcomes").fetchall())
    assert _tables(path) == _tables(_new(path.with_name("new.db")))


def test_a_database_without_tables_of_examples_gets_them_and_keeps_its_checksums(store: Store, path: Path) -> None:
    evaluation = deterministic(store, {"clean": "whhh", "pgd": "whbe"})
    store.close()
    outcomes = _as_version(path, 4)
    store = Store.open(str(path))
    assert store.evaluations() == [evaluation]
    assert store.examples(evaluation.attack_runs["pgd"]) == {}
    store.close()
    assert _as_version(path, 4) == outcomes


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


def test_two_processes_may_migrate_a_database_at_once(store: Store, path: Path) -> None:
    deterministic(store, {"clean": "whhh", "pgd": "whbe"})
    store.close()
    _as_version(path, 1)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    openers = [context.Process(target=_open, args=(str(path), barrier)) for _ in range(2)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(60)
    assert [opener.exitcode for opener in openers] == [0, 0]
    assert len(Store.open(str(path)).tallies()) == 2


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
        "CREATE TRIGGER t AFTER INSERT ON outcomes BEGIN DELETE FROM outcomes; END",
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


@pytest.mark.parametrize(("version", "advice"), [(99, "update kwbench"), (0, "another file")])
def test_another_schema_version_is_refused(path: Path, version: int, advice: str) -> None:
    Store.open(str(path), create=True).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE schema_version SET version = ?", (version,))
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


def test_the_database_itself_refuses_nan_unknown_statuses_and_orphans(store: Store, path: Path) -> None:
    evaluation = deterministic(store, {"pgd": "h"})
    run = evaluation.attack_runs["pgd"]
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        for change in ("seconds = 'nan' + 0.0 / 0.0", "seconds = NULL", "status = 'fine'", "distance = -1", "attack_run = 99"):
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute(f"UPDATE outcomes SET {change} WHERE attack_run = {run}")  # noqa: S608 - a test's own text


def test_after_a_return_to_an_older_checkpoint_its_evaluation_is_the_newest(store: Store) -> None:
    store.register(specification(checkpoint="old"))
    store.register(specification(checkpoint="new"))
    again = store.register(specification(checkpoint="old"))
    assert max(store.evaluations(), key=lambda evaluation: evaluation.recency).id == again.id == 1


def test_tallies_equal_packed_frames(store: Store) -> None:
    first = deterministic(store, {"clean": "whhh", "pgd": "whbe"})
    second = record(store, specification(model="random", stochastic=True), {"pgd": drawn([9, 8], [7, 6])})
    runs = [*first.attack_runs.values(), second.attack_runs["pgd"]]
    tallies, packed = store.tallies(runs), pack(store.frame(runs))
    assert tallies.keys() == packed.keys() == set(runs)
    for run in runs:
        for name in ("index", "status", "selection", "fresh"):
            assert getattr(tallies[run], name).tolist() == getattr(packed[run], name).tolist()
        for name in ("forwards", "backwards", "seconds", "other_rows", "other_held", "surrogate_rows", "surrogate_right"):
            assert getattr(tallies[run], name) == getattr(packed[run], name)


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
