"""Shared options: from the command line to one object, and from there to requests."""

from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from kwbench.cli.options import EvaluationOptions, NormName, Split, chosen_suite, evaluation_options, names_in
from kwbench.cli.panels import ATTACK, OUTPUT
from kwbench.config.suite import suite_of
from kwbench.errors import UsageError
from support.small_registry import write_registry


def test_every_option_reaches_the_request(tmp_path: Path) -> None:
    registry = write_registry(tmp_path)
    options = EvaluationOptions(
        registry=registry,
        checkpoint=Path("c"),
        prediction="vote:3",
        dataset="mnist",
        data=Path("d"),
        data_dir=Path("e"),
        download=True,
        n=5,
        split=Split.VALIDATION,
        norm=NormName.L2,
        eps="0.5",
        seed=1,
        tile=2,
        device="cpu",
        threads=3,
        keep_adversarials=True,
    )
    (request,) = options.requests(["small"], suite_of(["pgd"]))
    assert (request.model, request.suite.name, request.registry) == ("small", "pgd", registry)
    assert (request.checkpoint, request.data, request.data_dir, request.download) == (Path("c"), Path("d"), Path("e"), True)
    assert (request.dataset, request.split, request.n) == ("mnist", "validation", 5)
    assert (request.norm, request.eps, request.seed, request.tile) == ("l2", "0.5", 1, 2)
    assert (request.device, request.threads, request.keep_adversarials) == ("cpu", 3, True)
    assert request.prediction is not None
    assert (request.prediction.kind, request.prediction.draws) == ("vote", 3)


def test_requests_are_checked_together_before_any_is_used(tmp_path: Path) -> None:
    options = EvaluationOptions(registry=write_registry(tmp_path))
    with pytest.raises(UsageError, match="did you mean 'small'"):
        options.requests(["small", "smal"], suite_of(["pgd"]))
    with pytest.raises(UsageError, match="one file cannot serve several models"):
        EvaluationOptions(checkpoint=Path("c")).requests(["a", "b"], suite_of(["pgd"]))


def test_a_command_gets_one_object_and_may_leave_options_out() -> None:
    app, received = typer.Typer(), []

    @app.command()
    @evaluation_options(without=("seed",))
    def command(
        model: Annotated[str, typer.Argument()],
        options: EvaluationOptions,
        strength: Annotated[int, typer.Option(rich_help_panel=ATTACK)] = 1,
        colour: Annotated[str, typer.Option(rich_help_panel=OUTPUT)] = "red",
    ) -> None:
        received.append((model, options, strength, colour))

    run = CliRunner().invoke
    assert run(app, ["net", "--n", "7", "--strength", "2", "--split", "validation"]).exit_code == 0
    assert received == [("net", EvaluationOptions(n=7, split=Split.VALIDATION), 2, "red")]
    assert run(app, ["net", "--seed", "3"]).exit_code == 2
    text = run(app, ["--help"]).output
    panels = [text.index(panel) for panel in ("What to attack with", "Model", "Data", "Threat model", "How to run", "Output")]
    assert panels == sorted(panels)


def test_the_suite_is_named_by_attack_or_by_suite() -> None:
    assert chosen_suite(None, None).name == "all"
    assert chosen_suite(None, None, default="fgsm,pgd").name == "fgsm+pgd"
    assert chosen_suite(None, "controls").name == "controls"
    changed = chosen_suite("pgd", None, ["pgd.steps=3"])
    assert changed.attacks[0].parameters == {"steps": 3}
    with pytest.raises(UsageError, match="--attack and --suite"):
        chosen_suite("pgd", "controls", default="pgd")


def test_names_are_separated_by_commas() -> None:
    assert names_in(" a, b,,c ") == ["a", "b", "c"]
