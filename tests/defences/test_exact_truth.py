"""What is on record as the truth is what the program finds, and what the networks do."""

import pytest
import torch

from defences.exact_truth import FACTORIES, SAMPLES, SIZES, Answer, record, solve_sample, truths
from kwbench.randomness import seeded_globally
from kwbench.threat import ThreatModel
from support.plain_pgd import accuracy, descend
from support.small_models import first_images


@pytest.mark.parametrize("kind", FACTORIES)
def test_the_truth_is_on_record_for_the_first_images_and_divides_them(kind: str) -> None:
    assert [each["sample"] for each in record()[kind]["samples"]] == list(first_images(SAMPLES).samples)
    assert record()[kind]["eps"] == SIZES[kind].eps
    assert 0.4 < sum(truths(kind)) / SAMPLES < 0.65


@pytest.mark.parametrize("kind", FACTORIES)
@pytest.mark.parametrize("row", [0, 21, 42])
def test_solving_again_finds_what_is_on_record(kind: str, row: int) -> None:
    known = record()[kind]["samples"][row]
    answer: Answer = solve_sample(kind, FACTORIES[kind](), first_images(SAMPLES), row)
    assert answer.stands is known["stands"]
    assert answer.stands is (answer.margin < 0)
    if answer.stands:
        # The largest over all classes is unique; of a broken sample any class that wins will do.
        assert answer.margin == pytest.approx(known["margin"], abs=1e-3)


@pytest.mark.parametrize("kind", FACTORIES)
def test_no_attack_breaks_what_stands(kind: str) -> None:
    batch, threat = first_images(SAMPLES), ThreatModel.of("linf", SIZES[kind].eps)
    network, stands = FACTORIES[kind](), torch.tensor(truths(kind))
    with seeded_globally(0):
        for _ in range(5):
            z = descend(network, batch.x, batch.y, threat, steps=40, step_size=threat.radius / 8, loss="margin")
            assert not bool(((accuracy(network, z, batch.y) == 0) & stands).any())


@pytest.mark.parametrize("kind", ["kwta", "kwta_wide"])
def test_the_winners_of_the_solved_image_are_those_of_the_network(kind: str) -> None:
    network, batch = FACTORIES[kind](), first_images(SAMPLES)
    row = truths(kind).index(False)
    answer = solve_sample(kind, network, batch, row)
    _, first, activation, _ = network.children()
    hidden = activation(first(torch.from_numpy(answer.image).float().view(1, -1)))
    assert int((hidden != 0).sum()) == SIZES[kind].winners
