"""The fixture that makes child processes cheap."""

import multiprocessing

import pytest


@pytest.fixture
def at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh processes that have torch imported already, to save the seconds; else as spawned ones."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["kwbench.evaluation.runner", "pyautoattack", "foolbox", "sklearn.datasets"])
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: found)
