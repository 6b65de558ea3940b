"""The verdict that is expected of every digits model of the zoo and every fixture, written down beforehand.

`make verdicts` evaluates them all with the strong suite into one record, writes reports/verdicts.md from it, and fails where a
verdict is not the expected one; `inconclusive` in place of another counts as wrong.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from defences import exact_truth, planted
from defences.broken_defences import DEFENCES, EPS
from defences.sound_models import SOUND
from kwbench.record.store import Store
from kwbench.record.summary import summaries
from kwbench.verdict import verdict_on_record

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Expected:
    """A model as the command line takes it, how many samples, the radius (None: the data set's), and the verdict on it."""

    model: str
    verdict: str
    n: int = 360
    eps: str | None = None

    @property
    def name(self) -> str:
        """As the record has it."""
        return self.model.removeprefix(f"{ROOT}/")


# Naturally trained networks fall to exact gradients already, k-WTA and LWTA included, so nothing is overestimated.
ZOO = (
    Expected("resnet18-relu", "confirmed"),
    Expected("resnet18-relu-at", "confirmed"),
    Expected("wrn16-2-relu", "confirmed"),
    Expected("vgg11", "confirmed"),
    Expected("resnet18-kwta0.1", "confirmed"),
    Expected("resnet18-kwta0.2", "confirmed"),
    Expected("resnet18-lwta0.2", "confirmed"),
    Expected("resnet18-slwta2", "confirmed", n=128),
    Expected("resnet18-kwta0.1-at", "overestimated"),
    Expected("resnet18-kwta0.2-at", "overestimated"),
    Expected("resnet18-lwta0.2-at", "overestimated"),
    # Its own noise is large, and every budget so far has still gained.
    Expected("resnet18-slwta2-at", "overestimated", n=64),
)
EXPECTED = (
    *ZOO,
    *(Expected(each.model, each.verdict, 64, EPS) for each in DEFENCES),
    *(Expected(each.model, each.verdict, 64, each.eps) for each in SOUND),
    Expected(f"{exact_truth.FILE}:relu", "confirmed", exact_truth.SAMPLES, exact_truth.SIZES["relu"].eps),
    Expected(f"{exact_truth.FILE}:kwta", "confirmed", exact_truth.SAMPLES, exact_truth.SIZES["kwta"].eps),
    Expected(f"{exact_truth.FILE}:kwta_wide", "overestimated", exact_truth.SAMPLES, exact_truth.SIZES["kwta_wide"].eps),
    Expected(f"{planted.FILE}:relu_features", "confirmed", planted.SAMPLES, planted.THREAT.eps_text),
    Expected(f"{planted.FILE}:grid_features", "overestimated", planted.SAMPLES, planted.THREAT.eps_text),
    Expected(f"{planted.FILE}:kwta_features", "overestimated", planted.SAMPLES, planted.THREAT.eps_text),
)


def reached(db: str) -> dict[str, str]:
    """The newest verdict on record for each model, by its name there."""
    store = Store.open(db)
    try:
        found = {each.model: verdict_on_record(each) for each in summaries(store) if each.evaluation.spec.suite == "strong"}
    finally:
        store.close()
    return {model: each.conclusion for model, each in found.items() if each is not None}


def main(db: str) -> None:
    """Evaluate what is not on record, write the page, and name every verdict that is another than expected."""
    kwbench = str(Path(sys.executable).with_name("kwbench"))
    for each in EXPECTED:
        eps = ["--eps", each.eps] if each.eps else []
        subprocess.run(
            [kwbench, "evaluate", each.model, "--suite", "strong", "--n", str(each.n), *eps, "--db", db], check=False, cwd=ROOT
        )
    subprocess.run([kwbench, "report", "--verdicts", "--db", db], check=True, cwd=ROOT)
    words = reached(db)
    wrong = [
        f"{each.model}: {words.get(each.name, 'none')}, expected {each.verdict}"
        for each in EXPECTED
        if words.get(each.name) != each.verdict
    ]
    print(f"{len(EXPECTED) - len(wrong)} of {len(EXPECTED)} verdicts are the expected ones", *wrong, sep="\n")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "verdicts.db")
