"""The distance between strong and the truth is what the record and the truth say."""

import re
from dataclasses import replace

import pytest
import torch

from defences.calibration import KNOWN, Distance, distances, measure, page, picture
from defences.sound_models import linear
from kwbench.record.store import Store
from support.plain_pgd import accuracy
from support.small_models import first_images

STEEP = next(known for known in KNOWN if known.name == "linear_0.2")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Distance:
    """Strong on a linear model, whose truth its margins give."""
    store = Store.open(str(tmp_path_factory.mktemp("calibration") / "calibration.db"), create=True)
    try:
        measure([STEEP], store)
        before = [(evaluation.id, evaluation.asked) for evaluation in store.evaluations()]
        measure([STEEP], store)
        assert [(evaluation.id, evaluation.asked) for evaluation in store.evaluations()] == before
        (distance,) = distances(store, KNOWN)
        return distance
    finally:
        store.close()


def test_strong_finds_the_truth_of_a_linear_model(measured: Distance) -> None:
    batch = first_images(STEEP.n)
    clean = int(accuracy(linear(), batch.x, batch.y).sum())
    assert 0 < STEEP.truth() < clean
    assert measured.left == STEEP.truth()
    assert (measured.missed, measured.points, measured.conclusion) == (0, 0.0, "confirmed")


def test_images_that_strong_misses_are_counted_in_points(measured: Distance) -> None:
    fewer = replace(measured, known=replace(STEEP, truth=lambda: STEEP.truth() - 8))
    assert (fewer.missed, fewer.points) == (8, 6.25)
    text = page([measured, fewer])
    assert "All 2 networks: 1 at the truth, 1 within 2 points, the farthest 6.2 points above" in text
    assert len(re.findall(r"^\| `linear_0.2`", text, flags=re.MULTILINE)) == 2


def test_an_attack_that_breaks_what_cannot_be_broken_is_an_error(measured: Distance) -> None:
    more = replace(measured, known=replace(STEEP, truth=lambda: STEEP.truth() + 1))
    with pytest.raises(ArithmeticError, match="broke 1 images that cannot be broken"):
        assert more.missed


def test_the_figure_shows_all_networks_and_the_confirmed_ones(measured: Distance) -> None:
    svg = picture([measured, replace(measured, known=replace(STEEP, truth=lambda: STEEP.truth() - 8))])
    assert svg == picture([measured, replace(measured, known=replace(STEEP, truth=lambda: STEEP.truth() - 8))])
    assert "Distance between strong and the truth" in svg


def test_every_known_network_can_be_built_and_has_a_truth() -> None:
    assert len({known.name for known in KNOWN}) == len(KNOWN)
    for known in KNOWN:
        assert 0 <= known.truth() <= known.n
        if known.how != "planted":
            batch = first_images(known.n)
            assert known.build()(batch.x).shape == torch.Size([known.n, 10])
