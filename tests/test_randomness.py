"""Random numbers depend on their address only."""

import random

import numpy as np
import pytest
import torch

from kwbench.randomness import SampleRandom, derived_seed, philox_uniform, seeded_globally


def test_a_sample_draws_the_same_numbers_in_every_batch() -> None:
    whole = SampleRandom(3, "pgd", ("a", "b", "c"))
    numbers = whole.uniform("start", (2, 2))
    assert torch.equal(SampleRandom(3, "pgd", ("c", "a")).uniform("start", (2, 2)), numbers[[2, 0]])
    assert torch.equal(whole.take(torch.tensor([1])).uniform("start", (2, 2)), numbers[[1]])
    assert torch.equal(whole.uniform("start", (2, 2)), numbers)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 1001])
def test_a_gpu_computes_the_numbers_of_numpy_bit_for_bit(count: int) -> None:
    keys = np.random.default_rng(0).integers(0, 2**64, (5, 2), dtype=np.uint64)
    expected = [np.random.Generator(np.random.Philox(key=key)).random(count, dtype=np.float32) for key in keys]
    assert philox_uniform(torch.from_numpy(keys.view(np.int64)), count).numpy().tolist() == np.stack(expected).tolist()


def test_numbers_on_another_device_are_those_of_the_cpu() -> None:
    rng = SampleRandom(3, "square", ("a", "b"))
    elsewhere = rng.uniform("steps", (3, 5), -2.0, 3.0, device=torch.device("meta"))
    assert (elsewhere.device.type, elsewhere.shape) == ("meta", (2, 3, 5))


def test_every_part_of_the_address_matters() -> None:
    base = SampleRandom(0, "pgd", ("a",)).normal("start", (4,))
    others = [
        SampleRandom(1, "pgd", ("a",)).normal("start", (4,)),
        SampleRandom(0, "mim", ("a",)).normal("start", (4,)),
        SampleRandom(0, "pgd", ("b",)).normal("start", (4,)),
        SampleRandom(0, "pgd", ("a",)).normal("length", (4,)),
        SampleRandom(0, "pgd", ("a",)).child("restart 1").normal("start", (4,)),
    ]
    assert all(not torch.equal(base, other) for other in others)


def test_the_numbers_have_the_distribution_they_claim() -> None:
    rng = SampleRandom(0, "test", tuple(str(sample) for sample in range(500)))
    uniform = rng.uniform("u", (40,), -2.0, 3.0)
    assert -2 <= uniform.min() < -1.99
    assert 2.99 < uniform.max() <= 3
    assert abs(uniform.mean() - 0.5) < 0.05
    normal = rng.normal("n", (40,))
    assert abs(normal.mean()) < 0.03
    assert abs(normal.std() - 1) < 0.03
    assert abs(torch.corrcoef(normal[:2])[0, 1]) < 0.5


def test_batch_seeds_depend_on_the_samples_of_the_batch() -> None:
    assert SampleRandom(0, "x", ("a", "b")).batch_seed() != SampleRandom(0, "x", ("b", "a")).batch_seed()
    assert derived_seed(0, "ab") != derived_seed(0, "a", "b")
    assert 0 <= derived_seed("anything") < 2**63


def test_global_seeding_repeats_and_restores() -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(1).item(), np.random.rand(), random.random()

    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    expected = draw()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    with seeded_globally(9):
        first = draw()
    second = []

    def fail() -> None:
        with seeded_globally(9):
            second.append(draw())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert second == [first]
    assert draw() == expected, "draws inside the block, even if it fails, do not change the generators outside"
