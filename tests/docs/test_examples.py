"""Every example of the documentation is run as a reader would run it, or says why it is not."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from kwbench.config.registry import read_registry
from kwbench.config.strict_yaml import parse_yaml
from kwbench.config.suite import read_suite
from support.doc_blocks import LANGUAGES, PLAIN, REPOSITORY, Block, blocks_of, pages

# What a page's examples need besides the installed package: only of those that change kwbench itself.
SOURCES = ("bench", "tests/golden", "tests/support", "tests/defences", "pyproject.toml", "registry.yaml")

# Examples that are not run, by reason. A new one must be counted here.
NOT_RUN = {"network": 7, "hours": 6, "cluster": 3, "changes the repository": 2}
RUN = 102

# Imports of libraries that import torchvision, whose compiled extension may not fit the torch of this machine.
_IMPORTS = re.compile(r"^(?:import|from) (?:timm|torchvision|transformers|robustbench)\b", re.MULTILINE)
_MAKE_IMPORTABLE = "from kwbench.torchvision_schemas import make_torchvision_importable\nmake_torchvision_importable()\n"
# RobustBench imports pkg_resources; `kwbench[robustbench]` brings a version of setuptools that has it.
_OLDER_SETUPTOOLS = [] if find_spec("pkg_resources") else [str(REPOSITORY / "tests/support/older_setuptools")]

EXAMPLES = {page: [block for block in blocks_of(page) if block.language not in PLAIN] for page in pages()}


def test_every_block_names_its_language() -> None:
    unknown = [block.where for page in pages() for block in blocks_of(page) if block.language not in LANGUAGES]
    assert unknown == []


def test_examples_that_are_not_run_are_counted_by_reason() -> None:
    blocks = [block for page in EXAMPLES.values() for block in page]
    assert Counter(block.not_run for block in blocks if block.not_run) == Counter(NOT_RUN)
    assert sum(block.not_run is None for block in blocks) == RUN


@pytest.mark.heavy
@pytest.mark.parametrize("page", [page for page, blocks in EXAMPLES.items() if any(block.not_run is None for block in blocks)])
def test_the_examples_of_a_page_run_in_their_order(page: str, tmp_path: Path) -> None:
    blocks = [block for block in EXAMPLES[page] if block.not_run is None]
    folder = _working_folder(tmp_path, blocks)
    for group in _groups(blocks):
        _follow(group, folder)


def _working_folder(path: Path, blocks: list[Block]) -> Path:
    """Return an empty folder, or a copy of the sources if a block changes them."""
    if any(block.language == "diff" or (block.title or "").startswith("bench/") for block in blocks):
        for source in SOURCES:
            copy = shutil.copytree if (REPOSITORY / source).is_dir() else shutil.copy
            (path / source).parent.mkdir(parents=True, exist_ok=True)
            copy(REPOSITORY / source, path / source)
        (path / "models").symlink_to(REPOSITORY / "models")
    return path


def _groups(blocks: list[Block]) -> Iterator[list[Block]]:
    """Group Python blocks that follow each other: they are one session. Every other block is a group of its own."""
    group: list[Block] = []
    for block in blocks:
        if group and not (_is_session(group[-1]) and _is_session(block)):
            yield group
            group = []
        group.append(block)
    if group:
        yield group


def _is_session(block: Block) -> bool:
    return block.language == "python" and block.title is None


def _follow(group: list[Block], folder: Path) -> None:
    block = group[0]
    if _is_session(block):
        text = "\n".join(member.text for member in group)
        _run([sys.executable, "-c", _MAKE_IMPORTABLE + text if _IMPORTS.search(text) else text], folder, block)
    elif block.language == "diff":
        _insert(block, folder)
    elif block.language == "yaml":
        _check_yaml(block, _write(block, folder) if block.title else None)
    elif block.language == "python":
        _write(block, folder)
    else:
        _run_commands(block, folder)


def _write(block: Block, folder: Path) -> Path:
    assert block.title is not None
    path = folder / block.title
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")
    return path


def _insert(block: Block, folder: Path) -> None:
    """Change the file of the title: remove lines marked `-`, and insert lines marked `+` after the line before them.

    Other lines must occur in the file exactly once.
    """
    assert block.title is not None
    path = folder / block.title
    lines = path.read_text(encoding="utf-8").splitlines()
    position = 0
    for line in block.text.splitlines():
        if line.startswith("+"):
            position += 1
            lines.insert(position, line[1:])
        elif line.strip() != "...":
            assert lines.count(line[1:]) == 1, f"{block.where}: {path.name} has {lines.count(line[1:])} lines {line[1:]!r}"
            position = lines.index(line[1:])
            if line.startswith("-"):
                del lines[position]
                position -= 1
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _check_yaml(block: Block, path: Path | None) -> None:
    """Read a file with the reader that its name calls for; a fragment must be YAML."""
    if path is not None and path.name == "registry.yaml":
        read_registry(path)
    elif path is not None and path.name.endswith("suite.yaml"):
        read_suite(str(path))
    else:
        parse_yaml(block.text, block.where)


def _run_commands(block: Block, folder: Path) -> None:
    """Run the commands after `$ ` one by one, or a whole bash block, and look for the output that the page shows."""
    if block.language == "bash":
        _run(["bash", "-euo", "pipefail", "-c", block.text], folder, block)
        return
    command, shown = "", list[str]()
    for line in [*block.text.replace("\\\n", "").splitlines(), "$ "]:
        if not line.startswith("$ "):
            shown.append(line)
            continue
        if command:
            _compare(shown, _run(["bash", "-c", command], folder, block), block)
        command, shown = line.removeprefix("$ ").strip(), []


def _run(command: list[str], folder: Path, block: Block) -> str:
    """Run a command with kwbench on the path; return what it prints. A comment `# exit code 1` names the code expected."""
    sources = folder if (folder / "bench").is_dir() else REPOSITORY
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(sources / "bench"), *_OLDER_SETUPTOOLS]),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "140",
        "REPOSITORY": str(REPOSITORY),
        "NO_COLOR": "1",
    }
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
    expected = re.search(r"# exit code (\d+)", command[-1])
    assert run.returncode == (int(expected[1]) if expected else 0), f"{block.where}: {shlex.join(command)}\n{run.stderr}"
    return run.stdout + run.stderr


def _compare(shown: list[str], printed: str, block: Block) -> None:
    """Check that every line shown is printed, but for spaces and figures. A line of `...` stands for any others."""
    lines = {_shape(line) for line in printed.splitlines()}
    missing = [line for line in shown if line.strip() not in ("", "...") and _shape(line) not in lines]
    assert not missing, f"{block.where}: not printed: {missing}\nprinted:\n{printed}"


def _shape(line: str) -> str:
    return re.sub(r"\d[\d.,]*", "0", " ".join(re.sub("─+", " ", line).split()))
