"""LaTeX tables: what is in them, and that they fit pages of one and of two columns."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.report.latex import breakable, latex_tables
from kwbench.report.leaderboard import boards
from support.records import deterministic, network
from support.report_records import fill, verdicts

_DOCUMENT = r"""\documentclass[%s]{article}
\usepackage{booktabs}
\begin{document}
\input{tables}
\end{document}
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "results.db"), create=True)


def tables(store: Store) -> str:
    made = latex_tables(boards(summaries(store)), "A_rob is an upper bound.")
    store.close()
    return made


def test_wide_and_long_tables_compile_and_fit_pages_of_one_and_of_two_columns(store: Store, tmp_path: Path) -> None:
    engine = shutil.which("pdflatex")
    if engine is None or subprocess.run(["kpsewhich", "booktabs.sty"], check=False, capture_output=True).returncode:
        pytest.skip("no pdflatex with booktabs on the PATH")
    fill(store)
    verdicts(store)
    many = {f"relaxed-cross-entropy-targets x{number}": 0.9 - 0.02 * number for number in range(12)}
    for number in range(12):
        name = f"cifar10/resnet18-w16-kwta0.1-incremental-adversarial-{number}-ofalongwordwithoutanysign"
        network(store, name, 0.99, many, seed=number, suite="wide", dataset="cifar10", n=20)
    (tmp_path / "tables.tex").write_text(tables(store), encoding="utf-8")
    for columns in ("onecolumn", "twocolumn"):
        (tmp_path / "paper.tex").write_text(_DOCUMENT % columns, encoding="utf-8")
        words = [engine, "-interaction=nonstopmode", "paper.tex"]
        ended = subprocess.run(words, cwd=tmp_path, check=False, capture_output=True, timeout=120)
        log = (tmp_path / "paper.log").read_text(encoding="latin-1")
        assert ended.returncode == 0, log[-2000:]
        assert re.findall(r"Overfull.*|.*Float too large.*", log) == []


def test_the_best_is_bold_where_it_is_significantly_best(store: Store) -> None:
    for model, rob in (("good", 0.9), ("bad", 0.1)):
        network(store, model, 0.95, {"pgd": rob})
    for model, letters in (("a", "hhhb"), ("b", "hhhb")):
        deterministic(store, {"clean": "hhhh", "pgd": letters}, model=model, suite="equal")
    clear, equal = tables(store).split(r"\end{table}")[:2]
    assert re.findall(r"\\textbf\{([\d.]+)\}", clear) == ["90.0"]
    assert "significantly better" in clear
    assert r"\textbf" not in equal
    assert r"$A_\mathrm{rob}$ is an upper bound" in equal
    assert r"\label{tab:digits-linf-8-255-papers}" in clear


def test_verdicts_and_all_attacks_stand_in_the_tables_however_they_are_split(store: Store) -> None:
    attacks = {f"attack{number}": 0.5 for number in range(20)}
    network(store, "net", 0.9, attacks)
    verdicts(store)
    text = tables(store)
    assert all(re.search(rf"\{{{label}\}}", text) for label in attacks)
    assert {"confirmed", "overestimated", "inconclusive"} <= set(re.findall(r"[a-z]+", text))
    labels = re.findall(r"\\label\{(.*?)\}", text)
    assert len(labels) == len(set(labels))


def test_long_names_may_be_broken_after_signs_and_within_long_words() -> None:
    assert breakable("net-a") == r"net-\allowbreak{}a"
    assert breakable("kwta0.1-at (stochastic)") == r"kwta0.1-\allowbreak{}at \allowbreak{}(stochastic)"
    assert breakable("x" * 12) == "x" * 10 + r"\allowbreak{}xx"
    assert r"\_" in breakable("a_b")
