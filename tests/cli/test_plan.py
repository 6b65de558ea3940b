"""Many models in one command: what they would take, and which of them come first while time lasts."""

import time
from pathlib import Path

import pytest

from kwbench.cli.evaluate import _seconds_in
from kwbench.errors import UsageError
from kwbench.evaluation.assignment import assign
from support.command_line import Kwbench, refused
from support.small_registry import count

WHAT = ("--attack", "fgsm,pgd", "--set", "pgd.steps=3", "--eps", "0.05", "--tile", "8", "--threads", "1")


@pytest.fixture
def twin(kwb: Kwbench, tmp_path: Path) -> str:
    """The name of a second model, the same network as `small`."""
    file = tmp_path / "registry.yaml"
    entry = file.read_text().split("\n  small-random:")[0].partition("  small:")[2]
    file.write_text(f"{file.read_text()}  twin:{entry}\n")
    return "twin"


def test_a_plan_takes_the_timings_of_the_same_attack_on_a_similar_model(kwb: Kwbench, twin: str) -> None:
    assert kwb("evaluate", "small", *WHAT, "--n", "16").code == 0
    before = count("results.db")
    answer = kwb("evaluate", "small", twin, "small-random", *WHAT, "--n", "32", "--plan", "--price", "2", "--json")
    assert answer.code == 0
    assert count("results.db") == before, "a plan attacks nothing"
    rows = {(row["model"], row["attack"]): row for row in answer.json["attacks"]}
    assert {model for model, _ in rows} == {"small", twin, "small-random"}
    # The data of an n of its own are other data, so that nothing is reused; the timings are.
    for model in ("small", twin):
        clean, fgsm, pgd = (rows[model, label] for label in ("clean", "fgsm", "pgd"))
        assert [row["samples"] for row in (clean, fgsm, pgd)] == [32, 32, 32]
        assert [row["timed_on"] for row in (clean, fgsm, pgd)] == ["small"] * 3
        assert clean["passes"] == 32
        assert pgd["passes"] > fgsm["passes"] > 32
        assert pgd["cost"] == pytest.approx(2 * pgd["hours"])
    seconds = kwb("show", "small", "--json").json["attacks"]
    measured = {attack["name"]: attack["seconds"] for attack in seconds}
    assert rows["small", "pgd"]["hours"] == pytest.approx(2 * measured["pgd"] / 3600, rel=1e-2)
    # A stochastic model takes many draws: no deterministic one is similar.
    assert rows["small-random", "pgd"]["hours"] is None
    assert "small-random pgd" in answer.json["untimed"]
    assert answer.json["hours"] == pytest.approx(sum(row["hours"] or 0 for row in rows.values()))

    text = kwb("evaluate", "small", "small-random", *WHAT, "--n", "32", "--plan").out
    assert "no timing" in text
    assert "2 models, 0 of them complete: at least" in text


def test_a_plan_counts_only_what_is_not_on_record(kwb: Kwbench) -> None:
    assert kwb("evaluate", "small", *WHAT, "--n", "16").code == 0
    assert "1 models, 1 of them complete: 0 hours" in kwb("evaluate", "small", *WHAT, "--n", "16", "--plan").out
    more = ("--attack", "fgsm,pgd,square", *WHAT[2:])
    (row,) = kwb("evaluate", "small", *more, "--n", "16", "--plan", "--json").json["attacks"]
    assert row["attack"] == "square"
    assert row["hours"] is None


def test_a_plan_needs_no_record_and_creates_none(kwb: Kwbench, tmp_path: Path) -> None:
    files = set(tmp_path.iterdir())
    answer = kwb("evaluate", "small", *WHAT, "--n", "8", "--plan", "--stop-after", "1h")
    assert "1 models, 0 of them complete: at least 0 hours" in answer.out
    assert set(tmp_path.iterdir()) == files


def test_time_goes_to_models_without_an_evaluation_first_then_to_the_widest_interval(
    kwb: Kwbench, twin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kwb("evaluate", "small", *WHAT, "--n", "48").code == 0
    assert kwb("evaluate", twin, *WHAT, "--n", "16").code == 0
    answer = kwb("evaluate", "small", twin, "small-random", *WHAT, "--n", "8", "--stop-after", "1h", "--json")
    assert answer.code == 0, answer
    assert [result["model"] for result in answer.json] == ["small-random", twin, "small"]


def test_when_the_time_is_up_the_rest_is_named_and_the_same_command_continues(
    kwb: Kwbench, twin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = time.monotonic
    late = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock() + late[0])

    def pass_the_time(facts: object, label: str, *others: object) -> object:
        late[0] += 1800 * (label == "pgd")
        return assign(facts, label, *others)  # type: ignore[arg-type]

    monkeypatch.setattr("kwbench.evaluation.runner.assign", pass_the_time)
    words = ("evaluate", "small", twin, *WHAT, "--n", "16", "--stop-after", "20m")
    stopped = kwb(*words)
    refused(stopped, 3, "the time is up: 0 models are complete, 2 remain (small, twin); the same command continues")
    assert "failed" not in stopped.err
    assert count("results.db") == 2 * 16, "the batch that ran is on record, and nothing of the next model"
    monkeypatch.setattr("kwbench.evaluation.runner.assign", assign)
    late[0] = 0.0
    assert kwb(*words).code == 0
    # The twin is the same network, and shares the rows.
    assert count("results.db") == 3 * 16
    alone = kwb("evaluate", "small", *WHAT, "--n", "8", "--stop-after", "0.0001s")
    refused(alone, 3, "the time is up; the same command continues")


@pytest.mark.parametrize(("text", "seconds"), [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("1.5h", 5400), ("45s", 45)])
def test_times_are_written_with_units(text: str, seconds: float) -> None:
    assert _seconds_in(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "0h", "-2h", "2 days"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write a time such as 2h"):
        _seconds_in(text)
