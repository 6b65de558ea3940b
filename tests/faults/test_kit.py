"""The catalogue of faults is complete and fits the source; the quickest mutants are tried here, all by `make faults`."""

import re
from pathlib import Path

import pytest

from faults.catalogue import FAULTS, Fault
from faults.kit import REPORT, ROOT, rejects


def test_every_fault_has_tests_and_a_mutant_or_a_reason() -> None:
    assert [fault.id for fault in FAULTS] == [f"F{number:02}" for number in range(1, 45)]
    for fault in FAULTS:
        assert (fault.mutant is None) == bool(fault.reason) == (not fault.tests), fault.id


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.mutant], ids=lambda fault: fault.id)
def test_a_mutant_fits_the_source_once_and_its_tests_exist(fault: Fault) -> None:
    assert fault.mutant is not None
    count = (ROOT / "bench" / "kwbench" / fault.mutant.file).read_text(encoding="utf-8").count(fault.mutant.guard)
    assert count == 1, f"the guard of {fault.id} has moved: state it anew in tests/faults/catalogue.py"
    for test in fault.tests:
        file, *names = test.split("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert all(re.search(rf"(class|def) {name}\b", text) for name in names), test


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.quick], ids=lambda fault: fault.id)
def test_the_tests_of_a_fault_fail_without_its_guard(fault: Fault) -> None:
    assert rejects(fault, every=False)


def test_the_report_on_faults_lists_each_as_good_or_with_its_reason() -> None:
    text = Path(REPORT).read_text(encoding="utf-8")
    for fault in FAULTS:
        ending = f"| {fault.reason} | |" if fault.mutant is None else "| pass | fail |"
        assert f"| {fault.id} | {fault.what} {ending}" in text
