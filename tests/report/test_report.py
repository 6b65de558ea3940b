"""Reports are true, stable, inert and readable: also in a real browser, with every field hostile."""

import csv
import io
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kwbench.config.registry import read_registry
from kwbench.errors import CannotEvaluate
from kwbench.formatting import count_text, duration_text, latex, markdown, plain, spreadsheet
from kwbench.outcome import Status
from kwbench.record.results import to_json
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.report import write_report
from kwbench.report.leaderboard import boards
from kwbench.report.terminal import text_table
from support.records import deterministic, drawn, network, record, rows, specification
from support.report_records import fill, hostile, verdicts

EVERYTHING = {"html", "single-file", "markdown", "csv", "latex", "verdicts"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(str(tmp_path / "results.db"), create=True)
    yield opened
    opened.close()


def report(store: Store, folder: Path) -> dict[str, str]:
    written = write_report(store, folder, EVERYTHING)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in written}


def pages(files: dict[str, str]) -> dict[str, str]:
    """Return the web pages among the files of a report."""
    return {name: text for name, text in files.items() if name.endswith(".html")}


def run_pages(files: dict[str, str]) -> str:
    """Return the pages of all evaluations, one after the other."""
    return "".join(text for name, text in files.items() if name.startswith("runs/"))


def test_the_report_is_written_in_every_format(store: Store, tmp_path: Path) -> None:
    fill(store)
    files = report(store, tmp_path / "reports")
    alone = {
        "index.html",
        "compare.html",
        "results.json",
        "leaderboard.html",
        "leaderboard.md",
        "results.csv",
        "tables.tex",
        "verdicts.md",
    }
    assert {name for name in files if "/" not in name} == alone
    assert len([name for name in files if name.startswith("runs/") and name.endswith(".html")]) == len(store.evaluations())
    assert set(write_report(store, tmp_path / "one", {"csv"})) == {tmp_path / "one" / "results.csv"}


def test_equal_records_give_equal_bytes(store: Store, tmp_path: Path) -> None:
    fill(store)
    assert report(store, tmp_path / "a") == report(store, tmp_path / "b")


def test_an_empty_record_gives_a_page_that_says_so(store: Store, tmp_path: Path) -> None:
    files = report(store, tmp_path)
    assert "The record is empty" in files["index.html"]
    assert "The record is empty" in files["leaderboard.md"]


def test_only_comparable_evaluations_share_a_table_and_the_best_comes_first(store: Store) -> None:
    fill(store)
    found = boards(summaries(store))
    assert [(board.threat.eps_text, [row.summary.model for row in board.rows]) for board in found] == [
        ("0.1", ["resnet18-relu"]),
        ("0.2", ["resnet18-relu-at", "resnet18-kwta0.1-at", "wrn", "resnet18-relu", "stochastic-at", "unfinished"]),
    ] or [row.summary.model for row in found[1].rows][-1] == "unfinished"
    ranked = [row for row in found[1].rows if row.rank is not None]
    values = [row.summary.a_rob.value for row in ranked if row.summary.a_rob]
    assert values == sorted(values, reverse=True)
    assert [row.rank for row in ranked] == list(range(1, len(ranked) + 1))


def test_incomplete_evaluations_are_last_unranked_and_say_why(store: Store, tmp_path: Path) -> None:
    fill(store)
    row = boards(summaries(store))[1].rows[-1]
    assert (row.summary.model, row.rank, row.summary.a_rob) == ("unfinished", None, None)
    files = report(store, tmp_path)
    for name in ("index.html", "leaderboard.md", "tables.tex"):
        assert "incomplete" in files[name]
    assert "12 of 360 samples" in files["index.html"]
    assert "12 of 360 samples" in files["leaderboard.md"]


def test_the_newest_evaluation_of_a_model_stands_in_the_table_and_older_ones_beneath(store: Store) -> None:
    fill(store)
    board = boards(summaries(store))[1]
    assert [each.model for each in board.earlier] == ["wrn"]
    assert [row.summary.model for row in board.rows].count("wrn") == 1


def test_the_verdict_stands_beside_the_number_in_every_format_with_its_reasons(store: Store, tmp_path: Path) -> None:
    verdicts(store)
    files = report(store, tmp_path)
    shown = (name for name in files if "/" not in name and name != "compare.html")
    for text in (*(files[name] for name in shown), terminal(store)):
        for word in ("confirmed", "overestimated", "inconclusive"):
            assert word in text
    for text in (run_pages(files), files["leaderboard.html"], files["leaderboard.md"], files["verdicts.md"]):
        assert "Overestimated: the accuracy under pgd is 70" in text
        assert "never proof" in text
        assert "could not be carried out" in text
    assert "never proof" in terminal(store)
    assert "gradients are shattered" in run_pages(files)
    assert re.search(r'href="runs/[0-9a-f]{16}.html#evidence"><span class="tag overestimated">', files["index.html"])


def test_without_a_diagnosis_no_table_speaks_of_verdicts(store: Store, tmp_path: Path) -> None:
    fill(store)
    files = report(store, tmp_path)
    for name in ("leaderboard.md", "results.csv", "tables.tex"):
        assert "erdict" not in files[name]
    assert '<th scope="col" data-key="verdict"' not in files["index.html"]


def test_what_a_finding_quotes_is_shown_and_never_run(store: Store, tmp_path: Path) -> None:
    verdicts(store)
    files = report(store, tmp_path)
    for text in pages(files).values():
        assert "<img src=x" not in text
    assert "&lt;img src=x" in run_pages(files)
    assert "<img src=x" not in files["leaderboard.md"]
    assert "](javascript" not in files["leaderboard.md"]


def terminal(store: Store, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(text_table(summaries(store)))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_models_that_cannot_be_told_apart_from_the_best_are_marked(store: Store) -> None:
    letters = "h" * 200 + "b" * 160
    for name, shift in (("best", 0), ("close", 2), ("far", 60)):
        deterministic(store, {"clean": "h" * 360, "pgd": "b" * shift + letters[shift:]}, model=name)
    rows_ = boards(summaries(store))[0].rows
    assert [(row.summary.model, row.tied) for row in rows_] == [("best", True), ("close", True), ("far", False)]


def test_equal_models_share_a_rank(store: Store) -> None:
    for name in ("a", "b", "c"):
        deterministic(store, {"clean": "hhhh", "pgd": "hhbb" if name < "c" else "hbbb"}, model=name)
    assert [row.rank for row in boards(summaries(store))[0].rows] == [1, 1, 3]


def test_a_model_that_stands_alone_is_not_tied_with_itself(store: Store) -> None:
    deterministic(store, {"clean": "hhhh", "pgd": "hhbb"})
    assert not boards(summaries(store))[0].rows[0].tied


def test_every_accuracy_has_its_interval_and_n_and_the_wording_is_honest(store: Store, tmp_path: Path) -> None:
    fill(store)
    files = report(store, tmp_path)
    for name in ("index.html", "leaderboard.md", "tables.tex"):
        assert "stronger attacks can only lower it" in files[name]
        assert "360" in files[name]
    cells = [cell.strip() for line in files["leaderboard.md"].splitlines() for cell in line.split("|")]
    assert any(re.fullmatch(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", cell) for cell in cells)
    assert not any(re.fullmatch(r"\d+\.\d", cell) for cell in cells)


def test_both_judging_rules_and_the_surrogates_accuracy_are_shown(store: Store, tmp_path: Path) -> None:
    spec = specification(n=3, attacks={"clean": {}, "deepfool": {"judged": "distance"}, "transfer": {"surrogate": "vgg"}})
    found = {
        "clean": rows("hhh"),
        "deepfool": [*rows("h", other_status=Status.BROKEN), *rows("hh", start=1, other_status=Status.HELD)],
        "transfer": rows("hhh", surrogate_prediction=0),
    }
    record(store, spec, found)
    page = run_pages(report(store, tmp_path))
    assert "clipped: 66.7" in page
    assert re.search(r"on vgg: \d", page)


def test_provenance_and_attack_parameters_are_in_the_page(store: Store, tmp_path: Path) -> None:
    evaluation = deterministic(store, {"clean": "hhhh", "pgd": "hhbb"}, attacks={"clean": {}, "pgd": {"steps": 4711}})
    page = run_pages(report(store, tmp_path))
    for wanted in (evaluation.spec.identity, "4711", "model_sha256", "2.13.0"):
        assert wanted in page


def test_evaluations_by_an_earlier_version_are_marked_and_no_others(store: Store, tmp_path: Path) -> None:
    deterministic(store, {"clean": "hhhh", "pgd": "hhbb"}, model="old", origin={"engine": None})
    deterministic(store, {"clean": "hhhh", "pgd": "hhbb"}, model="new")
    files = report(store, tmp_path)
    mark = "measured by an earlier version of kwbench"
    assert re.findall(rf"- (\w+): {mark}", files["leaderboard.md"]) == ["old"]
    (table,) = re.findall(r"<tbody>.*?</tbody>", files["index.html"], re.DOTALL)
    marked = [row for row in table.split("</tr>") if mark in row]
    assert len(marked) == 1
    assert ">old</bdi>" in marked[0]


def test_a_cascade_says_that_it_is_one(store: Store, tmp_path: Path) -> None:
    deterministic(store, {"clean": "whhh", "pgd": ".hbh", "fgsm": ".b.h"}, spec={"cascade": True})
    files = report(store, tmp_path)
    for text in (files["index.html"], files["leaderboard.html"], run_pages(files)):
        assert "only on the samples that no earlier attack had broken" in text
    for name in ("leaderboard.md", "tables.tex"):
        assert "Cascade:" in files[name]
    assert "Cascade:" in terminal(store)


def test_a_cascade_tells_what_broke_what_did_not_run_and_what_it_took(store: Store, tmp_path: Path) -> None:
    spec = {
        "cascade": True,
        "passes": {"pgd": 400, "es": 1000, "es x2": 2000},
        "after": {"es x2": ["es"], "es x4": ["es x2"]},
        "protocol_attacks": ["pgd"],
    }
    letters = {"clean": "whhh", "pgd": ".hbh", "es": ".h.h", "es x2": "....", "es x4": "...."}
    deterministic(store, letters, spec=spec)
    files = report(store, tmp_path)
    page = re.sub(r"<[^>]*>", "", run_pages(files))
    for text in (files["leaderboard.md"].replace("\\", ""), terminal(store)):
        assert "net: samples whose worst case is due to each attack: pgd 1 of 3." in text
        assert "net: did not run: es x2 (es gained nothing)." in text
        assert "net: 6 passes per sample, out of at most 1.4k if no sample had been broken." in text
        assert "net: accuracy under pgd alone: 50.0 [6.8, 93.2]." in text
    assert "es x2: es gained nothing\nes x4: es x2 gained nothing" in page
    assert "All attacks together: 6 passes per sample, out of at most 1.4k" in page
    assert "Usual protocol, pgd50.0 [6.8, 93.2]" in page


def test_columns_stand_where_the_suite_has_them(store: Store) -> None:
    protocol = [
        {"label": "pgd", "when": "always"},
        {"label": "es", "when": "stochastic", "escalate": 1},
        {"label": "cw", "when": "always"},
    ]
    deterministic(store, {"clean": "hh", "pgd": "hh", "cw": "hh"}, spec={"protocol": protocol})
    attacks = ("clean", "pgd", "es", "es x2", "cw")
    spec = specification("random", attacks, n=2, stochastic=True, spec={"protocol": protocol})
    record(store, spec, {label: drawn([9, 9], [9, 9]) for label in attacks})
    (board,) = boards(summaries(store))
    assert board.labels == ("pgd", "es", "es x2", "cw")


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.attributes: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links |= {value or "" for name, value in attrs if name in ("href", "src", "action")}


def _elements(page: str) -> _Elements:
    parser = _Elements()
    parser.feed(page)
    return parser


def test_hostile_names_add_no_element_attribute_or_link_to_a_page(store: Store, tmp_path: Path) -> None:
    fill(store)
    verdicts(store)
    known = [_elements(page) for page in pages(report(store, tmp_path / "harmless")).values()]
    hostile(store)
    for page in pages(report(store, tmp_path / "hostile")).values():
        found = _elements(page)
        assert found.found <= set.union(*(page.found for page in known))
        assert found.attributes <= set.union(*(page.attributes for page in known))
        own = (
            r"#[a-z0-9./-]+|data:,|[0-9a-f]{16}\.js|(\.\./)?(index\.html(#[a-z0-9.-]+(\?tab=[a-z0-9.-]+)?)?|compare\.html(#a=[0-9a-f]{16})?|assets/[a-z.]+"
            r"|runs/[0-9a-f]{16}\.html(#evidence)?|results\.(csv|json)|data:image/svg\+xml;base64,[A-Za-z0-9+/]+=*)"
        )
        papers = {paper.url for paper in read_registry().papers.values()}
        assert [link for link in found.links - papers if not re.fullmatch(own, link)] == []
        text = re.sub("<script>.*?</script>", "", page, flags=re.DOTALL)
        assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text)
        assert "49" not in re.findall(r"<bdi>(\d+)</bdi>", page)


def test_pages_load_nothing_and_forbid_all_but_their_own_style_and_scripts(store: Store, tmp_path: Path) -> None:
    fill(store)
    for name, page in pages(report(store, tmp_path)).items():
        text = re.sub("<script>.*?</script>", "", page, flags=re.DOTALL)
        # Papers are linked to and cited; nothing is loaded from another place.
        assert not re.search(r'(src|srcset|action|<link[^>]* href)="[a-z]*:?//', text)
        policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
        assert policy is not None
        assert policy[1].startswith("default-src 'none'; style-src 's")
        assert ("'self'" in policy[1]) == (name != "leaderboard.html")
        assert "unsafe" not in policy[1]
        assert " style=" not in text
        assert not re.search(r"\son\w+=", text)


def test_a_board_has_the_newest_complete_evaluation_of_a_model(store: Store) -> None:
    attacks: dict[str, dict[str, Any]] = {"clean": {}, "pgd": {}}
    deterministic(store, {"clean": "hhhh", "pgd": "hhbb"}, attacks=attacks, model="net")
    deterministic(store, {"clean": "hhhh", "pgd": "h..."}, attacks=attacks, model="net", checkpoint="new")
    (board,) = boards(summaries(store))
    assert [row.rank for row in board.rows] == [1]
    assert [summary.complete for summary in board.earlier] == [False]


def test_suites_of_one_name_share_a_table_that_marks_other_attacks(store: Store, tmp_path: Path) -> None:
    for model, steps in (("a", 10), ("b", 10), ("c", 20)):
        deterministic(store, {"clean": "hhhh", "pgd": "hhbb"}, attacks={"clean": {}, "pgd": {"steps": steps}}, model=model)
    assert len(boards(summaries(store))) == 2
    index = report(store, tmp_path)["index.html"]
    (table,) = re.findall(r"<tbody>.*?</tbody>", index, re.DOTALL)
    assert [">c</bdi>" in row for row in table.split("</tr>") if "other attacks" in row] == [True]


def test_natural_perturbations_have_tables_of_their_own_after_all_others(store: Store, tmp_path: Path) -> None:
    for number, (eps, attack) in enumerate((("1", "rotation"), ("1", "pgd"), ("8/255", "pgd"))):
        spec = specification("net", {"clean": {}, "x": {}}, eps=eps, suite=f"suite {number}")
        named = tuple(replace(one, spec={**one.spec, "attack": attack}) for one in spec.attacks)
        record(store, replace(spec, attacks=named), {"clean": rows("hhhh"), "x": rows("hhhh")})
    index = report(store, tmp_path)["index.html"]
    assert re.findall(r'<h2 id="h-[^"]+"><bdi>([^<]+)', index) == ["digits, linf 8/255", "digits, linf 1", "digits, linf 1"]
    assert index.index("Natural perturbations, without a search") < index.index("Random natural perturbations")
    assert index.rindex('class="board"') > index.index("Random natural perturbations")


def test_markdown_shows_hostile_names_as_text(store: Store, tmp_path: Path) -> None:
    hostile(store)
    text = report(store, tmp_path)["leaderboard.md"]
    assert "<img" not in text
    assert "<script" not in text
    assert "](javascript" not in text
    assert "@all" not in text
    assert "https://" not in text
    assert "\u202e" not in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        bars = {re.sub(r"\\.", "", line).count("|") for line in table.splitlines()}
        assert len(bars) == 1


def test_csv_starts_no_formula_and_keeps_numbers_numbers(store: Store, tmp_path: Path) -> None:
    hostile(store)
    for name in ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"):
        deterministic(store, {"clean": "hhhh", "pgd": "hhbb"}, model=name)
    lines = list(csv.DictReader(io.StringIO(report(store, tmp_path)["results.csv"])))
    for line in lines:
        for name, cell in line.items():
            assert "\n" not in cell
            if cell.lstrip().startswith(("=", "+", "-", "@")):
                float(cell)
            if name in ("accuracy", "n", "seconds", "a_std") and cell:
                float(cell)
    assert {"'=1+1", "'-1"} <= {line["model"] for line in lines}


def test_latex_sets_hostile_names_as_text(store: Store, tmp_path: Path) -> None:
    hostile(store)
    text = report(store, tmp_path)["tables.tex"]
    assert r"\input" not in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\begin{tabular}{@{}p")
    assert r"\textbackslash{}input\{/etc/passwd\} \$x\_1\textasciicircum{}2\$ \textasciitilde{} \# \& \%" in text


def test_the_terminal_shows_hostile_names_as_text(store: Store) -> None:
    hostile(store)
    deterministic(store, {"clean": "hhhh", "[red]x": "hhbb"}, model="[bold]loud[/bold]")
    console = Console(width=200, record=True, file=io.StringIO(), force_terminal=False)
    console.print(text_table(summaries(store)))
    text = console.export_text()
    assert "[bold]loud[/bold]" in text
    assert "\x1b[31m" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_terminals_tables_fit_its_width_and_lose_nothing(store: Store, width: int) -> None:
    fill(store)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(text_table(summaries(store)))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for name in ("resnet18-kwta0.1-at", "autoattack", "A_rob", "A_std"):
        assert name in text


def test_words_and_numbers_are_written_plainly() -> None:
    assert plain("a\u202eb\x00\n") == "a\\u202eb\\u0000\\u000a"
    assert len(plain("x" * 10_000)) == 200
    assert plain("é漢字🙂") == "é漢字🙂"
    assert markdown("a|b_c") == "a\\|b\\_c"
    assert latex("50%_x") == "50\\%\\_x"
    assert spreadsheet("=1") == "'=1"
    assert [count_text(value) for value in (0, 950, 12_345, 999_999, 4_560_000, 3e12)] == [
        "0",
        "950",
        "12.3k",
        "1M",
        "4.56M",
        "3T",
    ]
    assert [duration_text(value) for value in (0.123, 59.7, 119.7, 7260)] == ["0.12 s", "1 min 0 s", "2 min 0 s", "2 h 1 min"]


def test_a_folder_that_cannot_be_written_is_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotEvaluate, match="cannot be written"):
        write_report(store, tmp_path / "file" / "reports", {"html"})


def test_a_failed_write_leaves_the_old_report(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(store, tmp_path / "reports", {"html"})
    before = {path: path.read_bytes() for path in (tmp_path / "reports").rglob("*.html")}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CannotEvaluate, match="No space left"):
        write_report(store, tmp_path / "reports", {"html"})
    assert {path: path.read_bytes() for path in (tmp_path / "reports").rglob("*.html")} == before
    assert not list((tmp_path / "reports").rglob(".*"))


def test_forty_models_take_a_moment(store: Store, tmp_path: Path) -> None:
    drops = {f"attack-{number}": 0.5 + number / 100 for number in range(4)}
    for seed in range(40):
        network(store, f"model-{seed}", 0.95, drops, n=40, seed=seed)
    started = time.process_time()
    write_report(store, tmp_path, EVERYTHING)
    # A few seconds, whatever else runs; the limit only catches what has become quadratic.
    assert time.process_time() - started < 10


def test_notes_on_a_model_stand_under_its_table_and_in_the_json(store: Store) -> None:
    spec = specification(provenance={"notes": ["answers in \x1b[31mtuples"]})
    record(store, spec, {"clean": rows("hhhh"), "pgd": rows("hhbb")})
    (summary,) = summaries(store)
    console = Console(width=160)
    with console.capture() as captured:
        console.print(text_table([summary]))
    assert r"net: answers in \u001b[31mtuples." in captured.get()
    assert to_json(summary)["notes"] == ["answers in \x1b[31mtuples"]
