"""The command that shows what is running: status."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kwbench.cli.database import PANEL
from kwbench.cli.options import Database, Json
from kwbench.cli.output import console, print_json, print_lines, print_table
from kwbench.cli.stores import open_store
from kwbench.formatting import duration_text

if TYPE_CHECKING:
    from kwbench.record.database.drivers import Driver

app = typer.Typer()

# Seconds between looks, and after which a driver that writes nothing is taken to be lost.
_INTERVAL, _SILENT = 2.0, 60.0


@app.command(rich_help_panel=PANEL, epilog="Example: kwbench status --watch")
def status(
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds, until nothing runs any more.")] = False,
    db: Database = "results.db",
    as_json: Json = False,
) -> None:
    """Show which commands evaluate into a database now, on which machines, and how far they are."""
    store = open_store(db)
    while True:
        drivers = store.drivers()
        running = [driver for driver in drivers if driver.silent < _SILENT]
        _print(drivers, as_json)
        if not (watch and running):
            return
        time.sleep(_INTERVAL)


def _print(drivers: "list[Driver]", as_json: bool) -> None:
    rows = [_row(driver) for driver in drivers]
    if as_json:
        print_json([row | {"running": row.pop("state") == "running"} for row in rows])
        return
    terminal = console()
    if terminal.is_terminal:
        terminal.clear()
    if not rows:
        print_lines(["nothing is running"])
        return
    print_table(
        [
            {
                "driver": f"{row['host']}:{row['process']}",
                "model": row["model"],
                "of": f"{row['position']}/{row['models']}",
                "attack": row["attack"],
                "samples": f"{row['done']}/{row['samples']}",
                "in all": f"{100 * row['done_in_all'] / max(row['rows_in_all'], 1):.0f} %",
                "for": duration_text(row["seconds"]),
                "state": row["state"] if row["state"] == "running" else f"silent for {duration_text(row['silent'])}",
                "command": row["command"],
            }
            for row in rows
        ],
        optional=("command",),
    )


def _row(driver: "Driver") -> dict[str, Any]:
    row = asdict(driver)
    del row["id"], row["label"]
    return row | {
        "attack": driver.label,
        "seconds": round(driver.seconds, 1),
        "silent": round(driver.silent, 1),
        "state": "running" if driver.silent < _SILENT else "silent",
    }
