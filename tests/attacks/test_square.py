"""Square: restarts, a faster precision, and comparisons under noise. Its strength is tested with linear models and
libraries."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.search.test_ascent import misled
from kwbench.attacks.square import Square
from kwbench.outcome import Status
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel
from support.small_models import broken, first_images, normed_cnn, run, sharp, trained_cnn, wrapped


class _Watching(nn.Module):
    """Records its inputs, and adds noise that all rows of a pass share to the logits of a network."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.network, self.noise = trained_cnn(), noise
        self.seen: list[Tensor] = []
        self.offsets: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        offset = self.noise * torch.randn((1, 10))
        self.seen.append(x.clone())
        self.offsets.append(offset)
        logits: Tensor = self.network(x) + offset
        return logits


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_restart_begins_at_another_point(norm: str) -> None:
    module, batch = _Watching(), first_images(4)
    threat = ThreatModel.of(norm, "0.01")
    Square(steps=1, restarts=3)(wrapped(module, tile=4), batch.x, batch.y, threat, SampleRandom(0, "test", batch.samples))
    starts = module.seen[::2]
    assert len(starts) == 3
    assert not any(torch.equal(starts[a], starts[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_a_candidate_square_and_the_current_image_share_their_random_draws() -> None:
    module, batch = _Watching(noise=1.0), first_images(4)
    model = wrapped(module, tile=4)
    model.stochastic = True
    Square(steps=3, draws=2)(model, batch.x, batch.y, ThreatModel.of("linf", "0.1"), SampleRandom(0, "test", batch.samples))
    offsets = module.offsets[2:]  # after the two draws of the start
    assert len(offsets) == 3 * 2 * 2
    pairs: list[Any] = list(zip(offsets[::2], offsets[1::2], strict=True))
    assert all(torch.equal(new, old) for new, old in pairs)
    assert len({float(new[0, 0]) for new, _ in pairs}) == 6


def test_a_search_in_lower_precision_stops_only_at_successes_confirmed_in_float32() -> None:
    attack, batch = Square(steps=5, precision="folded"), sharp(first_images(20))
    outcomes = run("square", {"steps": 5, "precision": "folded"}, batch, ThreatModel.of("linf", "0.001"), model=misled())
    assert all(outcome.status is Status.HELD for outcome in outcomes)
    assert all(outcome.forwards == attack.passes(False) for outcome in outcomes), "they must be attacked to the end"


def test_a_search_in_lower_precision_breaks_as_many_samples() -> None:
    batch, model = first_images(100), wrapped(normed_cnn())
    model.plan_passes(batch.x[:64])
    assert model.effective_precision("folded") == "folded"
    plain, quicker = (
        run("square", {"steps": 100, "precision": precision}, batch, ThreatModel.of("linf", "0.12"), model=model)
        for precision in ("float32", "folded")
    )
    assert broken(quicker).sum() >= broken(plain).sum()
    assert 0 < broken(plain).sum() < len(broken(plain))
