"""Experiments as users ask for them: from the command line to the record, the same again from there, and clear refusals."""

import json
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from kwbench.cli.main import main
from kwbench.config.registry import ModelEntry, read_registry
from kwbench.config.strict_yaml import validate
from kwbench.errors import UsageError
from kwbench.evaluation.studies.experiment import parameters_in
from kwbench.evaluation.studies.sparsity import variants
from kwbench.record.store import Store
from kwbench.training import recipe_hash, write_curve
from support.small_registry import write_registry

Run = Callable[..., tuple[int, str, str]]

RECIPE = {"epochs": 4, "learning_rate": 0.1, "seed": 0, "threads": 1, "batch_size": 128}
KWTA = {
    "architecture": {"name": "cnn3", "width": 4, "hidden": 16},
    "activation": {"name": "kwta", "gamma": 0.2},
    "recipe": RECIPE,
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process, in a folder with a registry of small models; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    write_registry(tmp_path)
    with (tmp_path / "registry.yaml").open("a", encoding="utf-8") as file:
        file.write(f"  small-kwta: {json.dumps(KWTA)}\n")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kwbench", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return call


def test_a_landscape_is_measured_recorded_and_drawn(run: Run, tmp_path: Path) -> None:
    code, out, err = run(
        "landscape", "small", "--points", 5, "--images", "3", "--radius", "8/255", "--output", "drawn", "--json"
    )
    assert code == 0, err
    answer = json.loads(out)
    assert answer["files"] == [
        f"drawn/landscape-{name}-digits.{kind}" for name in ("image3", "map-image3") for kind in ("svg", "pdf", "png")
    ]
    assert all((tmp_path / file).exists() for file in answer["files"])
    (result,) = answer["results"]
    assert result["spec"]["images"] == [3]
    assert result["arrays"]["e"][-1] == pytest.approx(8 / 255)
    assert len(result["arrays"]["loss"][0]) == 5
    store = Store.open("results.db")
    (measured,) = store.experiments()
    assert measured.identity == result["run"]
    assert measured.provenance["command"].startswith("kwbench landscape small")
    code, out, _ = run("report", "--figures")
    assert (code, out.splitlines()[0]) == (0, "reports/figures.html")


def test_a_model_of_ones_own_is_looked_at_in_a_process_of_its_own(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n\ndef factory():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))\n"
    )
    code, out, err = run("experiment", "patterns", "mine.py:factory", "--n", 2, "--set", "directions=3", "--json")
    assert code == 0, err
    (result,) = json.loads(out)["results"]
    assert [len(row) for row in result["arrays"]["distance"]] == [3, 3]


def test_answers_are_asked_under_the_attacks_named(run: Run) -> None:
    code, out, err = run("experiment", "answers", "small", "--attack", "pgd,fgsm", "--n", 6, "--eps", "0.05", "--json")
    assert code == 0, err
    (result,) = json.loads(out)["results"]
    assert result["spec"]["labels"] == ["pgd", "fgsm"]
    assert result["spec"]["origin"]["eps"] == "1/20"
    assert len(result["arrays"]["probability"]) == 3
    # NaN, where there is no example, is no JSON.
    assert "NaN" not in out


def test_a_learning_curve_goes_on_record_only_with_the_recipe_that_made_it(run: Run, tmp_path: Path) -> None:
    entry = read_registry(tmp_path / "registry.yaml").own["small-kwta"]
    where = tmp_path / "models" / "digits" / "small-kwta.safetensors"
    code, _, err = run("experiment", "learning", "small-kwta")
    assert (code, "`kwbench train` writes it" in err) == (3, True)
    epochs = [{"epoch": 1, "loss": 2.0, "accuracy": 0.25}, {"epoch": 2, "loss": 1.0, "accuracy": 0.5}]
    write_curve(where, recipe_hash(entry), epochs)
    code, out, err = run("experiment", "learning", "small-kwta", "--json")
    assert code == 0, err
    assert json.loads(out)["results"][0]["arrays"] == {"epoch": [1, 2], "loss": [2, 1], "accuracy": [0.25, 0.5]}
    write_curve(where, "0" * 64, epochs)
    code, _, err = run("experiment", "learning", "small-kwta")
    assert (code, "belongs to another recipe" in err) == (2, True)


def test_a_sweep_puts_its_curve_on_record(run: Run) -> None:
    code, _, err = run("sweep", "small", "--over", "eps=0.02,0.05", "--attack", "fgsm", "--n", 16, "--tile", 16)
    assert code == 0, err
    store = Store.open("results.db")
    (series,) = store.experiments()
    identities = [each.spec.identity for each in store.evaluations()]
    assert (series.experiment, series.spec["evaluations"]) == ("sweep", identities)
    code, out, _ = run("report", "--figures")
    assert "reports/figures/sweep-eps-digits.svg" in out.split()


def test_gammas_are_trained_both_ways_once_and_measured(run: Run, tmp_path: Path) -> None:
    words = ("sparsity", "small-kwta", "--gammas", "0.3,0.1", "--folder", "series", "--attack", "fgsm", "--n", 16, "--tile", 16)
    registry = tmp_path / "registry.yaml"
    short = {**RECIPE, "epochs": 1, "incremental": {"start": 0.2, "step": 0.1, "epochs": 1, "learning_rate": 0.05}}
    entry = json.dumps(KWTA | {"recipe": short, "paper": "theirs"})
    paper = "papers: {theirs: {authors: A, title: On winners, year: 2020}}\n"
    registry.write_text(paper + registry.read_text().replace(json.dumps(KWTA), entry))
    code, out, err = run(*words, "--json")
    assert code == 0, err
    networks = json.loads(out)["networks"]
    assert [(each["gamma"], each["incremental"]) for each in networks] == [("3/10", False), ("1/10", False), ("1/10", True)]
    assert [each["model"] for each in networks][2] == "small-kwta-gamma0.1-incremental"
    assert "epoch" in err
    assert any(network["a_rob"]["value"] < network["a_std"]["value"] for network in networks)
    store = Store.open("results.db")
    assert not any(store.examples(run) for evaluation in store.evaluations() for run in evaluation.attack_runs.values())
    store.close()
    cited = read_registry(tmp_path / "series/registry.yaml").paper_of("small-kwta-gamma0.1-incremental")
    assert cited is not None
    assert cited.title == "On winners"
    code, _, err = run(*words)
    assert (code, "epoch" in err) == (0, False)
    code, out, _ = run("report", "--figures")
    names = ("sparsity-gamma-fgsm-digits", "sparsity-training-fgsm-digits")
    assert {f"reports/figures/{name}.svg" for name in names} <= set(out.split())
    other = {**short, "seed": 1}
    registry.write_text(registry.read_text().replace(json.dumps(short), json.dumps(other)))
    code, _, err = run(*words)
    assert (code, "another recipe than the one asked for" in err) == (2, True)


def test_direct_training_lasts_as_long_as_incremental_training() -> None:
    lowering = {"start": 0.2, "step": 0.02, "epochs": 3, "learning_rate": 0.05, "final_epochs": 5}
    entry = validate(ModelEntry, KWTA | {"recipe": RECIPE | {"incremental": lowering}}, "registry.yaml")
    direct, incremental = variants("net", entry, [Fraction("0.15")])
    assert direct.entry.recipe is not None
    # From 0.2 by 0.18, 0.16 to 0.15: three times three epochs, and five more.
    assert direct.entry.recipe.epochs == 4 + 9 + 5
    assert direct.entry.recipe.incremental is None
    assert incremental.entry.recipe is not None
    assert incremental.entry.recipe.incremental == entry.recipe.incremental if entry.recipe else False
    assert {each.entry.activation.parameters["gamma"] for each in (direct, incremental)} == {"3/20"}
    plain = validate(ModelEntry, KWTA, "registry.yaml")
    assert [each.incremental for each in variants("net", plain, [Fraction("0.2"), Fraction("0.1")])] == [False, False, True]


def test_the_small_networks_of_the_papers_figures_are_trained_both_ways() -> None:
    registry = read_registry(Path(__file__).resolve().parents[3] / "bench/papers/sparsity.yaml")
    for name, entry in registry.own.items():
        series = variants(name, entry, [Fraction("0.3"), Fraction("0.2"), Fraction("0.05")])
        assert [variant.incremental for variant in series] == [False, False, False, True]
        assert registry.paper_of(name) is not None


def test_gammas_of_what_has_none_are_refused() -> None:
    relu = validate(ModelEntry, KWTA | {"activation": {"name": "relu"}}, "registry.yaml")
    with pytest.raises(UsageError, match="not a k-WTA network with a recipe"):
        variants("net", relu, [Fraction("0.1")])
    with pytest.raises(UsageError, match=r"must lie in \(0, 1\]"):
        variants("net", validate(ModelEntry, KWTA, "registry.yaml"), [Fraction(2)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("experiment", "landscap", "small"), "did you mean 'landscape'"),
        (("experiment", "landscape"), "name a model"),
        (("experiment", "fit", "small"), "makes its own network"),
        (("experiment", "logits", "small", "--set", "steps"), "write PARAMETER=VALUE"),
        (("experiment", "logits", "small", "--set", "steps=ten"), "logits.steps"),
        (("experiment", "logits", "small", "--images", "0", "--n", "3"), "--images and --n"),
        (("experiment", "learning", "small", "--set", "a=1"), "has no parameters"),
        (("landscape", "small", "--images", "0,x"), "different positions in the split"),
        (("landscape", "small", "--images", "0,0"), "different positions in the split"),
        (("landscape", "small", "--images", "100000"), "has 360 test images"),
        (("landscape", "smal"), "did you mean"),
        (("sparsity", "small-kwta", "--gammas", "x", "--folder", "f"), "--gammas x"),
        (("sparsity", "small-kwta", "--gammas", ",", "--folder", "f"), "give at least one"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_recorded(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "results.db").exists() or not Store.open("results.db").experiments()


def test_settings_are_yaml_values() -> None:
    assert parameters_in(["a=1", "b=[1, 2]", "c=8/255", "d=0.5"]) == {"a": 1, "b": [1, 2], "c": "8/255", "d": 0.5}
