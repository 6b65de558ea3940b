"""The training loop over epochs and batches, with reports, and with progress on disk from which it can be resumed."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kwbench.config.recipe import Recipe
from kwbench.config.registry import ModelEntry
from kwbench.data import DataSet
from kwbench.errors import CannotEvaluate, UsageError
from kwbench.model import require_exact_float32
from kwbench.networks.architectures import Normalised
from kwbench.networks.entries import build_module
from kwbench.training.bfloat16_activations import bfloat16_activations
from kwbench.training.checkpoint import load_pretrained, recipe_hash, round_weights
from kwbench.training.learner import Learner
from kwbench.training.progress import read_progress, split_digest, write_progress
from kwbench.training.schedule import phases

# Seconds of work that a kill may cost, and seconds between two reports.
_SAVE_EVERY = 60.0
_REPORT_EVERY = 30.0
# Steps after which a GPU is waited for, to read losses and accuracies.
_READ_EVERY = 50


@dataclass(frozen=True, slots=True)
class Epoch:
    """A report on an epoch: mean loss and accuracy on the images trained on so far, and `done`, the share of its batches.

    `images_per_second` is the speed of this process; an image counts once an epoch, however often it is replayed.
    """

    number: int
    total: int
    loss: float
    accuracy: float
    done: float
    images_per_second: float
    seconds_left: float


@dataclass(slots=True)
class _Position:
    """How far training has come: the current epoch, its next batch and order of images, and its sums so far.

    Attributes:
        loss: Sum of the losses of the images `seen`.
        right: Number of images predicted correctly.
        curve: Loss and accuracy of each finished epoch.
    """

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
    """Train the entry's network by its recipe.

    Args:
        report: Called at the end of each epoch, and every 30 seconds.
        progress: The file in which the state is saved every epoch and every minute. If it exists, training resumes from it
            and ends with the same weights as an uninterrupted one.
        pretrained: The content of a safetensors file with initial weights.
        curve: Called at the end of each epoch with the loss and accuracy of all epochs so far.

    Returns the network in evaluation mode on the CPU, its weights rounded as its checkpoint will store them.
    Raises UsageError if there is no recipe or it does not suit the network, CannotEvaluate if the loss is not finite.
    """
    recipe = _checked_recipe(entry, dataset, pretrained)
    require_exact_float32()
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    module = build_module(entry, dataset.shape, dataset.classes).to(device)
    loop = _Loop(Learner(module, recipe, dataset.shape, len(dataset.train), torch.device(device)), dataset)
    if pretrained is not None:
        inner = module.network if isinstance(module, Normalised) else module
        load_pretrained(inner, pretrained, recipe.pretrained or "the initial weights")
    identity = {
        "recipe": recipe_hash(entry),
        "images": split_digest(dataset.train),
        "torch": str(torch.__version__),
        "device": torch.device(device).type,
    }
    if progress is not None and (state := read_progress(progress, identity)) is not None:
        loop.restore(state)
    save = (lambda: write_progress(progress, identity, loop.state())) if progress is not None else (lambda: None)
    # A GPU has winner-take-all activations in bfloat16 that do not wait.
    on_cpu = torch.device(device).type == "cpu"
    with bfloat16_activations(module) if recipe.precision == "bfloat16" and on_cpu else nullcontext():
        loop.run(report, save, curve)
    round_weights(module, recipe.storage)
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return module.cpu().eval()


def _checked_recipe(entry: ModelEntry, dataset: DataSet, pretrained: bytes | None) -> Recipe:
    """Return the entry's recipe. Raises UsageError if there is none, or it cannot be followed with what is given."""
    recipe = entry.recipe
    if recipe is None:
        raise UsageError("the entry has no recipe; add one to train it")
    if len(dataset.train) < 2:
        raise UsageError(f"data set {dataset.name!r} has {len(dataset.train)} training images; batch norm needs at least 2")
    if recipe.pretrained is not None and pretrained is None:
        raise UsageError(f"the recipe starts from {recipe.pretrained}; --weights takes a copy of it, --download fetches it")
    if recipe.shift >= min(dataset.shape[1:]):
        raise UsageError(f"shift: {recipe.shift} moves images of {'x'.join(map(str, dataset.shape[1:]))} out of sight")
    return recipe


class _Loop:
    """The epochs of a learner over the training images of a data set."""

    def __init__(self, learner: Learner, dataset: DataSet) -> None:
        self._learner = learner
        self._phases = list(phases(learner.recipe, learner.kwta_layers))
        images = dataset.train.batch(range(len(dataset.train)))
        self._x, self._y = images.x.to(learner.device), images.y.to(learner.device)
        self._position = _Position()
        # The loss, correct predictions and images of each step that is not in the sums yet.
        self._unread: list[tuple[Tensor, Tensor, int]] = []
        # A GPU would have to be waited for.
        self._read_every = 1 if learner.device.type == "cpu" else _READ_EVERY

    def run(
        self,
        report: Callable[[Epoch], None],
        save: Callable[[], None],
        curve: Callable[[list[dict[str, float]]], None],
    ) -> None:
        """Train from the current position to the end of the last epoch."""
        started = reported = saved = time.monotonic()
        images = 0
        while self._position.epoch < len(self._phases):
            position, phase = self._position, self._phases[self._position.epoch]
            batches = self._batches()
            self._learner.begin_epoch(phase)
            for index in range(position.batch, len(batches)):
                self._learner.set_learning_rate(phase.learning_rate(index / len(batches)))
                self._train_on(batches[index])
                position.batch = index + 1
                images += len(batches[index])
                now = time.monotonic()
                last = position.batch == len(batches)
                if last or len(self._unread) >= self._read_every:
                    self._read()
                if last or now - reported > _REPORT_EVERY:
                    reported = now
                    self._read()
                    report(self._report(position.batch / len(batches), images / max(now - started, 1e-9)))
                if not last and now - saved > _SAVE_EVERY:
                    self._read()
                    save()
                    saved = now
            self._end_epoch()
            curve(self._position.curve)
            save()
            saved = time.monotonic()

    def _batches(self) -> list[Tensor]:
        """Return the rows of each batch of the current epoch; a new epoch draws a new order."""
        if not self._position.batch:
            self._position.order = torch.randperm(len(self._x), generator=self._learner.generator)
        # Batch norm cannot train on a single image, so a last batch of one is left out.
        return [rows for rows in torch.split(self._position.order, self._learner.recipe.batch_size) if len(rows) > 1]

    def _train_on(self, rows: Tensor) -> None:
        at = rows.to(self._x.device, non_blocking=True)
        x, y = self._learner.augment(self._x[at]), self._y[at]
        for _ in range(self._learner.replays):
            loss, logits = self._learner.step(x, y, self._position.epoch)
            self._unread.append((loss, (logits.argmax(dim=1) == y).sum(), len(rows)))

    def _read(self) -> None:
        """Add the steps since the last time to the sums. Raises CannotEvaluate if a loss is not finite."""
        if not self._unread:
            return
        position, (losses, right, images) = self._position, zip(*self._unread, strict=True)
        self._unread = []
        for loss, count in zip(torch.stack(losses).tolist(), images, strict=True):
            if not math.isfinite(loss):
                raise CannotEvaluate(f"the loss is not finite in epoch {position.epoch + 1}; lower learning_rate in the recipe")
            position.loss += loss * count
            position.seen += count
        position.right += sum(torch.stack(right).tolist())

    def _end_epoch(self) -> None:
        """Add the epoch to the curve, and go to the next one."""
        position = self._position
        mean_loss, accuracy = position.loss / position.seen, position.right / position.seen
        position.curve.append({"epoch": position.epoch + 1, "loss": round(mean_loss, 6), "accuracy": round(accuracy, 6)})
        self._position = _Position(epoch=position.epoch + 1, curve=position.curve)

    def _report(self, done: float, speed: float) -> Epoch:
        position = self._position
        epochs_left = len(self._phases) - position.epoch - done
        return Epoch(
            number=position.epoch + 1,
            total=len(self._phases),
            loss=position.loss / position.seen,
            accuracy=position.right / position.seen,
            done=done,
            images_per_second=speed,
            seconds_left=epochs_left * len(self._x) / speed,
        )

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the training depends on."""
        position = self._position
        sums = {key: getattr(position, key) for key in ("epoch", "batch", "loss", "right", "seen", "curve")}
        return {**self._learner.state(), "order": position.order, "place": sums}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self._learner.restore(state)
        self._position = _Position(order=state["order"], **state["place"])
