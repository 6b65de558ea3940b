"""The cells of the papers' tables, as printed."""

import csv
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.threat import NORMS, ThreatModel

PAPERS: dict[str, str] = {
    "xiao2020": "Xiao, Zhong, Zheng: Enhancing adversarial defense by k-winners-take-all, ICLR 2020, arXiv:1905.10510",
    "costa2020": 'Costa, Antonini: Reproducing results of "Enhancing adversarial defense by k-WTA", 2020',
    "panousis2021": (
        "Panousis, Chatzis, Theodoridis: Stochastic local winner-takes-all networks enable profound adversarial robustness, "
        "2021, arXiv:2112.02671"
    ),
    "hicheur2024": "Hicheur, Bourdrez, Kaspar: Training robust neural networks: stochastic local winner takes it all, 2024",
}

Pretrained = Literal["no", "imagenet"]

_FILE = Path(__file__).parent / "claims.csv"

_COLUMNS = (
    "paper",
    "table",
    "dataset",
    "architecture",
    "pretrained",
    "training",
    "activation",
    "attack",
    "norm",
    "eps",
    "accuracy_percent",
    "quoted_from",
    "inferred",
    "note",
)
_REQUIRED = _COLUMNS[:8]

# The tables' names for the accuracy without an attack and for the worst case.
CLEAN = ("A_std", "clean")
WORST = "A_rob"


@dataclass(frozen=True, slots=True)
class Claim:
    """One cell of a table: the accuracy of a network under an attack.

    Args:
        norm, eps: Empty without an attack, or if the paper states none.
        text: The accuracy in percent, as printed.
        quoted_from: The source of a number that is not the paper's own.
        inferred: The columns that the paper does not state.
    """

    paper: str
    table: str
    dataset: str
    architecture: str
    pretrained: Pretrained
    training: str
    activation: str
    attack: str
    norm: str
    eps: str
    text: str
    quoted_from: str
    inferred: tuple[str, ...]
    note: str

    @property
    def percent(self) -> float:
        """The accuracy in percent."""
        return float(self.text)

    @property
    def decimals(self) -> int:
        """The number of printed decimals."""
        return len(self.text.partition(".")[2])

    @property
    def threat(self) -> ThreatModel | None:
        """The threat model; None without an attack, or if the paper states no radius."""
        return ThreatModel.of(self.norm, self.eps) if self.norm and self.eps else None

    @property
    def attacked(self) -> bool:
        """Whether the images were attacked; False for clean images and for natural perturbations."""
        return bool(self.norm)

    @property
    def network(self) -> tuple[str, ...]:
        """The columns that the cells of one row of a table share."""
        return tuple(getattr(self, name) for name in _COLUMNS[:7])

    @property
    def name(self) -> str:
        """The cell as text."""
        pretrained = [] if self.pretrained == "no" else ["pre-trained"]
        parts = [self.dataset, self.architecture, *pretrained, self.training, self.activation, self.attack]
        table = f"table {self.table}" if self.table.isdigit() else self.table
        return f"{self.paper}, {table}: {', '.join(parts)}"


def read_claims(path: Path = _FILE) -> list[Claim]:
    """Read the claims in a CSV file, by default those that come with kwbench, in the order of the tables.

    Raises:
        CannotEvaluate: The file cannot be read.
        DamagedData: A cell is invalid or occurs twice; the message names line and column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            lines = list(csv.reader(stream, strict=True))
    except OSError as failure:
        raise CannotEvaluate(f"{path}: cannot be read ({failure.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as failure:
        raise DamagedData(f"{path}: not a CSV file in UTF-8 ({failure})") from None
    if not lines or tuple(lines[0]) != _COLUMNS:
        raise DamagedData(f"{path}:1: the columns must be {','.join(_COLUMNS)}")
    claims: list[Claim] = []
    seen: dict[tuple[str, ...], int] = {}
    for number, cells in enumerate(lines[1:], start=2):
        claim = _claim(cells, f"{path}:{number}")
        key = (*claim.network, claim.attack)
        if key in seen:
            raise DamagedData(f"{path}:{number}: the same cell as line {seen[key]}")
        seen[key] = number
        claims.append(claim)
    return claims


def _claim(cells: list[str], where: str) -> Claim:
    if len(cells) != len(_COLUMNS):
        raise DamagedData(f"{where}: {len(cells)} columns where {len(_COLUMNS)} should be")
    row = dict(zip(_COLUMNS, cells, strict=True))
    for name in _REQUIRED:
        if not row[name]:
            raise DamagedData(f"{where}: {name}: is empty")
    if row["paper"] not in PAPERS:
        raise DamagedData(f"{where}: paper: {row['paper']!r} is none of {', '.join(PAPERS)}")
    if row["pretrained"] not in get_args(Pretrained):
        raise DamagedData(f"{where}: pretrained: {row['pretrained']!r} is none of {', '.join(get_args(Pretrained))}")
    if row["norm"] not in ("", *NORMS) or (row["eps"] and not row["norm"]):
        raise DamagedData(f"{where}: norm: {row['norm']!r} is none of {', '.join(NORMS)}")
    inferred = tuple(row["inferred"].split())
    for name in inferred:
        # "loss" is a part of the attack that has no column.
        if name not in (*_COLUMNS, "loss"):
            raise DamagedData(f"{where}: inferred: {name!r} is no column")
    text = row.pop("accuracy_percent")
    whole, point, decimals = text.partition(".")
    if not (whole.isdecimal() and (decimals.isdecimal() or not point) and text.isascii()):
        raise DamagedData(f"{where}: accuracy_percent: {text!r} is not a decimal number")
    claim = Claim(**{**row, "text": text, "inferred": inferred})  # type: ignore[arg-type]
    try:
        _ = claim.threat
    except UsageError as failure:
        raise DamagedData(f"{where}: {failure}") from None
    return claim


assert {field.name for field in fields(Claim)} == {*_COLUMNS, "text"} - {"accuracy_percent"}
