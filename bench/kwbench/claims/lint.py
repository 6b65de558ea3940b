"""What cannot be true of the claims, and what could not have worked. Each rule is a pure function of claims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, Literal

from kwbench.claims.claim import CLEAN, WORST, Claim
from kwbench.claims.mapping import protocol_of
from kwbench.config.suite import read_suite
from kwbench.threat import exact_fraction

Kind = Literal["cannot be true", "does not fit", "could not have worked"]


@dataclass(frozen=True, slots=True)
class Remark:
    """What a rule says, in one sentence, about some cells; none where it is about a figure, which has no cells here."""

    rule: str
    kind: Kind
    claims: tuple[Claim, ...]
    statement: str


# The largest class of each test set, and how many images it has.
LARGEST_CLASS: dict[str, Fraction] = {
    "SVHN": Fraction(5099, 26032),
    "MNIST": Fraction(1135, 10000),
    "CIFAR-10": Fraction(1000, 10000),
}

# The images that a paper names, or that its figures give away.
IMAGES: dict[str, int] = {"costa2020": 1280, "hicheur2024": 1024}

# Standard errors of a share of those images that its distance from a share of all images may have.
_LUCK = 4

# The attacks over which xiao2020 takes its A_rob (D.3).
_WHITE_BOX = ("PGD", "C&W", "DeepFool", "MIM")


def lint(claims: Sequence[Claim]) -> list[Remark]:
    """All remarks on these claims, and on the settings of the papers' figures."""
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
    """Accuracies above 100 %."""
    found = tuple(each for each in claims if each.percent > 100)
    said = ", ".join(each.text for each in found)
    return _remark("over 100", "cannot be true", found, f"{said} % is no accuracy")


def not_the_worst(claims: Sequence[Claim]) -> list[Remark]:
    """Worst cases above the accuracy under one of the attacks that they are the worst case of."""
    remarks = []
    for row in _rows(claims):
        worst = next((each for each in row if each.attack == WORST), None)
        below = [each for each in row if each.attack in _WHITE_BOX and worst is not None and each.percent < worst.percent]
        if worst is not None and below:
            least = min(below, key=lambda each: each.percent)
            statement = f"the worst case, {worst.text} %, is above {least.attack}'s {least.text} % in the same row"
            remarks += _remark("not the worst", "cannot be true", (worst,), statement)
    return remarks


def above_standard(claims: Sequence[Claim], images: Mapping[str, int]) -> list[Remark]:
    """Accuracies under an attack above the accuracy without one, in the same row; by more than luck, where a paper attacks some
    of the images.
    """
    remarks = []
    for row in _rows(claims):
        clean = next((each for each in row if each.attack in CLEAN), None)
        for each in row:
            if clean is None or not each.attacked:
                continue
            luck = _LUCK * (clean.percent * (100 - clean.percent) / images[each.paper]) ** 0.5 if each.paper in images else 0
            if each.percent > clean.percent + luck:
                statement = f"{each.text} % under {each.attack}, and {clean.text} % without an attack"
                remarks += _remark("above standard", "cannot be true", (each,), statement)
    return remarks


def largest_class(claims: Sequence[Claim], shares: Mapping[str, Fraction]) -> list[Remark]:
    """Accuracies that are the share of the test set's largest class: the network always gives the same answer."""
    found = tuple(
        each
        for each in claims
        if each.attack in CLEAN and each.dataset in shares and _printed(100 * shares[each.dataset], each) == each.percent
    )
    statement = "the share of the largest class: the network gives one answer to all, and its row says nothing of robustness"
    return _remark("largest class", "could not have worked", found, statement)


def coarse_grid(claims: Sequence[Claim], images: Mapping[str, int]) -> list[Remark]:
    """Papers whose figures under attacks are all multiples of a coarser fraction than their number of images gives."""
    remarks = []
    for paper, n in images.items():
        found = tuple(each for each in claims if each.paper == paper and each.attacked)
        finer = [k for k in range(2, n // 100 + 1) if n % k == 0 and all(_on_grid(each, n // k) for each in found)]
        # Of 0.0 and 5.0 it is no wonder.
        telling = sum(each.percent > 0 and each.decimals >= 2 for each in found)
        if finer and telling:
            k = max(finer)
            statement = (
                f"all {len(found)} figures are multiples of 1/{n // k}, though {n} images are named; "
                f"by chance, one time in {k}^{telling}"
            )
            remarks += _remark("coarse grid", "does not fit", found, statement)
    return remarks


def off_the_grid(claims: Sequence[Claim], images: Mapping[str, int]) -> list[Remark]:
    """Figures that are no multiple of one image, among figures that mostly are."""
    remarks = []
    for paper, n in images.items():
        for attacked in (False, True):
            # One decimal tells nothing.
            cells = [each for each in claims if each.paper == paper and each.attacked == attacked and each.decimals >= 2]
            off = tuple(each for each in cells if not _on_grid(each, n))
            if len(off) < len(cells) / 4:
                said = ", ".join(each.text for each in off)
                statement = f"{said}: no share of {n} images, as {len(cells) - len(off)} other figures are"
                remarks += _remark("off the grid", "does not fit", off, statement)
    return remarks


def short_of_eps(claims: Sequence[Claim]) -> list[Remark]:
    """Fixed-budget attacks whose steps together are shorter than eps, by the settings of the paper as printed."""
    groups: dict[tuple[str, str, str], list[Claim]] = {}
    for each in claims:
        protocol = protocol_of(each)
        # The first label is the paper's reading; beside a worst case all are others.
        if protocol is None or not protocol.labels or protocol.reading == "worst":
            continue
        # Where nothing bounds an attack, the eps of the others stands for what it would take.
        threat = each.threat or read_suite(protocol.suite).threat
        if threat is not None:
            reach = reach_of(_parameters(protocol.suite, protocol.labels[0]), threat.eps)
            if reach is not None and reach < threat.eps:
                groups.setdefault((each.paper, each.attack, f"{float(reach / threat.eps):.2g}"), []).append(each)
    return [
        Remark(
            "short of eps",
            "could not have worked",
            tuple(found),
            f"all steps of {attack} together move a pixel by {share} eps at most; from where it starts, most of the ball is "
            "out of reach",
        )
        for (_, attack, share), found in groups.items()
    ]


def reach_of(parameters: Mapping[str, Any], eps: Fraction) -> Fraction | None:
    """How far the steps of an attack go together; None where it does not say how long they are.

    Those of C&W in l2 are Adam's, each about as long as it says or shorter, in the space of tanh, where pixels are half as far.
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
    """Radii on the same images that differ from another by a factor of ten: a point that slipped."""
    return [
        Remark("ten times", "could not have worked", (), f"{place} has eps {float(eps):g}, ten times that of {other}")
        for place, eps in radii.items()
        for other, its in radii.items()
        if eps == 10 * its
    ]


def _radii() -> dict[str, Fraction]:
    """Where xiao2020 attacks CIFAR-10, and how far."""
    main, figure = read_suite("xiao2020").on("cifar10").threat, read_suite("xiao2020-figure4").threat
    assert main is not None
    assert figure is not None
    return {"xiao2020, table 1": main.eps, "xiao2020, figure 4": figure.eps}


@cache
def _parameters(suite: str, label: str) -> Mapping[str, Any]:
    found = read_suite(suite)
    for each in (found, *found.datasets.values()):
        for attack in each.attacks:
            if attack.label == label:
                return attack.parameters
    raise KeyError(label)


def _rows(claims: Sequence[Claim]) -> list[list[Claim]]:
    rows: dict[tuple[str, ...], list[Claim]] = {}
    for each in claims:
        rows.setdefault(each.network, []).append(each)
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
