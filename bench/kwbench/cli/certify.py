"""The command certify: bounds of robust accuracy from both sides."""

from typing import Annotated

import typer

from kwbench.cli.each_model import evaluate_each
from kwbench.cli.evaluate import PANEL
from kwbench.cli.options import (
    AttackNames,
    EvaluationOptions,
    Json,
    Models,
    Settings,
    SuiteName,
    chosen_suite,
    evaluation_options,
)
from kwbench.cli.output import command_line, print_certified, require_complete
from kwbench.cli.panels import RUN
from kwbench.imports import importing

app = typer.Typer()


@app.command(rich_help_panel=PANEL, epilog="Example: kwbench certify defence.py:net --eps 1/255 --n 100 --budget 10")
@evaluation_options(without=("keep_adversarials",))
def certify(
    models: Models,
    options: EvaluationOptions,
    budget: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Seconds an image.", rich_help_panel=RUN)] = 60.0,
    attack: AttackNames = None,
    suite: SuiteName = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Bound robust accuracy from both sides: certify the images that attacks leave standing; default: those of apgd.

    For deterministic networks of linear layers, convolutions, batch norms, ReLU, k-WTA, LWTA and pooling. Each certificate
    is put on record at once, so that an interrupted command continues.
    """
    options.prepare()
    with importing():
        from kwbench.cli.progress import progress_display
        from kwbench.evaluation.studies.certifying import certify_standing
        from kwbench.record.summaries import summaries

    requests = options.requests(models, chosen_suite(attack, suite, settings, default="apgd"))
    store = options.store()
    with progress_display() as show:
        evaluated = evaluate_each(
            requests,
            lambda index: certify_standing(
                requests[index], store, budget, show, command=command_line(), time_limit=options.time_limit
            ),
        )
    results = summaries(store, [certified.evaluation for certified in evaluated.results])
    print_certified(results, evaluated.results, as_json, evaluated.failures)
    evaluated.require_all()
    require_complete(results)
