"""Networks on digits small enough that their robust accuracy is known exactly, by mixed-integer programming.

One hidden layer of ReLU or k-WTA units. For each sample and wrong class the program finds the image in the linf ball, within
the pixel range, that maximises z_j - z_y (Tjeng et al. 2019, arXiv:1711.07356). For k-WTA it has a binary per unit, whether the
unit wins, and a threshold between winners and losers. exact_truth.json holds the weights and the results for the first 50 test
images; `PYTHONPATH=tests python tests/defences/exact_truth.py` writes it anew in half a minute.

Each factory is a model for the command line, with the tests on the path:
`PYTHONPATH=tests kwbench evaluate tests/defences/exact_truth.py:kwta --suite strong --eps 0.06 --n 50`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from defences.sound_models import adversarially_fitted
from kwbench.data import Batch
from kwbench.networks.activations import Kwta
from kwbench.randomness import seeded_globally
from support.small_models import first_images

Array = npt.NDArray[np.float64]

FILE = Path(__file__).resolve()
RECORD = FILE.with_suffix(".json")
SAMPLES = 50
# In units of the logits: margins below this are ties in float32.
SLACK = 1e-4


@dataclass(frozen=True)
class Size:
    """The number of hidden units, how many of them win (k-WTA; None for ReLU), and the radius of the ball."""

    hidden: int
    winners: int | None
    eps: str


# About half of the samples are robust at these radii. A larger layer has more sets of winners: kwta_wide has 134,596, and
# attacks miss some of those that break a sample, although these stay ahead within a few percent of the units' range. The small
# k-WTA network was chosen so that attacks can be expected to find the truth.
SIZES = {"relu": Size(24, None, "0.12"), "kwta": Size(8, 3, "0.06"), "kwta_wide": Size(24, 6, "0.08")}


def untrained(kind: str) -> nn.Sequential:
    """Return an untrained network of 64 pixels, the hidden units and 10 logits."""
    size = SIZES[kind]
    activation = nn.ReLU() if size.winners is None else Kwta(Fraction(size.winners, size.hidden))
    with seeded_globally(0):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, size.hidden), activation, nn.Linear(size.hidden, 10))


@cache
def record() -> dict[str, Any]:
    """Return the contents of exact_truth.json: for each network its eps, weights and samples."""
    contents: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return contents


def _stored(kind: str) -> nn.Module:
    network = untrained(kind)
    network.load_state_dict({name: torch.tensor(values) for name, values in record()[kind]["weights"].items()})
    return network.eval().requires_grad_(False)


def relu() -> nn.Module:
    """Trained adversarially."""
    return _stored("relu")


def kwta() -> nn.Module:
    """Trained adversarially; 3 of 8 units win."""
    return _stored("kwta")


def kwta_wide() -> nn.Module:
    """Trained adversarially; 6 of 24 units win."""
    return _stored("kwta_wide")


FACTORIES: dict[str, Callable[[], nn.Module]] = {"relu": relu, "kwta": kwta, "kwta_wide": kwta_wide}


def truths(kind: str) -> list[bool]:
    """Return whether each of the first 50 test images is classified correctly in the whole ball."""
    return [bool(sample["stands"]) for sample in record()[kind]["samples"]]


@dataclass(frozen=True)
class Answer:
    """Whether a sample is robust, the largest z_j - z_y that the search met in the ball, and the image (64,) with it."""

    stands: bool
    margin: float
    image: Array


def solve(size: Size, weights: dict[str, Array], x: Array, y: int) -> Answer:
    """Return the truth about one image x (64,) with label y. The search stops at the first wrong class that wins.

    Both results must hold with some slack, so that float32 agrees. Raises ArithmeticError for ties.
    """
    best = Answer(stands=True, margin=-np.inf, image=x)
    for j in range(10):
        if j == y:
            continue
        answer = _largest_margin(size, weights, x, y, j, gap=0.0)
        wins = answer.margin > 0
        if wins and size.winners is not None:
            # On the boundary between two sets of winners the program may choose; in the interior the network agrees.
            answer = _largest_margin(size, weights, x, y, j, gap=SLACK)
        if abs(answer.margin) <= SLACK or wins != (answer.margin > 0):
            raise ArithmeticError(f"class {j} ties with {y}: {answer.margin:.2g}")
        if wins:
            return Answer(False, answer.margin, answer.image)
        best = max(best, answer, key=lambda candidate: candidate.margin)
    return best


def _largest_margin(size: Size, weights: dict[str, Array], x: Array, y: int, j: int, gap: float) -> Answer:
    """Solve one program. Variables, in order: pixels, inputs h and outputs o of the hidden units, binaries s, threshold t."""
    first, bias = weights["1.weight"], weights["1.bias"]
    hidden, pixels = first.shape
    eps = float(size.eps)
    low, high = np.clip(x - eps, 0, 1), np.clip(x + eps, 0, 1)
    up, down = np.clip(first, 0, None), np.clip(first, None, 0)
    least, most = up @ low + down @ high + bias, up @ high + down @ low + bias
    h, o, s, t = pixels, pixels + hidden, pixels + 2 * hidden, pixels + 3 * hidden
    rows, lower, upper = [], [], []

    def constrain(terms: dict[int, float], at_least: float, at_most: float) -> None:
        row = np.zeros(t + 1)
        for place, factor in terms.items():
            row[place] = factor
        rows.append(row)
        lower.append(at_least)
        upper.append(at_most)

    for i in range(hidden):
        constrain({h + i: -1.0, **dict(enumerate(first[i]))}, -bias[i], -bias[i])
        # s = 1: o = h. s = 0: o = 0.
        constrain({o + i: 1.0, s + i: -most[i]}, -np.inf, 0)
        constrain({o + i: 1.0, s + i: -least[i]}, 0, np.inf)
        constrain({o + i: 1.0, h + i: -1.0, s + i: -least[i]}, -np.inf, -least[i])
        constrain({o + i: 1.0, h + i: -1.0, s + i: -most[i]}, -most[i], np.inf)
        if size.winners is None:
            # s = 1 if and only if h >= 0.
            constrain({h + i: 1.0, s + i: -most[i]}, -np.inf, 0)
            constrain({h + i: 1.0, s + i: least[i]}, least[i], np.inf)
        else:
            # Winners lie above the threshold, losers below.
            constrain({h + i: 1.0, t: -1.0, s + i: least[i] - most.max() - gap}, least[i] - most.max(), np.inf)
            constrain({h + i: 1.0, t: -1.0, s + i: -(most[i] - least.min() + gap)}, -np.inf, -gap)
    if size.winners is not None:
        constrain({s + i: 1.0 for i in range(hidden)}, size.winners, size.winners)

    towards = weights["3.weight"][j] - weights["3.weight"][y]
    objective = np.zeros(t + 1)
    objective[o : o + hidden] = -towards
    span = (least.min(), most.max())
    solution = milp(
        objective,
        constraints=LinearConstraint(np.array(rows), np.array(lower), np.array(upper)),
        integrality=np.repeat([0, 1, 0], [s, hidden, 1]),
        bounds=Bounds(
            np.concatenate([low, least, np.minimum(least, 0), np.zeros(hidden), span[:1]]),
            np.concatenate([high, most, np.maximum(most, 0), np.ones(hidden), span[1:]]),
        ),
        options={"mip_rel_gap": 1e-6},
    )
    if not solution.success:
        raise ArithmeticError(f"HiGHS: {solution.message}")
    margin = float(-solution.fun + weights["3.bias"][j] - weights["3.bias"][y])
    return Answer(True, margin, solution.x[:pixels])


def numbers(network: nn.Module) -> dict[str, Array]:
    """Return the weights of a network as float64 arrays."""
    return {name: values.double().numpy() for name, values in network.state_dict().items()}


def solve_sample(kind: str, network: nn.Module, batch: Batch, row: int) -> Answer:
    """Return the truth about a row of a batch, checked against the network's own prediction."""
    x, y = batch.x[row].double().flatten().numpy(), int(batch.y[row])
    with torch.no_grad():
        if int(network(batch.x[row : row + 1]).argmax()) != y:
            return Answer(False, np.inf, x)
    answer = solve(SIZES[kind], numbers(network), x, y)
    with torch.no_grad():
        image = torch.from_numpy(answer.image).float().view(1, 1, 8, 8)
        if not answer.stands and int(network(image).argmax()) == y:
            raise ArithmeticError("the network classifies the program's adversarial image correctly")
    return answer


def _make() -> None:
    made = {}
    for kind in FACTORIES:
        network = adversarially_fitted(untrained(kind), eps=0.1, epochs=40)
        weights = {name: np.round(values, 3).tolist() for name, values in numbers(network).items()}
        network.load_state_dict({name: torch.tensor(values) for name, values in weights.items()})
        batch, samples = first_images(SAMPLES), []
        for row in range(SAMPLES):
            answer = solve_sample(kind, network, batch, row)
            margin = None if np.isinf(answer.margin) else round(answer.margin, 5)
            samples.append({"sample": batch.samples[row], "stands": answer.stands, "margin": margin})
        made[kind] = {"eps": SIZES[kind].eps, "weights": weights, "samples": samples}
    RECORD.write_text(json.dumps(made, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _make()
