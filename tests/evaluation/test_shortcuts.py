"""What makes the strong suite quick takes nothing from what it finds: rounding, focus, screens and the cascade itself."""

from dataclasses import replace
from pathlib import Path

import pytest

from kwbench.config.suite import Suite, read_suite
from kwbench.evaluation.request import Request
from kwbench.evaluation.runner import evaluate
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import Summary

# The attacks of the strong suite on a network that hides no gradient, each on every sample, in float32.
FULL = """
attacks:
  apgd-ce: {attack: apgd, steps: 30}
  apgd-targets: {attack: apgd, loss: probability_margin, targets: 9, finalists: 2, steps: 30, restarts: 3}
  cross-entropy-targets: {attack: apgd, targets: 9, finalists: 2, steps: 30, restarts: 3}
  smooth: {attack: apgd, loss: margin, steps: 20, gradient: {kind: smooth, relative_sigma: 0.25, draws: auto}}
  square-search: {attack: square, steps: 500, rescale_schedule: true}
"""


def evaluated(folder: Path, suite: Suite, name: str) -> Summary:
    store = Store.open(str(folder / f"{name}.db"), create=True)
    try:
        evaluate(Request("resnet18-relu-at", suite=suite, n=96), store)
        (standing,) = summaries(store)
        return standing
    finally:
        store.close()


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_strong_ends_no_higher_than_its_attacks_in_full(tmp_path: Path) -> None:
    path = tmp_path / "full.yaml"
    path.write_text(FULL)
    quick = evaluated(tmp_path, replace(read_suite("strong"), diagnose=False), "quick")
    full = evaluated(tmp_path, read_suite(str(path)), "full")
    assert [each.name for each in quick.attacks] == [each.name for each in full.attacks]
    assert quick.a_rob is not None
    assert full.a_rob is not None
    assert quick.a_rob.value <= full.a_rob.value
    passes = [sum(each.forwards for each in standing.attacks) for standing in (quick, full)]
    assert passes[0] < passes[1]
