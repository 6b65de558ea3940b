"""RayS (Chen and Gu 2020, arXiv:2006.12792): a search on labels alone."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kwbench.attacks.attack import Attack
from kwbench.attacks.search.losses import fooled
from kwbench.geometry import TOLERANCE, distance, norms, project, steepest
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel


@dataclass(frozen=True)
class Rays(Attack):
    """Looks for the direction, one sign a pixel, in which the class changes soonest, by turning blocks of signs over.

    Blocks are halved from the whole image down to single values (algorithm 3). A turned direction is kept where the class has
    changed at the radius that was best so far; a bisection then finds by how much it is better (algorithm 2). When the
    blocks are used up it begins anew, with blocks of values drawn at random instead of neighbours. The first direction is
    towards white; where that never changes the class, random ones are tried. In l2 the signs are scaled to its length.
    It needs no logits, so nothing that hides gradients or flattens losses can mislead it. A sample leaves as soon as an
    adversarial image lies in the ball; else the best direction at eps is proposed.
    A stochastic model's label is `y` unless most of `draws` answers are others.
    """

    norms = frozenset({"linf", "l2"})
    needs = "labels"

    queries: int = 10_000
    draws: int = 10

    def __post_init__(self) -> None:
        if self.queries < 1 or self.draws < 1:
            raise ValueError("queries and draws must be at least 1")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,)."""
        final, search = x.clone(), _Search(x, threat, rng)
        for _ in range(self.queries):
            z = search.question()
            with torch.no_grad():
                changed = self._changed(model, z, y[search.row], search.row)
            near = changed & (distance(search.x, z, threat.norm) <= threat.radius + TOLERANCE / 2)
            final[search.row[near]] = z[near]
            search.learn(changed)
            search.keep(~near)
            if not len(search.row):
                return final
        final[search.row] = search.at_eps()
        return final

    def passes(self, stochastic: bool) -> int:
        """See Attack."""
        return self.queries * (self.draws if stochastic else 1)

    def doubled(self, times: int) -> "Rays":
        """See Attack: more queries."""
        return replace(self, queries=self.queries * 2**times)

    def _changed(self, model: Model, z: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        if not model.stochastic:
            return fooled(model(z, rows), y)
        answers = [fooled(model(z, rows), y) for _ in range(self.draws)]
        return 2 * torch.stack(answers).sum(dim=0) > self.draws


class _Search:
    """Where each sample's search stands; its questions and answers are one image and one label a sample, in step."""

    def __init__(self, x: Tensor, threat: ThreatModel, rng: SampleRandom) -> None:
        count, values = len(x), x[0].numel()
        self.threat, self.rng, self.values = threat, rng, values
        self.x, self.row = x, torch.arange(count, device=x.device)
        self.signs = torch.ones((count, values), device=x.device)
        # The order in which values make blocks, as each value's place.
        self.places = torch.arange(values, device=x.device).repeat(count, 1)
        # From every image the corners of the pixel range lie within this radius.
        farthest = norms(torch.ones_like(x), threat.norm)
        self.radius, self.low, self.high = farthest, torch.zeros_like(farthest), farthest
        self.bisecting = torch.zeros(count, dtype=torch.bool, device=x.device)
        # Blocks are 2^-level of the image; at level -1, for the first direction, nothing is turned.
        self.level = torch.full((count,), -1, device=x.device)
        self.block = torch.zeros_like(self.level)
        self.round = torch.zeros_like(self.level)
        # Until a direction is known in which the class changes at all, directions are drawn at random.
        self.known = torch.zeros_like(self.bisecting)
        self.drawn = 0
        self.finest = max(values - 1, 1).bit_length()

    def question(self) -> Tensor:
        """The images (b, c, h, w) whose labels are to be learnt."""
        lost = (~self.known).nonzero().squeeze(1)
        if len(lost) and self.drawn:
            numbers = self.rng.take(lost).uniform(f"direction {self.drawn}", (self.values,)).to(self.x.device)
            self.signs[lost] = torch.where(numbers < 0.5, -1.0, 1.0)
        self.drawn += 1
        self.attempt = torch.where(self._turned(), -self.signs, self.signs)
        self.asked = self.radius
        if bool(self.bisecting.any()):
            # First of all the edge of the ball: there the search would be over.
            edge = self._edge(self.attempt)
            middle = torch.where((self.low == 0) & (edge < self.high), edge, (self.low + self.high) / 2)
            self.asked = torch.where(self.bisecting, middle, self.radius)
        return self._point(self.attempt, self.asked)

    def learn(self, changed: Tensor) -> None:
        """Take in whether the label was another one at each image asked about."""
        self.high = torch.where(changed, self.asked, self.high)
        self.low = torch.where(self.bisecting & ~changed, self.asked, torch.where(self.bisecting, self.low, 0.0))
        # Fine enough to tell what is left to gain; a direction that gains less is kept too, since many of them add up.
        enough = ((self.radius - self.threat.radius) / 16).clamp_min(self.threat.radius / 1000)
        close = self.bisecting & (self.high - self.low <= enough)
        self.signs = torch.where(close[:, None], self.attempt, self.signs)
        self.radius = torch.where(close, self.high, self.radius)
        turned_down = ~self.bisecting & ~changed & self.known
        self.known = self.known | changed
        self.bisecting = (self.bisecting & ~close) | (~self.bisecting & changed)
        self._next_block(close | turned_down)
        self.low = torch.where(self.bisecting, self.low, 0.0)
        self.high = torch.where(self.bisecting, self.high, self.radius)

    def keep(self, kept: Tensor) -> None:
        """Forget all samples but these."""
        if bool(kept.all()):
            return
        self.rng = self.rng.take(kept.nonzero().squeeze(1))
        for name in ("x", "row", "signs", "places", "radius", "low", "high", "bisecting", "known", "level", "block", "round"):
            setattr(self, name, getattr(self, name)[kept])

    def at_eps(self) -> Tensor:
        """The points of the best directions at the edge of the ball."""
        return project(self._point(self.signs, self._edge(self.signs)), self.x, self.threat)

    def _turned(self) -> Tensor:
        """Which values (b, n) belong to the block at hand."""
        size = self._block_size()
        first = (self.block * size)[:, None]
        return (self.places >= first) & (self.places < first + size[:, None]) & (self.level >= 0)[:, None]

    def _block_size(self) -> Tensor:
        return -(-self.values // 2 ** self.level.clamp_min(0))

    def _next_block(self, ready: Tensor) -> None:
        self.block = self.block + ready
        over = ready & ((self.level < 0) | (self.block * self._block_size() >= self.values))
        self.level, self.block = self.level + over, self.block * ~over
        again = self.level > self.finest
        if bool(again.any()):
            self.level, self.round = self.level * ~again, self.round + again
            for number in sorted({*self.round[again].tolist()}):
                rows = (again & (self.round == number)).nonzero().squeeze(1)
                shuffled = self.rng.take(rows).uniform(f"round {number}", (self.values,)).argsort(dim=1, stable=True)
                self.places[rows] = shuffled.to(self.places.device)

    def _point(self, signs: Tensor, radius: Tensor) -> Tensor:
        direction = steepest(signs.view_as(self.x), self.threat.norm)
        return (self.x + radius.view(-1, 1, 1, 1) * direction).clamp(0, 1)

    def _edge(self, signs: Tensor) -> Tensor:
        """How far to go in these directions until the image, cut to the pixel range, is eps away."""
        radius = torch.full_like(self.radius, self.threat.radius)
        if self.threat.norm == "l2":
            # The length after the cut is concave in the radius, so these never lead outside.
            for _ in range(6):
                length = distance(self.x, self._point(signs, radius), "l2").float()
                radius = radius * (self.threat.radius / length.clamp_min(1e-6)).clamp(1, 2)
        return radius
