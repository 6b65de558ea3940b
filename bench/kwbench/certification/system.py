"""The network on one ball, reduced to the units that the ball leaves undecided.

Between undecided units everything is linear. With the image x, the outputs y_j of the undecided units of level j, and dense
matrices, the values of the undecided units of level k and of the margins are

    v_k = A_k x + sum over j < k of B_kj y_j + c_k + e_k,    y = v if the unit is kept, otherwise 0,

where |e_k| <= noise_k bounds the rounding errors of the network's float32 arithmetic and of this reduction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kwbench.certification.competitions import Decision, Groups, decide, is_kept
from kwbench.certification.effort import Effort
from kwbench.certification.graph import Graph, Node
from kwbench.errors import CannotEvaluate
from kwbench.threat import TOLERANCE, ThreatModel

# More undecided units than this are not reduced: the matrices would take gigabytes, and the bounds would be vacuous.
MOST_UNITS = 6000
# Bounds the relative error of sums in float64 of up to 10^5 terms: 10^5 times the unit roundoff of 1.1e-16.
_DOUBLE_ERROR = 1.2e-11


@dataclass(frozen=True)
class Ball:
    """The images (n,), flattened, that an attack may propose: a box, and in l2 and l1 a ball of `radius` around `centre`."""

    low: Tensor
    high: Tensor
    centre: Tensor
    radius: float
    norm: str

    @classmethod
    def around(cls, x: Tensor, threat: ThreatModel) -> "Ball":
        """Return the ball around an image x (c, h, w), with the judge's tolerance, within the pixel range."""
        centre = x.double().flatten()
        radius = threat.radius + TOLERANCE
        return cls((centre - radius).clamp_min(0), (centre + radius).clamp_max(1), centre, radius, threat.norm)

    def without_tolerance(self) -> "Ball":
        """Return the ball of radius eps in float32, for proposals."""
        radius = self.radius - TOLERANCE
        low, high = (self.centre - radius).clamp_min(0), (self.centre + radius).clamp_max(1)
        return replace(self, low=low, high=high, radius=radius)

    @property
    def pixels(self) -> int:
        """The number of values of an image."""
        return len(self.low)

    def least(self, coefficients: Tensor) -> Tensor:
        """Return a lower bound (...) of coefficients (..., n) times an image, over all images of the ball."""
        middle, half = ((self.low + self.high) / 2).to(coefficients), ((self.high - self.low) / 2).to(coefficients)
        least: Tensor = coefficients @ middle - coefficients.abs() @ half
        if self.norm == "linf":
            return least
        length: Tensor = coefficients.square().sum(dim=-1).sqrt() if self.norm == "l2" else coefficients.abs().amax(dim=-1)
        around: Tensor = coefficients @ self.centre.to(coefficients) - self.radius * length
        bound: Tensor = torch.maximum(least, around)
        return bound

    def minimiser(self, coefficients: Tensor) -> Tensor:
        """Return the image (p, n) of the ball, in float64, where each linear function (p, n) is about least.

        In l2 and l1 it is the minimiser of the ball clipped to the box.
        """
        coefficients = coefficients.double()
        if self.norm == "linf":
            return torch.where(coefficients > 0, self.low, self.high)
        if self.norm == "l2":
            step: Tensor = coefficients / coefficients.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-300)
        else:
            largest = coefficients.abs().argmax(dim=1, keepdim=True)
            step = torch.zeros_like(coefficients).scatter(1, largest, coefficients.gather(1, largest).sign())
        return (self.centre - self.radius * step).clamp(0, 1)


@dataclass(frozen=True)
class Level:
    """The undecided units of one layer, in the order of computation.

    `matrix` (n, m) holds the coefficients of the image and of the units of all earlier levels; `constant`, `noise`, `low` and
    `high` are (n,). `groups` are the competitions, with the winners that are still to be found; None for ReLU units.
    """

    matrix: Tensor
    constant: Tensor
    noise: Tensor
    low: Tensor
    high: Tensor
    groups: Groups | None

    def __len__(self) -> int:
        return len(self.constant)

    def only(self, chosen: Tensor, winners: Tensor | None) -> "Level":
        """Return the level with the units `chosen` (n,) of flags only; `winners` are those still to be found in each group."""
        groups = None if self.groups is None or winners is None else self.groups.only(chosen, winners)
        matrix, constant, noise, low, high = (
            values[chosen] for values in (self.matrix, self.constant, self.noise, self.low, self.high)
        )
        return Level(matrix, constant, noise, low, high, groups)


@dataclass(frozen=True)
class Rows:
    """Linear functions of the image and of all units of a system: `matrix` (r, m), `constant` and `noise` (r,)."""

    matrix: Tensor
    constant: Tensor
    noise: Tensor


@dataclass(frozen=True)
class System:
    """The undecided units of all levels, and the margins: the logit of the label less that of each other class."""

    ball: Ball
    levels: Sequence[Level]
    margins: Rows

    @property
    def units(self) -> int:
        """The number of undecided units."""
        return sum(len(level) for level in self.levels)

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the values (p, n) of the units of each level and the margins (p, r) of images (p, pixels), without noise."""
        state, values = image, []
        for level in self.levels:
            value = state @ level.matrix.T + level.constant
            values.append(value)
            state = torch.cat([state, value * is_kept(value, level.groups)], dim=1)
        return values, state @ self.margins.matrix.T + self.margins.constant


def ends_low(rows: Rows, levels: Sequence[Level], ball: Ball) -> Tensor:
    """Return lower bounds (r,) of linear functions by interval arithmetic."""
    pixels = ball.pixels
    result = rows.constant - rows.noise + ball.least(rows.matrix[:, :pixels])
    column = pixels
    for level in levels:
        coefficients = rows.matrix[:, column : column + len(level)]
        low, high = output_range(level)
        result = result + coefficients.clamp_min(0) @ low + coefficients.clamp_max(0) @ high
        column += len(level)
    return result


def output_range(level: Level) -> tuple[Tensor, Tensor]:
    """Return bounds (n,) of the outputs of undecided units: their value or 0."""
    return level.low.clamp_max(0), level.high.clamp_min(0)


# Returns better lower and upper bounds (r,) of rows on the levels before them.
Tighten = Callable[[Ball, Sequence[Level], Rows], tuple[Tensor, Tensor]]


@dataclass
class Reduction:
    """Reduces a network on one ball, layer by layer. `tighten` improves the bounds (low, high) of rows on earlier levels."""

    graph: Graph
    ball: Ball
    effort: Effort = field(default_factory=Effort)

    def __post_init__(self) -> None:
        self._boxes: list[tuple[Tensor, Tensor]] = []
        self._noises: list[Tensor | None] = []
        self._sizes: list[Tensor] = []
        self._decisions: dict[int, Decision] = {}
        self._levels: dict[int, Level] = {}

    def run(self, label: int, tighten: Tighten) -> System:
        """Return the system of the margins of a label.

        Raises CannotEvaluate if too many units are undecided, and OutOfEffort.
        """
        for number, node in enumerate(self.graph):
            self._propagate(number, node)
            if node.units:
                self._decide(number, node, tighten)
        output = self.graph[-1]
        classes = output.shape.numel()
        rows = torch.zeros((classes, classes), dtype=torch.double)
        rows[:, label] += 1
        rows -= torch.eye(classes, dtype=torch.double)
        others = torch.arange(classes) != label
        return System(self.ball, list(self._levels.values()), self._rows(len(self.graph) - 1, rows[others]))

    def undecided_by_intervals(self) -> int:
        """Return how many units intervals alone leave undecided: at least those of the system. It ends the reduction."""
        count = 0
        for number, node in enumerate(self.graph):
            self._propagate(number, node)
            if node.units:
                low, high = (values.flatten() for values in self._boxes[number])
                count += int(self._settle(number, node, low, high).open.sum())
        return count

    def _propagate(self, number: int, node: Node) -> None:
        """Bound the values of a node by intervals, its rounding errors, and the sums of absolute terms behind its values."""
        if not node.parents:
            shape = (1, *node.shape)
            low, high = self.ball.low.view(shape), self.ball.high.view(shape)
            self._boxes.append((low, high))
            self._noises.append(None)
            self._sizes.append(torch.maximum(low.abs(), high.abs()))
            return
        boxes = [self._boxes[parent] for parent in node.parents]
        largest = [torch.maximum(low.abs(), high.abs()) for low, high in boxes]
        sizes = [self._sizes[parent] for parent in node.parents]
        if node.units:
            # Set by _decide.
            self._boxes.append(boxes[0])
            self._noises.append(None)
            self._sizes.append(sizes[0])
            return
        if node.affine is not None:
            affine, ((low, high),) = node.affine, boxes
            middle, half = affine.forward((low + high) / 2), (high - low) / 2
            spread = affine.magnitude(half) - affine.magnitude(torch.zeros_like(half))
            noise, size = affine.rounding(largest[0]), affine.magnitude(sizes[0])
        else:
            middle = sum((low + high for low, high in boxes), start=torch.zeros(())) / 2
            spread = sum((high - low for low, high in boxes), start=torch.zeros(())) / 2
            noise = (len(boxes) * 2.0**-24) * sum(largest, start=torch.zeros(()))
            size = sum(sizes, start=torch.zeros(()))
        # The rounding of this function itself, in float64.
        spread = spread + noise + _DOUBLE_ERROR * size
        self._boxes.append((middle - spread, middle + spread))
        self._noises.append(noise)
        self._sizes.append(size)

    def _decide(self, number: int, node: Node, tighten: Tighten) -> None:
        low, high = (values.flatten() for values in self._boxes[number])
        first = decide(low, high, node.groups).open
        if int(first.sum()) + sum(len(level) for level in self._levels.values()) > MOST_UNITS:
            raise CannotEvaluate(f"not certified: more than {MOST_UNITS} units are undecided")
        if bool(first.any()):
            index = first.nonzero().squeeze(1)
            rows = torch.zeros((len(index), len(low)), dtype=torch.double)
            rows[torch.arange(len(index)), index] = 1
            values = self._rows(node.parents[0], rows)
            levels = list(self._levels.values())
            opposite = Rows(-values.matrix, -values.constant, values.noise)
            low[index] = torch.maximum(low[index], ends_low(values, levels, self.ball))
            high[index] = torch.minimum(high[index], -ends_low(opposite, levels, self.ball))
            still = decide(low, high, node.groups).open[index]
            if levels and bool(still.any()):
                chosen = Rows(values.matrix[still], values.constant[still], values.noise[still])
                better_low, better_high = tighten(self.ball, levels, chosen)
                low[index[still]] = torch.maximum(low[index[still]], better_low)
                high[index[still]] = torch.minimum(high[index[still]], better_high)
            decision = decide(low, high, node.groups)
            chosen_units = decision.open
            if bool(chosen_units.any()):
                winners = None
                if node.groups is not None:
                    kept = node.groups.gathered(decision.kept.double(), 0.0).sum(dim=1).long()
                    winners = node.groups.winners - kept
                whole = Level(values.matrix, values.constant, values.noise, low[index], high[index], None)
                groups = None if node.groups is None or winners is None else node.groups.only(chosen_units, winners)
                self._levels[number] = replace(whole.only(chosen_units[index], None), groups=groups)
        self._settle(number, node, low, high)

    def _settle(self, number: int, node: Node, low: Tensor, high: Tensor) -> Decision:
        """Decide units by the bounds (n,) of their values, and bound their outputs."""
        decision = decide(low, high, node.groups)
        self._decisions[number] = decision
        out_low = torch.where(decision.kept, low, torch.where(decision.dropped, 0, low.clamp_max(0)))
        out_high = torch.where(decision.kept, high, torch.where(decision.dropped, 0, high.clamp_min(0)))
        shape = (1, *node.shape)
        self._boxes[number] = out_low.view(shape), out_high.view(shape)
        self._sizes[number] = self._sizes[number] * (~decision.dropped).view(shape)
        return decision

    def _rows(self, number: int, rows: Tensor) -> Rows:
        """Express linear functions (r, n) of the values of a node by the image and the undecided units.

        This is the backward pass through the linear pieces; it stops at undecided units.
        """
        # Forward and backward.
        self.effort.spend(2 * len(rows) * sum(node.multiply_adds for node in self.graph[: number + 1]), number + 1)
        behind: dict[int, Tensor] = {number: rows.view(-1, *self.graph[number].shape)}
        constant = rows.new_zeros(len(rows))
        noise = _DOUBLE_ERROR * (rows.abs() @ self._sizes[number].flatten())
        columns: dict[int, Tensor] = {}
        image = rows.new_zeros((len(rows), self.ball.pixels))
        for current in range(number, -1, -1):
            coefficients = behind.pop(current, None)
            if coefficients is None:
                continue
            node = self.graph[current]
            flat = coefficients.flatten(1)
            own_noise = self._noises[current]
            if own_noise is not None:
                noise = noise + flat.abs() @ own_noise.flatten()
            if not node.parents:
                image = image + flat
                continue
            passed = [coefficients] * len(node.parents)
            if node.units:
                decision = self._decisions[current]
                columns[current] = flat[:, decision.open]
                passed = [(flat * decision.kept).view_as(coefficients)]
            elif node.affine is not None:
                shape = self.graph[node.parents[0]].shape
                origin = node.affine.forward(rows.new_zeros((1, *shape)))
                constant = constant + flat @ origin.flatten()
                passed = [node.affine.adjoint(coefficients, shape)]
            for parent, more in zip(node.parents, passed, strict=True):
                behind[parent] = behind[parent] + more if parent in behind else more
        empty = [rows.new_zeros((len(rows), len(level))) for level in self._levels.values()]
        units = [columns.get(key, zeros) for key, zeros in zip(self._levels, empty, strict=True)]
        return Rows(torch.cat([image, *units], dim=1), constant, noise)
