"""Images that a surrogate should take for other classes."""

import torch

from kwbench.attacks.search.transfer_images import towards_targets
from kwbench.gradients import EXACT
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel
from support.modules import Watched
from support.small_models import first_images, trained_cnn, wrapped


def test_few_samples_pass_for_several_classes_at_once_to_the_same_images() -> None:
    batch, threat = first_images(20), ThreatModel.of("linf", "0.2")
    module = Watched(trained_cnn())
    model = wrapped(module, tile=16)

    def ends(rows: int) -> list[torch.Tensor]:
        rng = SampleRandom(0, "targets", batch.samples[:rows])
        module.sizes.clear()
        return towards_targets(model, batch.x[:rows], batch.y[:rows], threat, rng, EXACT, steps=5, targets=4)

    apart = ends(20)
    assert len(apart) == 4
    assert len(module.sizes) == 2 + 4 * 2 * 5, "more samples than a tile pass for one class at a time"
    together = ends(3)
    assert len(module.sizes) == 1 + 5
    assert all(torch.equal(few, many[:3]) for few, many in zip(together, apart, strict=True))
