"""Phases sum to the time that has passed."""

import time

import pytest

from kwbench.evaluation.execution.timings import Timings, process_started


def test_nested_phases_count_once_and_sum_to_the_time_that_has_passed() -> None:
    started = time.perf_counter()
    timings = Timings()
    with timings.phase("attacks", "pgd"):
        time.sleep(0.02)
        with timings.phase("record"):
            time.sleep(0.04)
        time.sleep(0.02)
    seconds = timings.seconds()
    passed = time.perf_counter() - started
    assert seconds["record",] >= 0.04
    assert seconds["attacks", "pgd"] >= 0.04
    assert sum(seconds.values()) == pytest.approx(passed, abs=0.005)


def test_a_phase_is_shared_in_proportion_to_the_work_of_its_parts_in_all_processes() -> None:
    timings = Timings()
    with timings.phase("attacks", "pgd"):
        time.sleep(0.02)
    wall = timings.seconds()["attacks", "pgd"]
    timings.share(("attacks", "pgd"), {("attacks", "pgd", "search"): 3.0, ("attacks", "pgd", "judging"): 1.0}, ("record",))
    seconds = timings.seconds()
    assert seconds["attacks", "pgd", "search"] == pytest.approx(0.75 * wall)
    assert seconds["attacks", "pgd", "judging"] == pytest.approx(0.25 * wall)
    assert seconds["record",] == pytest.approx(0, abs=1e-9)


def test_a_phase_in_which_nothing_was_done_counts_for_the_rest() -> None:
    timings = Timings()
    with timings.phase("diagnosis"):
        time.sleep(0.01)
    wall = timings.seconds()["diagnosis",]
    timings.share(("diagnosis",), {}, ("record",))
    assert ("diagnosis",) not in timings.seconds()
    assert timings.seconds()["record",] == pytest.approx(wall)


def test_parts_never_take_longer_than_their_phase_and_what_remains_is_the_rest() -> None:
    timings = Timings()
    with timings.phase("processes"):
        time.sleep(0.02)
    wall = timings.seconds()["processes",]
    timings.divide(("processes",), {("data",): 0.005}, ("processes",))
    assert timings.seconds()["data",] == 0.005
    assert timings.seconds()["processes",] == pytest.approx(wall - 0.005)
    timings.divide(("processes",), {("loading",): 100.0}, ("processes",))
    assert timings.seconds()["loading",] == pytest.approx(wall - 0.005)
    assert timings.seconds()["processes",] == pytest.approx(0, abs=1e-9)


def test_the_json_is_nested_as_the_phases_are() -> None:
    timings = Timings(time.perf_counter() - 2.0)
    for phase in (("attacks", "pgd", "search"), ("attacks", "pgd", "judging"), ("record",)):
        with timings.phase(*phase):
            pass
    answer = timings.to_json()
    assert answer["imports"] == 2.0
    assert answer["wall"] >= 2.0
    assert answer["attacks"].keys() == {"pgd"}
    assert answer["attacks"]["pgd"].keys() == {"search", "judging"}


def test_a_process_starts_before_what_it_imports() -> None:
    assert 0 < time.perf_counter() - process_started() < 24 * 3600
