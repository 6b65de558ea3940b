"""Pages of the site that are generated: the commands, from the command line itself, and the committed reports."""

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

from kwbench.cli.main import app

REPOSITORY = Path(__file__).resolve().parents[1]

REPORTS = {
    "results/leaderboard.md": "reports/leaderboard.md",
    "results/claims.md": "reports/claims.md",
    "results/verdicts.md": "reports/verdicts.md",
    "results/defences.md": "reports/defences.md",
    "results/calibration.md": "reports/calibration.md",
    "results/speed-cost.md": "bench/speed/cost.md",
    "results/speed-rivals.md": "bench/speed/rivals.md",
    "results/speed-activations.md": "bench/speed/activations.md",
    "results/speed-record.md": "bench/speed/record.md",
    "results/speed-pages.md": "bench/speed/pages.md",
    "results/speed-gpu.md": "bench/speed/gpu.md",
}


# The search of the theme loads this script from the network when a page is opened from the disk. The copy here is local.
REMOTE_WORKER = "https://unpkg.com/iframe-worker/shim"
LOCAL_WORKER = "assets/iframe-worker.js"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    for page, source in REPORTS.items():
        files.append(File.generated(config, page, content=(REPOSITORY / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "reference/commands.md", content="\n".join(_commands_page())))
    return files


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Let a page load its script for the search from the disk."""
    return output.replace(REMOTE_WORKER, get_relative_url(LOCAL_WORKER, page.url))


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """The same for pages without a source, such as 404.html."""
    return output_content.replace(REMOTE_WORKER, LOCAL_WORKER)


def _commands_page() -> Iterator[str]:
    group: Any = typer.main.get_command(app)
    yield "# Commands\n"
    yield "Results go to stdout, progress and errors to stderr. `kwbench COMMAND --help` prints the same text.\n"
    yield "| exit code | meaning |\n|--:|:--|"
    yield "| 0 | done, and no regression |\n| 1 | a regression (`check`) |\n| 2 | wrong use or configuration |"
    yield "| 3 | could not evaluate, or could not tell |\n| 4 | damaged data |\n| 130 | interrupted; the same command continues |\n"
    panel = None
    for name, command in group.commands.items():
        if command.rich_help_panel != panel:
            panel = command.rich_help_panel
            yield f"## {panel}\n"
        below = getattr(command, "commands", {})
        for words, single in {f"{name} {word}": one for word, one in below.items()}.items() if below else [(name, command)]:
            yield from _command_section(words, single)


def _command_section(name: str, command: Any) -> Iterator[str]:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option" and not parameter.hidden]
    usage = " ".join(_usage(argument) for argument in arguments)
    yield f"### kwbench {name}\n"
    yield f"```text\nkwbench {name} [OPTIONS] {usage}".rstrip() + "\n```\n"
    yield command.help.replace("\b\n", "").strip() + "\n"
    if arguments or options:
        yield "| argument or option | value | meaning |\n|:--|:--|:--|"
    for parameter in [*arguments, *options]:
        spelling = _usage(parameter) if parameter in arguments else ", ".join(parameter.opts)
        yield f"| `{spelling}` | {_value(parameter)} | {_cell(parameter.help or '')}{_default(parameter)} |"
    if command.epilog:
        yield f"\n{command.epilog.replace('Example: ', 'Example: `', 1)}`\n"


def _usage(argument: Any) -> str:
    return (argument.metavar or argument.name.upper()) + ("..." if argument.nargs == -1 else "")


def _value(parameter: Any) -> str:
    if parameter.param_type_name == "argument" or getattr(parameter, "is_flag", False):
        return ""
    kind = parameter.type_descriptor.annotation
    if parameter.metavar is None and isinstance(kind, type) and issubclass(kind, Enum):
        return _cell("|".join(str(member.value) for member in kind))
    return _cell(parameter.metavar or getattr(kind, "__name__", str(kind)))


def _default(parameter: Any) -> str:
    if parameter.required:
        return " Required."
    shown = parameter.param_type_name == "option" and getattr(parameter, "show_default", True)
    default = parameter.default
    if not shown or default is None or callable(default) or default is False or default in ((), [], ""):
        return ""
    return f" Default: `{default.value if isinstance(default, Enum) else default}`."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
