"""Commands for a new project and its installation: init and doctor."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from kwbench.cli.options import Database, Json
from kwbench.cli.output import print_json, print_lines
from kwbench.errors import UsageError
from kwbench.formatting import printable

app = typer.Typer()
PANEL = "Set up"

_MARKS = {"ok": "ok  ", "note": "note", "problem": "BAD "}


@app.command(rich_help_panel=PANEL, epilog="Example: kwbench init my-project")
def init(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; default: here.")] = Path()) -> None:
    """Write a registry, a suite and a CI workflow to start from; existing files are not overwritten."""
    from importlib.resources import files

    source = files("kwbench") / "config" / "project"
    templates = {
        folder / "registry.yaml": source / "registry.yaml",
        folder / "suite.yaml": source / "suite.yaml",
        folder / ".github/workflows/robustness.yml": source / "github-actions.yml",
    }
    for path in templates:
        if path.exists():
            raise UsageError(f"{path}: exists; kwbench init overwrites nothing")
    for path, template in templates.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
        print_lines([path])


@app.command(rich_help_panel=PANEL, epilog="Example: kwbench doctor")
def doctor(
    db: Database = "results.db",
    speed: Annotated[
        bool,
        typer.Option("--speed", help="Also measure for 20 seconds how fast this machine is, and say which choices follow."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Report what is installed, what is wrong, and how to fix it. Exit code 3 if there is a problem."""
    from kwbench.cli.doctor import examine

    diagnoses = examine(db)
    if speed:
        from kwbench.cli.machine_speed import measure_speed

        diagnoses += measure_speed()
    if as_json:
        print_json([asdict(diagnosis) for diagnosis in diagnoses])
    else:
        for diagnosis in diagnoses:
            remedy = f"\n     -> {diagnosis.remedy}" if diagnosis.remedy else ""
            print(printable(f"{_MARKS[diagnosis.level]} {diagnosis.subject}: {diagnosis.observation}{remedy}", keep="\n"))
    if any(diagnosis.level == "problem" for diagnosis in diagnoses):
        raise typer.Exit(3)
