"""Settings and helpers of all tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Tests, and the processes that they start, take one core each unless they ask for more. torch reads it when imported.
os.environ["OMP_NUM_THREADS"] = "1"

# Without a GPU, Triton's kernels run in its interpreter. Triton reads it when imported.
if not Path("/dev/nvidia0").exists():
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch

from support.postgres import Server, find_programs
from support.small_models import trained_cnn

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Data sets and checkpoints that are too large for the repository, in a folder beside it.
SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared(path: str) -> Path:
    """Return a file or folder in `SHARED`; skip the test if it is missing."""
    wanted = SHARED / path
    if not wanted.exists():
        pytest.skip(f"{wanted} is missing")
    return wanted


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one process more than there are cores, for many tests wait for a server, a browser or a killed process."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with heavy tests first, so that no process is left with one of them while the others are done."""
    heavy = {item.path for item in items if item.get_closest_marker("heavy")}
    items.sort(key=lambda item: item.path not in heavy)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _shared_network_stays_as_it_is() -> Iterator[None]:
    """Fail a test that leaves hooks on the network that all tests share, or leaves it in training mode."""
    yield
    if trained_cnn.cache_info().currsize:
        for module in trained_cnn().modules():
            assert not any((module.training, module._forward_hooks, module._forward_pre_hooks, module._backward_hooks))


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


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server; skips, with the reason, where it is not installed."""
    server = Server(find_programs())
    yield server
    server.close()
