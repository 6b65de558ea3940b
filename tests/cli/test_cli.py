"""The command line: results on stdout, everything else on stderr, and an exit code that says what happened."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

import kwbench
from kwbench.cli.main import main
from kwbench.config.registry import read_registry
from kwbench.config.suite import read_suite
from support.small_models import digits
from support.small_registry import count, write_registry

COMMAND = [sys.executable, "-c", "from kwbench.cli.main import main; main()"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
ROOT = Path(__file__).resolve().parents[2]

# What a user's script may rely on; issue-for-issue the keys that the README documents.
KEYS = {"model", "dataset", "n", "threat", "stochastic", "complete", "run", "a_std", "a_rob", "cascade", "a_rob_as_in_paper"}
KEYS |= {"protocol", "a_protocol", "passes", "skipped"}
ATTACK_KEYS = {"name", "n", "accuracy", "broke", "passes", "statuses", "forwards", "backwards", "seconds"}


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Kwbench = Callable[..., Answer]


@pytest.fixture
def kwb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kwbench:
    """Runs a command line in this process, in a working folder of its own with a registry of small models."""
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    write_registry(tmp_path)

    def call(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["kwbench", *(str(word) for word in words)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    return call


FAST = ("--attack", "noop,fgsm,pgd", "--set", "pgd.steps=5", "--n", "48", "--eps", "0.08", "--tile", "16")


def refused(answer: Answer, code: int, *parts: str) -> None:
    """A clear message, that exit code, nothing on stdout and no traceback."""
    assert answer.code == code, answer
    assert answer.out == ""
    assert "Traceback" not in answer.err
    assert "Error" not in answer.err.replace("Error: ", "")
    for part in parts:
        assert part in answer.err
    message = [line for line in answer.err.splitlines() if line.startswith(("kwbench: ", "Error: "))]
    assert len(message) == 1, answer.err


def between(interval: Any) -> bool:
    return interval is None or 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1


class TestEvaluate:
    def test_json_is_one_object_with_the_documented_keys_and_alone_on_stdout(self, kwb: Kwbench) -> None:
        answer = kwb("evaluate", "small", *FAST, "--json")
        assert answer.code == 0, answer.err
        found = answer.json
        assert found.keys() >= KEYS | {"attacks"}
        assert (found["model"], found["dataset"], found["n"]) == ("small", "digits", 48)
        assert found["threat"] == {"norm": "linf", "eps": 0.08, "exact": "2/25"}
        assert (found["stochastic"], found["complete"], found["cascade"]) == (False, True, False)
        assert [attack["name"] for attack in found["attacks"]] == ["noop", "fgsm", "pgd"]
        for attack in found["attacks"]:
            assert attack.keys() >= ATTACK_KEYS
            assert attack["statuses"].keys() == {"wrong", "broken", "held", "invalid", "error"}
            assert sum(attack["statuses"].values()) == attack["n"] == 48
            assert between(attack["accuracy"])
        accuracies = [attack["accuracy"]["value"] for attack in found["attacks"]]
        assert between(found["a_std"])
        assert between(found["a_rob"])
        assert accuracies[0] == found["a_std"]["value"] > 0.8
        assert found["a_rob"]["value"] <= min(accuracies)
        assert found["a_rob_as_in_paper"]["value"] == min(accuracies) < accuracies[0]

    def test_a_cascade_says_so_and_images_are_kept_on_request(self, kwb: Kwbench, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text(
            "cascade: true\nprotocol: [fgsm]\n"
            "attacks: {fgsm: {}, noop: {}, never: {attack: pgd, after: noop}, pgd: {steps: 2, escalate: 1}}\n"
        )
        answer = kwb("evaluate", "small", "--suite", "mine.yaml", *FAST[4:], "--keep-adversarials", "--json")
        assert answer.code == 0, answer.err
        found = answer.json
        assert found["cascade"]
        assert found["protocol"] == ["fgsm"]
        assert found["a_std"]["value"] > found["a_protocol"]["value"] >= found["a_rob"]["value"]
        assert {"name": "never", "reason": "noop gained nothing"} in found["skipped"]
        fgsm = found["attacks"][0]
        assert fgsm["broke"] == fgsm["statuses"]["broken"] == count(tmp_path / "results.db", "adversarials") > 0
        assert fgsm["passes"]["used"] <= fgsm["passes"]["budget"]
        assert found["passes"]["budget"] == sum(attack["passes"]["budget"] for attack in found["attacks"])

    def test_several_models_make_a_list_in_the_order_asked_for(self, kwb: Kwbench) -> None:
        answer = kwb("evaluate", "small-random", "small", "--attack", "noop", "--n", "16", "--tile", "16", "--json")
        assert [each["model"] for each in answer.json] == ["small-random", "small"]
        assert [each["stochastic"] for each in answer.json] == [True, False]

    def test_elsewhere_than_on_a_terminal_progress_is_plain_lines_on_stderr(self, kwb: Kwbench) -> None:
        answer = kwb("evaluate", "small", *FAST)
        assert answer.err.splitlines()[0] == "small: clean 0/48 (0/192 in all)"
        assert answer.err.splitlines()[-1].startswith("small: pgd 48/48 (192/192 in all")
        assert "\x1b" not in answer.err + answer.out
        assert "A_rob" in answer.out
        assert "digits, linf 0.08" in answer.out

    def test_the_second_time_the_same_is_said(self, kwb: Kwbench, tmp_path: Path) -> None:
        first = kwb("evaluate", "small", *FAST, "--json")
        again = kwb("evaluate", "digits/small", *FAST, "--json", "--device", "cpu")
        assert again.json == first.json
        assert count(tmp_path / "results.db", "evaluations") == 1

    def test_the_time_left_does_not_take_recorded_rows_for_fast_ones(self, kwb: Kwbench) -> None:
        kwb("evaluate", "small", *FAST)
        assert "left" not in kwb("evaluate", "small", *FAST).err

    def test_parameters_are_set_from_the_command_line(self, kwb: Kwbench) -> None:
        words = ("evaluate", "small", "--attack", "pgd", "--n", 16, "--tile", 16, "--json")
        costs = [kwb(*words, "--set", f"pgd.steps={steps}", "--eps", "0.01").json["attacks"][0] for steps in (2, 8)]
        assert 3 * costs[0]["backwards"] < costs[1]["backwards"]
        assert kwb(*words, "--seed", 1).json["run"] != kwb(*words).json["run"]

    def test_a_suite_file_says_what_is_to_be_done(self, kwb: Kwbench, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text("threat: {norm: l2, eps: 0.5}\nattacks:\n  weak: {attack: pgd, steps: 2}\n")
        found = kwb("evaluate", "small", "--suite", "mine.yaml", "--n", 16, "--json").json
        assert (found["suite"], found["threat"]["norm"], found["attacks"][0]["name"]) == ("mine", "l2", "weak")

    def test_all_attacks_together_leave_at_most_the_smallest_accuracy(self, kwb: Kwbench) -> None:
        settings = ("square.steps=20", "cw.steps=10", "cw.binary_search_steps=1", "transfer.surrogate=small")
        words = [word for setting in settings for word in ("--set", setting)]
        names = "gaussian-noise,fgsm,pgd,mim,deepfool,cw,square,transfer"
        answer = kwb("evaluate", "small", "--attack", names, *words, "--n", 24, "--tile", 24, "--eps", "0.1", "--json")
        assert answer.code == 0, answer.err
        found = answer.json
        assert found["complete"]
        assert found["a_rob"]["value"] <= min(attack["accuracy"]["value"] for attack in found["attacks"])
        transfer = found["attacks"][-1]
        assert transfer["surrogate"]["name"] == "small"
        assert between(transfer["surrogate"]["accuracy"])

    def test_ones_own_data(self, kwb: Kwbench, tmp_path: Path) -> None:
        test = digits().test
        pixels = (test.images[:40] * 255).round().astype(np.uint8)
        np.savez(tmp_path / "mine.npz", x_test=pixels, y_test=test.labels[:40])
        found = kwb("evaluate", "small", "--data", "mine.npz", "--attack", "noop", "--json").json
        assert (found["dataset"], found["n"]) == ("mine", 40)
        assert found["a_std"]["value"] > 0.8

    def test_a_checkpoint_from_elsewhere_is_read_if_its_hash_holds(self, kwb: Kwbench, tmp_path: Path) -> None:
        (tmp_path / "small.safetensors").rename(tmp_path / "moved.safetensors")
        refused(kwb("evaluate", "small", *FAST), 3, "small.safetensors", "cannot be read", "--checkpoint")
        assert kwb("evaluate", "small", *FAST, "--checkpoint", "moved.safetensors").code == 0
        other = kwb("evaluate", "small", *FAST, "--checkpoint", "small-random.safetensors")
        refused(other, 4, "small-random.safetensors", "pins")

    def test_a_model_without_a_truthful_number_has_none_and_exits_with_3(self, kwb: Kwbench, tmp_path: Path) -> None:
        (tmp_path / "own.py").write_text(
            OWN.format(body="if x.requires_grad: raise ValueError('no')\n        return self.f(x)")
        )
        answer = kwb("evaluate", "own.py:net", "--attack", "noop,fgsm", "--n", 32, "--tile", 32, "--json")
        assert answer.code == 3
        found = answer.json
        assert (found["complete"], found["a_rob"], found["attacks"][1]["accuracy"]) == (False, None, None)
        assert found["attacks"][1]["statuses"]["error"] > 0
        assert "no robust accuracy" in answer.err
        shown = kwb("show", "own.py:net", "--failures")
        assert shown.code == 0
        assert "ValueError: no" in shown.out
        assert kwb("show", "own.py:net", "--json").json["rows"][0]["status"] == "error"

    def test_files_of_one_name_in_two_folders_are_two_models(self, kwb: Kwbench, tmp_path: Path) -> None:
        for folder, body in (("here", "return self.f(x)"), ("there", "return -self.f(x)")):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "own.py").write_text(OWN.format(body=body))
        models = ("here/own.py:net", "there/own.py:net")
        answer = kwb("evaluate", *models, "--attack", "noop", "--n", 32, "--tile", 32)
        assert [name in answer.out for name in models] == [True, True]
        assert kwb("compare", *models).code == 0

    def test_an_option_that_names_no_attack_is_refused(self, kwb: Kwbench) -> None:
        for nothing in ("", " ", ","):
            refused(kwb("evaluate", "small", "--attack", nothing), 2, "--attack")

    def test_messages_name_what_was_typed(self, kwb: Kwbench) -> None:
        refused(kwb("evaluate", "small", *FAST, "--n", 0), 2, "--n 0: must be at least 1")
        refused(kwb("landscape", "small", "--images", "400"), 2, "--images 400", "360 test images")
        refused(kwb("landscape", "small", "--radius", "abc"), 2, "'abc' is not a number")
        refused(kwb("sweep", "small", "--over", "foo.steps=1,2", "--attack", "pgd"), 2, "--over foo.steps=1")
        refused(kwb("sweep", "small", "--over", "eps=a,b", "--attack", "pgd"), 2, "'a' is not a number")
        refused(kwb("experiment", "foo", "small"), 2, "learning")

    def test_results_are_a_data_frame(self, kwb: Kwbench) -> None:
        found = kwb("evaluate", "small", *FAST, "--json").json
        frame = kwbench.results()
        assert isinstance(frame, pd.DataFrame)
        assert frame["attack"].tolist() == ["clean", "noop", "fgsm", "pgd"]
        assert frame["a_rob"].tolist() == [found["a_rob"]["value"]] * 4


OWN = """\
import torch
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        {body}


def net():
    return Net()
"""


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "code", "parts"),
        [
            (["smal"], 2, ["did you mean 'small'"]),
            (["small", "smal"], 2, ["did you mean 'small'"]),
            (["small", "--eps", "0"], 2, ["eps"]),
            (["small", "--eps=-0.1"], 2, ["eps"]),
            (["small", "--eps", "1.01"], 2, ["eps"]),
            (["small", "--eps", "lots"], 2, ["eps", "lots"]),
            (["small", "--norm", "l2"], 2, ["--norm l2", "--eps"]),
            (["small", "--norm", "l3"], 2, ["l3", "linf"]),
            (["small", "--attack", "pgdd"], 2, ["did you mean 'pgd'"]),
            (["small", "--attack", "pgd,pgd"], 2, ["twice"]),
            (["small", "--attack", "pgd", "--suite", "all"], 2, ["--attack", "--suite"]),
            (["small", "--suite", "controlls"], 2, ["did you mean 'controls'"]),
            (["small", "--attack", "pgd", "--set", "pgd.stps=3"], 2, ["'stps'", "did you mean 'steps'"]),
            (["small", "--attack", "pgd", "--set", "pgd.steps=many"], 2, ["pgd.steps", "many"]),
            (["small", "--attack", "pgd", "--set", "mim.steps=3"], 2, ["no attack 'mim'"]),
            (["small", "--attack", "pgd", "--set", "pgd.steps"], 2, ["LABEL.PARAMETER=VALUE"]),
            (["small", "small-random", "--checkpoint", "small.safetensors"], 2, ["--checkpoint"]),
            (["small", "--dataset", "digit"], 2, ["did you mean 'digits'"]),
            (["small", "--data", "none.npz"], 3, ["none.npz"]),
            (["small", "--n", "1000"], 2, ["--n 1000", "360"]),
            (["small", "--n", "few"], 2, ["Usage: kwbench evaluate", "--n"]),
            (["small", "--batch-size", "16"], 2, ["--batch-size"]),
            (["small", "--time-limit", "0"], 2, ["--time-limit 0"]),
            (["small", "--device", "abacus"], 2, ["--device abacus"]),
            (["small", "--no-such-option"], 2, ["--no-such-option"]),
            ([], 2, ["MODEL"]),
            (["small", "--db", "missing/results.db"], 3, ["missing", "does not exist"]),
            (["small", "--db", "folder"], 3, ["a folder"]),
            (["small", "--db", "registry.yaml"], 4, ["not a kwbench database"]),
            (["small", "--db", "oracle-of-delphi://x"], 2, ["oracle-of-delphi"]),
            (["small", "--registry", "none.yaml"], 3, ["none.yaml"]),
            (["missing.py:net"], 2, ["missing.py: no such file"]),
        ],
        ids=str,
    )
    def test_what_cannot_be_done_is_said(
        self, kwb: Kwbench, tmp_path: Path, words: list[str], code: int, parts: list[str]
    ) -> None:
        (tmp_path / "folder").mkdir()
        refused(kwb("evaluate", *words), code, *parts)

    def test_a_folder_that_cannot_be_written_into_is_said(self, kwb: Kwbench) -> None:
        refused(kwb("evaluate", "small", "--db", "/proc/results.db"), 3, "/proc/results.db", "cannot be written")

    @pytest.mark.parametrize(
        ("change", "code", "parts"),
        [
            (lambda path: path.unlink(), 3, ["small.safetensors", "cannot be read", "kwbench train small"]),
            (lambda path: path.write_bytes(path.read_bytes()[:-100]), 4, ["small.safetensors", "sha256", "pins"]),
            (lambda path: path.write_bytes(b""), 4, ["small.safetensors", "an empty file"]),
            (lambda path: path.write_bytes(b"<html>Not found</html>"), 4, ["an HTML page"]),
            (lambda path: shutil.copy(path.with_name("small-random.safetensors"), path), 4, ["sha256", "pins"]),
        ],
        ids=["missing", "cut short", "empty", "an error page", "another's"],
    )
    def test_checkpoints_that_are_not_the_pinned_ones_are_said(
        self, kwb: Kwbench, tmp_path: Path, change: Callable[[Path], Any], code: int, parts: list[str]
    ) -> None:
        change(tmp_path / "small.safetensors")
        refused(kwb("evaluate", "small"), code, *parts)

    @pytest.mark.parametrize(
        ("old", "new", "parts"),
        [
            ("    activation", "    activaton", ["registry.yaml", "unknown key", "activaton'; did you mean 'activation'"]),
            ("  small-random:", "  small:", ["registry.yaml", "small", "duplicate"]),
            ("name: cnn3", "name: cnn", ["architecture 'cnn' is unknown", "cnn3"]),
            ("width: 8", "widht: 8", ["'widht'", "did you mean 'width'"]),
            ("small.safetensors", "../small.safetensors", ["registry.yaml", "below the registry's folder"]),
        ],
    )
    def test_malformed_registries_are_refused_by_key(
        self, kwb: Kwbench, tmp_path: Path, old: str, new: str, parts: list[str]
    ) -> None:
        path = tmp_path / "registry.yaml"
        path.write_text(path.read_text().replace(old, new))
        refused(kwb("evaluate", "small"), 2, *parts)

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("attacks:\n  pgd: {stps: 3}\n", ["'stps'"]),
            ("attacks:\n  pgd: {}\n  pgd: {}\n", ["pgd", "duplicate"]),
            ("attacks:\n  pgd: {}\nkind: odd\n", ["kind"]),
            ("attacks: {}\n", ["there is none"]),
            ("threat: {norm: linf, eps: 2}\nattacks:\n  pgd: {}\n", ["eps"]),
        ],
    )
    def test_malformed_suites_are_refused_by_key(self, kwb: Kwbench, tmp_path: Path, text: str, parts: list[str]) -> None:
        (tmp_path / "mine.yaml").write_text(text)
        refused(kwb("evaluate", "small", "--suite", "mine.yaml"), 2, *parts)

    def test_a_name_that_is_not_known_costs_no_evaluation_of_the_names_before_it(self, kwb: Kwbench, tmp_path: Path) -> None:
        refused(kwb("evaluate", "small", "smal", *FAST), 2, "did you mean 'small'")
        assert not (tmp_path / "results.db").exists()

    def test_a_message_cannot_steer_the_terminal(self, kwb: Kwbench) -> None:
        answer = kwb("evaluate", "\x1b]0;title\x07small")
        assert answer.code == 2
        assert "\x1b" not in answer.err

    def test_an_unexpected_command_is_said(self, kwb: Kwbench) -> None:
        answer = kwb("evalute", "small")
        assert answer.code == 2
        assert "evalute" in answer.err


class TestCheck:
    WORDS = ("--attack", "pgd", "--set", "pgd.steps=10", "--n", "128", "--eps", "0.05", "--tile", "64")

    def test_no_change_and_a_new_record_are_fine_and_a_weaker_model_is_not(self, kwb: Kwbench, tmp_path: Path) -> None:
        strong = kwb("evaluate", "small", *self.WORDS, "--json").json["a_rob"]["value"]
        assert kwb("check", "--baseline", "baseline.json", "--update").code == 0
        assert kwb("check", "--baseline", "baseline.json").code == 0
        # In a new record.
        assert kwb("evaluate", "small", *self.WORDS, "--db", "new.db").code == 0
        assert kwb("check", "--baseline", "baseline.json", "--db", "new.db").code == 0
        # Trained for one epoch instead of six.
        write_registry(tmp_path, epochs=1)
        weak = kwb("evaluate", "small", *self.WORDS, "--json").json["a_rob"]["value"]
        assert strong - weak > 0.05
        answer = kwb(
            "check", "small", "--baseline", "baseline.json", "--junit", "junit.xml", "--summary", "summary.md", "--json"
        )
        assert answer.code == answer.json["exit_code"] == 1
        assert answer.json["models"][0]["verdict"] == "regression"
        case = ElementTree.parse(tmp_path / "junit.xml").getroot().find("testsuite/testcase")
        assert case is not None
        assert case.find("failure") is not None
        assert "Robustness check: regression" in (tmp_path / "summary.md").read_text()
        plain = kwb("check", "--baseline", "baseline.json")
        assert plain.code == 1
        assert "regression" in plain.out
        # So many points may be lost.
        assert kwb("check", "--baseline", "baseline.json", "--max-drop", "99").code == 0
        # What was accepted is the new measure.
        assert kwb("check", "small", "--baseline", "baseline.json", "--update", "--json").json["models"] == ["small"]
        assert kwb("check", "--baseline", "baseline.json").code == 0

    def test_a_missing_run_cannot_be_told(self, kwb: Kwbench) -> None:
        kwb("evaluate", "small", *self.WORDS)
        kwb("check", "--baseline", "baseline.json", "--update")
        kwb("evaluate", "small", "--attack", "noop", "--n", "16", "--db", "other.db")
        answer = kwb("check", "--baseline", "baseline.json", "--db", "other.db")
        assert answer.code == 3
        assert "could not tell" in answer.out

    def test_files_that_are_missing_or_wrong_are_said(self, kwb: Kwbench, tmp_path: Path) -> None:
        refused(kwb("check", "--baseline", "baseline.json"), 3, "results.db: no such database", "kwbench evaluate")
        kwb("evaluate", "small", "--attack", "noop", "--n", "16")
        refused(kwb("check", "--baseline", "baseline.json"), 3, "baseline.json")
        (tmp_path / "baseline.json").write_text("{}")
        refused(kwb("check", "--baseline", "baseline.json"), 4, "baseline.json")
        refused(kwb("check", "--baseline", "baseline.json", "--alpha", "2"), 2, "alpha")

    def test_compare_tests_two_models_on_the_same_samples(self, kwb: Kwbench) -> None:
        kwb("evaluate", "small", "small-random", "--attack", "fgsm", "--n", "32", "--tile", "32")
        answer = kwb("compare", "small", "small-random")
        assert answer.code == 0
        assert "A_rob: " in answer.out
        assert "p = " in answer.out
        (found,) = kwb("compare", "small", "small-random", "--json").json
        assert {found["first"], found["second"]} == {"small", "small-random"}
        assert 0 <= found["a_rob"]["p"] <= 1
        refused(kwb("compare", "small", "smal-random"), 2, "did you mean 'small-random'")


class TestTables:
    def test_report_writes_every_form(self, kwb: Kwbench, tmp_path: Path) -> None:
        kwb("evaluate", "small", *FAST)
        answer = kwb("report", "--html", "--markdown", "--csv", "--latex", "--output", "out")
        assert answer.code == 0
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            "index.html",
            "leaderboard.md",
            "results.csv",
            "tables.tex",
        ]
        for line in answer.out.splitlines():
            assert "small" in Path(line).read_text()
        with (tmp_path / "out" / "results.csv").open() as file:
            assert {row["attack"] for row in csv.DictReader(file)} == {"clean", "noop", "fgsm", "pgd"}
        assert kwb("report", "--csv", "--json", "--output", "more").json == {"files": ["more/results.csv"]}
        kwb("report")
        assert (tmp_path / "reports" / "index.html").exists()

    def test_report_without_a_record_says_so(self, kwb: Kwbench) -> None:
        refused(kwb("report", "--html"), 3, "no such database")

    def test_show_knows_what_is_on_record(self, kwb: Kwbench) -> None:
        kwb("evaluate", "small", *FAST)
        answer = kwb("show", "small")
        assert answer.code == 0
        assert "A_rob" in answer.out
        found = kwb("show", "small", "--json").json
        assert (found["model"], found["rows"]) == ("small", [])
        assert found["spec"]["origin"]["seed"] == 0
        refused(kwb("show", "smal"), 2, "did you mean 'small'")

    def test_models_attacks_and_suites_are_listed(self, kwb: Kwbench) -> None:
        names = [row["model"] for row in kwb("models", "--json").json]
        assert names[:2] == ["small", "small-random"]
        assert "resnet18-kwta0.1" in names
        assert "small-random" in kwb("models").out
        attacks = {row["attack"]: row for row in kwb("attacks", "--json").json}
        assert attacks["pgd"]["parameters"]["steps"] > 0
        assert "steps=" in kwb("attacks").out
        assert {row["suite"] for row in kwb("suites", "--json").json} >= {"all", "controls"}
        assert "controls" in kwb("suites").out

    def test_doctor_names_what_it_finds(self, kwb: Kwbench) -> None:
        answer = kwb("doctor", "--json")
        assert answer.code in (0, 3)
        assert (answer.code == 3) == any(finding["level"] == "problem" for finding in answer.json)
        assert any("torch" in finding["subject"] for finding in answer.json)
        assert "torch" in kwb("doctor").out

    def test_init_writes_valid_files_and_overwrites_nothing(self, kwb: Kwbench, tmp_path: Path) -> None:
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

    def test_train_makes_the_checkpoint_of_an_entry_and_pins_it(self, kwb: Kwbench, tmp_path: Path) -> None:
        path = tmp_path / "registry.yaml"
        recipe = "    recipe: {epochs: 1, learning_rate: 0.05, seed: 0, threads: 1}\n"
        path.write_text(
            "models:\n  new:\n    architecture: {name: cnn3, width: 4, hidden: 16}\n    activation: {name: relu}\n" + recipe
        )
        refused(kwb("evaluate", "new"), 3, "has no checkpoint", "kwbench train new")
        found = kwb("train", "new", "--pin", "--json").json
        assert found["sha256"] in path.read_text()
        assert 0 <= found["validation_accuracy"] <= 1
        assert kwb("evaluate", "new", "--attack", "noop", "--n", 16).code == 0
        refused(kwb("train", "new", "--device", "abacus"), 2, "--device abacus: not usable here")
        again = kwb("train", "new", "--output", "again.safetensors")
        assert found["sha256"] in again.out
        assert "epoch 1/1" in again.err

    def test_no_command_prints_the_help(self, kwb: Kwbench) -> None:
        answer = kwb()
        assert answer.code == 2
        assert "evaluate" in answer.out + answer.err


class TestTheRealCommand:
    def test_help_does_not_wait_for_torch(self) -> None:
        code = (
            "import sys; sys.argv = ['kwbench', '--help']\n"
            "from kwbench.cli.main import main\n"
            "try: main()\n"
            "finally: print(sorted({'torch', 'pandas', 'sqlalchemy', 'numpy'} & set(sys.modules)), file=sys.stderr)"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "evaluate" in found.stdout
        assert found.stderr == "[]\n"

    def test_the_installed_command_evaluates_a_shipped_model_anywhere(self, tmp_path: Path) -> None:
        command = Path(sys.executable).with_name("kwbench")
        words = ["evaluate", "resnet18-relu", "--attack", "fgsm", "--n", "16", "--tile", "16", "--json"]
        found = subprocess.run([command, *words], cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT, check=True)
        assert json.loads(found.stdout)["a_std"]["value"] > 0.9
        assert found.stderr.splitlines()[-1].startswith("resnet18-relu: fgsm 16/16 (32/32 in all")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["results.db"]

    def test_an_error_has_no_traceback(self, tmp_path: Path) -> None:
        found = subprocess.run(
            [*COMMAND, "evaluate", "resnet18-rleu"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert found.returncode == 2
        assert found.stdout == ""
        assert len(found.stderr.splitlines()) == 1
        assert "did you mean 'resnet18-relu'" in found.stderr

    def test_ctrl_c_ends_with_130_and_a_hint_and_the_same_command_continues(self, tmp_path: Path) -> None:
        registry = write_registry(tmp_path)
        words = ["evaluate", "small", "--registry", str(registry), "--attack", "noop,pgd", "--set", "pgd.steps=30000"]
        words += ["--eps", "0.001", "--n", "32", "--tile", "16"]
        # A shell's background job ignores Ctrl-C, and its children inherit that.
        code = (
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from kwbench.cli.main import main; main()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        deadline = time.monotonic() + 60
        while not ((tmp_path / "results.db").exists() and count(tmp_path / "results.db") >= 64):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert out == ""
        assert "Traceback" not in err
        assert err.splitlines()[-1] == "kwbench: interrupted; the same command continues"
        assert count(tmp_path / "results.db") == 64


def test_the_rule_of_prediction_can_be_chosen_and_is_on_record(kwb: Kwbench) -> None:
    found = {}
    for rule in ("draw", "vote:3", "frozen:4"):
        asked = kwb("evaluate", "small-random", "--attack", "noop", "--n", "16", "--prediction", rule, "--json")
        assert asked.code == 0, asked.err
        found[rule] = asked.json
    assert [each["stochastic"] for each in found.values()] == [True, True, False]
    assert len({each["run"] for each in found.values()}) == 3
    assert kwb("show", "small-random", "--json").json["spec"]["origin"]["prediction"] == {
        "kind": "frozen",
        "draws": 1,
        "seed": 4,
    }
    # To a deterministic model it makes no difference.
    same = [
        kwb("evaluate", "small", "--attack", "noop", "--n", "16", "--prediction", rule, "--json") for rule in ("draw", "vote:3")
    ]
    assert same[0].json["run"] == same[1].json["run"]
    refused = kwb("evaluate", "small-random", "--prediction", "median:3")
    assert refused.code == 2
    assert "write draw, mean_logits:DRAWS, vote:DRAWS or frozen:SEED" in refused.err


DIAGNOSED = """\
cascade: true
diagnose: true
protocol: [pgd]
attacks:
  pgd: {attack: apgd, steps: 10}
  es: {attack: apgd, loss: margin, steps: 10, gradient: {kind: es, sigma: 0.05, draws: 10}}
"""
SMALL = ("--n", "48", "--eps", "0.08", "--tile", "16")


def test_diagnose_prints_each_check_with_its_figure_and_the_verdict(kwb: Kwbench, tmp_path: Path) -> None:
    (tmp_path / "strong.yaml").write_text(DIAGNOSED)
    found = kwb("diagnose", "small", "--suite", "strong.yaml", *SMALL)
    assert found.code == 0, found.err
    for words in ("shattered gradients", "threshold", "twice the budget", "never proof"):
        assert words in found.out
    assert any(word in found.out for word in ("Confirmed:", "Inconclusive:", "Overestimated:"))


def test_diagnose_speaks_json_and_evaluate_and_show_carry_the_verdict(kwb: Kwbench, tmp_path: Path) -> None:
    (tmp_path / "strong.yaml").write_text(DIAGNOSED)
    found = kwb("diagnose", "small", "--suite", "strong.yaml", *SMALL, "--json").json
    assert found["verdict"]["protocol"] == "pgd"
    assert found["verdict"]["overestimate"].keys() == {"value", "low", "high"}
    assert {"check", "kind", "fires", "figure", "threshold", "statement", "samples"} == found["findings"][0].keys()
    again = kwb("evaluate", "small", "--suite", "strong.yaml", *SMALL, "--json").json
    assert again["verdict"] == found["verdict"]
    assert kwb("show", "small", "--json").json["verdict"] == found["verdict"]
    assert kwb("evaluate", "small", *FAST, "--json").json["verdict"] is None


def test_another_protocol_can_be_held_against_the_strong_suite(kwb: Kwbench, tmp_path: Path) -> None:
    (tmp_path / "strong.yaml").write_text(DIAGNOSED)
    found = kwb(
        "diagnose", "small", "--suite", "strong.yaml", "--protocol", "noop", *SMALL[:3], "0.2", *SMALL[4:], "--json"
    ).json
    assert (found["verdict"]["verdict"], found["verdict"]["protocol"]) == ("overestimated", "noop")
    assert found["verdict"]["overestimate"]["value"] > 0.5


def test_a_protocol_for_another_ball_is_refused(kwb: Kwbench, tmp_path: Path) -> None:
    (tmp_path / "strong.yaml").write_text(DIAGNOSED)
    (tmp_path / "weak.yaml").write_text("threat: {norm: l2, eps: 0.1}\nattacks:\n  noop: {}\n")
    answer = kwb("diagnose", "small", "--suite", "strong.yaml", "--protocol", "weak.yaml", "--n", "16", "--tile", "16")
    refused(answer, 2, "--protocol", "l2")


def test_a_suite_may_be_another_on_each_data_set_and_says_how_many_images(kwb: Kwbench, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "attacks: {pgd: {}}\ndatasets: {digits: {n: 20, threat: {norm: linf, eps: 0.05}, attacks: {fgsm: {}}}}\n"
    )
    answer = kwb("evaluate", "small", "--suite", "mine.yaml", "--json")
    assert answer.code == 0, answer.err
    assert [attack["name"] for attack in answer.json["attacks"]] == ["fgsm"]
    assert (answer.json["n"], answer.json["threat"]["eps"]) == (20, 0.05)
    assert kwb("evaluate", "small", "--suite", "mine.yaml", "--n", "12", "--json").json["n"] == 12


def test_claims_are_listed_linted_and_written_as_a_registry_without_any_record(kwb: Kwbench, tmp_path: Path) -> None:
    cells = kwb("claims", "--json").json
    assert len(cells) == 435
    assert cells[0].keys() >= {"paper", "claimed_percent", "status", "model", "suite", "measured", "strong", "commands"}
    assert "72 runnable" in kwb("claims", "--paper", "costa2020").out
    rules = {each["rule"]: len(each["cells"]) for each in kwb("claims", "--lint", "--paper", "costa2020", "--json").json}
    assert rules["coarse grid"] == 48
    assert "short of eps" in kwb("claims", "--lint").out
    assert kwb("claims", "--registry", "papers.yaml").code == 0
    assert "cifar10/densenet121-kwta0.1-at" in kwb("models", "--registry", "papers.yaml").out
    before = (tmp_path / "papers.yaml").read_bytes()
    assert kwb("claims", "--registry", "papers.yaml").code == 0  # every cell's commands begin with it
    assert (tmp_path / "papers.yaml").read_bytes() == before
    (tmp_path / "mine.yaml").write_text("models: {}\n")
    refused(kwb("claims", "--registry", "mine.yaml"), 2, "nothing is overwritten")
    refused(kwb("claims", "--paper", "xiao"), 2, "did you mean 'xiao2020'")
    assert not (tmp_path / "results.db").exists()


def test_claims_are_a_report(kwb: Kwbench, tmp_path: Path) -> None:
    assert kwb("evaluate", "small", *FAST).code == 0
    assert kwb("report", "--claims", "--json").json == {"files": ["reports/claims.md", "reports/claims.html"]}
    assert (tmp_path / "reports" / "claims.md").read_text().startswith("# Claimed and measured")


def test_a_sweep_measures_each_value_once_and_draws_them(kwb: Kwbench, tmp_path: Path) -> None:
    words = ("sweep", "small", "--over", "eps=0.05,0.02", "--set", "pgd.steps=3", "--n", "32", "--tile", "16")
    first = kwb(*words, "--svg", "pictures/eps.svg", "--json")
    assert first.code == 0, first.err
    (curve,) = first.json["curves"]
    assert [(point["value"], point["threat"]["eps"]) for point in curve["points"]] == [("0.02", 0.02), ("0.05", 0.05)]
    # A_std, and A_rob at both radii.
    assert (tmp_path / "pictures" / "eps.svg").read_text().count("<circle") == 3
    # One look at the images, and the attack at each radius.
    assert count(tmp_path / "results.db") == (1 + 2) * 32
    assert kwb(*words, "--json").json["curves"] == first.json["curves"]
    assert count(tmp_path / "results.db") == (1 + 2) * 32
    assert "A_rob, percent, by pgd.steps" in kwb("sweep", "small", "--over", "pgd.steps=1,2", "--n", "16").out
    refused(kwb("sweep", "small", "--over", "eps=0.1,0.2", "--eps", "0.1"), 2, "--over changes it")
    refused(kwb("sweep", "small", "--over", "fgsm.steps=1,2"), 2, "no attack 'fgsm'")
