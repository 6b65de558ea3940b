"""The site builds without warnings and opens from the disk in a real browser."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.doc_blocks import REPOSITORY


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "bench"), "NO_MKDOCS_2_WARNING": "1"}
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        "docs/mkdocs.yml",
        "--site-dir",
        str(folder),
    ]
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def test_the_site_holds_commands_python_api_and_reports(site: Path) -> None:
    commands = (site / "reference" / "commands.html").read_text()
    assert 'id="kwbench-evaluate"' in commands
    assert "--suite" in commands
    api = (site / "reference" / "api.html").read_text()
    for name in ("kwbench.evaluate", "kwbench.attack", "kwbench.diagnose", "kwbench.results", "kwbench.errors.UsageError"):
        assert f'id="{name}"' in api
    assert "resnet18-relu-at" in (site / "results" / "verdicts.html").read_text()


def test_every_relative_link_of_the_repository_leads_to_a_file() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (REPOSITORY / page).read_text()):
            if "://" not in target:
                assert (REPOSITORY / target).exists(), f"{page} links to {target}"


@pytest.mark.heavy
@pytest.mark.browser
def test_in_a_browser_the_pages_complain_of_nothing_and_load_nothing_from_the_network(browser: Any, site: Path) -> None:
    pages = sorted(path for path in site.rglob("*.html") if path.name != "404.html")
    assert len(pages) > 20
    page = browser.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(f"{page.url}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"{page.url}: {error}"))
    page.on("request", lambda request: requests.append(request.url))
    for path in pages:
        page.goto(path.as_uri())
        assert page.query_selector("h1") is not None, path
    page.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.mark.browser
def test_in_a_browser_the_search_works_from_the_disk(browser: Any, site: Path) -> None:
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    page.fill("input[name=query]", "winner")
    page.wait_for_selector(".md-search-result__link", timeout=30_000)
    page.close()
