"""Search on a surrogate for images that the model under attack may misclassify, and the choice among them."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from kwbench.attacks.search.losses import fooled, margin
from kwbench.geometry import project, random_start, steepest
from kwbench.gradients import Gradient
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel


def towards_targets(
    source: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    rng: SampleRandom,
    gradient: Gradient,
    *,
    steps: int,
    targets: int,
    placed: Callable[[Tensor, Tensor], Tensor] = lambda z, x: z,
) -> list[Tensor]:
    """Return for each of the most probable other classes of the surrogate images (b, c, h, w) that it should take for it.

    PGD with momentum from a random start; the step size falls from eps / 2 to nothing. Iterates z (n, c, h, w) of images x are
    `placed` where images may lie before every pass. The gradient is one that draws nothing. Few samples pass together for
    several classes, unless the surrogate is stochastic.
    """
    with torch.no_grad():
        scores = source(x).scatter(1, y[:, None], -torch.inf)
    order = scores.argsort(dim=1, descending=True)
    places = range(min(targets, source.classes - 1))
    together = 1 if source.stochastic else max(1, source.tile // max(1, len(x)))
    ends: list[Tensor] = []
    for first in range(0, len(places), together):
        group = places[first : first + together]
        images, rows = x.repeat(len(group), 1, 1, 1), torch.arange(len(x), device=x.device).repeat(len(group))
        labels, target = y[rows, None], order[:, group.start : group.stop].T.reshape(-1, 1)

        def lead(logits: Tensor, labels: Tensor = labels, target: Tensor = target) -> Tensor:
            return (logits.gather(1, target) - logits.gather(1, labels)).T

        streams = [rng.child(f"target {place}") for place in group]
        z, momentum = torch.cat([random_start(x, threat, stream) for stream in streams]), torch.zeros_like(images)
        for step in range(steps):
            estimate = gradient(source, placed(z, images), lead, streams[0].child(step), rows)
            slope = estimate.gradients[0].nan_to_num(0.0, 0.0, 0.0)
            size = slope.abs().flatten(1).mean(dim=1).clamp_min(1e-30).view(-1, 1, 1, 1)
            momentum = 0.75 * momentum + slope / size
            z = project(z + threat.radius / 2 * (1 - step / steps) * steepest(momentum, threat.norm), images, threat)
        ends += placed(z, images).reshape(len(group), *x.shape).unbind()
    return ends


def most_misclassified(model: Model, x: Tensor, y: Tensor, candidates: Iterable[Tensor], draws: int) -> Tensor:
    """Return for each sample the candidate (b, c, h, w) that the model misclassifies, in most of `draws` if it is random.

    Equals are decided by the margin. The images x themselves are a candidate.
    """
    best, best_score = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
    for z in candidates:
        score = torch.zeros(len(x), device=x.device)
        with torch.no_grad():
            number = draws if model.stochastic else 1
            for _ in range(number):
                logits = model(z)
                lead = margin(logits, y).nan_to_num(nan=1e30, posinf=1e30, neginf=-1e30)
                score += fooled(logits, y).float() + (1 + lead / (1 + lead.abs())) / 4 / number
        better = score > best_score
        best[better], best_score[better] = z[better], score[better]
    return best
