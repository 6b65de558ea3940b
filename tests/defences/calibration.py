"""Measure how far strong ends above the truth, on networks whose robust accuracy is known; write reports/calibration.md.

`make calibration`, or `PYTHONPATH=tests python tests/defences/calibration.py [--db calibration.db]`. Solved networks (one
hidden layer, by mixed-integer programming), linear ones (by their margins), and networks with a planted adversarial image for
each sample. What is on record is not evaluated again.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from defences import exact_truth, planted, sound_models
from defences.zoo.activations import jump, low_precision, saturated, sign_features, spiking
from kwbench.config.suite import read_suite
from kwbench.evaluation.request import Request
from kwbench.evaluation.runner import evaluate
from kwbench.formatting import interval_text
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import Summary
from kwbench.report.drawing.lines import Line, Panel, panels_picture
from kwbench.threat import ThreatModel
from kwbench.verdict import verdict_on_record
from support.small_models import first_images

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "reports" / "calibration.md"
FIGURE = ROOT / "docs" / "pages" / "assets" / "calibration.svg"
# Points within which strong counts as close.
CLOSE = 2


@dataclass(frozen=True)
class Known:
    """A network whose robust accuracy is known.

    Attributes:
        name: its name on record.
        how: how the truth is known.
        build: returns the network.
        n: the first n test images.
        eps: radius in linf.
        truth: returns on how many of them no adversarial image exists.
    """

    name: str
    how: str
    build: Callable[[], nn.Module]
    n: int
    eps: str
    truth: Callable[[], int]


def _linear_truth(eps: str) -> int:
    margins = sound_models.linear_margins(first_images(128), ThreatModel.of("linf", eps))
    return int((margins.amin(dim=1) > 0).sum())


def _planted_in(network: Callable[[], nn.Module]) -> nn.Module:
    return planted.with_planted(planted.without_last_layer(network()), first_images(planted.SAMPLES))


_PLANTED: dict[str, Callable[[], nn.Module]] = {factory.__name__: factory for factory in planted.FACTORIES} | {
    f"{factory.__name__}_planted": partial(_planted_in, factory)
    for factory in (jump, sign_features, low_precision, spiking, saturated)
}

KNOWN: tuple[Known, ...] = (
    *(
        Known(
            f"solved_{kind}",
            "solved",
            factory,
            exact_truth.SAMPLES,
            exact_truth.SIZES[kind].eps,
            lambda kind=kind: sum(exact_truth.truths(kind)),  # type: ignore[misc]
        )
        for kind, factory in exact_truth.FACTORIES.items()
    ),
    *(
        Known(f"linear_{eps}", "margins", sound_models.linear, 128, eps, partial(_linear_truth, eps))
        for eps in ("0.05", "0.1", "0.15", "0.2")
    ),
    *(Known(name, "planted", build, planted.SAMPLES, planted.THREAT.eps_text, lambda: 0) for name, build in _PLANTED.items()),
)


@dataclass(frozen=True)
class Distance:
    """What strong leaves of a network whose truth is known."""

    known: Known
    strong: Summary

    @property
    def left(self) -> int:
        """Images that strong leaves."""
        assert self.strong.a_rob is not None, f"{self.known.name}: {self.strong.missing}"
        return round(self.strong.a_rob.value * self.known.n)

    @property
    def missed(self) -> int:
        """Images that strong leaves although an adversarial image exists. Raises ArithmeticError if it left too few."""
        missed = self.left - self.known.truth()
        if missed < 0:
            raise ArithmeticError(f"{self.known.name}: strong broke {-missed} images that cannot be broken")
        return missed

    @property
    def points(self) -> float:
        """The distance between strong and the truth, in points of robust accuracy."""
        return 100 * self.missed / self.known.n

    @property
    def conclusion(self) -> str:
        """The verdict of strong."""
        verdict = verdict_on_record(self.strong)
        assert verdict is not None, f"{self.known.name}: not diagnosed"
        return verdict.conclusion


def distances(store: Store, networks: Sequence[Known]) -> list[Distance]:
    """Return the networks on record, in their order."""
    finished = [summary for summary in summaries(store) if summary.complete and summary.findings]
    newest = {summary.model: summary for summary in sorted(finished, key=lambda summary: summary.evaluation.recency)}
    return [Distance(network, newest[network.name]) for network in networks if network.name in newest]


def measure(networks: Sequence[Known], store: Store) -> None:
    """Evaluate the networks that are not on record."""
    done = {distance.known.name for distance in distances(store, networks)}
    for network in networks:
        if network.name not in done:
            print(network.name, file=sys.stderr, flush=True)
            request = Request(
                network.name,
                suite=read_suite("strong"),
                module=network.build(),
                dataset="digits",
                n=network.n,
                eps=network.eps,
            )
            evaluate(request, store)


def page(found: Sequence[Distance]) -> str:
    """Return the page: the distribution over all networks and over the confirmed ones, and a row for each."""
    confirmed = [distance for distance in found if distance.conclusion == "confirmed"]
    header = ("network", "truth known by", "eps", "n", "truth", "strong", "above the truth, points", "images missed", "verdict")
    lines = [
        (
            f"`{distance.known.name}`",
            distance.known.how,
            distance.known.eps,
            str(distance.known.n),
            f"{100 * distance.known.truth() / distance.known.n:.1f}",
            interval_text(distance.strong.a_rob, distance.known.n),
            f"{distance.points:.1f}",
            f"{distance.missed} of {distance.known.n - distance.known.truth()}",
            distance.conclusion,
        )
        for distance in found
    ]
    align = [":--" if column in ("network", "truth known by", "verdict") else "--:" for column in header]
    return "\n".join(
        [
            "# Calibration\n",
            "How far the strong suite ends above the true robust accuracy, on small networks of the digits whose truth is "
            "known. Solved: by mixed-integer programming. Margins: of a linear model. Planted: each image has one adversarial "
            "image that was put there, so the truth is 0. Made by `make calibration`.\n",
            f"- All {len(found)} networks: {_spread(found)}.",
            f"- The {len(confirmed)} whose verdict is `confirmed`: {_spread(confirmed)}.",
            "- These networks are small. On larger ones nobody knows the truth, and the distance may be larger."
            f"{_missing(found)}\n",
            *(f"| {' | '.join(line)} |" for line in (header, align, *lines)),
            "",
        ]
    )


def _missing(found: Sequence[Distance]) -> str:
    measured = {distance.known.name for distance in found}
    names = [f"`{known.name}`" for known in KNOWN if known.name not in measured]
    return f"\n- Not measured yet: {', '.join(names)}." if names else ""


def _spread(found: Sequence[Distance]) -> str:
    if not found:
        return "none"
    points = [distance.points for distance in found]
    missed, all_of_them = sum(one.missed for one in found), sum(one.known.n - one.known.truth() for one in found)
    return (
        f"{sum(value == 0 for value in points)} at the truth, {sum(value <= CLOSE for value in points)} within {CLOSE} points, "
        f"the farthest {max(points):.1f} points above; "
        f"{missed} of {all_of_them} images that are misclassified somewhere in the ball were missed"
    )


def picture(found: Sequence[Distance]) -> str:
    """Return the distribution as SVG: the share of networks on which strong ends at most so far above the truth."""
    confirmed = [distance for distance in found if distance.conclusion == "confirmed"]
    x = np.array(sorted({0.0, *(distance.points for distance in found)}))
    lines = []
    for style, (name, group) in enumerate((("all networks", found), ("confirmed", confirmed))):
        points = np.array([distance.points for distance in group])
        share = np.array([100 * float((points <= limit).mean()) if len(points) else np.nan for limit in x])
        lines.append(Line(f"{name} ({len(group)})", x, share, style, kind="line and points"))
    panel = Panel("", "strong above the truth by at most, points", "networks, %", tuple(lines), y_max=105.0)
    return panels_picture("Distance between strong and the truth", [panel], description="kwbench; make calibration").svg()


def main() -> None:
    """Evaluate, and write the page and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--db", default="calibration.db", help="the record")
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = Store.open(options.db, create=True)
    try:
        measure(KNOWN, store)
        found = distances(store, KNOWN)
    finally:
        store.close()
    REPORT.write_text(page(found), encoding="utf-8")
    FIGURE.write_text(picture(found), encoding="utf-8")


if __name__ == "__main__":
    main()
