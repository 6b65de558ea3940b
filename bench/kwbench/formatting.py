"""Names and numbers as text for people: names made harmless, accuracies as percentages."""

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kwbench.statistics import Interval

_LONGEST = 200


def plain(text: object, longest: int = _LONGEST) -> str:
    """Return text on one line of limited length, with control, format and bidirectional characters escaped."""
    whole = str(text)
    short = whole if len(whole) <= longest else whole[: longest - 1] + "…"
    if short.isascii() and short.isprintable():
        return short
    return "".join(_visible(character) for character in short)


def printable(text: str, *, keep: str = "") -> str:
    """Return the text with a question mark for each control character, which could take over a terminal; `keep` stays."""
    return "".join(character if character.isprintable() or character in keep else "?" for character in text)


def _visible(character: str) -> str:
    # Cc, Cf (joiners, bidirectional overrides), Cs, Co, Cn, and the line and paragraph separators.
    if unicodedata.category(character)[0] == "C" or character in "\u2028\u2029":
        return f"\\u{ord(character):04x}"
    return character


def percent(value: float, n: int) -> str:
    """Return a fraction as percent with one decimal, from n = 1,000 samples on with two: 97.5, 97.53."""
    return f"{100 * value:.{1 if n < 1000 else 2}f}"


def interval_text(interval: "Interval | None", n: int, missing: str = "–") -> str:
    """Return an accuracy in percent with its 95 % interval: "97.5 [95.3, 98.8]"."""
    if interval is None:
        return missing
    return f"{percent(interval.value, n)} [{percent(interval.low, n)}, {percent(interval.high, n)}]"


def count_text(value: float) -> str:
    """Return a count in at most four characters and a suffix: 950, 12.3k, 4.56M, 1.2G."""
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.0f}"


def duration_text(seconds: float) -> str:
    """Return a duration as text: 0.42 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def markdown(text: object, longest: int = _LONGEST) -> str:
    """Escape text so that Markdown shows it unchanged: no markup, HTML, links, mentions or table cells."""
    escaped = plain(text, longest).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = re.sub(r"([\\`*_{}\[\]()#|~!$])", r"\\\1", escaped)
    # GitHub turns bare addresses into links and @names into mentions.
    return escaped.replace("@", "&#64;").replace("://", "&#58;//").replace("www.", "www&#46;")


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "…": r"\dots{}",
}


def latex(text: object) -> str:
    """Escape text for LaTeX."""
    return "".join(_LATEX.get(character, character) for character in plain(text))


def spreadsheet(text: object) -> str:
    """Escape text so that no spreadsheet runs it as a formula (CWE-1236)."""
    shown = plain(text)
    return f"'{shown}" if shown.lstrip(" ").startswith(("=", "+", "-", "@", "|", "%")) else shown
