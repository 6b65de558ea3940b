"""A student: a small network that learns a model's answers, and whose gradients then lead to adversarial images of the model.

Papernot et al. 2017 (arXiv:1602.02697). It needs labels only, so that nothing inside the model can mislead it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.attacks.search.transfer_images import towards_targets
from kwbench.gradients import EXACT
from kwbench.model import Model
from kwbench.randomness import SampleRandom, seeded_globally
from kwbench.threat import ThreatModel

# The standard deviation of the noise on the images that the student learns from, in eps per pixel, times |N(0, 1)|; and at
# least so much.
_NOISE, _LEAST_NOISE = 1.25, 0.02
_BATCH, _EPOCHS, _RATE = 64, 6, 3e-3
# Steps of the attack on the student that finds images near its decision boundaries, whose labels it then learns.
_STEPS = 10


@dataclass(eq=False)
class Lessons:
    """The images (n, c, h, w) that students of a model learn from, and the students that have learned.

    A student is taught once for all samples that it attacks, so that these do not depend on each other. Without images it
    learns from noise. `seed` is that of the evaluation.
    """

    images: Tensor | None = None
    seed: int = 0
    _taught: dict[tuple[int, int, ThreatModel], Model] = field(default_factory=dict, repr=False)

    def student_of(self, model: Model, queries: int, threat: ThreatModel) -> Model:
        """Return a student of the model that learned from so many of its labels, which are charged to no sample."""
        key = id(model), queries, threat
        if key not in self._taught:
            threads = torch.get_num_threads()
            # More threads would split sums in another way, and give another student.
            torch.set_num_threads(1)
            try:
                with model.aside("student", self.seed), seeded_globally(self.seed):
                    self._taught[key] = self._teach(model, queries, threat)
            finally:
                torch.set_num_threads(threads)
        return self._taught[key]

    def _teach(self, model: Model, queries: int, threat: ThreatModel) -> Model:
        """Teach a student on noisy images, and then on images that an attack on the student finds."""
        images = self.images
        if images is None or not len(images):
            images = torch.rand((queries // 2, *model.shape)).to(model.device)
        network = student_network(model.shape, model.classes).to(model.device)
        student = Model(network, name="student", classes=model.classes, shape=model.shape, device=model.device, tile=model.tile)
        rows = torch.arange(queries - queries // 2) % len(images)
        x = _noisy(images[rows.to(images.device)], threat)
        y, _ = model.predict(x)
        _learn(network, x, y)
        # Images that the student takes for another class show where its boundaries are wrong.
        start = images[(torch.arange(queries // 2) % len(images)).to(images.device)]
        random = SampleRandom(self.seed, "student", tuple(str(row) for row in range(len(start))))
        labels, _ = student.predict(start)
        (harder,) = towards_targets(student, start, labels, threat, random, EXACT, steps=_STEPS, targets=1)
        harder = _noisy(harder, threat, share=0.25)
        answers, _ = model.predict(harder)
        _learn(network, torch.cat([x, harder]), torch.cat([y, answers]))
        return student


def student_network(shape: Sequence[int], classes: int) -> nn.Sequential:
    """Return an untrained convolutional network for images (c, h, w), with weights from the global generator."""
    strides = (1, 2, 1) if shape[1] <= 16 else (2, 2, 2)
    layers: list[nn.Module] = []
    channels = shape[0]
    for width, stride in zip((16, 32, 32) if shape[1] <= 16 else (32, 64, 64), strides, strict=True):
        layers += [nn.Conv2d(channels, width, 3, padding=1, stride=stride), nn.ReLU()]
        channels = width
    with torch.no_grad():
        features = nn.Sequential(*layers, nn.Flatten())(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, classes))


def _noisy(images: Tensor, threat: ThreatModel, share: float = 1.0) -> Tensor:
    """Return images with Gaussian noise, of another standard deviation for each."""
    spread = share * max(_NOISE * threat.pixel_radius(images[0].numel()), _LEAST_NOISE)
    spreads = torch.randn(len(images), 1, 1, 1).abs() * spread
    return (images + (spreads * torch.randn(images.shape)).to(images)).clamp(0, 1)


def _learn(network: nn.Module, x: Tensor, y: Tensor) -> None:
    """Train a network on images (n, c, h, w) with labels y (n,)."""
    network.requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), _RATE)
    with torch.enable_grad():
        for _ in range(_EPOCHS):
            for rows in torch.randperm(len(x)).split(_BATCH):  # type: ignore[no-untyped-call]
                optimizer.zero_grad()
                F.cross_entropy(network(x[rows.to(x.device)]), y[rows.to(y.device)]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    network.requires_grad_(False)
