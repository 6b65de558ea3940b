"""The registry: how entries are found by name, and which entries are refused."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from kwbench.config import registry as module
from kwbench.config.registry import ModelEntry, Registry, dataset_of, read_registry
from kwbench.config.strict_yaml import validate
from kwbench.errors import CannotEvaluate, UsageError

SHA = "ab" * 32
ENTRY: dict[str, Any] = {"architecture": {"name": "resnet18", "width": 8}, "activation": {"name": "relu"}}
RECIPE: dict[str, Any] = {"epochs": 3, "learning_rate": 0.1, "seed": 0}
ADVERSARY: dict[str, Any] = {"eps": "0.2", "steps": 3, "step_size": 0.05}
LOWERING: dict[str, Any] = {"start": 0.5, "step": 0.1, "epochs": 1, "learning_rate": 0.1}


def entry(**sections: Any) -> ModelEntry:
    return validate(ModelEntry, ENTRY | sections, "registry.yaml")


def written(folder: Path, text: str) -> Registry:
    file = folder / "registry.yaml"
    file.write_text(text)
    return read_registry(file)


@pytest.fixture(autouse=True)
def _own_starter(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the registry shipped with kwbench by one with a single entry."""
    starter = tmp_path_factory.mktemp("starter") / "registry.yaml"
    starter.write_text("models:\n  shipped: {architecture: {name: vgg11}, activation: {name: relu}}\n")
    monkeypatch.setattr(module, "_starter_path", lambda: starter)


LINE = "{architecture: {name: resnet18, width: 8}, activation: {name: kwta, gamma: 0.1}}"


def test_names_are_found_with_and_without_the_default_data_set(tmp_path: Path) -> None:
    registry = written(tmp_path, f"models:\n  a: {LINE}\n  digits/b: {LINE}\n  cifar10/a: {LINE}\n")
    assert registry.find("a") == registry.find("digits/a")
    assert registry.find("b")[0] == registry.find("digits/b")[0] == "b"
    assert registry.find("cifar10/a")[0] == "cifar10/a"
    assert (dataset_of("a"), dataset_of("cifar10/a")) == ("digits", "cifar10")
    assert registry.find("a")[1].activation.parameters == {"gamma": 0.1}
    assert registry.find("a")[1].architecture.parameters == {"width": 8}


def test_a_registry_that_changed_is_read_again(tmp_path: Path) -> None:
    assert list(written(tmp_path, f"models:\n  a: {LINE}\n").own) == ["a"]
    assert list(written(tmp_path, f"models:\n  b: {LINE}\n").own) == ["b"]


def test_unknown_models_come_with_a_suggestion(tmp_path: Path) -> None:
    registry = written(tmp_path, f"models:\n  resnet18-relu: {LINE}\n")
    with pytest.raises(UsageError, match=r"'resnet18-rulu' is not in .*registry\.yaml; did you mean 'resnet18-relu'"):
        registry.find("resnet18-rulu")


def test_the_registry_of_the_working_folder_precedes_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(read_registry().entries) == ["shipped"]
    (tmp_path / "registry.yaml").write_text(f"models:\n  mine: {LINE}\n")
    assert {"mine", "shipped"} == set(read_registry().entries)


def test_checkpoints_lie_beside_the_registry_that_holds_the_entry(tmp_path: Path) -> None:
    pinned = LINE.replace("{arch", f"{{checkpoint: {{file: w/a.safetensors, sha256: {SHA}}}, arch", 1)
    registry = written(tmp_path, f"models:\n  a: {pinned}\n  cifar10/b: {LINE}\n")
    assert registry.checkpoint_path("a") == tmp_path / "w" / "a.safetensors"
    assert registry.checkpoint_path("cifar10/b") == tmp_path / "models" / "cifar10" / "b.safetensors"
    assert tmp_path not in registry.checkpoint_path("shipped").parents


@pytest.mark.parametrize("name", ["A", "-a", "a b", "a/b/c", "../a", "", "/a", "a/", "a\\n", "é", ".a"])
def test_names_with_other_characters_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="names match"):
        written(tmp_path, f'models:\n  "{name}": {LINE}\n')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"models:\n  a: {LINE}\n  a: {LINE}\n", 'duplicate key "a"'),
        (f"modles:\n  a: {LINE}\n", "unknown key 'modles'; did you mean 'models'|models: Field required"),
        (
            "models:\n  a: {architecture: {name: x}, activation: {name: y}, recepi: {}}\n",
            "'models.a.recepi'; did you mean 'recipe'",
        ),
        ("models:\n  a: {activation: {name: y}}\n", "models.a.architecture: Field required"),
        ("models:\n  a: {architecture: {width: 3}, activation: {name: y}}\n", "models.a.architecture.name: Field required"),
        ("models:\n", "models: must be a mapping"),
        ("models:\n  a:\n", "models.a: must be a mapping"),
    ],
)
def test_malformed_registries_are_refused_with_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=rf"registry\.yaml.*({message})"):
        written(tmp_path, text)


def test_a_missing_registry_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotEvaluate, match=r"none\.yaml: cannot be read"):
        read_registry(tmp_path / "none.yaml")


@pytest.mark.parametrize("file", ["/etc/passwd", "../x.safetensors", "a/../../x", "..\\x", "C:\\x"])
def test_checkpoints_cannot_lie_outside_the_registrys_folder(file: str) -> None:
    with pytest.raises(UsageError, match=r"checkpoint\.file: must be a path below"):
        entry(checkpoint={"file": file, "sha256": SHA})


@pytest.mark.parametrize("sha256", ["", "ab", SHA.upper(), SHA + "0", SHA[:-1] + "g", SHA + "\n", 12])
def test_hashes_are_64_small_hexadecimal_digits(sha256: Any) -> None:
    with pytest.raises(UsageError, match=r"checkpoint\.sha256"):
        entry(checkpoint={"file": "a", "sha256": sha256})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"recipe": RECIPE | {"epochs": 0}}, "recipe.epochs"),
        ({"recipe": RECIPE | {"epochs": "3"}}, "recipe.epochs"),
        ({"recipe": RECIPE | {"learning_rate": 0}}, "recipe.learning_rate"),
        ({"recipe": RECIPE | {"learning_rate": float("nan")}}, "recipe.learning_rate"),
        ({"recipe": RECIPE | {"learning_rate": float("inf")}}, "recipe.learning_rate"),
        ({"recipe": RECIPE | {"seed": -1}}, "recipe.seed"),
        ({"recipe": {"epochs": 3, "learning_rate": 0.1}}, "recipe.seed: Field required"),
        ({"recipe": RECIPE | {"batch_size": 1}}, "recipe.batch_size"),
        ({"recipe": RECIPE | {"momentum": 1}}, "recipe.momentum"),
        ({"recipe": RECIPE | {"weight_decay": -1e-4}}, "recipe.weight_decay"),
        ({"recipe": RECIPE | {"clip_norm": 0}}, "recipe.clip_norm"),
        ({"recipe": RECIPE | {"shift": -1}}, "recipe.shift"),
        ({"recipe": RECIPE | {"kl_weight": -1}}, "recipe.kl_weight"),
        ({"recipe": RECIPE | {"epoch": 3}}, "'recipe.epoch'; did you mean 'epochs'"),
        ({"recipe": RECIPE | {"adversarial": ADVERSARY | {"eps": 0}}}, "recipe.adversarial: eps must lie in"),
        ({"recipe": RECIPE | {"adversarial": ADVERSARY | {"eps": "256/255"}}}, "eps must lie in"),
        ({"recipe": RECIPE | {"adversarial": ADVERSARY | {"step_size": -1}}}, r"step_size must lie in \(0, 1\]"),
        ({"recipe": RECIPE | {"adversarial": ADVERSARY | {"eps": "a lot"}}}, "recipe.adversarial.eps: must be a number"),
        ({"recipe": RECIPE | {"adversarial": ADVERSARY | {"eps": "1/0"}}}, "recipe.adversarial.eps: must be a number"),
        ({"recipe": RECIPE | {"adversarial": ADVERSARY | {"steps": 0}}}, "recipe.adversarial.steps"),
        ({"recipe": RECIPE | {"adversarial": ADVERSARY | {"warmup_epochs": -1}}}, "warmup_epochs"),
        ({"recipe": RECIPE | {"adversarial": ADVERSARY | {"step_size": 2}}}, "step_size must lie in"),
        ({"recipe": RECIPE | {"trades": ADVERSARY | {"beta": 0}}}, "recipe.trades.beta"),
        ({"recipe": RECIPE | {"trades": {"eps": 0.1, "steps": 3}}}, "recipe.trades.step_size: Field required"),
        ({"recipe": RECIPE | {"free": {"eps": 0.1, "replays": 0}}}, "recipe.free.replays"),
        ({"recipe": RECIPE | {"free": {"eps": -1}}}, "recipe.free: eps must lie in"),
        ({"recipe": RECIPE | {"fast": {"eps": 0.1, "steps": 3}}}, "'recipe.fast.steps'"),
        ({"recipe": RECIPE | {"fast": {"eps": 0.1, "step_size": 0}}}, "recipe.fast: step_size must lie in"),
        ({"recipe": RECIPE | {"free": {"eps": 0.1, "step_size": 3}}}, "recipe.free: step_size must lie in"),
        ({"recipe": RECIPE | {"mixture": ADVERSARY | {"attacks": ["pdg"]}}}, "recipe.mixture.attacks.0"),
        ({"recipe": RECIPE | {"mixture": ADVERSARY | {"attacks": []}}}, "recipe.mixture.attacks"),
        ({"recipe": RECIPE | {"mixture": ADVERSARY | {"attacks": ["cw"], "sigma": 0}}}, "recipe.mixture.sigma"),
        ({"recipe": RECIPE | {"fast": {"eps": 0.1}, "free": {"eps": 0.1}}}, "free and fast are two ways to train"),
        ({"recipe": RECIPE | {"noise": -0.1}}, "recipe.noise"),
        ({"recipe": RECIPE | {"precision": "float16"}}, "recipe.precision"),
        ({"recipe": RECIPE | {"storage": "int8"}}, "recipe.storage"),
        ({"recipe": RECIPE | {"schedule": {"kind": "drop"}}}, "recipe.schedule: kind: drop needs after"),
        ({"recipe": RECIPE | {"schedule": {"after": 3}}}, "no other kind takes it"),
        ({"recipe": RECIPE | {"schedule": {"kind": "drop", "after": 3, "factor": 1.0}}}, "recipe.schedule.factor"),
        ({"recipe": RECIPE | {"epochs": 8, "schedule": {"kind": "drop", "after": 9}}}, "schedule.after: 9 never comes"),
        ({"recipe": RECIPE | {"epochs": 8, "fast": {"eps": 0.1, "warmup_epochs": 8}}}, "warmup_epochs: 8 of 8 epochs never"),
        ({"recipe": RECIPE | {"pretrained": "http://x/y-01234567.pth"}}, "recipe.pretrained"),
        ({"recipe": RECIPE | {"pretrained": "https://x/y.pth"}}, "recipe.pretrained"),
        ({"smoothing": 0}, "smoothing"),
        ({"recipe": RECIPE | {"incremental": LOWERING | {"start": 1.5}}}, "start must lie in"),
        ({"recipe": RECIPE | {"incremental": LOWERING | {"step": 0}}}, "step in"),
        ({"recipe": RECIPE | {"incremental": LOWERING | {"epochs": 0}}}, "recipe.incremental.epochs"),
        ({"normalise": {"mean": [0.5], "std": [0]}}, "normalise.std.0"),
        ({"normalise": {"mean": [float("nan")], "std": [1]}}, "normalise.mean.0: .*finite"),
        ({"prediction": {"kind": "draw", "draws": 5}}, "a single draw is one draw"),
        ({"prediction": {"kind": "frozen", "draws": 5}}, "a single draw is one draw"),
        ({"prediction": {"kind": "vote", "draws": 5, "seed": 1}}, "a seed is for kind: frozen"),
        ({"prediction": {"kind": "median", "draws": 5}}, "prediction.kind"),
        ({"prediction": {"kind": "mean_logits", "draws": 0}}, "prediction.draws"),
        ({"activation": {"name": 3}}, "activation.name"),
    ],
)
def test_entries_with_impossible_values_are_refused_with_the_key(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        entry(**sections)


def test_fractions_and_radii_are_kept_exactly() -> None:
    recipe = entry(
        recipe=RECIPE | {"adversarial": {"eps": "8/255", "steps": 1, "step_size": 0.1}, "incremental": LOWERING}
    ).recipe
    assert recipe is not None
    assert recipe.adversarial is not None
    assert recipe.incremental is not None
    assert (recipe.adversarial.eps, recipe.adversarial.step_size) == (Fraction(8, 255), Fraction(1, 10))
    assert (recipe.incremental.start, recipe.incremental.step) == (Fraction(1, 2), Fraction(1, 10))


PAPERS = "papers:\n  smith2020: {authors: A. Smith and B. Jones, title: Nets, year: 2020, venue: ICLR}\n"
NET = "models:\n  net: {architecture: {name: resnet18}, activation: {name: relu}, paper: %s}\n"


def test_an_entry_names_the_paper_that_describes_its_model(tmp_path: Path) -> None:
    paper = written(tmp_path, PAPERS + NET % "smith2020").paper_of("net")
    assert paper is not None
    assert (paper.title, paper.venue, paper.url) == ("Nets", "ICLR", None)
    assert read_registry(tmp_path / "registry.yaml").paper_of("unknown") is None
    shipped = read_registry().paper_of("resnet18-kwta0.1")
    assert shipped is not None
    assert "k-Winners" in shipped.title


def test_an_entry_with_an_unknown_paper_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"registry\.yaml: models\.net\.paper: 'smith2021'.*did you mean 'smith2020'"):
        written(tmp_path, PAPERS + NET % "smith2021")
