"""Commands on the record itself: db upgrade, check, merge, export and import."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kwbench.cli.completion import complete_models
from kwbench.cli.options import Database, Json
from kwbench.cli.output import print_json, print_lines, progress_line
from kwbench.cli.stores import open_store
from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.imports import importing

if TYPE_CHECKING:
    from kwbench.record.transfer import Transfer

app = typer.Typer()
PANEL = "Results on record"
db = typer.Typer(
    no_args_is_help=True,
    help="Work on the record itself: upgrade, check, merge, export, import.",
    epilog="Example: kwbench db merge results.db other-machine.db",
)
app.add_typer(db, name="db", rich_help_panel=PANEL)

# Conflicts, or contradictions, that are printed.
_SHOWN = 20

Sources = Annotated[list[str], typer.Argument(metavar="SOURCE", help="Records to take from: SQLite files or SQLAlchemy URLs.")]
ModelNames = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME", help="Only this model. May be repeated.", autocompletion=complete_models),
]


@db.command(epilog="Example: kwbench db upgrade --db results.db")
def upgrade(db: Database = "results.db", as_json: Json = False) -> None:
    """Bring a record of an earlier version up to date. Every other command does it, too, when it opens the record."""
    with importing():
        from kwbench.record.database.schema import SCHEMA_VERSION

    before = open_store(db, upgraded=False).schema_version()
    open_store(db)
    if as_json:
        print_json({"before": before, "now": SCHEMA_VERSION})
    elif before == SCHEMA_VERSION:
        print_lines([f"{db}: schema version {SCHEMA_VERSION}, up to date"])
    else:
        print_lines([f"{db}: schema version {before} -> {SCHEMA_VERSION}; nothing on record has changed"])


@db.command(epilog="Example: kwbench db check --db results.db")
def check(db: Database = "results.db", as_json: Json = False) -> None:
    """Read the whole record, compare it with its checksums, and attacks with certificates.

    Exit code 4 if something is not what was written, or if an attack broke a certified sample.
    """
    with importing():
        from kwbench.record.contradictions import contradictions
        from kwbench.record.verification import verify

    store = open_store(db)
    verified = asdict(verify(store))
    contradicted = [str(contradiction) for contradiction in contradictions(store)]
    if as_json:
        print_json({**verified, "contradictions": contradicted})
    for contradiction in contradicted[:_SHOWN]:
        progress_line(f"contradiction: {contradiction}")
    if contradicted:
        more = f" ({len(contradicted) - _SHOWN} more are not listed)" if len(contradicted) > _SHOWN else ""
        raise DamagedData(
            f"{db}: {len(contradicted)} outcomes contradict certificates{more}; please report this error of kwbench"
        )
    if not as_json:
        _print_verified(db, verified)


def _print_verified(db: str, verified: dict[str, int]) -> None:
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in verified.items() if name != "unguarded")
    print_lines([f"{db}: {counts}: as they were written"])
    if verified["unguarded"]:
        print_lines([f"{verified['unguarded']} attack runs are from before the record kept checksums"])


@db.command(epilog="Example: kwbench db merge results.db other-machine.db")
def merge(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The record to add to; it is created if it is missing.")],
    sources: Sources,
    model: ModelNames = None,
    as_json: Json = False,
) -> None:
    """Add to a record what only others have. Exit code 3 if both have something, and have it otherwise."""
    _take(target, sources, model, as_json)


@db.command("import", epilog="Example: kwbench db import shared.db --db postgresql+psycopg://host/kwbench")
def import_(sources: Sources, model: ModelNames = None, db: Database = "results.db", as_json: Json = False) -> None:
    """Add to the record what files that `db export` wrote have; the same as `db merge`."""
    _take(db, sources, model, as_json)


@db.command(epilog="Example: kwbench db export shared.db --model resnet18-relu")
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The SQLite file to write; it must not exist.")],
    model: ModelNames = None,
    db: Database = "results.db",
    as_json: Json = False,
) -> None:
    """Write the record, or that of some models, into a SQLite file of its own, from any database."""
    if file.exists():
        raise UsageError(f"{file}: exists; db export overwrites nothing, `kwbench db merge` adds to a record")
    _take(str(file), [db], model, as_json)


def _take(target: str, sources: list[str], models: list[str] | None, as_json: bool) -> None:
    """Add the records `sources` to `target`, and print what was added."""
    with importing():
        from kwbench.errors import did_you_mean
        from kwbench.record.transfer import Transfer, transfer

    opened = [open_store(source) for source in sources]
    known = {evaluation.spec.model for store in opened for evaluation in store.evaluations()}
    for name in models or []:
        if name not in known:
            raise UsageError(f"--model {name}: nothing on record about it; {did_you_mean(name, known)}")
    into = open_store(target, create=True)
    total = Transfer()
    for source, store in zip(sources, opened, strict=True):
        added = transfer(store, into, models)
        total += added
        if not as_json:
            print_lines([f"{target} <- {source}: {_counts(added)}"])
    if as_json:
        print_json(asdict(total))
    for conflict in total.conflicts[:_SHOWN]:
        progress_line(f"conflict: {conflict}")
    if total.conflicts:
        more = f" ({len(total.conflicts) - _SHOWN} more are not listed)" if len(total.conflicts) > _SHOWN else ""
        raise CannotEvaluate(f"{len(total.conflicts)} conflicts{more}: {target} keeps its own; all else was added")


def _counts(added: "Transfer") -> str:
    counts = asdict(added)
    conflicts = len(counts.pop("conflicts"))
    return ", ".join(f"{count} {name}" for name, count in counts.items()) + f" added, {conflicts} conflicts"
