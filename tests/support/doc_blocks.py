"""Code blocks of the README, CONTRIBUTING.md and the pages of docs/, as readers see them.

A block of `console` or `bash` is run, one of `python` is run or, if it has a title, written to that file; one of `yaml` is read
by the reader of its file; a `diff` is applied to its file in a copy of the repository. `text` and `mermaid` are not code. A
comment `<!-- not run: REASON -->` on the line before a block keeps it from being run.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LANGUAGES = ("console", "bash", "python", "yaml", "diff", "text", "mermaid")
# Languages of blocks that show no code.
PLAIN = ("text", "mermaid")

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)(?: title=\"(?P<title>[^\"]+)\")?(?P<rest>.*)$")
_NOT_RUN = re.compile(r"^ *<!-- not run: (?P<reason>.+?) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it starts, its language, title and text, and why it is not run; None if it is."""

    page: str
    line: int
    language: str
    title: str | None
    text: str
    not_run: str | None

    @property
    def where(self) -> str:
        """The page and line, for messages."""
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Return the paths of all pages in the repository."""
    written = sorted((REPOSITORY / "docs" / "pages").rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *(str(path.relative_to(REPOSITORY)) for path in written)]


def blocks_of(page: str) -> list[Block]:
    """Return the blocks of a page in their order."""
    return list(_blocks(page, (REPOSITORY / page).read_text(encoding="utf-8").splitlines()))


def _blocks(page: str, lines: list[str]) -> Iterator[Block]:
    opened: tuple[int, re.Match[str]] | None = None
    reason: str | None = None
    for number, line in enumerate(lines, start=1):
        fence = _FENCE.match(line)
        if opened is None:
            if fence is not None:
                assert not fence["rest"].strip(), f"{page}:{number}: unexpected text after the language of a block"
                opened = (number, fence)
            elif line.strip():
                marker = _NOT_RUN.match(line)
                reason = marker["reason"] if marker else None
        elif line.strip() == "```":
            start, first = opened
            text = "\n".join(inner.removeprefix(first["indent"]) for inner in lines[start : number - 1]) + "\n"
            yield Block(page, start, first["language"], first["title"], text, reason)
            opened, reason = None, None
    assert opened is None, f"{page}: a block is not closed"
