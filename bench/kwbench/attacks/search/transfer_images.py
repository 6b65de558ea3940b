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
    placed: Callable[[Tensor], Tensor] = lambda z: z,
) -> list[Tensor]:
    """Return for each of the most probable other classes of the surrogate images (b, c, h, w) that it should take for it.

    PGD with momentum from a random start; the step size falls from eps / 2 to nothing. Iterates are `placed` where images may
    lie before every pass.
    """
    with torch.no_grad():
        scores = source(x).scatter(1, y[:, None], -torch.inf)
    order = scores.argsort(dim=1, descending=True)
    ends = []
    for place in range(min(targets, source.classes - 1)):
        target = order[:, place]

        def lead(logits: Tensor, target: Tensor = target) -> Tensor:
            return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).T

        stream = rng.child(f"target {place}")
        z, momentum = random_start(x, threat, stream), torch.zeros_like(x)
        for step in range(steps):
            slope = gradient(source, placed(z), lead, stream.child(step)).gradients[0].nan_to_num(0.0, 0.0, 0.0)
            size = slope.abs().flatten(1).mean(dim=1).clamp_min(1e-30).view(-1, 1, 1, 1)
            momentum = 0.75 * momentum + slope / size
            z = project(z + threat.radius / 2 * (1 - step / steps) * steepest(momentum, threat.norm), x, threat)
        ends.append(placed(z))
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
