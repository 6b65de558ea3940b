"""Images that the network in training finds hard, each within its ball and among the pixels."""

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional as F

from kwbench.config.recipe import Fast, Free, Mixture, Trades, TrainingAttack
from kwbench.geometry import project
from kwbench.threat import ThreatModel

# From pixels (b, c, h, w) to logits (b, k) in float32, in whatever mode and precision the network trains.
Answer = Callable[[Tensor], Tensor]


def warmth(attack: TrainingAttack | Trades | Free | Fast | Mixture, epoch: int) -> float:
    """The share of the radius that an epoch, counted from 0, has reached."""
    return min(1.0, (epoch + 1) / (attack.warmup_epochs + 1))


def ball(attack: TrainingAttack | Trades | Free | Fast | Mixture, epoch: int) -> ThreatModel:
    """Where an epoch's adversary may look."""
    return ThreatModel("linf", attack.eps * Fraction(warmth(attack, epoch)).limit_denominator(1000))


def length(attack: TrainingAttack | Free | Fast | Mixture) -> float:
    """Of a step of the adversary, once it is warm: where nothing is said, eps for `free` and 1.25 eps for `fast`."""
    if attack.step_size is None:
        return (1.25 if isinstance(attack, Fast) else 1.0) * float(attack.eps)
    return float(attack.step_size)


def adversarial(answer: Answer, x: Tensor, y: Tensor, attack: TrainingAttack | Fast | Mixture, epoch: int) -> Tensor:
    """PGD on the cross-entropy from a random start; the steps warm up with the radius. `fast` takes one step."""
    threat = ball(attack, epoch)
    step_size = length(attack) * warmth(attack, epoch)
    z = project(x + torch.empty_like(x).uniform_(-threat.radius, threat.radius), x, threat)
    for _ in range(1 if isinstance(attack, Fast) else attack.steps):
        z = project(z + step_size * _slope(lambda leaf: F.cross_entropy(answer(leaf), y), z).sign(), x, threat)
    return z.detach()


def diverging(answer: Answer, x: Tensor, natural: Tensor, trades: Trades, epoch: int) -> Tensor:
    """Where answers diverge most from the `natural` log-probabilities (b, k), by PGD from beside the image (TRADES)."""
    threat = ball(trades, epoch)
    step_size = float(trades.step_size) * warmth(trades, epoch)
    z = project(x + 0.001 * torch.randn_like(x), x, threat)
    for _ in range(trades.steps):
        z = project(z + step_size * _slope(lambda leaf: divergence(answer(leaf), natural), z).sign(), x, threat)
    return z.detach()


def divergence(logits: Tensor, natural: Tensor) -> Tensor:
    """KL(p || q) of the natural log-probabilities p from the answers q, meaned over samples."""
    return F.kl_div(logits.log_softmax(dim=1), natural, reduction="batchmean", log_target=True)


def sampled(answer: Answer, x: Tensor, y: Tensor, mixture: Mixture, number: int, epoch: int) -> Tensor:
    """hicheur2024's training images for a number drawn from 0 to 7."""
    kind = ("noise", "fgsm", "pgd", "cw")[number] if number < 4 else None
    if kind not in mixture.attacks:
        return x
    if kind == "noise":
        return (x + mixture.sigma * torch.randn_like(x)).clamp(0, 1)
    if kind == "fgsm":
        threat = ball(mixture, epoch)
        slope = _slope(lambda leaf: F.cross_entropy(answer(leaf), y), x)
        return project(x + threat.radius * slope.sign(), x, threat).detach()
    if kind == "pgd":
        return adversarial(answer, x, y, mixture, epoch)
    return _carlini_wagner(answer, x, y, mixture)


def _carlini_wagner(answer: Answer, x: Tensor, y: Tensor, mixture: Mixture) -> Tensor:
    """Carlini and Wagner's L2 attack (arXiv:1608.04644) at one constant: tanh space, Adam at 0.01."""
    w = torch.atanh((2 * x - 1) * (1 - 1e-6)).requires_grad_()
    adam = torch.optim.Adam([w], lr=0.01)
    own = F.one_hot(y, answer(x[:1]).shape[1]).bool()
    for _ in range(mixture.steps):
        z = (w.tanh() + 1) / 2
        logits = answer(z)
        margin = logits.masked_select(own) - logits.masked_fill(own, -torch.inf).amax(dim=1)
        cost = ((z - x) ** 2).sum() + mixture.constant * margin.clamp(min=-mixture.confidence).sum()
        (w.grad,) = torch.autograd.grad(cost, w)
        adam.step()
    return ((w.tanh() + 1) / 2).detach()


def _slope(loss: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    leaf = z.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    return gradient
