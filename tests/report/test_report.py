"""Reports are true, stable, inert and readable: also in a real browser, with every field hostile."""

import csv
import io
import re
import shutil
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from kwbench.errors import CannotEvaluate
from kwbench.finding import Finding
from kwbench.formatting import count_text, duration_text, latex, markdown, plain, spreadsheet
from kwbench.outcome import Status
from kwbench.record.results import to_json
from kwbench.record.store import Store
from kwbench.record.summary import summaries
from kwbench.report import write_report
from kwbench.report.leaderboard import boards
from kwbench.report.terminal import text_table
from support.records import deterministic, drawn, network, record, rows, specification

EVERYTHING = {"html", "markdown", "csv", "latex", "verdicts"}
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "</style><style>body{display:none}",
    "javascript:alert(1)",
    '" onmouseover="alert(1)',
    "a\u202eb\u2066c\x00\x1b[31m\r\nd",
    "{{ 7 * 7 }}{% raw %}",
    "=cmd|'/C calc'!A1",
    "[x](javascript:alert(1)) | `a` @all https://example.com",
    r"\input{/etc/passwd} $x_1^2$ ~ # & %",
    "é漢字🙂" * 40,
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(str(tmp_path / "results.db"), create=True)
    yield opened
    opened.close()


def fill(store: Store) -> None:
    """Two threat models, ranked, tied, stochastic, incomplete and superseded evaluations."""
    attacks: dict[str, dict[str, Any]] = {
        "clean": {},
        "fgsm": {},
        "pgd": {"steps": 40},
        "deepfool": {"judged": "distance"},
        "autoattack": {},
    }
    for seed, (name, std, rob) in enumerate(
        [
            ("resnet18-relu", 0.99, 0.01),
            ("resnet18-relu-at", 0.98, 0.64),
            ("resnet18-kwta0.1-at", 0.96, 0.62),
            ("wrn", 0.99, 0.3),
        ]
    ):
        drops = {"fgsm": rob + 0.2, "pgd": rob + 0.05, "deepfool": rob + 0.1, "autoattack": rob}
        network(store, name, std, drops, seed=seed, attacks=attacks, eps="1/5", suite="all", checkpoint="old")
    network(store, "wrn", 0.98, drops, seed=9, attacks=attacks, eps="1/5", suite="all", checkpoint="new")
    network(store, "resnet18-relu", 0.99, drops, seed=1, attacks=attacks, eps="1/10", suite="all")
    rng = np.random.default_rng(0)
    p = rng.beta(8, 1, 360)
    spec = specification("stochastic-at", attacks, n=360, eps="1/5", suite="all", stochastic=True)
    record(store, spec, {label: drawn(rng.binomial(100, p), rng.binomial(100, p)) for label in attacks})
    spec = specification("unfinished", attacks, n=360, eps="1/5", suite="all")
    record(store, spec, {"clean": rows("h" * 360), "fgsm": rows("h" * 12)})


def report(store: Store, folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in write_report(store, folder, EVERYTHING)}


def test_the_report_is_written_in_every_format(store: Store, tmp_path: Path) -> None:
    fill(store)
    files = report(store, tmp_path / "reports")
    assert set(files) == {"index.html", "leaderboard.md", "results.csv", "tables.tex", "verdicts.md"}
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


def diagnose(store: Store, model: str, *findings: Finding) -> None:
    for each in store.evaluations():
        if each.spec.model == model:
            store.record_findings(each.id, findings)


def verdicts(store: Store) -> None:
    """A confirmed, an overestimated, an inconclusive model, and one that was not diagnosed."""
    enough = Finding("twice the budget", 0.0, 0.01, False, "twice the budget takes 0.0 points", (), "doubt", role="budget")
    masked = Finding("shattered gradients", 0.1, 0.6, True, "gradients are shattered", ("a", "b"), "masking")
    unseen = Finding("unseen", 1.0, 0.0, True, f"not seen: {HOSTILE[0]} {HOSTILE[7]} {HOSTILE[8]}", (), "doubt")
    unfinished = Finding("eps sweep", None, 0.0, False, "could not be carried out", (), "doubt")
    spec = {"protocol_attacks": ["pgd"]}
    for name, drops in (("sound", [0.6, 0.6]), ("masked", [0.8, 0.1]), ("odd", [0.5, 0.5]), ("plain", [0.4, 0.4])):
        network(store, name, 0.9, dict(zip(("pgd", "es"), drops, strict=True)), spec=spec, origin={"classes": 10})
    diagnose(store, "sound", enough)
    diagnose(store, "masked", enough, masked)
    diagnose(store, "odd", enough, unseen, unfinished)


def test_the_verdict_stands_beside_the_number_in_every_format_with_its_reasons(store: Store, tmp_path: Path) -> None:
    verdicts(store)
    files = report(store, tmp_path)
    for text in (*files.values(), terminal(store)):
        for word in ("confirmed", "overestimated", "inconclusive"):
            assert word in text
    for name in ("index.html", "leaderboard.md", "verdicts.md"):
        assert "Overestimated: the accuracy under pgd is 70" in files[name]
        assert "never proof" in files[name]
        assert "could not be carried out" in files[name]
    assert "never proof" in terminal(store)
    assert "<summary>" in files["index.html"]
    assert "gradients are shattered" in files["index.html"]
    assert "not diagnosed" in files["index.html"]


def test_without_a_diagnosis_no_table_speaks_of_verdicts(store: Store, tmp_path: Path) -> None:
    fill(store)
    files = report(store, tmp_path)
    for name in ("leaderboard.md", "results.csv", "tables.tex"):
        assert "erdict" not in files[name]
    assert "not diagnosed" not in files["index.html"]


def test_what_a_finding_quotes_is_shown_and_never_run(store: Store, tmp_path: Path) -> None:
    verdicts(store)
    files = report(store, tmp_path)
    assert "<img src=x" not in files["index.html"]
    assert "&lt;img src=x" in files["index.html"]
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
    page = report(store, tmp_path)["index.html"]
    assert "clipped: 66.7" in page
    assert re.search(r"on vgg: \d", page)


def test_provenance_and_attack_parameters_are_in_the_page(store: Store, tmp_path: Path) -> None:
    evaluation = deterministic(store, {"clean": "hhhh", "pgd": "hhbb"}, attacks={"clean": {}, "pgd": {"steps": 4711}})
    page = report(store, tmp_path)["index.html"]
    for wanted in (evaluation.spec.identity, "4711", "model_sha256", "2.13.0"):
        assert wanted in page


def test_evaluations_by_an_earlier_version_are_marked_and_no_others(store: Store, tmp_path: Path) -> None:
    deterministic(store, {"clean": "hhhh", "pgd": "hhbb"}, model="old", origin={"engine": None})
    deterministic(store, {"clean": "hhhh", "pgd": "hhbb"}, model="new")
    files = report(store, tmp_path)
    mark = "measured by an earlier version of kwbench"
    assert re.findall(rf"- (\w+): {mark}", files["leaderboard.md"]) == ["old"]
    for table in re.findall(r"<tbody>.*?</tbody>", files["index.html"], re.DOTALL)[:2]:
        marked = [row for row in table.split("</tr>") if mark in row]
        assert len(marked) == 1
        assert ">old</bdi>" in marked[0]


def test_a_cascade_says_that_it_is_one(store: Store, tmp_path: Path) -> None:
    deterministic(store, {"clean": "whhh", "pgd": ".hbh", "fgsm": ".b.h"}, spec={"cascade": True})
    files = report(store, tmp_path)
    assert "only on the samples that no earlier attack had broken" in files["index.html"]
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
    page = re.sub(r"<[^>]*>", "", files["index.html"])
    for text in (files["leaderboard.md"].replace("\\", ""), terminal(store)):
        assert "net: samples whose worst case is due to each attack: pgd 1 of 3." in text
        assert "net: did not run: es x2 (es gained nothing)." in text
        assert "net: 6 passes per sample, out of at most 1.4k if no sample had been broken." in text
        assert "net: accuracy under pgd alone: 50.0 [6.8, 93.2]." in text
    assert "Did not run: es x2 (es gained nothing), es x4 (es x2 gained nothing)." in page
    assert "All attacks together: 6 passes per sample, out of at most 1.4k" in page
    assert "Accuracy under the usual protocol alone, pgd: 50.0 [6.8, 93.2] %." in page


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


def hostile(store: Store) -> None:
    """Every field that a user, a file or a model can fill, filled with every hostile text."""
    for text in HOSTILE:
        evil = {"data_sha256": text, "model_sha256": text, "prediction": {"kind": text, "draws": 1}, text: text}
        deterministic(
            store,
            {"clean": "hhhh", text: "hhb."},
            model=text,
            dataset=text,
            suite=text,
            attacks={"clean": {}, text: {"surrogate": text, "judged": text, text: [text]}, f"{text} x2": {}},
            origin=evil,
            spec={text: text, "not_applicable": {f"{text} x2": text}, "protocol_attacks": [text]},
            provenance={text: text, "command": text},
        )
        found = [*rows("hh", other_status=Status.BROKEN, surrogate_prediction=1, note=text), *rows("h", start=2)]
        deterministic(store, {"clean": "hhh"}, model=text, suite=text)
        record(store, specification(text, {"clean": {}, text: {}}, n=3, suite=f"s{text}"), {"clean": rows("hhh"), text: found})


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


def test_hostile_names_add_no_element_attribute_or_link_to_the_page(store: Store, tmp_path: Path) -> None:
    fill(store)
    harmless = _elements(report(store, tmp_path / "harmless")["index.html"])
    hostile(store)
    page = report(store, tmp_path / "hostile")["index.html"]
    found = _elements(page)
    assert found.found <= harmless.found
    assert found.attributes <= harmless.attributes
    assert all(re.fullmatch(r"#[abhm]\d+(-\d+)?|data:,", link) for link in found.links)
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069]", page)
    assert "49" not in re.findall(r"<bdi>(\d+)</bdi>", page)


def test_the_page_names_no_address_and_forbids_all_but_its_own_style_and_script(store: Store, tmp_path: Path) -> None:
    fill(store)
    page = report(store, tmp_path)["index.html"]
    assert "http://" not in page
    assert "https://" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src &#39;none&#39;;") or policy[1].startswith("default-src 'none';")
    assert "unsafe" not in policy[1]
    assert " style=" not in page
    assert not re.search(r"\son\w+=", page)


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
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\begin{table}")
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
    before = (tmp_path / "reports" / "index.html").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CannotEvaluate, match="No space left"):
        write_report(store, tmp_path / "reports", {"html"})
    assert (tmp_path / "reports" / "index.html").read_bytes() == before
    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["index.html"]


def test_forty_models_take_a_moment(store: Store, tmp_path: Path) -> None:
    drops = {f"attack-{number}": 0.5 + number / 100 for number in range(4)}
    for seed in range(40):
        network(store, f"model-{seed}", 0.95, drops, n=40, seed=seed)
    started = time.perf_counter()
    write_report(store, tmp_path, EVERYTHING)
    # A fraction of a second; the limit only catches what has become quadratic.
    assert time.perf_counter() - started < 10


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"no browser on the PATH (looked for {', '.join(BROWSERS)})")
    playwright = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield opened
        opened.close()


def visit(browser: Any, path: Path, **options: Any) -> tuple[Any, list[str], list[str]]:
    """Open a page; also what it complains of and what it asks the network for."""
    page = browser.new_page(**options)
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))

    def dismiss(dialog: Any) -> None:
        complaints.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", dismiss)
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    return page, complaints, requests


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (768, "dark"), (1440, "light")])
@pytest.mark.parametrize("filled", [fill, hostile])
def test_in_a_browser_the_page_complains_of_nothing_asks_for_nothing_and_does_not_overflow(
    browser: Any, tmp_path: Path, filled: Any, width: int, scheme: str
) -> None:
    store = Store.open(str(tmp_path / "results.db"), create=True)
    filled(store)
    (path,) = write_report(store, tmp_path, {"html"})
    store.close()
    page, complaints, requests = visit(browser, path, viewport={"width": width, "height": 800}, color_scheme=scheme)
    for handle in page.query_selector_all("details"):
        handle.evaluate("each => { each.open = true }")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert complaints == []
    assert requests == [path.as_uri()]
    # The policy let our own style and script through.
    assert page.query_selector("thead button") is not None
    assert page.evaluate("getComputedStyle(document.querySelector('.brand')).margin") == "0px"
    assert len(page.screenshot()) > 10_000
    page.close()


@pytest.mark.browser
def test_in_a_browser_columns_sort_and_incomplete_rows_stay_last(browser: Any, store: Store, tmp_path: Path) -> None:
    fill(store)
    (path,) = write_report(store, tmp_path, {"html"})
    page, complaints, _ = visit(browser, path)
    models = "[...document.querySelectorAll('#b2 table.board tbody th a')].map(each => each.textContent)"
    before = page.evaluate(models)
    for _ in range(2):
        page.click("#b2 table.board thead th:nth-child(4) button")
    after = page.evaluate(models)
    assert after == [*before[:-1][::-1], before[-1]]
    assert page.get_attribute("#b2 table.board thead th:nth-child(4)", "aria-sort") == "ascending"
    page.click("#b2 table.board tbody th a")
    assert page.evaluate("document.querySelector('details:target').open")
    assert complaints == []
    page.close()


@pytest.mark.browser
def test_in_a_browser_without_scripts_everything_is_still_there(browser: Any, store: Store, tmp_path: Path) -> None:
    fill(store)
    (path,) = write_report(store, tmp_path, {"html"})
    page, complaints, _ = visit(browser, path, java_script_enabled=False)
    assert "resnet18-kwta0.1-at" in page.inner_text("#b2 table.board")
    assert complaints == []
    page.close()


@pytest.mark.browser
def test_in_a_browser_the_policy_stops_what_should_ever_slip_in(browser: Any, store: Store, tmp_path: Path) -> None:
    fill(store)
    (path,) = write_report(store, tmp_path, {"html"})
    evil = "<img src=x onerror='document.title=1'><script>document.title=2</script>"
    path.write_text(path.read_text().replace("</main>", f"{evil}</main>"))
    page, complaints, _ = visit(browser, path)
    assert page.title() == "Robust accuracy · kwbench"
    assert complaints
    page.close()


def test_notes_on_a_model_stand_under_its_table_and_in_the_json(store: Store) -> None:
    spec = specification(provenance={"notes": ["answers in \x1b[31mtuples"]})
    record(store, spec, {"clean": rows("hhhh"), "pgd": rows("hhbb")})
    (summary,) = summaries(store)
    console = Console(width=160)
    with console.capture() as captured:
        console.print(text_table([summary]))
    assert r"net: answers in \u001b[31mtuples." in captured.get()
    assert to_json(summary)["notes"] == ["answers in \x1b[31mtuples"]
