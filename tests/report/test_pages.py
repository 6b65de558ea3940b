"""The web pages in a real browser: one is started for all tests."""

import io
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from kwbench.evaluation.studies.series import record_series
from kwbench.record.store import Store
from kwbench.report import write_report
from support.records import deterministic, network
from support.report_records import fill, hostile, pictured, verdicts

pytestmark = pytest.mark.browser


def written(folder: Path, *filled: Any) -> Path:
    """Return the folder of a report on a record that these functions filled."""
    store = Store.open(str(folder / "results.db"), create=True)
    for fill_record in filled:
        fill_record(store)
    write_report(store, folder / "reports", {"html", "single-file", "claims"})
    store.close()
    return folder / "reports"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("reports"), fill, verdicts, pictured)


def visit(browser: Any, path: Path, address: str = "", **options: Any) -> tuple[Any, list[str], list[str]]:
    """Open a page; return also what it complains of and what it loads."""
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
    page.goto(path.as_uri() + address)
    return page, complaints, requests


def await_value(page: Any, expression: str, expected: object) -> None:
    """Wait until an expression has a value. The policy of the pages forbids playwright to evaluate one again and again."""
    deadline = time.monotonic() + 30
    while (found := page.evaluate(expression)) != expected:
        assert time.monotonic() < deadline, found
        page.wait_for_timeout(20)


MODELS = (
    "[...document.querySelectorAll('.table:not([hidden]) > .board:not([hidden]) tbody th')]"
    ".filter(cell => cell.offsetParent).map(cell => cell.querySelector('bdi').textContent)"
)
TABLE = "#digits-linf-1-5"


@pytest.mark.parametrize("filled", [fill, hostile])
def test_pages_complain_of_nothing_load_only_their_own_files_and_do_not_overflow(
    browser: Any, tmp_path: Path, filled: Any
) -> None:
    folder = written(tmp_path, filled)
    runs = sorted((folder / "runs").glob("*.html"))
    for path in (folder / "index.html", folder / "leaderboard.html", folder / "compare.html", runs[0], runs[-1]):
        page, complaints, requests = visit(browser, path)
        page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
        for width, scheme in ((390, "dark"), (1440, "light")):
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert complaints == []
        assert all(address.startswith(folder.as_uri()) for address in requests)
        # The policy let our own style and scripts through.
        assert page.evaluate("getComputedStyle(document.querySelector('.brand')).margin") == "0px"
        assert page.query_selector(".filters input, .filters select, .copy button, .empty") is not None
        page.close()


def test_columns_sort_and_incomplete_rows_stay_last(browser: Any, reports: Path) -> None:
    page, complaints, _ = visit(browser, reports / "index.html", TABLE)
    before = page.evaluate(MODELS)
    head = ".table:not([hidden]) > .board:not([hidden]) th[data-key=robust]"
    for direction in ("descending", "ascending"):
        page.click(head)
        page.wait_for_selector(f"{head}[aria-sort={direction}]")
    assert page.evaluate(MODELS) == [*before[:-1][::-1], before[-1]]
    assert page.url.endswith(f"{TABLE}?sort=robust%3Aasc")
    assert complaints == []
    page.close()


@pytest.mark.trial
def test_of_many_models_fifty_are_shown_and_all_on_request(browser: Any, tmp_path: Path) -> None:
    def many(store: Store) -> None:
        for number in range(101):
            deterministic(store, {"clean": "hhh", "pgd": "hhb"}, model=f"net-{number}")

    page, complaints, _ = visit(browser, written(tmp_path, many) / "index.html")
    await_value(page, f"({MODELS}).length", 50)
    assert page.inner_text("output.count") == "101 models"
    page.select_option(".dt-length select", "-1")
    await_value(page, f"({MODELS}).length", 101)
    assert complaints == []
    page.close()


def test_filters_narrow_the_table_count_and_stand_in_the_address(browser: Any, reports: Path) -> None:
    page, _, _ = visit(browser, reports / "index.html", TABLE)
    page.select_option("select[aria-label=Predictions]", "stochastic")
    assert page.evaluate(MODELS) == ["stochastic-at"]
    assert page.inner_text("output.count") == "1 of 6 models"
    page.select_option("select[aria-label=Predictions]", "")
    page.fill("input[type=search]", "resnet18")
    assert len(page.evaluate(MODELS)) == 3
    assert "deterministic (3)" in page.inner_text("select[aria-label=Predictions]")
    assert page.url.endswith("?q=resnet18")
    page.click("text=Reset")
    assert len(page.evaluate(MODELS)) == 6
    page.close()


def test_an_address_shows_the_same_view_again(browser: Any, reports: Path) -> None:
    address = f"{TABLE}?q=-at&sort=clean%3Adesc&predictions=deterministic&show=cost&hide=details"
    page, complaints, _ = visit(browser, reports / "index.html", address)
    assert page.evaluate(MODELS) == ["resnet18-relu-at", "resnet18-kwta0.1-at"]
    assert page.is_checked("text=Each attack")
    assert page.is_checked("text=Cost")
    assert not page.is_checked("text=Model details")
    assert page.is_visible(".table:not([hidden]) > .board:not([hidden]) th[data-key=attack-0]")
    assert page.url.endswith(address)
    page.evaluate("location.hash = '#digits-linf-1-10'")
    await_value(page, MODELS, ["resnet18-relu"])
    assert page.locator("output.count:visible").inner_text() == "1 model"
    page.click(f"nav.tables a[href='#t-{TABLE[1:]}']")
    await_value(page, f"({MODELS}).length", 6)
    assert complaints == []
    page.close()


def series(store: Store) -> None:
    """Three networks of a series over γ, on nothing else than that."""
    arrays = {"gamma": np.array([0.2, 0.1, 0.1]), "incremental": np.array([0.0, 0.0, 1.0])}
    letters = {"direct 0.2": "hhbb", "direct 0.1": "bbbb", "incremental 0.1": "hhhb"}
    evaluations = [
        deterministic(store, {"clean": "hhhh", "pgd": rows}, model=f"wide {kind}", eps="0.07") for kind, rows in letters.items()
    ]
    spec = {"suite": "papers", "values": ["1/5", "1/10", "1/10"]}
    record_series(store, "sparsity", evaluations, spec, arrays, model="wide")


def test_series_are_curves_that_lead_to_their_evaluations_and_no_tables(browser: Any, tmp_path: Path) -> None:
    for name in ("alone", "beside"):
        (tmp_path / name).mkdir()
    page, complaints, _ = visit(browser, written(tmp_path / "alone", series) / "index.html")
    assert page.locator(".empty").count() == 0
    assert page.locator("#sweeps img.chart:visible").count() == 2
    page.close()
    page, complaints, _ = visit(browser, written(tmp_path / "beside", fill, series) / "index.html")
    assert page.locator("section.table").count() == 2
    assert not page.is_visible("#sweeps")
    page.click("nav.tables a:has-text('Curves')")
    assert page.is_visible("#sweeps")
    assert not page.is_visible("section.table")
    page.click("#sweeps summary >> nth=0")
    assert "wide incremental 0.1, linf 0.07: Arob 75.0" in page.inner_text("#sweeps ul >> nth=0")
    page.click("#sweeps a:has-text('incremental') >> nth=0")
    assert page.inner_text("h1") == "wide incremental 0.1"
    page.click(".crumbs a >> nth=0")
    assert page.is_visible("#sweeps")
    page.click(f"nav.tables a[href='#t-{TABLE[1:]}']")
    assert not page.is_visible("#sweeps")
    assert complaints == []
    page.close()


def test_an_address_hides_only_the_columns_that_it_names(browser: Any, reports: Path) -> None:
    page, _, _ = visit(browser, reports / "index.html", f"{TABLE}?show=cost")
    assert page.is_checked("text=Cost")
    assert page.is_checked("text=Model details")
    page.uncheck("text=Model details")
    assert page.url.endswith(f"{TABLE}?show=cost&hide=details")
    page.reload()
    assert page.is_checked("text=Cost")
    assert not page.is_checked("text=Model details")
    page.close()


def test_filters_are_folded_on_a_phone_unless_they_are_set(browser: Any, reports: Path) -> None:
    address = f"{TABLE}?predictions=deterministic"
    page, _, _ = visit(browser, reports / "index.html", address, viewport={"width": 390, "height": 800})
    assert page.locator(".facet:visible").count() == 1
    page.click("button:visible:has-text('Filters')")
    assert page.locator(".facet:visible").count() > 1
    assert page.get_attribute("button.unfold:visible", "aria-expanded") == "true"
    page.set_viewport_size({"width": 1400, "height": 900})
    assert not page.is_visible("button.unfold")
    assert page.locator(".facet:visible").count() > 1
    page.close()


def test_the_leaderboard_works_from_the_keyboard(browser: Any, tmp_path: Path) -> None:
    folder = written(tmp_path, fill, lambda store: network(store, "wrn", 0.9, {"pgd": 0.5}, eps="1/5", suite="other"))
    page, _, _ = visit(browser, folder / "index.html", TABLE)
    page.focus("[role=tab][aria-selected=true]")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("[role=tab][aria-selected=true]").startswith("other")
    assert page.evaluate(MODELS) == ["wrn"]
    page.keyboard.press("ArrowLeft")
    page.focus(".table:not([hidden]) > .board:not([hidden]) th[data-key=clean] .dt-column-order")
    page.keyboard.press("Enter")
    page.wait_for_selector(".table:not([hidden]) > .board:not([hidden]) th[data-key=clean][aria-sort=descending]")
    page.close()


def run_of(reports: Path, model: str) -> Path:
    """Return the page of the only evaluation of a model."""
    (path,) = (path for path in (reports / "runs").glob("*.html") if f"<h1><bdi>{model}</bdi></h1>" in path.read_text())
    return path


def test_the_viewer_shows_what_broke_a_sample_and_filters_the_grid(browser: Any, reports: Path) -> None:
    page, complaints, _ = visit(browser, run_of(reports, "first"))
    assert page.inner_text(".shown h3") == "Sample 0"
    assert page.locator(".gallery button").count() == 3
    await_value(page, "document.querySelectorAll('.shown canvas')[1].width", 12)
    pixel = "document.querySelectorAll('.shown canvas')[{}].getContext('2d').getImageData(0, 0, 1, 1).data[0]"
    clean, moved, difference = (page.evaluate(pixel.format(number)) for number in range(3))
    assert abs((moved - clean) * 10 + 127.5 - difference) <= 11
    text = page.inner_text(".shown")
    assert "fgsm" in text
    assert "5 passes" in text
    assert "0 cat" in text
    page.select_option("select[aria-label=Result]", "broken")
    assert page.inner_text("#samples output.count") == "3 of 12 samples"
    page.select_option("select[aria-label=Class]", "1")
    assert page.inner_text("#samples output.count") == "1 of 12 samples"
    page.focus(".grid tbody button")
    page.keyboard.press("Enter")
    assert page.url.endswith("#samples?result=broken&class=1&sample=1")
    assert page.inner_text(".shown h3") == "Sample 1"
    assert complaints == []
    page.close()


def test_samples_of_an_incomplete_evaluation_are_broken_or_unfinished_but_never_held(browser: Any, tmp_path: Path) -> None:
    letters = {"clean": "hhhw", "fgsm": "bh..", "pgd": "hb..", "noise": "bbb."}
    folder = written(tmp_path, lambda store: deterministic(store, letters, model="halfway", n=4, spec={"beside": ["noise"]}))
    page, complaints, _ = visit(browser, run_of(folder, "halfway"), "#samples?sample=0")
    assert page.eval_on_selector_all(".grid tbody tr", "rows => rows.map(row => row.cells[3].textContent)") == [
        "broken",
        "broken",
        "unfinished",
        "wrong",
    ]
    assert "broken by\nfgsm" in page.inner_text(".shown")
    page.click(".grid tbody tr:nth-child(3)")
    assert "not all attacks are through with it" in page.inner_text(".shown")
    assert "No adversarial image" in page.inner_text("#samples")
    assert complaints == []
    page.close()


def test_accuracy_against_passes_is_drawn_in_the_colours_of_the_theme(browser: Any, reports: Path) -> None:
    page, complaints, _ = visit(browser, run_of(reports, "first"), color_scheme="light")
    assert page.is_visible("#survival canvas[role=img]")
    assert "fgsm" in page.inner_text("#survival .u-legend")
    colon = "getComputedStyle(document.querySelector('#survival .u-legend th'), '::after').content"
    assert page.evaluate(colon) == "none"
    light = page.locator("#survival canvas").screenshot()
    page.emulate_media(color_scheme="dark")
    await_value(page, "getComputedStyle(document.body).colorScheme", "light dark")
    page.wait_for_timeout(100)
    assert shades(light)[0] > 240
    assert shades(page.locator("#survival canvas").screenshot())[0] < 40
    assert complaints == []
    page.close()


def test_charts_of_the_leaderboard_follow_the_theme(browser: Any, reports: Path) -> None:
    page, complaints, _ = visit(browser, reports / "index.html", TABLE, color_scheme="light")
    page.click("summary:visible:has-text('Clean against robust accuracy')")
    chart = page.locator("img.chart:visible")
    light = chart.screenshot()
    page.emulate_media(color_scheme="dark")
    dark = chart.screenshot()
    # The commonest shade is the background, and the text stands out from it.
    assert shades(light)[0] > 240
    assert shades(light)[2] < 120
    assert shades(dark)[0] < 40
    assert shades(dark)[1] > 180
    assert complaints == []
    page.close()


def shades(screenshot: bytes) -> tuple[int, int, int]:
    """Return the commonest, the lightest and the darkest shade of an image, from 0 to 255."""
    grey = np.array(Image.open(io.BytesIO(screenshot)).convert("L"))
    return int(np.bincount(grey.ravel()).argmax()), int(grey.max()), int(grey.min())


WIDTH_OF_NAME = """(() => {
  const span = document.createElement("span");
  span.textContent = document.getElementById("first").selectedOptions[0].textContent;
  document.querySelector(".filters").append(span);
  const width = span.offsetWidth;
  span.remove();
  return width;
})()"""


def test_two_models_are_compared_sample_by_sample(browser: Any, reports: Path) -> None:
    first, second = run_of(reports, "first").stem, run_of(reports, "second").stem
    page, complaints, _ = visit(browser, reports / "compare.html", f"#a={first}&b={second}")
    page.wait_for_selector("#comparison table")
    rows = [row.split("\t") for row in page.inner_text("#comparison tbody").splitlines()]
    robust = next(row for row in rows if row[0] == "Robust Arob")
    # First loses samples 0, 1 and 2, second 1 and 10: 8 and 9 of 12 are right.
    assert robust[1:4] == ["66.7", "75.0", "-8.3"]
    assert robust[5:] == ["1", "2"]
    assert "Only first keeps: 1 sample" in page.inner_text("#comparison")
    links = page.eval_on_selector_all("#comparison a", "links => links.map(link => link.getAttribute('href'))")
    samples = [f"runs/{run}.html#samples?sample={n}" for run, n in ((second, 10), (first, 0), (first, 2))]
    assert links == [f"runs/{first}.html", f"runs/{second}.html", *samples]
    # The whole names are to be read.
    assert page.evaluate("document.getElementById('first').offsetWidth") > page.evaluate(WIDTH_OF_NAME)
    assert "kwbench compare first second" in page.inner_text("#comparison .hint >> nth=0")
    page.select_option("#second", first)
    assert page.url.endswith(f"#a={first}&b={first}")
    assert complaints == []
    page.close()


def test_a_comparison_under_other_attacks_says_so_and_names_no_command(browser: Any, tmp_path: Path) -> None:
    def differing(store: Store) -> None:
        for model, steps in (("first", 10), ("second", 20)):
            deterministic(store, {"clean": "hh", "pgd": "hb"}, model=model, attacks={"clean": {}, "pgd": {"steps": steps}})

    page, complaints, _ = visit(browser, written(tmp_path, differing) / "compare.html")
    page.wait_for_selector("#comparison table")
    note = page.inner_text("#comparison .hint >> nth=0")
    assert "had other attacks for one of the models" in note
    assert "kwbench compare" not in note
    assert complaints == []
    page.close()


def test_the_claims_are_filtered_by_paper_and_status(browser: Any, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "results.db"), create=True)
    write_report(store, tmp_path, {"claims"})
    store.close()
    page, complaints, _ = visit(browser, tmp_path / "claims.html", "#paper=costa2020&status=")
    assert not page.is_visible("#h-xiao2020")
    assert page.is_visible("#h-costa2020")
    page.select_option("select[aria-label=Paper]", "")
    page.select_option("select[aria-label=Status]", "run")
    # Nothing is measured.
    assert page.locator(".claims").count() > 0
    assert page.locator(".claims:visible").count() == 0
    assert page.url.endswith("#paper=&status=run")
    page.select_option("select[aria-label=Status]", "not comparable")
    shown = page.locator(".pivot tbody tr:not(.group):visible")
    assert shown.count() > 0
    for row in shown.all():
        assert row.locator("[data-status='not comparable']").count() > 0
    assert complaints == []
    page.close()


def test_an_evaluation_leads_back_to_its_own_table_and_claims_lead_to_evaluations(browser: Any, tmp_path: Path) -> None:
    def claimed(store: Store) -> None:
        letters = {"clean": "hhhh", "pgd": "hhbb"}
        for suite, model in (
            ("strong", "cifar10/resnet18-w16-relu"),
            ("strong", "b"),
            ("xiao2020", "cifar10/resnet18-w16-relu"),
        ):
            deterministic(store, letters, model=model, dataset="cifar10-exact-subset", eps="0.031", suite=suite)

    folder = written(tmp_path, fill, claimed)
    page, complaints, _ = visit(browser, folder / "index.html", "#cifar10-exact-subset-linf-31-1000?tab=xiao2020-1")
    page.click(".board:not([hidden]) tbody th a >> visible=true")
    page.click("text=Leaderboard >> nth=-1")
    assert page.inner_text("[role=tab][aria-selected=true]").startswith("xiao2020")
    assert complaints == []
    page.close()
    page, complaints, _ = visit(browser, folder / "claims.html")
    page.click(".pivot td:last-child a:visible >> nth=0")
    assert page.inner_text("h1") == "cifar10/resnet18-w16-relu"
    assert "suite strong" in page.inner_text("main > header .chips")
    assert complaints == []
    page.close()


def test_a_phone_shows_what_checks_found_and_breaks_no_words(browser: Any, reports: Path) -> None:
    phone = {"width": 390, "height": 800}
    page, _, _ = visit(browser, run_of(reports, "masked"), viewport=phone)
    statement = "document.querySelector('#evidence td.wide').getBoundingClientRect()"
    assert page.evaluate(f"{statement}.left") < 230
    # Options of the command stay whole.
    lines = "[...document.querySelectorAll('.option')].map(option => option.getClientRects().length)"
    assert set(page.evaluate(lines)) == {1}
    assert page.locator(".option").count() > 3
    copied = page.evaluate("document.querySelector('.copy pre').textContent")
    assert copied.startswith("kwbench evaluate masked --suite papers --norm linf --eps 8/255 --n 360")
    page.close()
    first, second = run_of(reports, "first").stem, run_of(reports, "second").stem
    page, _, _ = visit(browser, reports / "compare.html", f"#a={first}&b={second}", viewport=phone)
    page.wait_for_selector("#comparison table")
    broken = """() => [...document.querySelectorAll('#comparison thead th:not(:has(a))')].flatMap(head => {
      const range = document.createRange();
      return [...head.textContent.matchAll(/[^ ]+/g)].filter(word => {
        range.setStart(head.firstChild, word.index);
        range.setEnd(head.firstChild, word.index + word[0].length);
        return range.getClientRects().length > 1;
      }).map(word => word[0]);
    })"""
    assert page.evaluate(broken) == []
    page.close()


def test_an_address_names_a_sample(browser: Any, reports: Path) -> None:
    page, _, _ = visit(browser, run_of(reports, "second"), "#samples?sample=10&result=broken")
    assert page.inner_text(".shown h3") == "Sample 10"
    assert page.inner_text("#samples output.count") == "2 of 12 samples"
    page.close()


def test_without_scripts_every_table_is_there(browser: Any, reports: Path) -> None:
    page, complaints, _ = visit(browser, reports / "index.html", java_script_enabled=False)
    text = page.inner_text("main")
    assert "resnet18-kwta0.1-at" in text
    assert "masked" in text
    assert complaints == []
    page.close()


def test_the_policy_stops_what_should_ever_slip_in(browser: Any, reports: Path, tmp_path: Path) -> None:
    evil = "<img src=x onerror='document.title=1'><script>document.title=2</script>"
    copy = tmp_path / "index.html"
    copy.write_text((reports / "leaderboard.html").read_text().replace("</main>", f"{evil}</main>"))
    page, complaints, _ = visit(browser, copy)
    assert page.title() == "Robust accuracy · kwbench"
    assert complaints
    page.close()


@pytest.mark.heavy
def test_axe_finds_nothing_on_any_page_in_either_theme(browser: Any, reports: Path) -> None:
    names = ("index.html", "compare.html", "claims.html")
    for path in (*(reports / name for name in names), run_of(reports, "first"), run_of(reports, "masked")):
        page, _, _ = visit(browser, path, color_scheme="light", bypass_csp=True, viewport={"width": 390, "height": 800})
        page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
        for only in ({}, {"runOnly": ["color-contrast"]}):
            violations = Axe().run(page, options=only).response["violations"]
            assert [(path.name, one["id"], one["nodes"][0]["html"]) for one in violations] == []
            page.emulate_media(color_scheme="dark")
        page.close()


def test_a_phone_shows_the_robust_accuracies_and_the_three_images_of_a_sample(browser: Any, reports: Path) -> None:
    phone = {"width": 390, "height": 800}
    page, _, _ = visit(browser, reports / "index.html", "#digits-linf-8-255/papers-0", viewport=phone)
    board = ".table:not([hidden]) > .board:not([hidden])"
    right_edge = f"document.querySelector('{board} th[data-key=robust]').getBoundingClientRect().right"
    assert page.evaluate(right_edge) <= 390
    assert not page.is_checked(f"{board} >> text=Claims and protocol")
    page.check(f"{board} >> text=Claims and protocol")
    assert page.evaluate(right_edge) > 390
    page.close()
    page, _, _ = visit(browser, run_of(reports, "second"), "#samples?sample=10", viewport=phone)
    tops = page.evaluate("[...document.querySelectorAll('.sample figure')].map(figure => figure.getBoundingClientRect().top)")
    assert len(tops) == 3
    assert len(set(tops)) == 1
    # The grid of samples and attacks is in sight too.
    assert page.evaluate("document.querySelector('.grid .cell:last-child').getBoundingClientRect().right") <= 390
    page.close()


def page_of_a_sweep(folder: Path) -> Path:
    """Write the page of figures of a record with one sweep, and return its path."""
    store = Store.open(str(folder / "results.db"), create=True)
    evaluations = [deterministic(store, {"clean": "hhhh", "pgd": "hhbb"}, eps=eps) for eps in ("0.1", "0.2")]
    spec = {"over": "eps", "values": ["0.1", "0.2"], "suite": "papers"}
    record_series(store, "sweep", evaluations, spec, {"place": np.array([0.1, 0.2])}, model="net")
    write_report(store, folder, {"figures"})
    store.close()
    return folder / "figures.html"


def test_figures_keep_their_size_on_a_phone_and_fill_their_frame_on_a_screen(browser: Any, tmp_path: Path) -> None:
    page, complaints, _ = visit(browser, page_of_a_sweep(tmp_path), viewport={"width": 390, "height": 800})
    width = "document.querySelector('{}').getBoundingClientRect().width".format
    assert page.evaluate(width("figure .scroll")) <= 390
    assert page.evaluate(width(".picture")) > 500
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1400, "height": 900})
    assert page.evaluate(width("figure .scroll")) <= page.evaluate(width(".picture")) + 4
    assert complaints == []
    page.close()


def test_measured_tables_of_the_claims_fit_a_screen(browser: Any, reports: Path) -> None:
    page, _, _ = visit(browser, reports / "claims.html", viewport={"width": 1400, "height": 900})
    wide = """() => {
      for (const details of document.querySelectorAll('details')) details.open = true;
      for (const cell of document.querySelectorAll('.pivot td.num'))
        for (const kind of ['here', 'strong'])
          cell.insertAdjacentHTML('beforeend', `<small class="${kind}">${kind} 32.8 [28.8,\u00a037.1]</small>`);
      const regions = [...document.querySelectorAll('.scroll:has(.pivot)')];
      return regions.filter(region => region.scrollWidth > region.clientWidth).map(region => region.ariaLabel);
    }"""
    assert page.locator(".pivot td.num").count() > 300
    assert page.evaluate(wide) == []
    page.close()


def test_the_status_of_the_claims_fits_a_phone(browser: Any, reports: Path) -> None:
    page, _, _ = visit(browser, reports / "claims.html", viewport={"width": 390, "height": 800})
    width = "document.querySelector('.status').{}".format
    assert page.evaluate(width("scrollWidth")) <= page.evaluate(width("parentElement.clientWidth"))
    page.close()


def test_nothing_is_cut_in_print(browser: Any, reports: Path) -> None:
    # A4 across, less the margins, at 96 pixels an inch.
    page, _, _ = visit(browser, reports / "index.html", TABLE, viewport={"width": 1032, "height": 700})
    explained = "document.querySelector('.help dl').checkVisibility({contentVisibilityAuto: true})"
    assert not page.evaluate(explained)
    page.emulate_media(media="print")
    await_value(page, explained, True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1032
    assert page.evaluate("getComputedStyle(document.querySelector('.filters')).display") == "none"
    page.close()


def test_pictures_fit_a_printed_page(browser: Any, tmp_path: Path) -> None:
    page, _, _ = visit(browser, page_of_a_sweep(tmp_path))
    high = "<svg xmlns='http://www.w3.org/2000/svg' width='1230' height='2572'/>"
    page.evaluate("source => { document.querySelector('.picture').src = source }", f"data:image/svg+xml,{quote(high)}")
    await_value(page, "document.querySelector('.picture').naturalHeight", 2572)
    page.emulate_media(media="print")
    # A4 upright has 273 mm within its margins, of which the caption needs some.
    assert page.evaluate("document.querySelector('.picture').getBoundingClientRect().height") <= 230 / 25.4 * 96
    assert page.evaluate("getComputedStyle(document.body).page") == "portrait"
    page.close()


def test_the_best_model_stands_above_its_table_with_what_breaks_it(browser: Any, reports: Path) -> None:
    page, complaints, _ = visit(browser, reports / "index.html", "#digits-linf-8-255/seen-1")
    page.click("[role=tab]:has-text('seen')")
    board = page.locator(".table:not([hidden]) > .board:not([hidden])")
    assert "Most robust: second" in board.locator(".answer").inner_text()
    words = board.locator(".worst li").first.inner_text()
    assert "cat 90 %" in words
    assert "dog 80 %" in words
    assert page.evaluate("[...document.querySelectorAll('.worst img')].every(image => image.naturalWidth === 12)")
    assert complaints == []
    page.close()
