"""The progress of evaluations, on a terminal and elsewhere."""

import io

import pytest

from kwbench.cli.progress import progress_display
from kwbench.evaluation.runner import Progress


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def step(done: int, *, label: str = "pgd", before: int = 0, model: str = "net") -> Progress:
    return Progress(model, label, done, 10, before + done, 20)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "TERM", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")


def test_elsewhere_a_plain_line_marks_the_start_and_end_of_an_attack(clock: list[float]) -> None:
    stream = io.StringIO()
    with progress_display(stream) as show:
        for done in range(11):
            show(step(done))
            clock[0] += 1
        show(step(0, label="fgsm", before=10))
    assert stream.getvalue().splitlines() == [
        "net: pgd 0/10 (0/20 in all)",
        "net: pgd 10/10 (10/20 in all, about 10 s left)",
        "net: fgsm 0/10 (10/20 in all, about 11 s left)",
    ]


def test_a_long_attack_prints_a_line_every_fifteen_seconds(clock: list[float]) -> None:
    stream = io.StringIO()
    with progress_display(stream) as show:
        for done in range(10):
            show(step(done))
            clock[0] += 10
    assert [line.split()[2] for line in stream.getvalue().splitlines()] == ["0/10", "2/10", "4/10", "6/10", "8/10"]


def test_rows_on_record_do_not_count_for_the_time_left(clock: list[float]) -> None:
    stream = io.StringIO()
    with progress_display(stream) as show:
        show(step(8))
        clock[0] += 6
        show(step(10))
    # Two fresh rows in six seconds, ten still to come.
    assert stream.getvalue().splitlines()[-1].endswith("about 30 s left)")


def test_each_model_is_timed_separately(clock: list[float]) -> None:
    stream = io.StringIO()
    with progress_display(stream) as show:
        show(step(0))
        clock[0] += 100
        show(step(0, model="other"))
        clock[0] += 10
        show(step(10, model="other"))
    assert stream.getvalue().splitlines()[-1] == "other: pgd 10/10 (10/20 in all, about 10 s left)"


def test_a_terminal_shows_a_bar() -> None:
    stream = Terminal()
    with progress_display(stream) as show:
        show(step(3))
        show(step(10, label="mim"))
    text = stream.getvalue()
    assert "net" in text
    assert "10/20" in text
    assert "in all" not in text


def test_a_models_name_can_neither_colour_nor_control_the_terminal() -> None:
    name = "\x1b]0;title\x07[red]net[/red][/nothing]"
    stream = Terminal()
    with progress_display(stream) as show:
        show(step(3, model=name))
    assert "[red]net[/red][/nothing]" in stream.getvalue()
    assert "\x1b]0;title" not in stream.getvalue()
    plain = io.StringIO()
    with progress_display(plain) as show:
        show(step(3, model=name))
    assert "\x1b" not in plain.getvalue()


def test_a_second_evaluation_of_a_model_has_a_time_left_of_its_own(clock: list[float]) -> None:
    stream = io.StringIO()
    with progress_display(stream) as show:
        for label, before in (("pgd", 0), ("fgsm", 10), ("pgd", 0)):
            show(step(0, label=label, before=before))
            clock[0] += 30
            show(step(10, label=label, before=before))
    assert stream.getvalue().splitlines()[-2:] == [
        "net: pgd 0/10 (0/20 in all)",
        "net: pgd 10/10 (10/20 in all, about 30 s left)",
    ]
