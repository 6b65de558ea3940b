"""kwbench evaluate --timings: where a command's wall time goes, and that nothing heavy is imported for nothing."""

import json
import subprocess
import sys
import time
from typing import Any

import pytest

from support.command_line import ENVIRONMENT, Kwbench
from support.small_registry import write_registry

# What `evaluate --suite strong` must not import. SciPy's optimisers are for complete search of networks that allow one.
HEAVY = (
    "sqlalchemy.dialects.postgresql",
    "foolbox",
    "pyautoattack",
    "sklearn",
    "matplotlib",
    "pandas",
    "sympy",
    "torch._dynamo",
    "scipy.optimize",
    "triton",
    "ray",
    "alembic",
)

COMMAND = f"""
import sys, time
sys.argv = ["kwbench", "evaluate", "small", "--suite", "strong", "--n", "8", "--tile", "8", "--budget", "0"]
sys.argv += ["--json", "--timings"]
from kwbench.__main__ import main
try:
    main()
finally:
    print("ended:", time.time(), file=sys.stderr)
    print("imported:", [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


def leaves(value: Any) -> list[float]:
    return [leaf for part in value.values() for leaf in leaves(part)] if isinstance(value, dict) else [float(value)]


@pytest.fixture(scope="module")
def strong(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, float, str]:
    """The JSON of a strong evaluation in a process of its own, its wall seconds, and which of `HEAVY` it imported."""
    folder = tmp_path_factory.mktemp("strong")
    write_registry(folder)
    started = time.time()
    process = subprocess.run(
        [sys.executable, "-c", COMMAND], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    *_, ended, imported = process.stderr.splitlines()
    return json.loads(process.stdout), float(ended.removeprefix("ended: ")) - started, imported


def test_the_phases_account_for_the_wall_time_of_the_command(strong: tuple[Any, float, str]) -> None:
    timings, wall = strong[0]["timings"], strong[1]
    assert timings.keys() >= {"imports", "data", "loading", "probes", "attacks", "diagnosis", "record", "report"}
    assert {"search", "judging"} == timings["attacks"]["apgd-ce"].keys()
    assert timings["diagnosis"].keys() > {"record"}
    stated = timings.pop("wall")
    assert sum(leaves(timings)) == pytest.approx(stated, abs=0.05)
    assert 0.95 * wall <= stated <= wall + 0.05
    assert timings["other"] <= 0.05 * wall


def test_a_strong_evaluation_imports_nothing_heavy_that_it_does_not_use(strong: tuple[Any, float, str]) -> None:
    assert strong[2] == "imported: []"


def test_timings_follow_the_tables_and_are_the_last_element_of_a_list(kwb: Kwbench) -> None:
    words = ("evaluate", "small", "--attack", "fgsm", "--n", "8", "--timings")
    lines = kwb(*words).out.splitlines()
    assert any(line.split()[:3] == ["attacks:", "fgsm:", "search"] for line in lines)
    assert next(line.split() for line in reversed(lines) if line.strip())[-2:] == ["100", "%"]
    several = kwb("evaluate", "small", "small-random", *words[2:], "--json").json
    assert [answer.get("model", "") for answer in several] == ["small", "small-random", ""]
    assert several[-1]["timings"]["attacks"].keys() == {"clean", "fgsm"}
    assert "timings" not in kwb(*words[:-1], "--json").json
