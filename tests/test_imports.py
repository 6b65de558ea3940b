"""Imported modules are never scanned by the garbage collector."""

import gc

from kwbench.imports import importing


def test_garbage_collection_continues_after_an_import_but_skips_what_it_created() -> None:
    before = gc.get_freeze_count()
    try:
        with importing():
            assert not gc.isenabled()
            left: list[list[int]] = [[] for _ in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(left)
    finally:
        gc.unfreeze()


def test_disabled_garbage_collection_stays_disabled_after_an_import() -> None:
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
