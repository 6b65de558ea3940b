"""Measure the leaderboard at scale in a headless browser: the size of its page, and the time to open and to sort it.

    python bench/speed/pages.py [--models 1000] [--attacks 20] [--samples 16]

The record is invented, as in `record.py`. Targets: 10 MB, 2 s, 0.2 s.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import markdown_table

from kwbench.record.store import Store
from kwbench.report import write_report
from record import in_new_process, make

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def written(folder: Path, models: int, attacks: int, samples: int) -> tuple[Path, float]:
    """Write a report on an invented record, and return the path of its first page and the seconds that it took."""
    in_new_process(make, folder / "results.db", models, attacks, samples)
    store = Store.open(str(folder / "results.db"))
    began = time.perf_counter()
    write_report(store, folder / "reports", {"html"})
    seconds = time.perf_counter() - began
    store.close()
    return folder / "reports" / "index.html", seconds


def browse(browser: Any, index: Path) -> tuple[float, float]:
    """Return the seconds until the page is ready, and those that sorting by robust accuracy takes until it is painted."""
    page = browser.new_page()
    began = time.perf_counter()
    page.goto(index.as_uri())
    page.wait_for_selector(".filters")
    opened = time.perf_counter() - began
    sort = """async () => {
      const began = performance.now();
      document.querySelector(".table:not([hidden]) th[data-key=robust] .dt-column-order").click();
      await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
      return performance.now() - began;
    }"""
    milliseconds = page.evaluate(sort)
    page.close()
    return opened, milliseconds / 1000


def main() -> None:
    """Write the report, open it, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--attacks", type=int, default=20)
    parser.add_argument("--samples", type=int, default=16)
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        index, seconds = written(Path(name), arguments.models, arguments.attacks, arguments.samples)
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        opened, sorted_in = min(browse(browser, index) for _ in range(3))
        browser.close()
        rows = [
            ["writing the pages, s", f"{seconds:.1f}", ""],
            ["size of the leaderboard, MB", f"{index.stat().st_size / 1e6:.1f}", "10"],
            ["opening it, s", f"{opened:.2f}", "2"],
            ["sorting it, s", f"{sorted_in:.2f}", "0.2"],
        ]
    print(markdown_table(["measure", "result", "target"], rows))


if __name__ == "__main__":
    main()
