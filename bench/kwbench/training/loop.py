"""The loop over epochs and batches: natural training, and what each way of adversarial training makes of a batch.

PGD adversarial training (Madry et al. 2018, arXiv:1706.06083), TRADES (arXiv:1901.08573), free (arXiv:1904.12843) and fast
(arXiv:2001.03994) training, hicheur2024's mixture, k-WTA's incremental training (xiao2020 2.2) and the ELBO of stochastic LWTA
(panousis2021 eq. 9).
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.config.recipe import Recipe
from kwbench.config.registry import ModelEntry
from kwbench.data import DataSet
from kwbench.errors import CannotEvaluate, UsageError
from kwbench.model import require_exact_float32
from kwbench.networks.activations import Kwta, Lwta, StochasticLwta, stochastic_divergence
from kwbench.networks.architectures import Normalised
from kwbench.networks.loading import build_module
from kwbench.training.adversaries import adversarial, ball, divergence, diverging, length, sampled, warmth
from kwbench.training.augmentation import augmented
from kwbench.training.bfloat16_activations import swift
from kwbench.training.checkpoint import recipe_hash, round_weights, start_from
from kwbench.training.progress import images_digest, read_progress, write_progress
from kwbench.training.schedule import Phase, phases

# Seconds of work that a kill may cost, and between two words on how it goes.
_SAVE_EVERY = 60.0
_SPEAK_EVERY = 30.0


@dataclass(frozen=True, slots=True)
class Epoch:
    """How training goes: mean loss and accuracy on what was trained on in this epoch so far, `done` of which has passed."""

    number: int
    total: int
    loss: float
    accuracy: float
    done: float
    # Of this process; each image counts once an epoch, whatever is done to it.
    images_per_second: float
    seconds_left: float


@dataclass(slots=True)
class _Place:
    """Where training stands: the next batch of the epoch under way, and what that epoch has seen."""

    epoch: int = 0
    batch: int = 0
    order: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    loss: float = 0.0
    right: int = 0
    seen: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


def train(
    entry: ModelEntry,
    dataset: DataSet,
    report: Callable[[Epoch], None],
    device: str = "cpu",
    *,
    progress: Path | None = None,
    pretrained: bytes | None = None,
    curve: Callable[[list[dict[str, float]]], None] = lambda _: None,
) -> nn.Module:
    """The entry's network, trained by its recipe, in evaluation mode on the CPU, with weights as its checkpoint will keep them.

    With `progress`, the state is kept in that file every epoch and every minute, and a training that was stopped, however,
    goes on from there to the same weights. `pretrained` is a safetensors file to start from; `curve` gets loss and accuracy
    of all epochs so far at the end of each.
    Raises UsageError if there is no recipe or it does not suit the network, CannotEvaluate if the loss stops being finite.
    """
    recipe = entry.recipe
    if recipe is None:
        raise UsageError("the entry has no recipe; add one to train it")
    if len(dataset.train) < 2:
        raise UsageError(f"data set {dataset.name!r} has {len(dataset.train)} training images; batch norm needs at least 2")
    if recipe.pretrained is not None and pretrained is None:
        raise UsageError(f"the recipe starts from {recipe.pretrained}; --weights takes a copy of it, --download fetches it")
    if recipe.shift >= min(dataset.shape[1:]):
        raise UsageError(f"shift: {recipe.shift} moves images of {'x'.join(map(str, dataset.shape[1:]))} out of sight")
    require_exact_float32()
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    module = build_module(entry, dataset.shape, dataset.classes).to(device)
    training = _Training(module, recipe, dataset, device)
    if pretrained is not None:
        inner = module.network if isinstance(module, Normalised) else module
        start_from(inner, pretrained, recipe.pretrained or "the weights to start from")
    identity = {
        "recipe": recipe_hash(entry),
        "images": images_digest(dataset.train),
        "torch": str(torch.__version__),
        "device": torch.device(device).type,
    }
    if progress is not None and (state := read_progress(progress, identity)) is not None:
        training.restore(state)
    keep = (lambda: write_progress(progress, identity, training.state())) if progress is not None else (lambda: None)
    with swift(module) if training.half else nullcontext():
        training.run(report, keep, curve)
    round_weights(module, recipe.storage)
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return module.cpu().eval()


def _overruns(layer: nn.Module) -> bool:
    """Whether oneDNN may write beyond its memory in the gradient of this layer's weights.

    So it does where images or weights have channels last, in strided convolutions of 1x1 over fewer channels than it takes at
    once, 8 or 16 (github.com/uxlfoundation/oneDNN/issues/6035): the gradient is wrong, or the process hangs or dies.
    """
    return (
        isinstance(layer, nn.Conv2d)
        and set(layer.kernel_size) == {1}
        and max(layer.stride) > 1
        and layer.in_channels // layer.groups < 16
    )


class _Training:
    """A network under a recipe, with all that changes while it learns."""

    def __init__(self, module: nn.Module, recipe: Recipe, dataset: DataSet, device: str) -> None:
        self.module, self.recipe, self.device = module, recipe, torch.device(device)
        self.winners = [layer for layer in module.modules() if isinstance(layer, Kwta)]
        self.phases: list[Phase] = list(phases(recipe, self.winners))
        for layer in module.modules():
            if recipe.initial == "kaiming_normal" and isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.half = recipe.precision == "bfloat16"
        # Faster on a CPU, but where a layer looks at samples in logical order, and would copy: stochastic LWTA, and
        # in half precision the others; and where oneDNN would overrun.
        ordered = (Kwta, Lwta, StochasticLwta) if self.half else (StochasticLwta,)
        first = any(isinstance(layer, ordered) or _overruns(layer) for layer in module.modules())
        self.memory_format = torch.contiguous_format if first else torch.channels_last
        module.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.optimiser = torch.optim.SGD(
            module.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
        )
        whole = dataset.train.batch(range(len(dataset.train)))
        self.x, self.y = whole.x.to(device), whole.y.to(device)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        # What free training has found so far, by position in the batch.
        self.perturbation = torch.zeros(recipe.batch_size if recipe.free else 0, *dataset.shape, device=device)
        self.place = _Place()

    def run(
        self,
        report: Callable[[Epoch], None],
        keep: Callable[[], None],
        curve: Callable[[list[dict[str, float]]], None],
    ) -> None:
        """Learn from where it stands to the end of the last epoch."""
        began = spoken = kept = time.monotonic()
        fresh = 0
        while self.place.epoch < len(self.phases):
            place = self.place
            if not place.batch:
                place.order = torch.randperm(len(self.x), generator=self.generator)
            # A batch norm cannot learn from a single left-over image.
            batches = [rows for rows in torch.split(place.order, self.recipe.batch_size) if len(rows) > 1]
            phase = self.phases[place.epoch]
            for layer in self.winners:
                layer.gamma = phase.gamma or layer.gamma
            self.module.train()
            for index in range(place.batch, len(batches)):
                for group in self.optimiser.param_groups:
                    group["lr"] = phase.learning_rate(index / len(batches))
                self._learn_batch(batches[index])
                place.batch = index + 1
                fresh += len(batches[index])
                now = time.monotonic()
                last = place.batch == len(batches)
                if last or now - spoken > _SPEAK_EVERY:
                    spoken = now
                    report(self._epoch(place.batch / len(batches), fresh / max(now - began, 1e-9)))
                if not last and now - kept > _SAVE_EVERY:
                    keep()
                    kept = now
            mean, share = place.loss / place.seen, place.right / place.seen
            place.curve.append({"epoch": place.epoch + 1, "loss": round(mean, 6), "accuracy": round(share, 6)})
            curve(place.curve)
            self.place = _Place(epoch=place.epoch + 1, curve=place.curve)
            keep()
            kept = time.monotonic()

    def _epoch(self, done: float, speed: float) -> Epoch:
        place = self.place
        left = len(self.phases) - place.epoch - done
        return Epoch(
            number=place.epoch + 1,
            total=len(self.phases),
            loss=place.loss / place.seen,
            accuracy=place.right / place.seen,
            done=done,
            images_per_second=speed,
            seconds_left=left * len(self.x) / speed,
        )

    def _learn_batch(self, rows: Tensor) -> None:
        images, labels = augmented(self.x[rows], self.recipe, self.generator), self.y[rows]
        images = images.contiguous(memory_format=self.memory_format)
        for _ in range(self.recipe.free.replays if self.recipe.free else 1):
            try:
                loss, logits = self._step(images, labels)
            except ValueError as failure:  # winner-take-all layers refuse the NaN of a diverged network
                raise CannotEvaluate(
                    f"training stopped in epoch {self.place.epoch + 1}: {failure}; lower learning_rate"
                ) from None
            self.place.loss += loss * len(rows)
            self.place.right += int((logits.argmax(dim=1) == labels).sum())
            self.place.seen += len(rows)

    def _step(self, x: Tensor, y: Tensor) -> tuple[float, Tensor]:
        """One step of the optimiser; the loss without its KL term, and the logits (b, k) of what was learned from."""
        recipe, epoch = self.recipe, self.place.epoch
        leaf: Tensor | None = None
        if recipe.adversarial is not None:
            x = adversarial(self.answer, x, y, recipe.adversarial, epoch)
        elif recipe.fast is not None:
            x = adversarial(self.answer, x, y, recipe.fast, epoch)
        elif recipe.mixture is not None:
            number = int(torch.randint(0, 8, (), generator=self.generator))
            x = sampled(self.answer, x, y, recipe.mixture, number, epoch)
        elif recipe.free is not None:
            leaf = self.perturbation[: len(x)].clone().requires_grad_()
            x = (x + leaf).clamp(0, 1)
        if recipe.noise:
            x = x + recipe.noise * torch.randn_like(x)
        logits = self.answer(x)
        objective = F.cross_entropy(logits, y)
        if recipe.trades is not None:
            natural = logits.log_softmax(dim=1)
            self.module.eval()  # as in the authors' implementation
            z = diverging(self.answer, x, natural.detach(), recipe.trades, epoch)
            self.module.train()
            objective = objective + recipe.trades.beta * divergence(self.answer(z), natural)
        if not bool(objective.isfinite()):
            raise CannotEvaluate(f"the loss is not finite in epoch {epoch + 1}; lower learning_rate in the recipe")
        weight = 1 / len(self.x) if recipe.kl_weight is None else recipe.kl_weight
        total = objective + weight * stochastic_divergence(self.module)
        self.optimiser.zero_grad()
        total.backward()
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), recipe.clip_norm)
        self.optimiser.step()
        if leaf is not None and leaf.grad is not None and recipe.free is not None:
            radius = ball(recipe.free, epoch).radius
            moved = leaf.detach() + length(recipe.free) * warmth(recipe.free, epoch) * leaf.grad.sign()
            self.perturbation[: len(x)] = moved.clamp(-radius, radius)
        return objective.item(), logits.detach()

    def answer(self, x: Tensor) -> Tensor:
        """Logits (b, k) in float32, in the mode that the network is in and the precision of the recipe."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            logits: Tensor = self.module(x)
        return logits.float()

    def state(self) -> dict[str, Any]:
        """All that the rest of the training depends on."""
        place = self.place
        return {
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "perturbation": self.perturbation,
            "random": [torch.get_rng_state(), self.generator.get_state()],
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "order": place.order,
            "place": {each: getattr(place, each) for each in ("epoch", "batch", "loss", "right", "seen", "curve")},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken."""
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.perturbation = state["perturbation"].to(self.device)
        torch.set_rng_state(state["random"][0])
        self.generator.set_state(state["random"][1])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.device)
        self.place = _Place(order=state["order"], **state["place"])
