"""Making a checkpoint from the recipe in its registry entry: same seed, same machine, same weights.

Natural training, PGD adversarial training (Madry et al. 2018, arXiv:1706.06083), k-WTA's incremental training (xiao2020 2.2)
and the ELBO of stochastic LWTA (panousis2021 eq. 9).
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.activations import Kwta, stochastic_divergence
from kwbench.data import DataSet, Split
from kwbench.errors import CannotEvaluate, UsageError
from kwbench.geometry import project
from kwbench.loading import build_module
from kwbench.registry import Incremental, ModelEntry, Recipe, TrainingAttack
from kwbench.threat import ThreatModel


@dataclass(frozen=True, slots=True)
class Epoch:
    """Progress after one pass over the training images: mean loss and accuracy on what was trained on."""

    number: int
    total: int
    loss: float
    accuracy: float


def train(entry: ModelEntry, dataset: DataSet, report: Callable[[Epoch], None], device: str = "cpu") -> nn.Module:
    """The entry's network, trained by its recipe, in evaluation mode on the CPU.

    Raises UsageError if there is no recipe or it does not suit the network, CannotEvaluate if the loss stops being finite.
    """
    recipe = entry.recipe
    if recipe is None:
        raise UsageError("the entry has no recipe; add one to train it")
    if len(dataset.train) < 2:
        raise UsageError(f"data set {dataset.name!r} has {len(dataset.train)} training images; batch norm needs at least 2")
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    module = build_module(entry, dataset.shape, dataset.classes).to(device)
    winners = [layer for layer in module.modules() if isinstance(layer, Kwta)]
    phases = list(_phases(recipe, winners))
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    optimiser = torch.optim.SGD(
        module.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )
    whole = dataset.train.batch(range(len(dataset.train)))
    x, y = whole.x.to(device), whole.y.to(device)
    generator = torch.Generator().manual_seed(recipe.seed)
    for number, phase in enumerate(phases):
        for layer in winners:
            layer.gamma = phase.gamma or layer.gamma
        module.train()
        loss, right = 0.0, 0
        order = torch.split(torch.randperm(len(x), generator=generator), recipe.batch_size)
        # A batch norm cannot learn from a single left-over image.
        batches = [rows for rows in order if len(rows) > 1]
        for index, rows in enumerate(batches):
            for group in optimiser.param_groups:
                group["lr"] = phase.learning_rate(index / len(batches))
            images, labels = _shifted(x[rows], recipe.shift, generator), y[rows]
            if recipe.adversarial is not None:
                images = _adversarial(module, images, labels, recipe.adversarial, number)
            try:
                logits = module(images)
            except ValueError as failure:  # winner-take-all layers refuse the NaN of a diverged network
                raise CannotEvaluate(f"training stopped in epoch {number + 1}: {failure}; lower learning_rate") from None
            objective = F.cross_entropy(logits, labels)
            if not bool(objective.isfinite()):
                raise CannotEvaluate(f"the loss is not finite in epoch {number + 1}; lower learning_rate in the recipe")
            weight = 1 / len(x) if recipe.kl_weight is None else recipe.kl_weight
            total = objective + weight * stochastic_divergence(module)
            optimiser.zero_grad()
            total.backward()
            if recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(module.parameters(), recipe.clip_norm)
            optimiser.step()
            loss += objective.item() * len(rows)
            right += int((logits.argmax(dim=1) == labels).sum())
        seen = sum(len(rows) for rows in batches)
        report(Epoch(number + 1, len(phases), loss / seen, right / seen))
    return module.cpu().eval()


@dataclass(frozen=True, slots=True)
class _Phase:
    """One epoch: how its learning rate runs, and k-WTA's gamma where it changes."""

    learning_rate: Callable[[float], float]
    gamma: Fraction | None


def _phases(recipe: Recipe, winners: list[Kwta]) -> Iterator[_Phase]:
    start = recipe.incremental.start if recipe.incremental else None
    if recipe.incremental and not winners:
        raise UsageError("recipe.incremental lowers the gamma of k-WTA layers, and the network has none")
    for epoch in range(recipe.epochs):
        yield _Phase(_one_cycle(recipe, epoch), start)
    if recipe.incremental:
        yield from _lowering(recipe.incremental, winners[0].gamma)


def _one_cycle(recipe: Recipe, epoch: int) -> Callable[[float], float]:
    """Linear warm-up over the first fifth, then linear decay to zero."""

    def rate(done: float) -> float:
        progress = (epoch + done) / recipe.epochs
        return recipe.learning_rate * (max(progress, 0.01) / 0.2 if progress < 0.2 else (1 - progress) / 0.8)

    return rate


def _lowering(incremental: Incremental, target: Fraction) -> Iterator[_Phase]:
    if incremental.start <= target:
        raise UsageError(f"recipe.incremental.start: {incremental.start} is not above the network's gamma, {target}")
    gamma = incremental.start
    while gamma > target:
        gamma = max(target, gamma - incremental.step)
        for _ in range(incremental.epochs):
            yield _Phase(lambda _: incremental.learning_rate, gamma)
    for epoch in range(incremental.final_epochs):
        yield _Phase(_falling(incremental, epoch), target)


def _falling(incremental: Incremental, epoch: int) -> Callable[[float], float]:
    """Linear decay to zero over the final epochs."""

    def rate(done: float) -> float:
        return incremental.learning_rate * (1 - (epoch + done) / incremental.final_epochs)

    return rate


def _shifted(x: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    if not shift:
        return x
    padded = F.pad(x, (shift,) * 4)
    moves = torch.randint(0, 2 * shift + 1, (len(x), 2), generator=generator)
    height, width = x.shape[2:]
    return torch.stack([padded[row, :, dy : dy + height, dx : dx + width] for row, (dy, dx) in enumerate(moves.tolist())])


def _adversarial(module: nn.Module, x: Tensor, y: Tensor, attack: TrainingAttack, epoch: int) -> Tensor:
    """Images that the network in its present training mode finds hard, by PGD from a random start."""
    warmth = min(1.0, (epoch + 1) / (attack.warmup_epochs + 1))
    threat = ThreatModel("linf", attack.eps * Fraction(warmth).limit_denominator(1000))
    step_size = float(attack.step_size) * warmth
    z = project(x + torch.empty_like(x).uniform_(-threat.radius, threat.radius), x, threat)
    for _ in range(attack.steps):
        leaf = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(module(leaf), y), leaf)
        z = project(z + step_size * gradient.sign(), x, threat)
    return z.detach()


def accuracy(module: nn.Module, split: Split) -> float:
    """Share of a split that the network gets right, by one pass each."""
    batch = split.batch(range(len(split)))
    with torch.no_grad():
        right = sum(
            int((module(x).argmax(dim=1) == y).sum())
            for x, y in zip(torch.split(batch.x, 256), torch.split(batch.y, 256), strict=True)
        )
    return right / len(split)


def save_checkpoint(module: nn.Module, path: Path) -> str:
    """Write a module's weights as safetensors, whole or not at all. Returns the SHA-256 of the file."""
    content = safetensors.torch.save({key: tensor.contiguous() for key, tensor in module.state_dict().items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)
    return hashlib.sha256(content).hexdigest()
