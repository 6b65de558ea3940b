"""The commands for a new project and its installation."""

from pathlib import Path

from kwbench.config.registry import read_registry
from kwbench.config.suite import read_suite
from support.command_line import Kwbench, refused


def test_doctor_exits_with_3_if_there_is_a_problem(kwb: Kwbench) -> None:
    answer = kwb("doctor", "--json")
    assert answer.code in (0, 3)
    assert (answer.code == 3) == any(finding["level"] == "problem" for finding in answer.json)
    assert any("torch" in finding["subject"] for finding in answer.json)
    assert "torch" in kwb("doctor").out


def test_init_writes_valid_files_and_overwrites_nothing(kwb: Kwbench, tmp_path: Path) -> None:
    answer = kwb("init", "new")
    assert answer.code == 0
    assert len(answer.out.splitlines()) == 3
    assert "my-model" in read_registry(tmp_path / "new" / "registry.yaml").own
    assert read_suite(str(tmp_path / "new" / "suite.yaml")).attacks
    assert (tmp_path / "new" / ".github" / "workflows" / "robustness.yml").exists()
    suite = ("--suite", "new/suite.yaml", "--n", 4, "--tile", 4)
    assert kwb("evaluate", "small", *suite).code == 0
    (tmp_path / "new" / "registry.yaml").unlink()
    before = (tmp_path / "new" / "suite.yaml").read_bytes()
    refused(kwb("init", "new"), 2, "suite.yaml", "overwrites nothing")
    assert not (tmp_path / "new" / "registry.yaml").exists()
    assert (tmp_path / "new" / "suite.yaml").read_bytes() == before
