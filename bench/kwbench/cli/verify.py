"""The command verify: adversarial images that were made elsewhere."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kwbench.cli.completion import complete_models
from kwbench.cli.options import AttackNames, EvaluationOptions, Json, SuiteName, chosen_suite, evaluation_options
from kwbench.cli.output import command_line, print_summaries, require_complete
from kwbench.cli.panels import ATTACK
from kwbench.errors import UsageError
from kwbench.imports import importing

app = typer.Typer()
PANEL = "Measure"


@app.command(
    rich_help_panel=PANEL, epilog='Example: kwbench verify resnet18-relu adversarials.npz --name "Their attack" --eps 0.2'
)
@evaluation_options(without=("checkpoint_key",))
def verify(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A name in the registry, or a model of your own.", autocompletion=complete_models),
    ],
    adversarials: Annotated[
        Path, typer.Argument(metavar="FILE", help="The images: npz, npy, or torch.save, such as AutoAttack's.")
    ],
    options: EvaluationOptions,
    name: Annotated[str, typer.Option(help="Name of the attack that made the images.", rich_help_panel=ATTACK)] = "",
    paper: Annotated[
        str, typer.Option(metavar="URL", help="Address of its paper, for the record.", rich_help_panel=ATTACK)
    ] = "",
    key: Annotated[
        str | None, typer.Option(help="Key of the images in the file; default: a usual one.", rich_help_panel=ATTACK)
    ] = None,
    attack: AttackNames = None,
    suite: SuiteName = None,
    worst_case: Annotated[
        bool,
        typer.Option(
            "--worst-case",
            help="Include the images in the worst case of the other attacks; default: beside it.",
            rich_help_panel=ATTACK,
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Judge adversarial images that were made elsewhere: their distance, their pixels, and fresh predictions."""
    with importing():
        from kwbench.cli.progress import progress_display
        from kwbench.evaluation.proposals import read_proposals, suite_with
        from kwbench.evaluation.runner import evaluate as run
        from kwbench.record.summaries import summaries

    if worst_case and attack is None and suite is None:
        raise UsageError("--worst-case: is for the worst case of --attack or --suite; alone, the images are the worst case")
    proposals = read_proposals(adversarials, key=key, paper=paper)
    others = None if attack is None and suite is None else chosen_suite(attack, suite)
    chosen, label = suite_with(others, name or adversarials.stem, worst_case=worst_case)
    (request,) = options.requests([model], chosen)
    request = replace(request, proposals={label: proposals})
    store = options.store()
    with progress_display() as show:
        evaluation = run(request, store, show, command=command_line(), time_limit=options.time_limit)
    results = summaries(store, [evaluation])
    print_summaries(results, as_json)
    require_complete(results)
