"""The command `kwbench`: results go to stdout, progress and errors to stderr."""

# Commands import what is heavy when they run, so that --help does not wait for torch.
import warnings
from typing import Annotated, Any

import typer

from kwbench.cli import certify, database, evaluate, experiments, models, report, setup, status, verify
from kwbench.cli.ending import INTERRUPTED, close_streams, exit_code_of, prepare_streams, say
from kwbench.cli.stores import close_stores
from kwbench.errors import KwbenchError
from kwbench.formatting import printable

# Wrong options and arguments. Which package names this class depends on the version of Typer.
_WrongUsage: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="kwbench",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: kwbench evaluate resnet18-kwta0.1 --attack pgd. Each command has its own help: kwbench evaluate -h",
)
for group in (evaluate, verify, certify, experiments, report, status, database, models, setup):
    app.add_typer(group.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"kwbench {version('kwbench')}")
        raise typer.Exit


@app.callback()
def kwbench(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Measure the robust accuracy of image classifiers, with the evidence for it."""


def main() -> None:
    """Run the command line, and exit with a code of `kwbench.errors`, or 130 after Ctrl-C.

    Nothing that is raised ends in 1, which says that a model regressed.
    """
    warnings.filterwarnings("ignore")  # advice of libraries to programmers; our own problems are errors or rows
    prepare_streams()
    try:
        code = _exit_code()
    except BaseException as failure:  # noqa: BLE001 - whatever it is, its exit code must not be 1
        code = exit_code_of(failure)
    raise SystemExit(close_streams(code))


def _exit_code() -> int:
    """Run the command and return its exit code; the messages of errors go to stderr."""
    try:
        code = int(app(prog_name="kwbench", standalone_mode=False) or 0)
    except _WrongUsage as failure:
        failure.show()
        return 2
    except KwbenchError as failure:
        say(f"kwbench: {printable(str(failure))}")
        return failure.exit_code
    finally:
        close_stores()
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code
