"""The threat model: accepted radii and norms."""

from fractions import Fraction
from typing import Any

import pytest

from kwbench.errors import UsageError
from kwbench.threat import ThreatModel, exact_fraction, parse_eps, parse_threats


@pytest.mark.parametrize(
    ("written", "eps"),
    [
        ("8/255", Fraction(8, 255)),
        ("0.2", Fraction(1, 5)),
        (0.1, Fraction(1, 10)),
        (0.047, Fraction(47, 1000)),
        (1, Fraction(1)),
        ("1e-3", Fraction(1, 1000)),
        (Fraction(2, 255), Fraction(2, 255)),
        (" 0.5 ", Fraction(1, 2)),
    ],
)
def test_radii_are_read_exactly_as_written(written: Any, eps: Fraction) -> None:
    assert parse_eps(written, "linf") == eps


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("eps", ["0", 0, -1, "-8/255", "0.0", "1e-400", "1e-999999999"])
def test_radii_must_be_positive(eps: Any, norm: str) -> None:
    with pytest.raises(UsageError, match="is not positive"):
        ThreatModel.of(norm, eps)


@pytest.mark.parametrize("eps", ["8", 1.0001, "256/255"])
def test_in_linf_radii_over_1_are_refused_with_a_hint(eps: Any) -> None:
    with pytest.raises(UsageError, match=r"exceeds 1.*8/255"):
        ThreatModel.of("linf", eps)
    assert ThreatModel.of("l2", eps).eps > 1


@pytest.mark.parametrize("eps", ["1/0", "abc", "nan", "inf", "", None, True, float("nan"), "8/255/2", "1e400", "1e999999999"])
def test_radii_must_be_numbers(eps: Any) -> None:
    with pytest.raises(UsageError, match="is not a number"):
        ThreatModel.of("l2", eps)


def test_radii_larger_than_the_distance_of_any_two_images_are_refused() -> None:
    with pytest.raises(UsageError, match="exceeds the distance of any two images"):
        ThreatModel.of("l2", "1e12")


def test_radii_that_no_float_can_hold_are_not_positive() -> None:
    with pytest.raises(UsageError, match="is not positive"):
        ThreatModel.of("l2", "1/1" + "0" * 400)


@pytest.mark.parametrize("norm", ["linfty", "L2", "", "l0"])
def test_unknown_norms_are_refused_with_the_list(norm: str) -> None:
    with pytest.raises(UsageError, match="one of linf, l2, l1"):
        ThreatModel.of(norm, "0.1")


def test_threat_models_are_equal_exactly_when_norm_and_radius_are() -> None:
    assert ThreatModel.of("linf", "1/5") == ThreatModel.of("linf", 0.2)
    assert ThreatModel.of("linf", "8/255") != ThreatModel.of("linf", "0.0314")
    assert ThreatModel.of("linf", 0.5) != ThreatModel.of("l2", 0.5)


@pytest.mark.parametrize("eps", ["8/255", "6/255", "5/255", "51/255", "0.2", "0.20", "1/3", "2/85", "1e-2"])
def test_a_radius_keeps_its_spelling(eps: str) -> None:
    threat = ThreatModel.of("linf", f" {eps} ")
    assert str(threat) == f"linf {eps}"
    # Two spellings of one number are one threat model.
    assert threat == ThreatModel.of("linf", Fraction(eps))
    assert hash(threat) == hash(ThreatModel.of("linf", Fraction(eps)))


@pytest.mark.parametrize(
    ("eps", "text"),
    [
        ("8/255", "8/255"),
        ("2/85", "6/255"),
        ("1/51", "5/255"),
        ("1/5", "0.2"),
        ("1/3", "1/3"),
        ("31/1000", "0.031"),
        ("1", "1"),
    ],
)
def test_a_radius_without_spelling_is_shown_in_the_usual_notation(eps: str, text: str) -> None:
    assert str(ThreatModel.of("linf", Fraction(eps))) == f"linf {text}"


def test_the_radius_is_the_nearest_float() -> None:
    assert ThreatModel.of("linf", "8/255").radius == 8 / 255


def test_exact_fractions_refuse_division_by_zero_by_name() -> None:
    with pytest.raises(ValueError, match="divides by zero"):
        exact_fraction("1/0")
    assert exact_fraction("1e-999999999") == 0


def test_several_threat_models_are_read_in_their_order() -> None:
    assert parse_threats("linf:8/255, l2:0.5") == (ThreatModel.of("linf", "8/255"), ThreatModel.of("l2", "0.5"))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("linf:8/255", "at least two different"),
        ("linf:0.1,linf:1/10", "at least two different"),
        ("linf:8/255,0.5", "write NORM:RADIUS"),
        ("linf:8/255,l2:", "write NORM:RADIUS"),
        ("linf:8/255,", "write NORM:RADIUS"),
        ("linf:8/255,l3:1", "norm: 'l3' is unknown"),
        ("linf:8/255,l2:0", "is not positive"),
    ],
)
def test_what_is_not_a_list_of_threat_models_is_refused(written: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_threats(written)
