"""What the parts of every run compute: the judge, geometry, randomness, the model's passes, the relaxation and the cascade."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golden.attack_parts import SEED, readable
from golden.parts import Part, of_module
from golden.subjects import batch, kwta_network, model, normed_network, numbers, relu_network, stochastic_network
from kwbench import geometry, judge, randomness, relaxation
from kwbench import model as passes
from kwbench.attacks.attack import Attack, JudgingRule
from kwbench.judge import judge_clean
from kwbench.model import Model, Prediction
from kwbench.outcome import Outcome
from kwbench.randomness import SampleRandom, derived_seed, seeded_globally
from kwbench.record import cascade
from kwbench.record.tally import Tally
from kwbench.threat import ThreatModel
from support.records import specification

SAMPLES = ("a" * 32, "b" * 32, "0123456789abcdef" * 2)


def parts() -> list[Part]:
    """The parts that take part in every run, and the relaxation."""

    def part(module: ModuleType, outcomes: Callable[[], Mapping[str, Any]], *others: ModuleType) -> Part:
        name = module.__name__.rpartition(".")[2]
        return Part(name, outcomes, partial(of_module, module), lambda: [of_module(other) for other in others])

    return [
        part(randomness, _randomness),
        part(geometry, _geometry, randomness),
        part(passes, _passes, randomness),
        part(judge, _judge, geometry, passes, randomness),
        part(cascade, _cascade),
        part(relaxation, _relaxation),
    ]


def _randomness() -> Mapping[str, Any]:
    stream = SampleRandom(3, "purpose", SAMPLES)
    with seeded_globally(5):
        globally = [torch.rand(4).tolist(), np.random.random(4).tolist()]
    named = {
        "uniform": stream.uniform("name", (4,)),
        "uniform in a range": stream.uniform("name", (4,), -2, 3),
        "normal": stream.normal("name", (4,)),
        "child": stream.child("restart 0").uniform(0, (2, 2)),
        "taken": stream.take([2, 0]).uniform("name", (4,)),
        "parts of rows": stream.for_parts(torch.tensor([2, 0, 0]), torch.tensor([0, 0, 4])).uniform("name", (2,)),
    }
    return {
        **{name: values.flatten().tolist() for name, values in named.items()},
        "seeds": [str(derived_seed(1, "a", 2)), str(stream.batch_seed()), str(stream.take([1]).batch_seed())],
        "global generators": globally,
    }


def _geometry() -> Mapping[str, Any]:
    x = torch.sigmoid(numbers(3, 1, 4, 4, seed=20))
    z = x + numbers(3, 1, 4, 4, seed=21) * torch.tensor([0.05, 0.3, 2.0]).view(3, 1, 1, 1)
    gradient = numbers(3, 1, 4, 4, seed=22) * torch.tensor([1e-20, 1.0, 0.0]).view(3, 1, 1, 1)
    rng = SampleRandom(0, "geometry", SAMPLES)
    outcomes: dict[str, Any] = {}
    for norm, eps in (("linf", "0.1"), ("l2", "0.5"), ("l1", "1")):
        threat = ThreatModel.of(norm, eps)
        barely_outside = x + (z - x) / geometry.norms(z - x, threat.norm).view(3, 1, 1, 1) * threat.radius * (1 + 8e-6)
        outcomes[norm] = {
            "distances": geometry.distance(x, z, threat.norm).tolist(),
            "projected": geometry.project(z, x, threat).flatten().tolist(),
            "settled": geometry.settle(barely_outside, x, threat).flatten().tolist(),
            "distances once settled": geometry.distance(x, geometry.settle(z, x, threat), threat.norm).tolist(),
            "steepest": geometry.steepest(gradient, threat.norm).flatten().tolist(),
            "random start": geometry.random_start(x, threat, rng).flatten().tolist(),
        }
    return outcomes


def _passes() -> Mapping[str, Any]:
    images = batch()
    outcomes: dict[str, Any] = {}
    rules = {
        "draw": Prediction(),
        "mean of logits": Prediction("mean_logits", 4),
        "vote": Prediction("vote", 5),
        "frozen": Prediction("frozen", 1, 7),
    }
    for name, rule in rules.items():
        victim = model(stochastic_network(), rule)
        victim.reseed("golden", 1)
        with victim.metering(len(images)):
            predicted, _ = victim.predict(images.x)
            logits = victim(images.x[:3], torch.tensor([4, 1, 1]))
            correct, _ = victim.count_correct(images.x, images.y, 6)
            with victim.same_draws():
                again = [victim(images.x[:2]), victim(images.x[:2])]
            forwards, backwards = victim.work()
        outcomes[name] = {
            "stochastic": victim.stochastic,
            "predictions": predicted.tolist(),
            "logits": logits.flatten().tolist(),
            "correct": correct.tolist(),
            "same draws": bool(torch.equal(*again)),
            "forwards": forwards,
            "backwards": backwards,
        }
    victim = model(normed_network(), tile=4)
    victim.plan_passes(images.x)
    for precision in ("float32", "folded"):
        with victim.computing_in(precision), torch.enable_grad():
            leaf = images.x.clone().requires_grad_()
            logits = victim(leaf)
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, images.y), leaf)
        outcomes[precision] = {
            "arithmetic": victim.effective_precision(precision),
            "logits": logits.flatten().tolist(),
            "gradient": (gradient * numbers(*gradient.shape, seed=23)).flatten(1).sum(dim=1).tolist(),
        }
    return outcomes


@dataclass(frozen=True)
class Proposing(Attack):
    """An attack that proposes what a function of (x, y) returns."""

    propose: Callable[[Tensor, Tensor], Any]
    minimum_norm: bool = False
    judged: JudgingRule = "distance"
    natural: bool = False
    whole_tiles: bool = False
    norms = frozenset({"linf", "l2", "l1"})
    needs = "nothing"

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Any:
        """Propose images for x (b, c, h, w)."""
        return self.propose(x, y)


class NotANumber(nn.Module):
    """The ReLU network, whose logits are NaN where the last pixel is brighter than in any digit."""

    def __init__(self) -> None:
        super().__init__()
        self.network = relu_network()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (b, 10) of x (b, 1, 8, 8)."""
        logits: Tensor = self.network(x)
        return torch.where(x[:, 0, 7, 0:1] > 0.01, torch.nan, logits)


def _moved(by: Sequence[float]) -> Callable[[Tensor, Tensor], Tensor]:
    """Move every image towards the next one, each sample by its own length in linf."""

    def propose(x: Tensor, y: Tensor) -> Tensor:
        lengths = torch.tensor([by[row % len(by)] for row in range(len(x))]).view(-1, 1, 1, 1)
        return (x + lengths * (x.roll(1, 0) - x).sign()).clamp(0, 1)

    return propose


def _pixel(value: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Set the first pixel."""

    def propose(x: Tensor, y: Tensor) -> Tensor:
        z = x.clone()
        z[:, 0, 7, 0] = value
        return z

    return propose


def _raising(x: Tensor, y: Tensor) -> Tensor:
    if bool((y == 3).any()):
        raise RuntimeError("no threes")
    return x


EPS = "0.4"
# Lengths on, inside, barely beyond and far beyond that radius; float32 keeps the order.
LENGTHS = (0.4, 0.35, 0.4000009, 0.400002, 0.5)

PROPOSALS: dict[str, Proposing] = {
    "nothing": Proposing(lambda x, y: x),
    "lengths": Proposing(_moved(LENGTHS)),
    "far": Proposing(_moved([0.8])),
    "barely below 0": Proposing(_pixel(-9e-7)),
    "below 0": Proposing(_pixel(-2e-6)),
    "above 1": Proposing(_pixel(1.1)),
    "NaN": Proposing(_pixel(float("nan"))),
    "infinity": Proposing(_pixel(float("inf"))),
    "another shape": Proposing(lambda x, y: x[:, :, :4]),
    "no tensor": Proposing(lambda x, y: None),
    "an exception for some": Proposing(_raising),
    "an exception for a tile": Proposing(_raising, whole_tiles=True),
    "natural": Proposing(_moved(LENGTHS), natural=True),
    "minimum norm": Proposing(_moved(LENGTHS), minimum_norm=True),
    "minimum norm, clipped": Proposing(_moved(LENGTHS), minimum_norm=True, judged="clipped"),
    "minimum norm, far": Proposing(_moved([0.7, 0.6]), minimum_norm=True, judged="clipped"),
    "minimum norm, NaN": Proposing(_pixel(float("nan")), minimum_norm=True),
}
# Scored in 150 draws each.
ON_STOCHASTIC = ("nothing", "lengths", "above 1", "an exception for some", "natural", "minimum norm", "minimum norm, clipped")


def _judge() -> Mapping[str, Any]:
    images = batch()
    outcomes: dict[str, Any] = {}
    networks = {"": relu_network(), "stochastic": stochastic_network()}
    for kind, network in networks.items():
        victim = model(network)
        clean = judge_clean(victim, images, SEED)
        outcomes[f"clean {kind}".strip()] = _with_notes(clean)
        for name, attack in PROPOSALS.items():
            if kind and name not in ON_STOCHASTIC:
                continue
            for norm in ("linf", "l2") if name == "lengths" else ("linf",):
                threat = ThreatModel.of(norm, EPS if norm == "linf" else "2")
                found = judge.judge(victim, attack, "golden", images, threat, SEED, clean)
                outcomes[" ".join(word for word in (name, norm if norm == "l2" else "", kind) if word)] = _with_notes(found)
    threat = ThreatModel.of("linf", EPS)
    victim = model(NotANumber())
    clean = judge_clean(victim, images, SEED)
    outcomes["NaN logits"] = _with_notes(judge.judge(victim, Proposing(_pixel(0.1)), "golden", images, threat, SEED, clean))
    victim = model(stochastic_network())
    clean = judge_clean(victim, images, SEED)
    bars = [0, 1, 5, 20, 40, 50, 51, 30]
    outcomes["screened"] = _with_notes(
        judge.judge(victim, Proposing(_moved([0.4])), "golden", images, threat, SEED, clean, to_beat=bars)
    )
    return outcomes


def _with_notes(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return readable(outcomes) | {"notes": "".join("-n"[bool(outcome.note)] for outcome in outcomes)}


def _tally(letters: str) -> Tally:
    """Outcomes of a deterministic model, a letter for each sample; a dot is a sample without a row."""
    index = [at for at, letter in enumerate(letters) if letter != "."]
    none = np.empty(0)
    status = np.array([letters[at].encode() for at in index], dtype="S1")
    return Tally(np.array(index, dtype=np.int64), status, none, none, 0, 0, 0.0, 0, 0, 0, 0)


def _tally_of_shares(shares: Sequence[float]) -> Tally:
    """Outcomes of a stochastic model, the share of right selection draws for each sample."""
    values = np.array(shares)
    status = np.array([b"h" if share >= 0.5 else b"b" for share in shares], dtype="S1")
    return Tally(np.arange(len(shares), dtype=np.int64), status, values, values, 0, 0, 0.0, 0, 0, 0, 0)


def _cascade() -> Mapping[str, Any]:
    clean, pgd, square, rays, cw = "hhhhhhhhhhhhwwhhhhhh", "bbhhhhbhhhhh..hhhhhh", "..hhhb", "..h.h..h.h..", "hhhbhhhh"
    labels = ("clean", "pgd", "square", "rays", "cw")
    rows = [_tally(letters) for letters in (clean, pgd, square, rays, cw)]
    options: dict[str, dict[str, Any]] = {
        "every sample": {},
        "cascade": {"cascade": True},
        "some in the cascade": {"cascade": ["square", "cw"]},
        "screens": {"cascade": True, "screens": {"square": 5, "rays": 5}},
        "after": {"cascade": True, "after": {"square": ["pgd"], "rays": ["square"], "cw": ["rays"]}},
        "not applicable": {"cascade": True, "not_applicable": {"pgd": "it has no gradient"}},
    }
    outcomes: dict[str, Any] = {
        name: _stages(cascade.stages(specification(attacks=labels, n=20, spec=spec), rows)) for name, spec in options.items()
    }
    outcomes["unfinished"] = _stages(
        cascade.stages(specification(attacks=labels, n=20, spec={"cascade": True, "screens": {"square": 4}}), [*rows[:2], None])
    )
    outcomes["hardly anything left"] = _stages(
        cascade.stages(specification(attacks=labels, n=20, spec={"cascade": True}), [rows[0], _tally("b" * 20), None])
    )
    shares = [_tally_of_shares(values) for values in ([1.0, 0.9, 0.8, 0.4], [1.0, 0.5, 0.82, 0.0], [0.98, 0.5, 0.1, 0.0])]
    outcomes["stochastic"] = _stages(
        cascade.stages(
            specification(attacks=labels[:3], n=4, stochastic=True, spec={"cascade": True, "screens": {"square": 2}}), shares
        )
    )
    return outcomes


def _stages(stages: Sequence[cascade.Stage]) -> dict[str, Any]:
    def letters(mask: Any) -> str:
        return "".join("-x"[bool(value)] for value in mask)

    return {
        stage.label: {
            "skipped": stage.skipped is not None,
            "phases": [letters(phase) for phase in stage.phases],
            "best": stage.best.tolist(),
            "lowered": letters(stage.lowered),
            "finished": stage.finished,
            "gained": stage.gained,
        }
        for stage in stages
    }


class Quantised(nn.Module):
    """The ReLU network, which sees a few levels of grey and a median of its features."""

    def __init__(self) -> None:
        super().__init__()
        self.network = relu_network()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (b, 10) of x (b, 1, 8, 8)."""
        steps = (x * 8).round() / 8
        logits: Tensor = self.network(torch.where(steps > 0.1, steps, torch.zeros_like(x)))
        return logits


def _relaxation() -> Mapping[str, Any]:
    images = batch()
    networks = {"relu": relu_network(), "kwta": kwta_network(), "stochastic": stochastic_network(), "quantised": Quantised()}
    outcomes: dict[str, Any] = {}
    for name, network in networks.items():
        for softness in (0.1, 1.0):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                leaf = images.x.clone().requires_grad_()
                logits = relaxation.relaxed(network, leaf, softness)
                (gradient,) = torch.autograd.grad(F.cross_entropy(logits, images.y, reduction="sum"), leaf)
            outcomes[f"{name} {softness}"] = {
                "logits": logits.amax(dim=1).tolist(),
                "lengths": gradient.flatten(1).norm(dim=1).tolist(),
                "products": (gradient * numbers(*gradient.shape, seed=25)).flatten(1).sum(dim=1).tolist(),
            }
    return outcomes
