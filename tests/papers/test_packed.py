"""A packed record holds the same rows, and neither packing nor unpacking loses any."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from kwbench.record.measurement import Measurement
from kwbench.record.store import Store
from papers.packed import pack, unpack
from support.records import deterministic, sample

SCRIPT = Path(__file__).resolve().parents[2] / "bench/papers/packed.py"


def statuses(path: Path) -> list[str]:
    """Return the statuses of the PGD rows on record."""
    store = Store.open(str(path))
    (evaluation,) = store.evaluations()
    values = [outcome.status.value for outcome in store.outcomes(evaluation.attack_runs["pgd"])]
    store.close()
    return values


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    path = tmp_path / "papers.db"
    store = Store.open(str(path), create=True)
    deterministic(store, {"clean": "hhhw", "pgd": "hbbw"}, model="m")
    store.close()
    return path


def test_unpacking_restores_what_was_packed(recorded: Path, tmp_path: Path) -> None:
    pack(recorded, tmp_path / "papers.db.xz")
    unpack(tmp_path / "papers.db.xz", tmp_path / "again.db")
    assert statuses(tmp_path / "again.db") == statuses(recorded) == ["held", "broken", "broken", "wrong"]
    assert (tmp_path / "papers.db.xz").stat().st_size < recorded.stat().st_size / 4
    assert sorted(os.listdir(tmp_path)) == ["again.db", "papers.db", "papers.db.xz"]


def test_commands_keep_the_names_of_files_and_lose_their_folders(tmp_path: Path) -> None:
    command = "kwbench evaluate cifar10/net --data /home/me/my-data/test.npz --data-dir=/data --set pgd.steps=1/2 --db x/y.db"
    store = Store.open(str(tmp_path / "papers.db"), create=True)
    deterministic(store, {"clean": "hh", "pgd": "hb"}, provenance={"command": command, "cores": 2})
    store.record_experiment(Measurement("i", "landscape", "m", "digits", {}, {"command": command}, {}))
    store.close()
    pack(tmp_path / "papers.db", tmp_path / "papers.db.xz")
    unpack(tmp_path / "papers.db.xz", tmp_path / "again.db")
    store = Store.open(str(tmp_path / "again.db"))
    (evaluation,), (experiment,) = store.evaluations(), store.experiments()
    store.close()
    short = "kwbench evaluate cifar10/net --data test.npz --data-dir=data --set pgd.steps=1/2 --db x/y.db"
    assert (evaluation.spec.provenance["command"], evaluation.spec.provenance["cores"]) == (short, 2)
    assert experiment.provenance == {"command": short}
    # Checksums do not cover the command, so that it may change.
    assert evaluation.guarded


def test_unpacking_never_overwrites_a_record(recorded: Path, tmp_path: Path) -> None:
    pack(recorded, tmp_path / "papers.db.xz")
    before = recorded.read_bytes()
    with pytest.raises(FileExistsError, match=r"papers\.db: exists"):
        unpack(tmp_path / "papers.db.xz", recorded)
    assert recorded.read_bytes() == before


def test_unpacking_a_damaged_file_writes_nothing(recorded: Path, tmp_path: Path) -> None:
    packed = tmp_path / "papers.db.xz"
    pack(recorded, packed)
    packed.write_bytes(packed.read_bytes()[:-200])
    with pytest.raises(EOFError):
        unpack(packed, tmp_path / "again.db")
    assert not (tmp_path / "again.db").exists()


def test_packing_a_missing_record_keeps_the_packed_one(recorded: Path, tmp_path: Path) -> None:
    packed = tmp_path / "papers.db.xz"
    pack(recorded, packed)
    before = packed.read_bytes()
    command = [sys.executable, str(SCRIPT), "pack", str(tmp_path / "missing.db"), str(packed)]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    assert packed.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["papers.db", "papers.db.xz"]


def test_a_packed_record_is_not_replaced_by_one_that_lacks_rows(recorded: Path, tmp_path: Path) -> None:
    packed = tmp_path / "papers.db.xz"
    pack(recorded, packed)
    before = packed.read_bytes()
    with closing(Store.open(str(recorded))) as store:
        store.discard(store.evaluations()[0].attack_runs["pgd"], [sample(3)])
    with pytest.raises(FileExistsError, match=r"papers\.db\.xz: has 1 measurements that .*papers\.db lacks; unpack it"):
        pack(recorded, packed)
    assert packed.read_bytes() == before


def test_a_packed_record_is_replaced_by_one_with_more_rows(recorded: Path, tmp_path: Path) -> None:
    packed = tmp_path / "papers.db.xz"
    pack(recorded, packed)
    store = Store.open(str(recorded))
    deterministic(store, {"clean": "hhhh", "pgd": "hhhh"}, model="another")
    store.close()
    pack(recorded, packed)
    unpack(packed, tmp_path / "again.db")
    store = Store.open(str(tmp_path / "again.db"))
    assert [evaluation.spec.model for evaluation in store.evaluations()] == ["m", "another"]
    store.close()
