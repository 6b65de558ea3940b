"""The curves of samples that stand against passes."""

import re
from pathlib import Path

from kwbench.record.store import Store
from kwbench.record.summary import Summary, summaries
from kwbench.report.html.survival import survival_chart
from support.records import deterministic


def told(store: Store, **changes: object) -> tuple[Summary, list[str]]:
    """Return a summary, and the labels of its chart's curves beside what their last points say."""
    deterministic(store, {"clean": "hhhw", "fgsm": "bhhw", "pgd": "bbhw"}, **changes)
    (summary,) = summaries(store)
    chart = survival_chart(store.samples(summary.evaluation), summary)
    assert chart is not None
    return summary, re.findall(r'<path d="(M[^"]+)"/><title>', chart)


def test_a_curve_falls_from_the_clean_accuracy_to_that_under_the_attack(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "results.db"), create=True)
    summary, paths = told(store)
    store.close()
    assert len(paths) == len(summary.attacks) == 2
    ends = [(float(re.findall(r"M[\d.]+ ([\d.]+)", path)[0]), float(re.findall(r"V([\d.]+)", path)[-1])) for path in paths]
    (first, after_fgsm), (again, after_pgd) = ends
    # 75 % at first, then 50 % and 25 %.
    assert first == again
    assert round(after_pgd - first, 1) == round(2 * (after_fgsm - first), 1) > 0


def test_a_record_without_passes_has_no_curve(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "results.db"), create=True)
    deterministic(store, {"clean": "hhhh", "pgd": "hhhh"})
    (summary,) = summaries(store)
    assert survival_chart({}, summary) is None
    store.close()
