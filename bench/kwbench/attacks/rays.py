"""RayS (Chen and Gu 2020, arXiv:2006.12792): a search on predicted labels only."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kwbench.attacks.attack import Attack
from kwbench.attacks.search.losses import fooled
from kwbench.geometry import distance, norms, project, steepest
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import TOLERANCE, ThreatModel


@dataclass(frozen=True)
class Rays(Attack):
    """Search for the direction, one sign a pixel, with the nearest decision boundary, by flipping blocks of signs.

    Blocks are halved from the whole image down to single values (algorithm 3). A flip is kept if the class changes at the best
    radius so far; a bisection then finds the new radius (algorithm 2). When all blocks have been tried, the search starts again
    with blocks of values drawn at random instead of neighbours. The first direction is towards white; if it never changes the
    class, random directions are tried. In l2 the signs are scaled to unit length.

    The search needs no logits, so that nothing that hides gradients or flattens losses can mislead it. A sample is done as soon
    as an adversarial image lies in the ball; otherwise the best direction at eps is proposed. The prediction of a stochastic
    model counts as changed if most of `draws` predictions are wrong.
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
            z = search.query()
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
    """The state of the search of each sample. All samples advance in step: one query image and one label a sample."""

    def __init__(self, x: Tensor, threat: ThreatModel, rng: SampleRandom) -> None:
        count, values = len(x), x[0].numel()
        self.threat, self.rng, self.values = threat, rng, values
        self.x, self.row = x, torch.arange(count, device=x.device)
        self.signs = torch.ones((count, values), device=x.device)
        # The order in which values form blocks, as the position of each value.
        self.positions = torch.arange(values, device=x.device).repeat(count, 1)
        # The corners of the pixel range lie within this radius of every image.
        farthest = norms(torch.ones_like(x), threat.norm)
        self.radius, self.low, self.high = farthest, torch.zeros_like(farthest), farthest
        self.bisecting = torch.zeros(count, dtype=torch.bool, device=x.device)
        # Blocks are 2^-level of the image; at level -1, for the first direction, nothing is flipped.
        self.level = torch.full((count,), -1, device=x.device)
        self.block = torch.zeros_like(self.level)
        self.round = torch.zeros_like(self.level)
        # Whether a direction is known in which the class changes; until then directions are drawn at random.
        self.known = torch.zeros_like(self.bisecting)
        self.drawn = 0
        self.finest = max(values - 1, 1).bit_length()

    def query(self) -> Tensor:
        """Return the next query images (b, c, h, w)."""
        unknown = (~self.known).nonzero().squeeze(1)
        if len(unknown) and self.drawn:
            numbers = self.rng.take(unknown).uniform(f"direction {self.drawn}", (self.values,)).to(self.x.device)
            self.signs[unknown] = torch.where(numbers < 0.5, -1.0, 1.0)
        self.drawn += 1
        self.attempt = torch.where(self._flipped(), -self.signs, self.signs)
        self.query_radius = self.radius
        if bool(self.bisecting.any()):
            # First try the edge of the ball, where a success ends the search.
            edge = self._edge(self.attempt)
            middle = torch.where((self.low == 0) & (edge < self.high), edge, (self.low + self.high) / 2)
            self.query_radius = torch.where(self.bisecting, middle, self.radius)
        return self._point(self.attempt, self.query_radius)

    def learn(self, changed: Tensor) -> None:
        """Update the state with whether the label changed at each query image."""
        self.high = torch.where(changed, self.query_radius, self.high)
        self.low = torch.where(self.bisecting & ~changed, self.query_radius, torch.where(self.bisecting, self.low, 0.0))
        # A finer bisection would not pay. A direction that gains less than this is kept too, because small gains add up.
        enough = ((self.radius - self.threat.radius) / 16).clamp_min(self.threat.radius / 1000)
        close = self.bisecting & (self.high - self.low <= enough)
        self.signs = torch.where(close[:, None], self.attempt, self.signs)
        self.radius = torch.where(close, self.high, self.radius)
        rejected = ~self.bisecting & ~changed & self.known
        self.known = self.known | changed
        self.bisecting = (self.bisecting & ~close) | (~self.bisecting & changed)
        self._next_block(close | rejected)
        self.low = torch.where(self.bisecting, self.low, 0.0)
        self.high = torch.where(self.bisecting, self.high, self.radius)

    def keep(self, kept: Tensor) -> None:
        """Drop all samples except those in the mask `kept` (b,)."""
        if bool(kept.all()):
            return
        self.rng = self.rng.take(kept.nonzero().squeeze(1))
        for name in (
            "x",
            "row",
            "signs",
            "positions",
            "radius",
            "low",
            "high",
            "bisecting",
            "known",
            "level",
            "block",
            "round",
        ):
            setattr(self, name, getattr(self, name)[kept])

    def at_eps(self) -> Tensor:
        """Return the points of the best directions at the edge of the ball."""
        return project(self._point(self.signs, self._edge(self.signs)), self.x, self.threat)

    def _flipped(self) -> Tensor:
        """Return which values (b, n) belong to the current block."""
        size = self._block_size()
        first = (self.block * size)[:, None]
        return (self.positions >= first) & (self.positions < first + size[:, None]) & (self.level >= 0)[:, None]

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
                self.positions[rows] = shuffled.to(self.positions.device)

    def _point(self, signs: Tensor, radius: Tensor) -> Tensor:
        direction = steepest(signs.view_as(self.x), self.threat.norm)
        return (self.x + radius.view(-1, 1, 1, 1) * direction).clamp(0, 1)

    def _edge(self, signs: Tensor) -> Tensor:
        """Return the radii at which these directions, clipped to the pixel range, are eps away from the image."""
        radius = torch.full_like(self.radius, self.threat.radius)
        if self.threat.norm == "l2":
            # The length after clipping is concave in the radius, so these iterations never leave the ball.
            for _ in range(6):
                length = distance(self.x, self._point(signs, radius), "l2").float()
                radius = radius * (self.threat.radius / length.clamp_min(1e-6)).clamp(1, 2)
        return radius
