"""The composite action: its steps run in a clean folder, as GitHub runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kwbench.config.strict_yaml import parse_yaml, read_yaml
from support.doc_blocks import blocks_of
from support.small_registry import write_registry

REPOSITORY = Path(__file__).resolve().parents[2]


STEPS = ("Install", "Evaluate", "Report", "Compare with the baseline")


def run_steps(folder: Path, given: dict[str, str], *steps: str) -> list[subprocess.CompletedProcess[str]]:
    """Run steps of action.yml by name, by default all, one after the other until one fails."""
    action: Any = read_yaml(REPOSITORY / "action.yml")
    inputs = {name: given.get(name, str(described.get("default", ""))) for name, described in action["inputs"].items()}
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin" / "kwbench"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m kwbench "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY / "bench"),
        "OMP_NUM_THREADS": "1",
        "GITHUB_ACTIONS": "true",
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "GITHUB_ACTION_PATH": str(REPOSITORY),
    }
    runs = []
    for step in (step for step in action["runs"]["steps"] if step["name"] in (steps or STEPS)):
        own = {
            name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: inputs[match[1]], value)
            for name, value in step.get("env", {}).items()
        }
        assert step["shell"] == "bash"
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        runs.append(subprocess.run(command, cwd=folder, env=environment | own, capture_output=True, text=True, check=False))
        if runs[-1].returncode:
            break
    return runs


@pytest.mark.heavy
def test_the_steps_evaluate_compare_and_fail_on_a_missing_baseline_or_a_regression(tmp_path: Path) -> None:
    write_registry(tmp_path)
    (tmp_path / "quick.yaml").write_text("attacks: {noop: {}, fgsm: {}}\n")
    given = {"models": "small", "suite": "quick.yaml", "arguments": "--n 96 --eps 0.05 --threads 1", "badge": "badge.svg"}
    runs = run_steps(tmp_path, given)
    assert [run.returncode for run in runs] == [0, 0, 0, 3], runs[-1].stderr
    assert "write it with --update" in runs[-1].stderr
    update = [str(tmp_path / "bin" / "kwbench"), "check", "--baseline", "robustness-baseline.json", "--update"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "bench")}
    subprocess.run(update, cwd=tmp_path, env=environment, check=True, capture_output=True)
    (run,) = run_steps(tmp_path, given, STEPS[3])
    assert run.returncode == 0, run.stderr
    assert "Robustness check: fine" in (tmp_path / "summary.md").read_text()
    for file in ("badge.svg", "robustness.xml", "reports/index.html"):
        assert (tmp_path / file).is_file()
    write_registry(tmp_path, epochs=1)  # a checkpoint that is far worse
    runs = run_steps(tmp_path, given, STEPS[1], STEPS[3])
    assert [run.returncode for run in runs] == [0, 1]
    assert re.search(r"^::error title=small%3A regression::A_rob: .* points less .*lost to", runs[-1].stderr, re.MULTILINE)


def test_the_documentation_names_inputs_that_the_action_has() -> None:
    action: Any = read_yaml(REPOSITORY / "action.yml")
    (block,) = (block for block in blocks_of("docs/pages/how-to/ci.md") if block.language == "yaml")
    workflow: Any = parse_yaml(block.text, block.where)
    (step,) = (step for step in workflow["steps"] if step["uses"].startswith("OWNER/kwbench@"))
    assert step["with"].keys() <= action["inputs"].keys()


@pytest.mark.parametrize("name", ["models", "baseline", "suite", "arguments", "max-drop", "badge", "report"])
def test_no_input_is_pasted_into_a_command(name: str) -> None:
    action: Any = read_yaml(REPOSITORY / "action.yml")
    assert name in action["inputs"]
    assert not any("${{" in step["run"] for step in action["runs"]["steps"])
