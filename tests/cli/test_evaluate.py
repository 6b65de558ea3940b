"""kwbench evaluate and sweep: what they print, measure and put on record."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import kwbench
from kwbench.threat import TOLERANCE
from support.command_line import FAST, OWN_MODEL, Kwbench, refused
from support.small_models import digits
from support.small_registry import count

# The keys on which users' scripts may rely.
KEYS = {"model", "dataset", "n", "threat", "stochastic", "complete", "run", "a_std", "a_rob", "cascade", "a_rob_as_in_paper"}
KEYS |= {"protocol", "a_protocol", "passes", "skipped"}
ATTACK_KEYS = {"name", "n", "accuracy", "broke", "passes", "statuses", "forwards", "backwards", "seconds"}


def is_interval(interval: Any) -> bool:
    return interval is None or 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1


def test_stdout_is_one_json_object_with_the_documented_keys(kwb: Kwbench) -> None:
    answer = kwb("evaluate", "small", *FAST, "--json")
    assert answer.code == 0, answer.err
    result = answer.json
    assert result.keys() >= KEYS | {"attacks"}
    assert (result["model"], result["dataset"], result["n"]) == ("small", "digits", 48)
    assert result["threat"] == {"norm": "linf", "eps": 0.08, "exact": "0.08"}
    assert (result["stochastic"], result["complete"], result["cascade"]) == (False, True, False)
    assert [attack["name"] for attack in result["attacks"]] == ["noop", "fgsm", "pgd"]
    for attack in result["attacks"]:
        assert attack.keys() >= ATTACK_KEYS
        assert attack["statuses"].keys() == {"wrong", "broken", "held", "invalid", "error"}
        assert sum(attack["statuses"].values()) == attack["n"] == 48
        assert is_interval(attack["accuracy"])
    accuracies = [attack["accuracy"]["value"] for attack in result["attacks"]]
    assert is_interval(result["a_std"])
    assert is_interval(result["a_rob"])
    assert accuracies[0] == result["a_std"]["value"] > 0.8
    assert result["a_rob"]["value"] <= min(accuracies)
    assert result["a_rob_as_in_paper"]["value"] == min(accuracies) < accuracies[0]


def test_a_cascade_is_marked_and_adversarials_are_stored_on_request(kwb: Kwbench, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "cascade: true\nprotocol: [fgsm]\n"
        "attacks: {fgsm: {}, noop: {}, never: {attack: pgd, after: noop}, "
        "pgd: {steps: 2, relative_step_size: 0.03, escalate: 1}}\n"
    )
    answer = kwb("evaluate", "small", "--suite", "mine.yaml", *FAST[4:], "--keep-adversarials", "--json")
    assert answer.code == 0, answer.err
    result = answer.json
    assert result["cascade"]
    assert result["protocol"] == ["fgsm"]
    assert result["a_std"]["value"] > result["a_protocol"]["value"] >= result["a_rob"]["value"]
    assert {"name": "never", "reason": "noop gained nothing"} in result["skipped"]
    fgsm = result["attacks"][0]
    assert fgsm["broke"] == fgsm["statuses"]["broken"] == count(tmp_path / "results.db", "adversarials") > 0
    assert fgsm["passes"]["used"] <= fgsm["passes"]["budget"]
    assert result["passes"]["budget"] == sum(attack["passes"]["budget"] for attack in result["attacks"])


def test_several_models_give_a_list_in_the_order_of_the_command(kwb: Kwbench) -> None:
    answer = kwb("evaluate", "small-random", "small", "--attack", "noop", "--n", "16", "--tile", "16", "--json")
    assert [result["model"] for result in answer.json] == ["small-random", "small"]
    assert [result["stochastic"] for result in answer.json] == [True, False]


def test_piped_progress_is_plain_lines_on_stderr(kwb: Kwbench) -> None:
    answer = kwb("evaluate", "small", *FAST)
    assert answer.err.splitlines()[0] == "small: clean 0/48 (0/192 in all)"
    assert answer.err.splitlines()[-1].startswith("small: pgd 48/48 (192/192 in all")
    assert "\x1b" not in answer.err + answer.out
    assert "A_rob" in answer.out
    assert "digits, linf 0.08" in answer.out


def test_the_same_command_gives_the_same_answer_without_new_rows(kwb: Kwbench, tmp_path: Path) -> None:
    first = kwb("evaluate", "small", *FAST, "--json")
    again = kwb("evaluate", "digits/small", *FAST, "--json", "--device", "cpu")
    assert again.json == first.json
    assert count(tmp_path / "results.db", "evaluations") == 1


def test_rows_on_record_do_not_count_for_the_time_left(kwb: Kwbench) -> None:
    kwb("evaluate", "small", *FAST)
    assert "left" not in kwb("evaluate", "small", *FAST).err


def test_parameters_are_set_from_the_command_line(kwb: Kwbench) -> None:
    words = ("evaluate", "small", "--attack", "pgd", "--n", 16, "--tile", 16, "--json")
    costs = [kwb(*words, "--set", f"pgd.steps={steps}", "--eps", "0.01").json["attacks"][0] for steps in (2, 8)]
    assert 3 * costs[0]["backwards"] < costs[1]["backwards"]
    assert kwb(*words, "--seed", 1).json["run"] != kwb(*words).json["run"]


def test_named_attacks_search_exactly_on_request(kwb: Kwbench) -> None:
    command = ("evaluate", "small", "--attack", "fgsm,pgd", "--set", "pgd.steps=2", *FAST[4:])
    exact, auto = (kwb(*command, "--precision", precision, "--json") for precision in ("float32", "auto"))
    precisions = [[attack.get("precision") for attack in answer.json["attacks"]] for answer in (exact, auto)]
    assert precisions[0] == [None, "float32"]
    assert precisions[1][1] in ("float32", "bfloat16")
    assert "Predictions count in float32" not in kwb(*command, "--precision", "float32").out
    refused(kwb(*command, "--precision", "half"), 2, "--precision", "half")


def test_a_suite_file_defines_threat_model_and_attacks(kwb: Kwbench, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("threat: {norm: l2, eps: 0.5}\nattacks:\n  weak: {attack: pgd, steps: 2}\n")
    result = kwb("evaluate", "small", "--suite", "mine.yaml", "--n", 16, "--json").json
    assert (result["suite"], result["threat"]["norm"], result["attacks"][0]["name"]) == ("mine", "l2", "weak")


def test_a_suite_may_differ_by_data_set_and_set_the_number_of_images(kwb: Kwbench, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "attacks: {pgd: {}}\ndatasets: {digits: {n: 20, threat: {norm: linf, eps: 0.05}, attacks: {fgsm: {}}}}\n"
    )
    answer = kwb("evaluate", "small", "--suite", "mine.yaml", "--json")
    assert answer.code == 0, answer.err
    assert [attack["name"] for attack in answer.json["attacks"]] == ["fgsm"]
    assert (answer.json["n"], answer.json["threat"]["eps"]) == (20, 0.05)
    assert kwb("evaluate", "small", "--suite", "mine.yaml", "--n", "12", "--json").json["n"] == 12


def test_robust_accuracy_is_at_most_the_smallest_accuracy_under_one_attack(kwb: Kwbench) -> None:
    settings = ("square.steps=20", "cw.steps=10", "cw.binary_search_steps=1", "transfer.surrogate=small")
    words = [word for setting in settings for word in ("--set", setting)]
    names = "gaussian-noise,fgsm,pgd,mim,deepfool,cw,square,transfer"
    answer = kwb("evaluate", "small", "--attack", names, *words, "--n", 24, "--tile", 24, "--eps", "0.1", "--json")
    assert answer.code == 0, answer.err
    result = answer.json
    assert result["complete"]
    assert result["a_rob"]["value"] <= min(attack["accuracy"]["value"] for attack in result["attacks"])
    transfer = result["attacks"][-1]
    assert transfer["surrogate"]["name"] == "small"
    assert is_interval(transfer["surrogate"]["accuracy"])


def test_images_of_an_npz_file_are_evaluated(kwb: Kwbench, tmp_path: Path) -> None:
    test = digits().test
    pixels = (test.images[:40] * 255).round().astype(np.uint8)
    np.savez(tmp_path / "mine.npz", x_test=pixels, y_test=test.labels[:40])
    result = kwb("evaluate", "small", "--data", "mine.npz", "--attack", "noop", "--json").json
    assert (result["dataset"], result["n"]) == ("mine", 40)
    assert result["a_std"]["value"] > 0.8


def test_a_checkpoint_is_read_from_elsewhere_if_its_hash_matches(kwb: Kwbench, tmp_path: Path) -> None:
    (tmp_path / "small.safetensors").rename(tmp_path / "moved.safetensors")
    refused(kwb("evaluate", "small", *FAST), 3, "small.safetensors", "cannot be read", "--checkpoint")
    assert kwb("evaluate", "small", *FAST, "--checkpoint", "moved.safetensors").code == 0
    other = kwb("evaluate", "small", *FAST, "--checkpoint", "small-random.safetensors")
    refused(other, 4, "small-random.safetensors", "pins")


def test_rows_with_errors_leave_no_robust_accuracy_and_exit_with_3(kwb: Kwbench, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        OWN_MODEL.format(body="if x.requires_grad: raise ValueError('no')\n        return self.f(x)")
    )
    answer = kwb("evaluate", "own.py:net", "--attack", "noop,fgsm", "--n", 32, "--tile", 32, "--json")
    assert answer.code == 3
    result = answer.json
    assert (result["complete"], result["a_rob"], result["attacks"][1]["accuracy"]) == (False, None, None)
    assert result["attacks"][1]["statuses"]["error"] > 0
    assert "no robust accuracy" in answer.err
    shown = kwb("show", "own.py:net", "--failures")
    assert shown.code == 0
    assert "ValueError: no" in shown.out
    assert kwb("show", "own.py:net", "--json").json["rows"][0]["status"] == "error"


def test_files_of_the_same_name_in_two_folders_are_two_models(kwb: Kwbench, tmp_path: Path) -> None:
    for folder, body in (("here", "return self.f(x)"), ("there", "return -self.f(x)")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text(OWN_MODEL.format(body=body))
    models = ("here/own.py:net", "there/own.py:net")
    answer = kwb("evaluate", *models, "--attack", "noop", "--n", 32, "--tile", 32)
    assert [name in answer.out for name in models] == [True, True]
    assert kwb("compare", *models).code == 0


def test_the_prediction_rule_can_be_chosen_and_is_on_record(kwb: Kwbench) -> None:
    results = []
    for rule in ("draw", "vote:3", "frozen:4"):
        answer = kwb("evaluate", "small-random", "--attack", "noop", "--n", "16", "--prediction", rule, "--json")
        assert answer.code == 0, answer.err
        results.append(answer.json)
    assert [result["stochastic"] for result in results] == [True, True, False]
    assert len({result["run"] for result in results}) == 3
    assert kwb("show", "small-random", "--json").json["spec"]["origin"]["prediction"] == {
        "kind": "frozen",
        "draws": 1,
        "seed": 4,
    }
    # It does not change a deterministic model.
    same = [
        kwb("evaluate", "small", "--attack", "noop", "--n", "16", "--prediction", rule, "--json") for rule in ("draw", "vote:3")
    ]
    assert same[0].json["run"] == same[1].json["run"]
    wrong = kwb("evaluate", "small-random", "--prediction", "median:3")
    refused(wrong, 2, "write draw, mean_logits:DRAWS, vote:DRAWS or frozen:SEED")


def test_results_on_record_are_a_data_frame(kwb: Kwbench) -> None:
    result = kwb("evaluate", "small", *FAST, "--json").json
    frame = kwbench.results()
    assert isinstance(frame, pd.DataFrame)
    assert frame["attack"].tolist() == ["clean", "noop", "fgsm", "pgd"]
    assert frame["a_rob"].tolist() == [result["a_rob"]["value"]] * 4


def test_a_sweep_evaluates_each_value_once_and_draws_a_curve(kwb: Kwbench, tmp_path: Path) -> None:
    words = ("sweep", "small", "--over", "eps=0.05,0.02", "--set", "pgd.steps=3", "--n", "32", "--tile", "16")
    first = kwb(*words, "--figure", "pictures/eps.svg", "--json")
    assert first.code == 0, first.err
    (curve,) = first.json["curves"]
    assert [(point["value"], point["threat"]["eps"]) for point in curve["points"]] == [("0.02", 0.02), ("0.05", 0.05)]
    assert "<!-- $A_\\mathrm{rob}$, % -->" in (tmp_path / "pictures" / "eps.svg").read_text()
    assert kwb(*words, "--figure", "eps.pdf", "--style", "paper").code == 0
    assert (tmp_path / "eps.pdf").read_bytes().startswith(b"%PDF")
    refused(kwb(*words, "--figure", "eps.gif"), 2, "the name ends with .svg, .pdf or .png")
    # The clean images once, and the attack at each radius.
    assert count(tmp_path / "results.db") == (1 + 2) * 32
    assert kwb(*words, "--json").json["curves"] == first.json["curves"]
    assert count(tmp_path / "results.db") == (1 + 2) * 32
    assert "A_rob, percent, by pgd.steps" in kwb("sweep", "small", "--over", "pgd.steps=1,2", "--n", "16").out
    refused(kwb("sweep", "small", "--over", "eps=0.1,0.2", "--eps", "0.1"), 2, "--over changes it")
    refused(kwb("sweep", "small", "--over", "fgsm.steps=1,2"), 2, "no attack 'fgsm'")


def test_several_threat_models_are_evaluated_each_and_then_together(kwb: Kwbench) -> None:
    words = ("evaluate", "small", "--attack", "pgd", "--set", "pgd.steps=3", "--n", "32", "--tile", "16")
    both = (*words, "--threat", "linf:0.05,l2:0.3")
    first, second, together = kwb(*both, "--json").json
    assert [row["threat"]["norm"] for row in (first, second)] == ["linf", "l2"]
    assert first["run"] == kwb(*words, "--norm", "linf", "--eps", "0.05", "--json").json["run"]
    reached = together["joint"]["a_rob"]["value"]
    standing = [row["a_rob"]["value"] for row in (first, second)]
    assert max(0, sum(standing) - first["a_std"]["value"]) <= reached <= min(standing)
    assert [row["threat"] for row in together["joint"]["threats"]] == ["linf 0.05", "l2 0.3"]
    text = kwb(*both).out
    assert f"A_rob = {100 * reached:.1f}" in text.splitlines()[-1]
    refused(kwb(*both, "--eps", "0.1"), 2, "leave --norm and --eps out")
    refused(kwb(*words, "--threat", "linf:0.1"), 2, "at least two different threat models")


def test_one_run_of_minimum_norm_attacks_gives_the_accuracy_at_every_radius(kwb: Kwbench, tmp_path: Path) -> None:
    words = ("sweep", "small", "--attack", "deepfool", "--n", "32", "--tile", "16")
    (whole,) = kwb(*words, "--over", "eps", "--eps", "0.05", "--figure", "curve.svg", "--json").json["curves"]
    assert "<!-- $A_\\mathrm{rob}$, % -->" in (tmp_path / "curve.svg").read_text()
    (singly,) = kwb(*words, "--over", "eps=0.01,0.02,0.03,0.05,0.1,0.2", "--json").json["curves"]
    distances = np.array([np.inf if distance is None else distance for distance in whole["distances"]])
    for point in singly["points"]:
        eps = point["threat"]["eps"]
        assert point["a_rob"]["value"] == np.mean(distances > eps + TOLERANCE), eps
    assert 2 < len(whole["radii"]) <= 32
    assert "to 50.0" in kwb(*words, "--over", "eps", "--eps", "0.05").out
    refused(kwb("sweep", "small", "--over", "eps", "--attack", "pgd", "--n", "4"), 2, "pgd is no minimum-norm attack")
