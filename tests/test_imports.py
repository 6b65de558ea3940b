"""What is imported is never looked at for garbage."""

import gc

from kwbench.imports import importing


def test_garbage_is_looked_for_again_after_an_import_but_not_in_what_it_left() -> None:
    before = gc.get_freeze_count()
    try:
        with importing():
            assert not gc.isenabled()
            left: list[list[int]] = [[] for _ in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(left)
    finally:
        gc.unfreeze()


def test_who_looks_for_no_garbage_need_not_do_so_after_an_import() -> None:
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
