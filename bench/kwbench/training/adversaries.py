"""The adversarial examples that training is done on, inside the ball and the pixel range [0, 1]."""

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional as F

from kwbench.config.recipe import Fast, Free, Mixture, Trades, TrainingAttack
from kwbench.geometry import project
from kwbench.threat import ThreatModel

# From pixels (b, c, h, w) to logits (b, k) in float32, in the network's current mode and precision.
Logits = Callable[[Tensor], Tensor]


def warmup_factor(attack: TrainingAttack | Trades | Free | Fast | Mixture, epoch: int) -> float:
    """Return the share of the radius that is used in an epoch, which counts from 0."""
    return min(1.0, (epoch + 1) / (attack.warmup_epochs + 1))


def threat_of_epoch(attack: TrainingAttack | Trades | Free | Fast | Mixture, epoch: int) -> ThreatModel:
    """Return the ball in which the adversary searches in an epoch."""
    return ThreatModel("linf", attack.eps * Fraction(warmup_factor(attack, epoch)).limit_denominator(1000))


def full_step_size(attack: TrainingAttack | Free | Fast | Mixture) -> float:
    """Return the step size after warm-up; by default eps for `free` and 1.25 eps for `fast`."""
    if attack.step_size is None:
        return (1.25 if isinstance(attack, Fast) else 1.0) * float(attack.eps)
    return float(attack.step_size)


def pgd_examples(logits_of: Logits, x: Tensor, y: Tensor, attack: TrainingAttack | Fast | Mixture, epoch: int) -> Tensor:
    """Run PGD on the cross-entropy from a random start; `fast` takes one step. The step size warms up with the radius."""
    threat = threat_of_epoch(attack, epoch)
    step_size = full_step_size(attack) * warmup_factor(attack, epoch)
    z = project(x + torch.empty_like(x).uniform_(-threat.radius, threat.radius), x, threat)
    for _ in range(1 if isinstance(attack, Fast) else attack.steps):
        z = project(z + step_size * _gradient(lambda leaf: F.cross_entropy(logits_of(leaf), y), z).sign(), x, threat)
    return z.detach()


def trades_examples(logits_of: Logits, x: Tensor, natural: Tensor, trades: Trades, epoch: int) -> Tensor:
    """Maximise by PGD the divergence from the `natural` log-probabilities (b, k), from a start close to the image (TRADES)."""
    threat = threat_of_epoch(trades, epoch)
    step_size = float(trades.step_size) * warmup_factor(trades, epoch)
    z = project(x + 0.001 * torch.randn_like(x), x, threat)
    for _ in range(trades.steps):
        z = project(z + step_size * _gradient(lambda leaf: kl_divergence(logits_of(leaf), natural), z).sign(), x, threat)
    return z.detach()


def kl_divergence(logits: Tensor, natural: Tensor) -> Tensor:
    """Return KL(p || q) of the natural log-probabilities p from the predictions q, averaged over samples."""
    return F.kl_div(logits.log_softmax(dim=1), natural, reduction="batchmean", log_target=True)


def mixture_examples(logits_of: Logits, x: Tensor, y: Tensor, mixture: Mixture, number: int, epoch: int) -> Tensor:
    """Return hicheur2024's training images for a number drawn from 0 to 7."""
    kind = ("noise", "fgsm", "pgd", "cw")[number] if number < 4 else None
    if kind not in mixture.attacks:
        return x
    if kind == "noise":
        return (x + mixture.sigma * torch.randn_like(x)).clamp(0, 1)
    if kind == "fgsm":
        threat = threat_of_epoch(mixture, epoch)
        gradient = _gradient(lambda leaf: F.cross_entropy(logits_of(leaf), y), x)
        return project(x + threat.radius * gradient.sign(), x, threat).detach()
    if kind == "pgd":
        return pgd_examples(logits_of, x, y, mixture, epoch)
    return _carlini_wagner_examples(logits_of, x, y, mixture)


def _carlini_wagner_examples(logits_of: Logits, x: Tensor, y: Tensor, mixture: Mixture) -> Tensor:
    """Run Carlini and Wagner's L2 attack (arXiv:1608.04644) at one constant: in tanh space, by Adam at 0.01."""
    w = torch.atanh((2 * x - 1) * (1 - 1e-6)).requires_grad_()
    adam = torch.optim.Adam([w], lr=0.01)
    is_true_class = F.one_hot(y, logits_of(x[:1]).shape[1]).bool()
    for _ in range(mixture.steps):
        z = (w.tanh() + 1) / 2
        logits = logits_of(z)
        margin = logits.gather(1, y[:, None]).squeeze(1) - logits.masked_fill(is_true_class, -torch.inf).amax(dim=1)
        cost = ((z - x) ** 2).sum() + mixture.constant * margin.clamp(min=-mixture.confidence).sum()
        (w.grad,) = torch.autograd.grad(cost, w)
        adam.step()
    return ((w.tanh() + 1) / 2).detach()


def _gradient(loss: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    leaf = z.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    return gradient
