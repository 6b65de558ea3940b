"""What each attack proposes, and each gradient estimator within an attack."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from golden.parts import Part, Revision, of_class, of_module
from golden.subjects import batch, kwta_network, model, normed_network, numbers, relu_network, stochastic_network
from kwbench import geometry, judge, randomness, relaxation
from kwbench import model as passes
from kwbench.attacks import ATTACKS, build_attack
from kwbench.attacks.attack import Attack
from kwbench.attacks.search.losses import LOSSES
from kwbench.gradients import Eot, Es, Exact, Gradient, Relaxed, Smooth
from kwbench.judge import judge_clean
from kwbench.model import Model
from kwbench.outcome import Outcome
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel

EPS = {"linf": "0.15", "l2": "1", "l1": "4"}
SEED = 0

# Cheap parameters of each attack. Every case runs in all norms of the attack on the ReLU network.
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "fgsm": {"": {}, "margin": {"loss": "margin"}},
    "pgd": {
        "": {"steps": 5},
        "restarts": {"steps": 3, "relative_step_size": 0.4, "restarts": 2, "loss": "probability_margin"},
        "last iterate": {"steps": 4, "step_size": 0.05, "random_start": False, "early_exit": False, "loss": "dlr"},
    },
    "apgd": {
        "": {"steps": 10},
        "targets": {"steps": 8, "restarts": 2, "targets": 3, "finalists": 1, "loss": "margin", "focus": 0.1},
        "last iterate": {"steps": 8, "early_exit": False, "loss": "dlr", "schedule": "cosine"},
    },
    "mim": {"": {"steps": 4}, "last iterate": {"steps": 4, "decay": 0.5, "early_exit": False, "relative_step_size": 0.3}},
    "deepfool": {"": {"steps": 10}, "clipped": {"steps": 10, "candidates": 3, "judged": "clipped"}},
    "cw": {"": {"steps": 12, "binary_search_steps": 2, "step_size": 0.05}},
    "square": {"": {"steps": 40}, "restarts": {"steps": 15, "restarts": 2, "rescale_schedule": True}},
    "rays": {"": {"queries": 60}},
    "local-search": {"": {"steps": 4, "flips": 10, "restarts": 2, "targets": 2, "finalists": 1}},
    "complete-search": {"": {"steps": 5, "restarts": 2, "targets": 1, "branches": 8, "neighbourhoods": 1}},
    "transfer": {"": {"steps": 5, "relative_step_size": 0.3}, "apgd": {"search": "apgd", "steps": 5}},
    "grid": {"": {"steps": 4, "targets": 2}},
    "submodules": {"": {"steps": 3}},
    "student": {"": {"queries": 32, "steps": 3, "targets": 2}},
    "autoattack": {"": {"version": "custom", "attacks": ["apgd-ce", "fab-t"]}},
    "autoattack-part": {"": {"part": "apgd-dlr"}},
    "foolbox": {
        "pgd": {"attack": "LinfPGD", "parameters": {"steps": 4}},
        "fgm": {"attack": "L1FastGradientAttack"},
        "deepfool": {"attack": "L2DeepFoolAttack", "parameters": {"steps": 5}},
    },
    "noop": {"": {}},
    "gaussian-noise": {"": {}},
    "random-sign": {"": {}},
    "gaussian-blind": {"": {"std": 0.3}},
    "translation": {"": {"pixels": 2}},
    "rotation": {"": {"degrees": 40.0}},
    "colour-jitter": {"": {}},
}

# Attacks treat random networks in a way of their own; these do so cheaply.
STOCHASTIC: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 3, "restarts": 2, "restart_draws": 5},
    "apgd": {"steps": 6, "selection_draws": 5},
    "square": {"steps": 8, "draws": 3},
    "rays": {"queries": 12, "draws": 3},
    "local-search": {"steps": 2, "flips": 4, "restarts": 1, "targets": 2, "finalists": 1, "draws": 2},
}

ESTIMATORS: dict[type[Any], dict[str, dict[str, Any]]] = {
    Exact: {"": {}},
    Eot: {"": {"draws": 3}, "auto": {"draws": "auto"}},
    Smooth: {"": {"sigma": 0.05, "draws": 4}, "auto": {"sigma": 0.3, "draws": "auto"}},
    Es: {"": {"sigma": 0.05, "draws": 6}},
    Relaxed: {"": {}, "softness": {"softness": 0.1, "draws": 2}},
}


def parts() -> list[Part]:
    """The attacks and the gradient estimators."""
    attacks = [
        Part(
            f"attack {name}",
            partial(_attack_outcomes, name),
            partial(of_class, kind),
            partial(_others_of_attack, name),
            kind.libraries,
        )
        for name, kind in ATTACKS.items()
    ]
    estimators = [
        Part(
            f"gradient {kind.__name__.lower()}",
            partial(_estimator_outcomes, kind),
            partial(of_class, kind),
            partial(_others_of_estimator, kind),
        )
        for kind in ESTIMATORS
    ]
    return attacks + estimators


def engine() -> list[Revision]:
    """The revisions of what computes in every attack run."""
    return [of_module(module) for module in (geometry, judge, passes, randomness)]


def attacked(victim: Model, attack: Attack, name: str, norm: str) -> dict[str, Any]:
    """What an attack achieves on the golden samples; natural perturbations may go as far as they like."""
    images = batch()
    threat = ThreatModel.of(norm, "1" if getattr(attack, "natural", False) else EPS[norm])
    return readable(judge.judge(victim, attack, name, images, threat, SEED, judge_clean(victim, images, SEED)))


def readable(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Outcomes column by column; a status is its first letter."""
    columns: dict[str, Any] = {
        "statuses": "".join(outcome.status[0] for outcome in outcomes),
        "predictions": [outcome.prediction for outcome in outcomes],
        "distances": [outcome.distance for outcome in outcomes],
        "forwards": [outcome.forwards for outcome in outcomes],
        "backwards": [outcome.backwards for outcome in outcomes],
    }
    optional: dict[str, list[Any]] = {
        "other_statuses": [outcome.other_status and outcome.other_status[0] for outcome in outcomes],
        "surrogate_predictions": [outcome.surrogate_prediction for outcome in outcomes],
    }
    columns |= {name: values for name, values in optional.items() if any(value is not None for value in values)}
    if any(outcome.selection_draws for outcome in outcomes):
        for name in ("selection_correct", "selection_draws", "fresh_correct", "fresh_draws"):
            columns[name] = [getattr(outcome, name) for outcome in outcomes]
    return columns


def _attack_outcomes(name: str) -> Mapping[str, Any]:
    outcomes: dict[str, Any] = {}
    for case, parameters in CASES[name].items():
        attack = _built(name, parameters)
        for norm in sorted(attack.norms):
            outcomes[f"{case} {norm}".strip()] = attacked(model(relu_network()), attack, name, norm)
    if name in STOCHASTIC:
        attack = _built(name, STOCHASTIC[name])
        outcomes["stochastic linf"] = attacked(model(stochastic_network()), attack, name, "linf")
    first = next(iter(CASES[name].values()))
    if _built(name, first).precision is not None:
        attack = _built(name, {**first, "precision": "folded"})
        victim = model(normed_network())
        victim.plan_passes(batch().x)
        outcomes["folded linf"] = attacked(victim, attack, name, "linf")
    return outcomes


def _built(name: str, parameters: Mapping[str, Any]) -> Attack:
    return build_attack(name, parameters, lambda _: model(kwta_network()))


def _others_of_attack(name: str) -> list[Revision]:
    attack = _built(name, next(iter(CASES[name].values())))
    gradient = getattr(attack, "gradient", None)
    if name in ("local-search", "submodules"):
        return [of_class(Relaxed), of_module(relaxation), *engine()]
    if name == "transfer":
        return [of_class(ATTACKS["pgd"]), of_class(ATTACKS["apgd"]), of_class(type(gradient)), *engine()]
    return [*([of_class(type(gradient))] if gradient is not None else []), *engine()]


def _others_of_estimator(kind: type[Any]) -> list[Revision]:
    return [*([of_module(relaxation)] if kind is Relaxed else []), of_class(ATTACKS["pgd"]), *engine()]


def _estimator_outcomes(kind: type[Any]) -> Mapping[str, Any]:
    networks = {"relu": relu_network, "kwta": kwta_network, "stochastic": stochastic_network}
    outcomes: dict[str, Any] = {}
    for case, parameters in ESTIMATORS[kind].items():
        gradient = {"kind": kind.__name__.lower(), **parameters}
        attack = _built("pgd", {"steps": 3, "relative_step_size": 0.4, "gradient": gradient})
        for network, make in networks.items():
            outcomes[f"{case} {network}".strip()] = _estimate(kind(**parameters), model(make()))
            outcomes[f"{case} {network} pgd".strip()] = attacked(model(make()), attack, "pgd", "linf")
    return outcomes


def _estimate(gradient: Gradient, victim: Model) -> dict[str, Any]:
    """An estimate of two objectives at once, each gradient by its length and its product with fixed numbers."""
    images = batch()

    def objective(logits: Tensor) -> Tensor:
        return torch.stack([LOSSES["margin"](logits, images.y), LOSSES["cross_entropy"](logits, images.y)])

    victim.reseed(SEED, "estimate")
    estimate = gradient(victim, images.x, objective, SampleRandom(SEED, "estimate", images.samples))
    direction = numbers(*images.x.shape, seed=5)
    return {
        "values": estimate.values.tolist(),
        "lengths": estimate.gradients.flatten(2).norm(dim=2).tolist(),
        "products": (estimate.gradients * direction).flatten(2).sum(dim=2).tolist(),
    }
