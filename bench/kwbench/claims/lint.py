"""A lint of the claims: numbers that cannot be true and protocols that could not have worked. Rules are pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, Literal

from kwbench.claims.claim import CLEAN, WORST, Claim
from kwbench.claims.mapping import protocol_of
from kwbench.config.suite import Suite, read_suite
from kwbench.threat import exact_fraction

Kind = Literal["cannot be true", "does not fit", "could not have worked"]


@dataclass(frozen=True, slots=True)
class Remark:
    """A violation of a rule: one sentence and the cells concerned. A remark on a figure of a paper concerns no cells."""

    rule: str
    kind: Kind
    claims: tuple[Claim, ...]
    statement: str


# The share of the largest class in each test set.
LARGEST_CLASS: dict[str, Fraction] = {
    "SVHN": Fraction(5099, 26032),
    "MNIST": Fraction(1135, 10000),
    "CIFAR-10": Fraction(1000, 10000),
}

# The number of attacked images: stated by the paper, or inferred from the grid of its numbers.
IMAGES: dict[str, int] = {"costa2020": 1280, "hicheur2024": 1024}

# Standard errors by which an accuracy on these images may exceed that on all images before it counts as impossible.
_LUCK = 4

# The attacks over which xiao2020 takes its A_rob (D.3).
_WHITE_BOX = ("PGD", "C&W", "DeepFool", "MIM")


def lint(claims: Sequence[Claim]) -> list[Remark]:
    """Return all remarks on these claims and on the settings of the papers' figures."""
    return [
        *over_100(claims),
        *not_the_worst(claims),
        *above_standard(claims, IMAGES),
        *largest_class(claims, LARGEST_CLASS),
        *coarse_grid(claims, IMAGES),
        *off_the_grid(claims, IMAGES),
        *short_of_eps(claims),
        *ten_times(_radii()),
    ]


def over_100(claims: Sequence[Claim]) -> list[Remark]:
    """Find accuracies above 100 %."""
    wrong = tuple(claim for claim in claims if claim.percent > 100)
    numbers = ", ".join(claim.text for claim in wrong)
    return _remark("over 100", "cannot be true", wrong, f"{numbers} % is not an accuracy")


def not_the_worst(claims: Sequence[Claim]) -> list[Remark]:
    """Find worst cases above the accuracy under one of the attacks that they cover."""
    remarks = []
    for row in _rows(claims):
        worst = next((claim for claim in row if claim.attack == WORST), None)
        below = [claim for claim in row if claim.attack in _WHITE_BOX and worst is not None and claim.percent < worst.percent]
        if worst is not None and below:
            least = min(below, key=lambda claim: claim.percent)
            statement = f"the worst case, {worst.text} %, is above {least.attack}'s {least.text} % in the same row"
            remarks += _remark("not the worst", "cannot be true", (worst,), statement)
    return remarks


def above_standard(claims: Sequence[Claim], images: Mapping[str, int]) -> list[Remark]:
    """Find accuracies under an attack above the clean accuracy of the same row, by more than sampling error if a paper attacks
    only some of the images.
    """
    remarks = []
    for row in _rows(claims):
        clean = next((claim for claim in row if claim.attack in CLEAN), None)
        for claim in row:
            if clean is None or not claim.attacked:
                continue
            variance = clean.percent * (100 - clean.percent) / images[claim.paper] if claim.paper in images else 0
            if claim.percent > clean.percent + _LUCK * variance**0.5:
                statement = f"{claim.text} % under {claim.attack}, and {clean.text} % without an attack"
                remarks += _remark("above standard", "cannot be true", (claim,), statement)
    return remarks


def largest_class(claims: Sequence[Claim], shares: Mapping[str, Fraction]) -> list[Remark]:
    """Find accuracies equal to the share of the largest class: the network is constant."""
    constant = tuple(
        claim
        for claim in claims
        if claim.attack in CLEAN and claim.dataset in shares and _printed(100 * shares[claim.dataset], claim) == claim.percent
    )
    statement = "the share of the largest class: the network is constant, so its row says nothing about robustness"
    return _remark("largest class", "could not have worked", constant, statement)


def coarse_grid(claims: Sequence[Claim], images: Mapping[str, int]) -> list[Remark]:
    """Find papers whose accuracies under attack are all multiples of a coarser fraction than their number of images allows."""
    remarks = []
    for paper, n in images.items():
        attacked = tuple(claim for claim in claims if claim.paper == paper and claim.attacked)
        factors = [k for k in range(2, n // 100 + 1) if n % k == 0 and all(_on_grid(claim, n // k) for claim in attacked)]
        # Numbers such as 0.0 and 5.0 are on every grid.
        informative = sum(claim.percent > 0 and claim.decimals >= 2 for claim in attacked)
        if factors and informative:
            k = max(factors)
            statement = (
                f"all {len(attacked)} numbers are multiples of 1/{n // k}, though {n} images are stated; "
                f"the probability of this by chance is 1 in {k}^{informative}"
            )
            remarks += _remark("coarse grid", "does not fit", attacked, statement)
    return remarks


def off_the_grid(claims: Sequence[Claim], images: Mapping[str, int]) -> list[Remark]:
    """Find numbers that are not a multiple of one image, among numbers that mostly are."""
    remarks = []
    for paper, n in images.items():
        for attacked in (False, True):
            # Numbers with one decimal fit every grid.
            cells = [claim for claim in claims if claim.paper == paper and claim.attacked == attacked and claim.decimals >= 2]
            off = tuple(claim for claim in cells if not _on_grid(claim, n))
            if len(off) < len(cells) / 4:
                numbers = ", ".join(claim.text for claim in off)
                statement = f"{numbers}: not a fraction of {n} images, unlike {len(cells) - len(off)} other numbers"
                remarks += _remark("off the grid", "does not fit", off, statement)
    return remarks


def short_of_eps(claims: Sequence[Claim]) -> list[Remark]:
    """Find attacks whose steps add up to less than eps, by the settings that the paper states."""
    groups: dict[tuple[str, str, str], list[Claim]] = {}
    for claim in claims:
        protocol = protocol_of(claim)
        # The first label is the paper's reading, except for a worst case, where all labels are other readings.
        if protocol is None or not protocol.labels or protocol.reading == "worst":
            continue
        # An attack without a bound is compared with the eps of the other attacks.
        threat = claim.threat or _suite(protocol.suite).threat
        if threat is not None:
            reach = reach_of(_parameters(protocol.suite, protocol.labels[0]), threat.eps)
            if reach is not None and reach < threat.eps:
                groups.setdefault((claim.paper, claim.attack, f"{float(reach / threat.eps):.2g}"), []).append(claim)
    return [
        Remark(
            "short of eps",
            "could not have worked",
            tuple(group),
            f"all steps of {attack} together move a pixel by {share} eps at most, so it cannot reach most of the ball",
        )
        for (_, attack, share), group in groups.items()
    ]


@cache
def _suite(name: str) -> Suite:
    return read_suite(name)


def reach_of(parameters: Mapping[str, Any], eps: Fraction) -> Fraction | None:
    """Return how far the steps of an attack reach together; None if they have no stated size.

    The steps of C&W in l2 are Adam's, at most about as long as stated, in the space of tanh, where a pixel moves half as far.
    """
    steps = parameters.get("steps")
    if steps is None:
        return None
    if (absolute := parameters.get("step_size")) is not None:
        in_tanh = "binary_search_steps" in parameters and parameters.get("norm") == "l2"
        return int(steps) * exact_fraction(absolute) / (2 if in_tanh else 1)
    relative = parameters.get("relative_step_size")
    return None if relative is None else int(steps) * exact_fraction(relative) * eps


def ten_times(radii: Mapping[str, Fraction]) -> list[Remark]:
    """Find radii on the same images that differ by a factor of ten: a misplaced decimal point."""
    return [
        Remark("ten times", "could not have worked", (), f"{name} has eps {float(eps):g}, ten times that of {other}")
        for name, eps in radii.items()
        for other, other_eps in radii.items()
        if eps == 10 * other_eps
    ]


def _radii() -> dict[str, Fraction]:
    """The radii of xiao2020 on CIFAR-10, by table or figure."""
    main, figure = read_suite("xiao2020").on("cifar10").threat, read_suite("xiao2020-figure4").threat
    assert main is not None
    assert figure is not None
    return {"xiao2020, table 1": main.eps, "xiao2020, figure 4": figure.eps}


@cache
def _parameters(suite: str, label: str) -> Mapping[str, Any]:
    whole = _suite(suite)
    for variant in (whole, *whole.datasets.values()):
        for attack in variant.attacks:
            if attack.label == label:
                return attack.parameters
    raise KeyError(label)


def _rows(claims: Sequence[Claim]) -> list[list[Claim]]:
    rows: dict[tuple[str, ...], list[Claim]] = {}
    for claim in claims:
        rows.setdefault(claim.network, []).append(claim)
    return list(rows.values())


def _printed(percent: Fraction, like: Claim) -> float:
    """A percentage with as many decimals as a claim has."""
    return float(round(percent, like.decimals))


def _on_grid(claim: Claim, n: int) -> bool:
    nearest = Fraction(round(exact_fraction(claim.text) * n / 100), n)
    # A half may be rounded either way.
    return abs(100 * nearest - exact_fraction(claim.text)) <= Fraction(1, 2 * 10**claim.decimals)


def _remark(rule: str, kind: Kind, claims: tuple[Claim, ...], statement: str) -> list[Remark]:
    return [Remark(rule, kind, claims, statement)] if claims else []
