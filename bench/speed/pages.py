"""Measure the leaderboard at scale in a headless browser: the size of its page, and the time to open, sort and search it.

    python bench/speed/pages.py [--models 1000] [--attacks 20] [--samples 16] [--rounds 7]

The record is invented, as in `record.py`. Targets: 10 MB, 2 s to open, 0.2 s to sort.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import machine_line, markdown_table, spread

from kwbench.record.store import Store
from kwbench.report import write_report
from record import in_new_process, make

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def written(folder: Path, models: int, attacks: int, samples: int) -> tuple[Path, float, float]:
    """Write a report on an invented record; return the path of its first page, seconds, and processor seconds."""
    in_new_process(make, str(folder / "results.db"), range(models), attacks, samples, samples)
    store = Store.open(str(folder / "results.db"))
    began, work = time.perf_counter(), time.process_time()
    write_report(store, folder / "reports", {"html"})
    seconds, work = time.perf_counter() - began, time.process_time() - work
    store.close()
    return folder / "reports" / "index.html", seconds, work


def browse(browser: Any, index: Path) -> list[tuple[float, float]]:
    """Return seconds and processor seconds of opening the page, of sorting it by robust accuracy, and of searching it.

    Sorting and searching last until the page is painted. Processor time is that of the page's main thread.
    """
    page = browser.new_page()
    page.set_default_timeout(120_000)
    metrics = page.context.new_cdp_session(page)
    metrics.send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent() -> float:
        found = {entry["name"]: entry["value"] for entry in metrics.send("Performance.getMetrics")["metrics"]}
        return float(found["TaskDuration"])

    began = time.perf_counter()
    page.goto(index.as_uri())
    page.wait_for_selector(".filters")
    measured = [(time.perf_counter() - began, spent())]
    board = "document.querySelector('.table:not([hidden]) > .board:not([hidden])')"
    actions = (
        f"{board}.querySelector('th[data-key=robust] .dt-column-order').click()",
        f"const input = {board}.querySelector('input'); input.value = 'network-77'; input.dispatchEvent(new Event('input'))",
    )
    for action in actions:
        before = spent()
        milliseconds = page.evaluate(f"""async () => {{
          const began = performance.now();
          {action};
          await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
          return performance.now() - began;
        }}""")
        measured.append((milliseconds / 1000, spent() - before))
    page.close()
    return measured


def main() -> None:
    """Write the report, open it, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--attacks", type=int, default=20)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        index, seconds, work = written(Path(name), arguments.models, arguments.attacks, arguments.samples)
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
        rounds = [browse(browser, index) for _ in range(arguments.rounds)]
        version = browser.version
        browser.close()
        size = f"{index.stat().st_size / 1e6:.1f}"
    print(f"{machine_line(1)}, Chromium {version}. Load averages before the browser: {load}.\n")
    print(f"{arguments.models:,} models x {arguments.attacks} attacks, {arguments.samples} samples each.\n")
    print(f"`index.html` has {size} MB; the target is at most 10 MB.\n")
    rows = [["writing all pages", f"{seconds:.1f}", f"{work:.1f}", ""]]
    for number, (label, target) in enumerate((("opening the leaderboard", "2"), ("sorting it", "0.2"), ("searching it", ""))):
        times, works = zip(*(one[number] for one in rounds), strict=True)
        rows.append([label, f"{spread(times)}, minimum {min(times):.2f}", str(spread(works)), target])
    print(markdown_table(["measure", "seconds, median [quartiles]", "processor seconds", "target, s"], rows))


if __name__ == "__main__":
    main()
