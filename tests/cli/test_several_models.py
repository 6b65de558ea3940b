"""Several models: one that cannot be evaluated does not stop the others. Errors of many samples are shown once."""

from pathlib import Path

import pytest

from kwbench.evaluation.execution.evaluator import LocalEvaluator
from kwbench.outcome import Outcome, Status
from support.command_line import Kwbench, refused

FAST = ("--attack", "fgsm", "--n", "8", "--eps", "6/255", "--tile", "8", "--threads", "1")


@pytest.fixture
def damaged(tmp_path: Path, kwb: Kwbench) -> str:
    """The name of a model of the registry whose checkpoint is damaged."""
    file = tmp_path / "small-random.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    return "small-random"


@pytest.mark.parametrize("command", ["evaluate", "sweep"])
def test_a_model_that_fails_is_named_at_the_end_and_the_others_are_shown(kwb: Kwbench, damaged: str, command: str) -> None:
    words = FAST if command == "evaluate" else (*FAST[:4], *FAST[6:], "--over", "eps=2/255,6/255")
    answer = kwb(command, damaged, "small", *words)
    assert answer.code == 4
    assert "small" in answer.out
    assert answer.err.splitlines()[-1].startswith(f"kwbench: 1 of 2 models could not be evaluated: {damaged}: ")
    assert kwb("show", "small").code == 0


def test_diagnose_goes_on_as_well_and_json_lists_the_failure(kwb: Kwbench, damaged: str) -> None:
    answer = kwb("diagnose", damaged, "small", "--suite", "controls", "--n", "8", "--threads", "1", "--json")
    assert answer.code == 4
    whole, failed = answer.json
    assert whole["model"] == "small"
    assert whole["verdict"] is not None
    assert failed["model"] == damaged
    assert "restore the file" in failed["error"]


def test_failures_of_several_kinds_exit_with_3_and_a_single_model_with_its_own_code(kwb: Kwbench, damaged: str) -> None:
    Path("broken.py").write_text("def net():\n    raise RuntimeError('no weights')\n")
    answer = kwb("evaluate", damaged, "broken.py:net", *FAST)
    assert (answer.code, answer.out) == (3, "")
    assert "2 of 2 models could not be evaluated" in answer.err
    assert "no weights" in answer.err
    assert kwb("evaluate", damaged, *FAST).code == 4


def test_a_radius_is_shown_as_it_was_spelled_last_and_stays_one_evaluation(kwb: Kwbench) -> None:
    assert "linf 6/255" in kwb("evaluate", "small", *FAST).out
    again = kwb("evaluate", "small", *FAST[:4], "--eps", "2/85", *FAST[6:], "--json")
    assert again.json["threat"]["exact"] == "2/85"
    assert len(again.err.splitlines()) == 2, "nothing was left to do"
    assert "linf 2/85" in kwb("show", "small").out


def test_the_reason_of_errors_stands_under_the_table_and_once_in_show(kwb: Kwbench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(evaluator: LocalEvaluator, label: str, chosen: list[int], before: list[Outcome], _: object) -> list[Outcome]:
        notes = ["RuntimeError: CUDA error"] * (len(before) - 1) + ["ValueError: another"]
        return [
            Outcome(row.sample, row.index, row.label, Status.ERROR, row.clean_prediction, note=note)
            for row, note in zip(before, notes, strict=True)
        ]

    monkeypatch.setattr(LocalEvaluator, "judge", fail)
    answer = kwb("evaluate", "small", *FAST)
    assert answer.code == 3
    assert "fgsm: 8 of 8 rows error (RuntimeError: CUDA error, and another reason)" in answer.out
    shown = kwb("show", "small", "--failures").out
    assert shown.count("RuntimeError: CUDA error") == 1
    (line,) = [line for line in shown.splitlines() if "CUDA" in line]
    assert line.split()[:3] == ["fgsm", "error", "7"]
    assert len(kwb("show", "small", "--json").json["rows"]) == 8


def test_an_error_on_images_that_nobody_named_says_which_they_were(kwb: Kwbench) -> None:
    Path("wide.py").write_text("from torch import nn\n\n\ndef net():\n    return nn.Conv2d(3, 10, 8)\n")
    answer = kwb("evaluate", "wide.py:net", *FAST)
    assert answer.code == 3
    assert "it got images of digits (1x8x8), since no others were named: --data FILE" in answer.err
    assert "since no others" not in kwb("evaluate", "wide.py:net", "--dataset", "digits", *FAST).err


def test_a_pattern_stands_for_the_models_of_the_registry_that_it_matches(kwb: Kwbench) -> None:
    answer = kwb("evaluate", "digits/small*", "--registry", "registry.yaml", "--attack", "noop", *FAST[2:], "--json")
    assert answer.code == 0
    assert [summary["model"] for summary in answer.json] == ["small", "small-random"]
    answer = kwb("evaluate", "small?random", "small-random", "--attack", "noop", *FAST[2:], "--json")
    assert answer.json["model"] == "small-random"
    refused(kwb("evaluate", "cifar11/*", *FAST), 2, "cifar11/*: matches no model of the registry that has a checkpoint")
