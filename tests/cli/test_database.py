"""The commands on the record itself: db upgrade, check, merge, export and import."""

from pathlib import Path
from typing import Any

import numpy as np

from kwbench.record.certificates import CERTIFICATE
from kwbench.record.database.schema import SCHEMA_VERSION
from kwbench.record.measurement import Measurement
from kwbench.record.store import Store
from support.command_line import Kwbench, refused
from support.damage import change_outcomes_of_file, former_record, with_values
from support.records import deterministic, sample


def write(path: Path, letters: str, model: str = "net") -> None:
    store = Store.open(str(path), create=True)
    deterministic(store, {"clean": "hhhh", "pgd": letters}, n=4, model=model)
    store.close()


def test_records_are_merged_and_a_second_merge_adds_nothing(kwb: Kwbench, tmp_path: Path) -> None:
    write(tmp_path / "a.db", "hb..")
    write(tmp_path / "b.db", "..bh")
    answer = kwb("db", "merge", "a.db", "b.db")
    assert answer.code == 0
    assert answer.out == "a.db <- b.db: 0 evaluations, 2 outcomes, 0 findings, 0 experiments added, 0 conflicts\n"
    assert kwb("db", "merge", "a.db", "b.db", "--json").json["outcomes"] == 0
    assert kwb("show", "net", "--db", "a.db", "--json").json["a_rob"]["value"] == 0.5


def test_conflicts_are_named_with_exit_code_3(kwb: Kwbench, tmp_path: Path) -> None:
    write(tmp_path / "a.db", "hb..")
    write(tmp_path / "b.db", "bb..")
    write(tmp_path / "c.db", "hh", model="other")
    answer = kwb("db", "merge", "a.db", "b.db", "c.db")
    assert answer.code == 3
    assert "conflict: net, attack 'pgd'" in answer.err
    assert "1 conflicts: a.db keeps its own; all else was added" in answer.err
    assert kwb("show", "other", "--db", "a.db").code == 0


def test_an_export_of_some_models_is_imported_elsewhere(kwb: Kwbench, tmp_path: Path) -> None:
    write(tmp_path / "results.db", "hbbh")
    write(tmp_path / "results.db", "hhhb", model="other")
    assert kwb("db", "export", "one.db", "--model", "other").code == 0
    refused(kwb("db", "export", "one.db"), 2, "one.db: exists")
    refused(kwb("db", "export", "two.db", "--model", "ohter"), 2, "did you mean 'other'")
    assert not (tmp_path / "two.db").exists()
    assert kwb("db", "import", "one.db", "--db", "new.db").code == 0
    assert kwb("db", "check", "--db", "new.db", "--json").json["outcomes"] == 8
    refused(kwb("db", "import", "missing.db", "--db", "other.db"), 3, "missing.db: no such database")


def test_check_reads_everything_and_upgrade_names_the_versions(kwb: Kwbench, tmp_path: Path) -> None:
    write(tmp_path / "results.db", "hbbh")
    assert "1 evaluations, 2 attack runs, 8 outcomes" in kwb("db", "check").out
    assert kwb("db", "upgrade").out == f"results.db: schema version {SCHEMA_VERSION}, up to date\n"
    change_outcomes_of_file(tmp_path / "results.db", with_values(forwards=4), 2)
    refused(kwb("db", "check"), 4, "the outcomes of attack 'pgd' on 'net'")
    former_record(5, tmp_path / "results.db")
    assert kwb("db", "upgrade", "--json").json == {"before": 5, "now": SCHEMA_VERSION}
    assert kwb("db", "check", "--json").json["outcomes"] == 28


def test_check_names_attacks_that_contradict_certificates(kwb: Kwbench, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "results.db"), create=True)
    origin = {"norm": "linf", "eps": "0.2"}
    ball: dict[str, Any] = {"origin": origin, **origin}
    evaluation = deterministic(store, {"clean": "hhhh", "pgd": "hhhh"}, **ball)
    spec = {"origin": dict(evaluation.origin), "samples": [sample(index) for index in range(4)]}
    bounds = {"bound": np.array([1.0, 0.5, -0.1, 0.2])}
    store.record_experiment(Measurement("0" * 64, CERTIFICATE, "net", "digits", spec, {}, bounds))
    assert kwb("db", "check", "--json").json["contradictions"] == []
    deterministic(store, {"clean": "hhhh", "pgd": "bhbh"}, suite="another", **ball)
    store.close()
    answer = kwb("db", "check")
    assert "contradiction: net on digits: image 0 is certified in linf 0.2, and pgd broke it" in answer.err
    refused(answer, 4, "1 outcomes contradict certificates")
