"""A record shows that it is whole: whatever is changed or lost behind its back is named, and yields no number."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kwbench.errors import CannotEvaluate, DamagedData
from kwbench.finding import Finding
from kwbench.outcome import Status
from kwbench.record.arrays import MISSING, OutcomeArrays
from kwbench.record.measurement import Measurement
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from support.damage import change_outcomes_of_file, former_record, with_values
from support.records import deterministic, drawn, record, rows, sample, specification

_FINDINGS = [Finding("flat", 0.5, 0.1, True, "Half of the gradients are zero."), Finding("random", 0.0, 0.1, False, "No.")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with a diagnosed evaluation, one of a stochastic model, and an experiment."""
    path = tmp_path / "results.db"
    store = Store.open(str(path), create=True)
    evaluation = deterministic(store, {"clean": "whhh", "pgd": "whbh", "square": "whhb"}, model="net")
    store.record_findings(evaluation.id, _FINDINGS)
    image = replace(rows("h", start=9)[0], image=np.zeros((1, 2, 3), dtype=np.float32))
    record(store, specification("random", n=2, stochastic=True), {"clean": drawn([9, 8], [9, 7]), "pgd": [image]})
    store.record_experiment(Measurement("i0", "landscape", "net", "digits", {}, {}, {"loss": np.arange(6.0).reshape(2, 3)}))
    store.close()
    return path


def _change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        assert connection.execute(statement).rowcount > 0
        connection.commit()


def _read_all(path: Path) -> None:
    store = Store.open(str(path))
    try:
        summaries(store)
        store.experiments()
        for evaluation in store.evaluations():
            for run in evaluation.attack_runs.values():
                store.outcomes(run)
                store.adversarials(run)
    finally:
        store.close()


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("DELETE FROM members WHERE evaluation = 1 AND position = 2", r"evaluation 1 \(net, digits\)"),
        ("UPDATE members SET position = 1 - position WHERE evaluation = 1 AND position < 2", r"evaluation 1 \(net"),
        ("UPDATE members SET attack_run = 5 WHERE evaluation = 1 AND position = 2", r"evaluation 1 \(net"),
        ("DELETE FROM attack_runs WHERE label = 'square'", r"evaluation 1 \(net"),
        ("UPDATE attack_runs SET label = 'squarf' WHERE label = 'square'", r"evaluation 1 \(net"),
        ("UPDATE attack_runs SET spec = '{}' WHERE id = 2", r"evaluation 1 \(net"),
        ("UPDATE attack_runs SET spec = '{' WHERE id = 2", "description of attack run 2"),
        ("DELETE FROM evaluations WHERE id = 1", "evaluation 1: its row is missing"),
        ("UPDATE evaluations SET model = 'nft' WHERE id = 1", r"evaluation 1 \(nft"),
        ("UPDATE evaluations SET n = 5 WHERE id = 1", r"evaluation 1 \(net"),
        ("UPDATE evaluations SET eps = '8/256' WHERE id = 1", r"evaluation 1 \(net"),
        ("UPDATE evaluations SET norm = 'lynf' WHERE id = 1", r"evaluation 1 \(net"),
        ("UPDATE evaluations SET spec = substr(spec, 2) WHERE id = 1", r"evaluation 1 \(net"),
        ("UPDATE evaluations SET provenance = '{}' WHERE id = 1", r"evaluation 1 \(net"),
        ("DELETE FROM shards WHERE attack_run = 3", "'square' on 'net'"),
        ("UPDATE shards SET outcomes = 3 WHERE attack_run = 3", "'square' on 'net'"),
        ("UPDATE shards SET outcomes = 1000000000 WHERE attack_run = 3", "'square' on 'net'"),
        ("UPDATE shards SET attack_run = 5 - attack_run WHERE attack_run IN (2, 3)", "'pgd' on 'net'"),
        ("UPDATE shards SET tally = (SELECT tally FROM shards WHERE attack_run = 1)", "are not those that were written"),
        ("UPDATE shards SET tally = substr(tally, 2) WHERE attack_run = 3", "'square' on 'net'"),
        ("UPDATE shards SET tally = 'x' WHERE attack_run = 3", "'square' on 'net'"),
        ("UPDATE shards SET details = (SELECT details FROM shards WHERE attack_run = 4)", "'clean' on 'net'"),
        ("UPDATE shards SET details = x'00' WHERE attack_run = 3", "'square' on 'net'"),
        ("UPDATE shards SET samples = (SELECT samples FROM shards WHERE attack_run = 5)", "'clean' on 'net'"),
        ("UPDATE shards SET samples = substr(samples, 1, 9) WHERE attack_run = 3", "'square' on 'net'"),
        ("DELETE FROM samples WHERE id = 3", "'clean' on 'net'"),
        ("DELETE FROM samples", "'clean' on 'net'"),
        ('UPDATE samples SET "index" = "index" + 1 WHERE id = 3', "'clean' on 'net'"),
        ("UPDATE samples SET label = label + 1 WHERE id = 3", "'clean' on 'net'"),
        ("UPDATE samples SET sample = 'x' WHERE id = 3", "'clean' on 'net'"),
        ("DELETE FROM findings WHERE id = 1", "findings on evaluation 1"),
        ("DELETE FROM findings", "findings on evaluation 1"),
        ("UPDATE findings SET finding = replace(finding, 'true', 'false')", "findings on evaluation 1"),
        ("UPDATE findings SET evaluation = 2 WHERE id = 1", "findings on evaluation 1"),
        ("DELETE FROM arrays", r"experiment 1 \(landscape, net\)"),
        ("DELETE FROM experiments", "experiment 1: its row is missing"),
        ("UPDATE arrays SET shape = '[3, 2]'", r"experiment 1 \(landscape, net\): its array 'loss'"),
        ("UPDATE arrays SET name = 'lost'", r"experiment 1 \(landscape, net\): its array 'lost'"),
        ("UPDATE adversarials SET height = width, width = height", "the adversarial image of sample"),
        ("UPDATE evaluation_checksums SET position = 9 WHERE evaluation = 1", r"evaluation 1 \(net"),
        ("UPDATE experiment_checksums SET position = 9", r"experiment 1 \(landscape"),
        ("UPDATE evaluation_checksums SET checksum = 'x' WHERE evaluation = 1", r"evaluation 1 \(net"),
    ],
)
def test_whatever_is_changed_or_lost_is_named(path: Path, statement: str, named: str) -> None:
    _read_all(path)
    _change(path, statement)
    # A large database is not checked by SQLite itself.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kwbench.record.database.sqlite_file._SMALL_FILE", 0)
        with pytest.raises(DamagedData, match=named):
            _read_all(path)


_BROKEN: Callable[[OutcomeArrays], Any] = lambda outcomes: outcomes.status == b"b"  # noqa: E731


_CHANGES: list[Callable[[OutcomeArrays], OutcomeArrays]] = [
    lambda outcomes: outcomes.take(np.arange(3)),
    lambda outcomes: outcomes.take(np.arange(0)),
    with_values(_BROKEN, status=b"h"),
    with_values(status=b"f"),
    with_values(index=np.array([0, 1, 2, 4])),
    with_values(sample=np.array([b"a", b"b", b"c", b"d"])),
    with_values(_BROKEN, label=9),
    with_values(_BROKEN, clean_prediction=MISSING),
    with_values(_BROKEN, prediction=9),
    with_values(_BROKEN, distance=np.nextafter(0.1, 1)),
    with_values(_BROKEN, distance=np.nan),
    with_values(_BROKEN, other_status=b"h"),
    with_values(_BROKEN, surrogate_prediction=0),
    with_values(_BROKEN, selection_draws=1),
    with_values(_BROKEN, fresh_draws=1),
    with_values(_BROKEN, forwards=4),
    with_values(_BROKEN, backwards=4),
    with_values(_BROKEN, seconds=9.0),
    with_values(_BROKEN, note="x"),
]


def test_an_outcome_that_was_changed_or_lost_is_named(path: Path) -> None:
    intact = path.read_bytes()
    for change in _CHANGES:
        path.write_bytes(intact)
        change_outcomes_of_file(path, change, 3)
        with pytest.raises(DamagedData, match="'square' on 'net'"):
            _read_all(path)


def test_a_flipped_bit_of_a_row_or_an_index_never_changes_a_number_unnoticed(path: Path) -> None:
    store = Store.open(str(path))
    intact = summaries(store)
    store.close()
    content = path.read_bytes()
    # One bit of every 1201st byte: a prime, so that all kinds of fields are met.
    for position in range(100, len(content), 1201):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            store = Store.open(str(path))
            found = summaries(store)
            store.close()
        except (DamagedData, CannotEvaluate):
            continue
        assert found == intact


def test_rows_and_images_written_in_parts_are_whole_at_every_moment(path: Path) -> None:
    store = Store.open(str(path))
    evaluation = store.register(specification("parts", n=6))
    run = evaluation.attack_runs["pgd"]
    for start in range(0, 6, 2):
        store.append(run, rows("hb", start=start))
        store.append(run, rows("hh", start=start))  # rows on record stay as they are
        _read_all(path)
    assert [row.status[:1] for row in store.outcomes(run)] == list("hbhbhb")


def test_an_error_is_replaced_by_another_outcome_and_nothing_else_is(path: Path) -> None:
    store = Store.open(str(path))
    run = store.register(specification("replaced", n=4)).attack_runs["pgd"]
    store.append(run, rows("eehi", note="CUDA error"))
    store.append(run, rows("hebb"))
    assert [(row.status, row.note) for row in store.outcomes(run)] == [
        (Status.HELD, ""),
        (Status.ERROR, ""),
        (Status.HELD, "CUDA error"),
        (Status.INVALID, "CUDA error"),
    ]
    _read_all(path)


def test_discarded_rows_are_gone_with_their_images_and_the_rest_is_whole(path: Path) -> None:
    store = Store.open(str(path))
    run = store.register(specification("discarded", n=4)).attack_runs["pgd"]
    store.append(run, [replace(row, image=np.zeros((1, 2, 2), dtype=np.float32)) for row in rows("bbbb")])
    store.discard(run, {sample(1), sample(3)})
    assert [row.index for row in store.outcomes(run)] == [0, 2]
    assert store.with_adversarials(run) == {sample(0), sample(2)}
    _read_all(path)
    store.discard(run)
    assert store.outcomes(run) == []
    store.append(run, rows("h"))
    _read_all(path)


def test_a_damaged_run_is_not_continued(path: Path) -> None:
    change_outcomes_of_file(path, with_values(_BROKEN, status=b"h"), 2)
    store = Store.open(str(path))
    with pytest.raises(DamagedData, match="'pgd' on 'net'"):
        store.append(2, rows("h", start=4))


def test_a_lost_attack_is_recorded_again_by_the_same_command(path: Path) -> None:
    _change(path, "DELETE FROM members WHERE evaluation = 1 AND position = 2")
    store = Store.open(str(path))
    again = store.register(specification("net", {"clean": {}, "pgd": {}, "square": {}}))
    assert list(again.attack_runs) == ["clean", "pgd", "square"]
    _read_all(path)


_WRITER = """
import sys
from kwbench.record.store import Store
from support.damage import change_outcomes_of_file, former_record, with_values
from support.records import rows, specification
store = Store.open(sys.argv[1])
runs = store.register(specification("killed", n=100000)).attack_runs
print("writing", flush=True)
for start in range(0, 100000, 2):
    store.append(runs["pgd"], rows("eb", start=start))
    store.append(runs["pgd"], rows("h", start=start))
"""


def test_a_killed_writer_leaves_a_whole_record(path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, env=environment, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        for _ in range(5):
            writer.poll()
            _read_all(path)  # also while the other process writes
        writer.send_signal(signal.SIGKILL)
    _read_all(path)


def test_a_record_from_before_checksums_stays_readable_and_says_so(tmp_path: Path) -> None:
    store = Store.open(str(former_record(3, tmp_path / "results.db")))
    assert [summary.guarded for summary in summaries(store)] == [False, False, False]
    # What is added to it stays without; another evaluation is guarded.
    (net, *_) = store.evaluations()
    store.append(net.attack_runs["pgd"], rows("h", start=6))
    assert len(store.outcomes(net.attack_runs["pgd"])) == 7
    deterministic(store, {"clean": "hh", "pgd": "hb"}, model="new")
    assert [summary.guarded for summary in summaries(store)] == [False, False, False, True]
    store.close()


def test_an_attack_that_the_description_lists_is_missed_also_without_checksums(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    spec = specification("net", ["clean", "pgd", "square"])
    spec = replace(spec, spec={**spec.spec, "attacks": [attack.identity for attack in spec.attacks]})
    store = Store.open(str(path), create=True)
    store.register(spec)
    store.close()
    _change(path, "DELETE FROM evaluation_checksums")
    Store.open(str(path)).evaluations()
    _change(path, "DELETE FROM members WHERE position = 2")
    with pytest.raises(DamagedData, match="2 attacks are on record, and not the 3 that were written"):
        Store.open(str(path)).evaluations()


def test_outcomes_have_the_same_checksum_in_whatever_order_and_batches_they_came(path: Path) -> None:
    with closing(Store.open(str(path))) as store:
        runs = [store.register(specification(name, n=40)).attack_runs["pgd"] for name in ("whole", "parts", "backwards")]
        store.append(runs[0], rows("h" * 40))
        for start in range(0, 40, 5):
            store.append(runs[1], rows("h" * 40)[start : start + 5])
            store.append(runs[2], rows("h" * 40)[start : start + 5][::-1])
        assert [store.outcomes(run) for run in runs] == [rows("h" * 40)] * 3
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT attack_run, count(*) FROM shards WHERE attack_run IN (?, ?, ?) GROUP BY attack_run"
        assert dict(connection.execute(query, runs)) == dict.fromkeys(runs, 1)
        query = "SELECT DISTINCT outcomes, tally FROM attack_run_checksums WHERE attack_run IN (?, ?, ?)"
        assert len(connection.execute(query, runs).fetchall()) == 1
