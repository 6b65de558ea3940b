"""Searches may round, where that misleads none of them. Predictions that count are in float32."""

from collections.abc import Callable
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

import kwbench
from kwbench import judge
from kwbench.config.suite import Suite, read_suite, suite_names, suite_of
from kwbench.errors import UsageError
from kwbench.evaluation.description import describe
from kwbench.evaluation.execution.evaluator import LocalEvaluator
from kwbench.evaluation.request import Request
from kwbench.record.comparability import comparison_key
from kwbench.report.terminal import text_table
from support.small_models import digits, first_images, trained_cnn

EPS = 0.1

# Suites whose attacks are kwbench's own choice. All others are frozen: they follow a paper, or control the evaluation.
OWN = ("all", "strong")


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that says which of bfloat16 and TF32 this device has."""

    def says(precision: str) -> None:
        for name, has in (("has_bfloat16", "bfloat16"), ("has_tf32", "tf32")):
            monkeypatch.setattr(f"kwbench.model.search_precision.{name}", lambda _, has=has: has == precision)

    return says


def named(attacks: str, **options: Any) -> Request:
    suite = options.pop("suite", None) or suite_of(attacks.split(","))
    return Request("mine", suite, **{"module": trained_cnn(), "n": 16, "dataset": "digits", **options}).under(suite)


def precisions(request: Request) -> dict[str, str]:
    attacks = LocalEvaluator(request).facts.attacks
    return {
        label: attack["parameters"]["precision"] for label, attack in attacks.items() if "precision" in attack["parameters"]
    }


def test_attacks_named_one_by_one_search_in_the_fastest_precision_that_the_model_allows(rounds: Callable[[str], None]) -> None:
    every = "fgsm,pgd,mim,apgd,square"
    for has, gradients, scores in (
        ("bfloat16", "bfloat16", "float32"),
        ("tf32", "tf32", "tf32"),
        ("neither", "float32", "float32"),
    ):
        rounds(has)
        assert precisions(named(every)) == {"pgd": gradients, "mim": gradients, "apgd": gradients, "square": scores}, has
    rounds("bfloat16")
    assert precisions(named("pgd,mim", norm="l2", eps="1")) == {"pgd": "float32", "mim": "float32"}, (
        "steps go by more than signs"
    )
    assert set(precisions(named(every, precision="float32")).values()) == {"float32"}


def test_a_stated_precision_stands_unless_all_is_to_be_exact(rounds: Callable[[str], None]) -> None:
    rounds("neither")
    stated = {"pgd.precision": "bfloat16"}
    images = first_images(8)
    cases: list[tuple[Literal["auto", "float32"], str]] = [("auto", "bfloat16"), ("float32", "float32")]
    for precision, expected in cases:
        result = kwbench.evaluate(
            trained_cnn(), images.x, images.y, attacks="pgd", parameters=stated, precision=precision, eps=0.1
        )
        assert result.summary.attacks[0].precision == expected


@pytest.mark.parametrize("name", suite_names())
def test_suites_of_papers_search_as_they_did(name: str) -> None:
    suite = read_suite(name)
    asked = Request("mine", suite, dataset="digits").under(suite).suite
    assert asked == suite.on("digits")
    exact = Request("mine", suite, dataset="digits", precision="float32").under(suite).suite
    if name in OWN:
        assert exact.name == f"{name} with precision=float32"
        assert not any("precision" in attack.parameters for attack in exact.attacks)
    else:
        assert exact == suite.on("digits")


def test_exact_searches_of_named_attacks_are_the_runs_that_they_were(rounds: Callable[[str], None]) -> None:
    rounds("bfloat16")
    request = named("pgd,square", precision="float32")
    before = Request("mine", suite_of(["pgd", "square"]), module=trained_cnn(), n=16, dataset="digits")
    exact, plain, rounded = (describe(one, LocalEvaluator(one).facts) for one in (request, before, named("pgd,square")))
    assert exact == plain
    by_label = [{attack.label: attack.identity for attack in spec.attacks} for spec in (exact, rounded)]
    assert {label for label in by_label[0] if by_label[0][label] != by_label[1][label]} == {"pgd"}


def test_models_that_named_attacks_search_in_different_precisions_are_comparable(
    rounds: Callable[[str], None], tmp_path: Path
) -> None:
    images, db = first_images(16), str(tmp_path / "results.db")
    keys = []
    for has in ("bfloat16", "neither"):
        rounds(has)
        result = kwbench.evaluate(trained_cnn(), images.x, images.y, attacks="pgd", eps=0.1, db=db)
        keys.append(comparison_key(result.summary.evaluation))
    assert keys[0] == keys[1]
    assert len(kwbench.results(db).query("attack == 'pgd'")) == 2


class Watching(nn.Module):
    """The small network, which notes in what it computes, and whether for a prediction that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.counts = trained_cnn(), False
        self.searched: set[str] = set()
        self.counted: set[str] = set()

    def forward(self, x: Tensor) -> Tensor:
        tf32 = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
        computes = "bfloat16" if torch.is_autocast_enabled("cpu") else "tf32" if tf32 else "float32"
        (self.counted if self.counts else self.searched).add(computes)
        logits: Tensor = self.network(x)
        return logits


@pytest.mark.parametrize("has", ["bfloat16", "tf32"])
def test_predictions_that_count_are_exact_whatever_searches_round_to(
    has: str, rounds: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds(has)
    module, images = Watching(), first_images(16)
    score = judge._score

    def watched(*arguments: Any) -> Any:
        module.counts = True
        try:
            return score(*arguments)
        finally:
            module.counts = False

    monkeypatch.setattr(judge, "_score", watched)
    settings = {"square.steps": 20, "apgd.steps": 10}
    result = kwbench.evaluate(
        module,
        images.x,
        images.y,
        attacks=["pgd", "mim", "apgd", "square"],
        parameters=settings,
        eps=0.2,
        threads=1,
        device="cpu",
    )
    assert result.complete
    assert module.searched == {"float32", has}, "float32 confirms what a search finds"
    assert module.counted == {"float32"}


def adversarially_trained() -> nn.Module:
    """Return the small network after a few epochs on images a random start and one large step away (arXiv:2001.03994)."""
    network = deepcopy(trained_cnn()).train().requires_grad_()
    train = digits().train.batch(range(len(digits().train)))
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        for rows in torch.randperm(len(train), generator=generator).split(64):  # type: ignore[no-untyped-call]
            x, y = train.x[rows], train.y[rows]
            delta = ((2 * torch.rand(x.shape, generator=generator) - 1) * EPS).requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(network((x + delta).clamp(0, 1)), y), delta)
            delta = (delta.detach() + 1.25 * EPS * gradient.sign()).clamp(-EPS, EPS)
            optimizer.zero_grad()
            F.cross_entropy(network((x + delta).clamp(0, 1)), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return network.eval().requires_grad_(False)


def test_rounded_searches_leave_no_more_images_standing_than_exact_ones(rounds: Callable[[str], None]) -> None:
    rounds("bfloat16")
    settings = {"apgd.steps": 20, "apgd.targets": 9, "apgd.finalists": 3, "apgd.loss": "probability_margin"}
    for module in (trained_cnn(), adversarially_trained()):
        standing = []
        cases: list[tuple[Literal["auto", "float32"], str]] = [("auto", "bfloat16"), ("float32", "float32")]
        for precision, used in cases:
            result = kwbench.evaluate(
                module,
                dataset="digits",
                n=200,
                eps=EPS,
                attacks=["pgd", "apgd"],
                parameters=settings,
                precision=precision,
                threads=1,
            )
            assert {attack.precision for attack in result.summary.attacks} == {used}
            standing.append(result.samples["status"].eq("held").sum())
        rounded, exact = standing
        assert 20 < rounded <= exact < 180


def test_networks_that_hide_gradients_are_searched_exactly(rounds: Callable[[str], None]) -> None:
    rounds("bfloat16")
    suite = suite_of(["pgd", "apgd", "square"])
    runs = [
        describe(request, LocalEvaluator(request).facts).attacks
        for request in (
            Request("resnet18-kwta0.1", suite, n=8, tile=8, threads=1, precision=precision).under(suite)
            for precision in ("auto", "float32")
        )
    ]
    assert runs[0] == runs[1]


def test_what_was_used_is_stored_and_printed(rounds: Callable[[str], None], tmp_path: Path) -> None:
    rounds("bfloat16")
    images, db = first_images(16), str(tmp_path / "results.db")
    settings = {"square.steps": 5, "pgd.steps": 3}
    result = kwbench.evaluate(
        trained_cnn(), images.x, images.y, attacks=["fgsm", "pgd", "square"], parameters=settings, eps=0.1, db=db
    )
    assert {attack["name"]: attack.get("precision") for attack in result.to_json()["attacks"]} == {
        "fgsm": None,
        "pgd": "bfloat16",
        "square": "float32",
    }
    assert result.attacks["precision"].dropna().to_dict() == {"pgd": "bfloat16", "square": "float32"}
    output = StringIO()
    Console(file=output, width=200).print(text_table([result.summary]))
    assert "searched in bfloat16: pgd. Predictions count in float32." in output.getvalue()
    again = kwbench.evaluate(
        trained_cnn(), images.x, images.y, attacks=["fgsm", "pgd", "square"], parameters=settings, eps=0.1, db=db
    )
    assert again.summary.evaluation.id == result.summary.evaluation.id, "it resolves to the same, and continues"


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="precision: 'half'; it is auto or float32"):
        kwbench.evaluate("resnet18-relu", precision="half")  # type: ignore[arg-type]


def test_a_suite_of_attacks_without_a_precision_keeps_its_name() -> None:
    suite = Suite("mine", suite_of(["fgsm"]).attacks)
    assert Request("mine", suite, precision="float32").under(suite).suite == suite
