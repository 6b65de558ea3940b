"""A frozen classifier, from pixels in [0, 1] (b, c, h, w) to logits (b, k), that counts its own work."""

import ctypes
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kwbench.errors import CannotEvaluate, KwbenchError, UsageError
from kwbench.model.batching import Batching, measured, tiles_only
from kwbench.model.bn_folding import folded
from kwbench.model.cuda_graphs import Record, Recorded, recorder
from kwbench.randomness import derived_seed, seeded_globally

# In which arithmetic a pass computes: as the module does, with its batch norms folded into its convolutions, or so in bfloat16.
Precision = Literal["float32", "folded", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """How a random module answers.

    By one draw; by the mean of the logits of several (panousis2021 eq. 10); by the class that most of several draws name,
    of equally many the one with the larger mean logit; or `frozen`, with the randomness that `seed` gives, at every pass
    and for every image the same, which makes a deterministic classifier of it.
    """

    kind: Literal["draw", "mean_logits", "vote", "frozen"] = "draw"
    draws: int = 1
    seed: int = 0

    def identity(self) -> dict[str, Any]:
        """What tells it from other rules, as plain data."""
        return {"kind": self.kind, "draws": self.draws, **({"seed": self.seed} if self.kind == "frozen" else {})}


@dataclass(slots=True)
class _Meter:
    """Work done so far, for each row of the batch under attack; `shared` is work that no row can be named for."""

    forwards: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    backwards: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    shared_forwards: int = 0
    shared_backwards: int = 0


class Model:
    """The classifier as every attack and the judge see it.

    Forward and backward passes of a deterministic module run on tiles of exactly `tile` samples, padded when short, or once
    `measure_passes` knows them, in other batches that give the same bits: float32 convolutions round differently at other
    batch sizes, and an attack amplifies the difference. Hence a row's logits and gradients depend on that row alone. A
    stochastic module's tiles are not padded; its own randomness is reseeded at every pass from the stream set by `reseed`.
    With frozen randomness each image passes alone: in a batch, what an image meets would depend on its place there.

    `prediction` is the rule asked for; a module without randomness gives the same answers under every rule, and `rule` says
    so once `measure_randomness` knows. `stochastic` is what attacks and the judge go by: frozen, a random module is not.

    Images come in float32, logits leave in it; in between a module may compute in its own precision.

    `shape` is (c, h, w). Raises CannotEvaluate if the module answers with anything but finite-width logits (b, classes).
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        classes: int,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        tile: int = 64,
        prediction: Prediction | None = None,
    ) -> None:
        self.name = name
        self.classes = classes
        self.shape = tuple(shape)
        self.device = torch.device(device)
        self.tile = tile
        self.prediction = prediction or Prediction()
        self.stochastic = False
        self._frozen = False
        self.module = module.to(self.device).eval()
        for weights in self.module.parameters():  # a scripted module refuses the call for all of them
            weights.requires_grad_(False)
        self._stream: object = "unseeded"
        self._draw = 0
        self._common: int | None = None
        self._meter = _Meter()
        self._run: Callable[[nn.Module, Tensor], tuple[Tensor, int]] = _once
        self._precision: Precision = "float32"
        # What stands in for the module in a search; itself where nothing does.
        self._stand_in: nn.Module | None = None
        # Whether images of a precision are laid out with channels last; found out when it first matters.
        self._channels_last: dict[Precision, bool] = {}
        self._probe: Tensor | None = None
        # By precision, without gradients and with.
        self._batchings: dict[tuple[Precision, bool], Batching] = {}
        # By precision, gradients and the size of the batch; None where passes go as they are.
        self._recordings: dict[tuple[Precision, bool, int], Recorded | None] = {}
        # Whether memory has room for more than a tile.
        self._larger = True
        self._record = recorder(self.device)
        # The most forward passes that any batch of the latest call took.
        self._passes = 1

    def __call__(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits (b, k) of x (b, c, h, w); differentiable in x. `rows` names the rows of the metered batch that pay for it.

        Under a vote they are the mean log-probabilities of its draws, to search by; `predict` counts the votes.
        """
        answers = [self._combined(draws) for draws in self._draws_by_batch(x, rows)]
        logits = torch.cat(answers) if len(answers) > 1 else answers[0] if answers else x.new_zeros((0, self.classes))
        if logits.requires_grad:
            logits.register_hook(lambda _: self._charge(len(x), rows, "backwards"))  # type: ignore[no-untyped-call]
        return logits

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class (b,) and whether all logits are finite (b,), without gradients."""
        with torch.no_grad():
            if not (self.stochastic and self.prediction.kind == "vote"):
                logits = self(x)
                return logits.argmax(dim=1), logits.isfinite().all(dim=1)
            votes = [_majority(draws) for draws in self._draws_by_batch(x, None)]
        if not votes:
            return torch.zeros(0, dtype=torch.long, device=x.device), torch.zeros(0, dtype=torch.bool, device=x.device)
        return torch.cat([predicted for predicted, _ in votes]), torch.cat([finite for _, finite in votes])

    def count_correct(self, x: Tensor, y: Tensor, draws: int) -> tuple[Tensor, Tensor]:
        """How many of `draws` fresh predictions of each x are y, as long (b,), and whether all answers were finite (b,).

        A non-finite answer is not correct.
        """
        correct = torch.zeros(len(x), dtype=torch.long, device=x.device)
        always_finite = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for _ in range(draws):
            predicted, finite = self.predict(x)
            correct += (predicted == y) & finite
            always_finite &= finite
        return correct, always_finite

    @property
    def rule(self) -> Prediction:
        """The rule of prediction that makes a difference: a single draw if the module is not random."""
        return self.prediction if self.stochastic or self._frozen else Prediction()

    def measure_randomness(self, *images: Tensor, draws: int = 5) -> bool:
        """Find out by trial whether two passes over the same images differ, and set `stochastic` accordingly.

        Each of `images` is a batch of at most a tile, and passes as a whole one. On a GPU differences below 1e-5 of the
        largest logit are rounding, not randomness. Raises CannotEvaluate where the module raises, or if its randomness is to be
        frozen and cannot be.
        """
        self._frozen, self.stochastic = False, True  # every pass gets a seed of its own while we look
        self.reseed("measure randomness")
        random = any(self._varies(tile_of(x, self.tile), draws) for x in images)
        self._frozen = random and self.prediction.kind == "frozen"
        self.stochastic = random and not self._frozen
        if self._frozen and any(self._varies(x[:2], 2) for x in images):
            raise CannotEvaluate(
                f"{self.name}: its randomness cannot be frozen, since it does not come from the global generators of torch, "
                "numpy or random, or the model changes from call to call"
            )
        return self.stochastic

    def measure_passes(self, images: Tensor) -> None:
        """From now on find out by trial, when a row first is to pass, how rows pass quickest without being others for it.

        On a CPU images and weights are laid out with channels last, as convolutions like them, where the module's answers then
        differ by no more than rounding. And rows pass in those batches, smaller and larger than a tile, in which the module
        gives these images (b, c, h, w) the very bits that it gives them in a tile: see `batching`. Of a module that is
        stochastic or frozen nothing is measured. What stands in for the module in a search is found anew. On a GPU passes are
        recorded and replayed, where that gives the same bits in less time: see `kwbench.model.cuda_graphs`.
        """
        self._batchings, self._recordings = {}, {}
        self._channels_last, self._stand_in = {}, None
        self._probe = None if self.stochastic or self._frozen else tile_of(images, self.tile)

    def sizes(self, *, gradients: bool) -> list[int]:
        """The batches in which rows may pass in the present precision, with or without gradients, the largest first; the tile
        alone if the module raises."""
        return self._batching(gradients).sizes

    def keep_to_tiles(self) -> bool:
        """From now on let no more rows than a tile pass at once, and record nothing, as memory may want; whether there was
        anything to change."""
        self._larger = False
        larger = [key for key, each in self._batchings.items() if each.sizes[0] > self.tile]
        for key in larger:
            del self._batchings[key]
        recorded = any(self._recordings.values())
        self._recordings, self._record = {}, None
        return bool(larger) or recorded

    def _batching(self, gradients: bool) -> Batching:
        found = self._batchings.get((self._precision, gradients))
        if found is None:
            found = tiles_only(self.tile)
            if self._probe is not None:
                # Whatever ails the module shows, under its name, where it is asked in earnest.
                with suppress(Exception):
                    found = measured(lambda x: self._bits(x, gradients), self._probe, larger=self._larger)
            self._batchings[self._precision, gradients] = found
        return found

    def _recorded(self, x: Tensor) -> Recorded | None:
        """The recording that is to stand in for a pass over x; None where the pass is to be made."""
        if self._record is None or not self._as_measured(x):
            return None
        key = (self._precision, x.requires_grad, len(x))
        if key not in self._recordings:
            record, self._record = self._record, None  # passes of the trial are made
            try:
                self._recordings[key] = self._recorded_by_trial(x, record)
            except Exception:  # noqa: BLE001 - foreign code that cannot be recorded may raise anything
                self._recordings[key] = None
            finally:
                self._record = record
        return self._recordings[key]

    def _recorded_by_trial(self, x: Tensor, record: Record) -> Recorded | None:
        """A recording of passes over as many images as x, if they give the bits of those that are made, in less time."""
        assert self._probe is not None
        gradients = x.requires_grad
        tiles = [tile_of(each, len(x)) for each in (self._probe, 1 - self._probe)]
        made = [self._bits(each, gradients) for each in tiles]
        recorded = Recorded(self._made, x, record, gradients=gradients)
        replayed = [self._bits(each, gradients, through=recorded) for each in tiles]
        same = all(
            torch.equal(one, other)
            for (ones, _), (others, _) in zip(made, replayed, strict=True)
            for one, other in zip(ones, others, strict=True)
        )
        return recorded if same and min(took for _, took in replayed) < min(took for _, took in made) else None

    def _bits(
        self, x: Tensor, gradients: bool, through: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[list[Tensor], float]:
        """Logits of one pass over x, made or through what stands in for it, and where asked for the gradients of a sum of them;
        the seconds that it took."""
        # A processor that others want too is no slower for the work it does.
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        began = clock()
        with torch.set_grad_enabled(gradients):
            leaf = x.clone().requires_grad_(gradients)
            logits = (through or self._made)(self._copied(leaf))
            found = [logits.detach()]
            if logits.requires_grad:
                weights = torch.arange(1, self.classes + 1, device=x.device).cos()
                found += torch.autograd.grad((logits * weights).sum(), leaf)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return found, clock() - began

    def _varies(self, x: Tensor, draws: int) -> bool:
        with torch.no_grad(), self.raising_by_name():
            # Two that are not numbers are no difference: such a model is refused for what it says of clean images.
            answers = [self._draw_once(x).nan_to_num() for _ in range(draws)]
        slack = 1e-5 * answers[0].abs().max().item() if self.device.type == "cuda" else 0.0
        return any(not bool(((answer - answers[0]).abs() <= slack).all()) for answer in answers[1:])

    @contextmanager
    def raising_by_name(self) -> Iterator[None]:
        """Turn whatever the module raises in this block into a CannotEvaluate that names it."""
        try:
            yield
        except (KwbenchError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as failure:
            raise_if_memory_is_out(failure)
            raise CannotEvaluate(
                f"{self.name}: the model raised {type(failure).__name__}: {failure}{self._types()}"
            ) from failure

    def _types(self) -> str:
        """What to know of a module in another precision than its images; nothing of others."""
        held = {each.dtype for each in chain(self.module.parameters(), self.module.buffers()) if each.is_floating_point()}
        others = sorted(str(each).removeprefix("torch.") for each in held - {torch.float32})
        return f" (images come in float32, and the model holds {' and '.join(others)}: forward must cast)" if others else ""

    def reseed(self, *address: object) -> None:
        """Start the stream of the module's own randomness anew, at a named place."""
        self._stream, self._draw = address, 0

    @contextmanager
    def same_draws(self) -> Iterator[None]:
        """Let every call in this block meet the same randomness of the module: common random numbers, for differences."""
        self._common = self._draw
        try:
            yield
        finally:
            self._common = None

    @contextmanager
    def running(self, run: Callable[[nn.Module, Tensor], tuple[Tensor, int]]) -> Iterator[None]:
        """Let `run(module, x)` carry out every forward pass of this block; it returns the logits and the passes it took."""
        before = self._run
        self._run = run
        try:
            yield
        finally:
            self._run = before

    @contextmanager
    def searching(self, precision: Precision) -> Iterator[None]:
        """Compute in this precision until the block ends.

        `folded` has the module's batch norms folded into its convolutions, where a trial finds such and no more than rounding
        between the answers; bfloat16 is what torch's autocast makes of that. What is then said is for finding one's way; only
        float32 counts.
        """
        before = self._precision
        self._precision = self.arithmetic(precision)
        try:
            yield
        finally:
            self._precision = before

    def arithmetic(self, precision: Precision) -> Precision:
        """What a search in this precision computes in: float32 where there is nothing to fold."""
        return "float32" if precision == "folded" and self._standing_in() is self.module else precision

    def bears_rounding(self, images: Tensor) -> bool:
        """Whether a search in bfloat16 can be expected to find its way about these images (b, c, h, w), and to be quicker.

        The device must have it, no randomness must be there to drown in it, and the module must take it: with gradients, and
        with the answers of float32 to nine images in ten.
        """
        if self.stochastic or self._frozen or not has_bfloat16(self.device):
            return False
        leaf = images.detach().clone().requires_grad_()
        try:
            with self.searching("bfloat16"):
                logits = self(leaf)
                (slope,) = torch.autograd.grad(logits.sum(), leaf)
            with torch.no_grad():
                same = logits.argmax(dim=1) == self(images).argmax(dim=1)
        except Exception:  # noqa: BLE001 - foreign code may raise anything; in float32 it says what under its name
            return False
        return bool(slope.isfinite().all()) and same.float().mean().item() >= _SAME

    @contextmanager
    def metering(self, size: int) -> Iterator[None]:
        """Count work per row of a batch of `size` samples until the block ends; read it with `work`."""
        self._meter = _Meter(torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long))
        yield

    def work(self) -> tuple[list[int], list[int]]:
        """Forwards and backwards of each row since `metering` began. Work of unnamed rows is shared equally, rounded up."""
        meter = self._meter
        size = max(1, len(meter.forwards))
        return (
            (meter.forwards + -(-meter.shared_forwards // size)).tolist(),
            (meter.backwards + -(-meter.shared_backwards // size)).tolist(),
        )

    def _charge(self, size: int, rows: Tensor | None, kind: Literal["forwards", "backwards"]) -> None:
        meter, draws = self._meter, self._draws
        ledger: Tensor = getattr(meter, kind)
        if rows is not None and len(ledger):
            ledger.index_add_(0, rows.cpu(), torch.tensor(draws).expand(len(rows)))
        elif size == len(ledger):
            ledger += draws
        else:
            shared = f"shared_{kind}"
            setattr(meter, shared, getattr(meter, shared) + size * draws)

    @property
    def _draws(self) -> int:
        return self.prediction.draws if self.stochastic else 1

    def _draws_by_batch(self, x: Tensor, rows: Tensor | None) -> Iterator[list[Tensor]]:
        """For each batch that x is split into, the logits (b, k) of as many passes as the rule of prediction takes."""
        if tuple(x.shape[1:]) != self.shape:
            raise CannotEvaluate(f"{self.name}: images are {tuple(x.shape[1:])}, the model takes {self.shape}")
        if self._common is not None:
            self._draw = self._common
        self._passes = 1
        sizes = self._split(x)
        # Under autograd a slice costs a copy of the whole, and a split one copy of the whole together.
        parts = torch.split(x, [*sizes[:-1], len(x) - sum(sizes[:-1])]) if len(sizes) > 1 else [x] * len(sizes)
        for size, part in zip(sizes, parts, strict=True):
            yield [self._draw_once(part, size) for _ in range(self._draws)]
        for _ in range(self._passes):
            self._charge(len(x), rows, "forwards")

    def _split(self, x: Tensor) -> list[int]:
        """The sizes of the passes that x (b, c, h, w) takes; the last may be longer than what is left."""
        return (self._batching(x.requires_grad) if self._as_measured(x) else tiles_only(self.tile)).of(len(x))

    def _as_measured(self, x: Tensor) -> bool:
        """Whether x passes as in trials: through the bare module, with gradients if it wants them."""
        return self._probe is not None and self._run is _once and x.requires_grad == torch.is_grad_enabled()

    def _combined(self, draws: list[Tensor]) -> Tensor:
        if len(draws) == 1:
            return draws[0]
        if self.prediction.kind == "vote":
            # A count of votes has no gradient. In the mean of log-probabilities no draw outweighs the others by its scale.
            draws = [logits.log_softmax(dim=1) for logits in draws]
        return torch.stack(draws).mean(dim=0)

    def _draw_once(self, x: Tensor, size: int | None = None) -> Tensor:
        """Logits (b, k) of images that pass together; those of a deterministic module in a batch of `size`."""
        if self._frozen:
            return torch.cat(
                [self._pass(image.clone(), derived_seed("frozen", self.prediction.seed)) for image in torch.split(x, 1)]
            )
        self._draw += 1
        if self.stochastic:
            # Where a pass has a seed of its own, rounding is drowned by what it draws, and padding would only cost.
            return self._pass(self._copied(x), derived_seed(self._stream, self._draw))
        missing = (size or self.tile) - len(x)
        if not missing:
            return self._pass(self._copied(x), None)
        full = torch.cat([x, x[-1:].detach().expand(missing, *x.shape[1:])])
        return self._pass(self._copied(full), None)[: len(x)]

    def _copied(self, x: Tensor) -> Tensor:
        """A copy; with channels last where the module takes them, which spares its convolutions copies."""
        # The stand-in is laid out as the module is.
        precision: Precision = "bfloat16" if self._precision == "bfloat16" else "float32"
        last = self._channels_last.get(precision)
        if last is None:
            last = self._takes_channels_last() if precision == "bfloat16" else self._is_as_well_with_channels_last()
            self._channels_last[precision] = last
        return x.clone(memory_format=torch.channels_last if last else torch.preserve_format)

    def _takes_channels_last(self) -> bool:
        """A `view` of an image as a vector does not."""
        images = torch.zeros((2, *self.shape), device=self.device).contiguous(memory_format=torch.channels_last)
        try:
            with torch.no_grad():
                self._pass(images, 0)
        except RuntimeError:
            return False
        return True

    def _is_as_well_with_channels_last(self) -> bool:
        """Leaves the weights so where it is."""
        if self._probe is None or self.device.type != "cpu":
            return False
        images = self._probe[:2]
        try:
            with torch.no_grad(), self.searching("float32"):
                before = self._made(images.clone())
                self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                after = self._made(images.clone(memory_format=torch.channels_last))
            if _equal_but_for_rounding(before, after):
                return True
        except Exception:  # noqa: BLE001 - foreign code may raise anything; laid out as before it says what under its name
            pass
        self.module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return False

    def _standing_in(self) -> nn.Module:
        """What stands in for the module in a search."""
        if self._stand_in is None:
            # A stand-in for the bare module, whoever is the first to ask.
            with self.searching("float32"), self.running(_once):
                self._stand_in = self._folded() or self.module
        return self._stand_in

    def _folded(self) -> nn.Module | None:
        """The module with its norms folded, if it then says the same but for rounding, of other images than it was folded on,
        and has the same gradients. It is laid out as the module is. Raises where memory does not hold it."""
        if self._probe is None:
            return None
        try:
            found = folded(self.module, self._copied(self._probe[:2]))
            if found is None:
                return None
            if self._channels_last["float32"]:
                found.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            others = 1 - self._probe
            (logits, *slopes), _ = self._bits(others, gradients=True)
            (its_logits, *its_slopes), _ = self._bits(others, gradients=True, through=lambda x: _in_float32(found(x)))
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as failure:  # noqa: BLE001 - foreign code may raise anything; unfolded it says what under its name
            raise_if_memory_is_out(failure)
            return None
        if torch.equal(logits, its_logits) or not _equal_but_for_rounding(logits, its_logits):
            return None
        same = all(bool((one - other).norm() <= _ASTRAY * one.norm()) for one, other in zip(slopes, its_slopes, strict=False))
        return found if same and len(slopes) == len(its_slopes) else None

    def _pass(self, x: Tensor, seed: int | None) -> Tensor:
        """One pass of the module; x is a copy, for a module that writes into its input must not reach ours."""
        recorded = self._recorded(x) if seed is None else None
        if recorded is not None:
            return recorded(x)
        with seeded_globally(seed) if seed is not None else nullcontext():
            return self._made(x)

    def _made(self, x: Tensor) -> Tensor:
        module = self.module if self._precision == "float32" else self._standing_in()
        with self._autocast():
            logits, passes = self._run(module, x)
        self._passes = max(self._passes, passes)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise CannotEvaluate(f"{self.name}: the model must return logits ({len(x)}, classes), it returned {got}")
        if logits.shape[1] != self.classes:
            raise CannotEvaluate(f"{self.name}: the model has {logits.shape[1]} classes, the data set has {self.classes}")
        if not logits.is_floating_point():
            raise CannotEvaluate(f"{self.name}: logits must be floating point, they are {logits.dtype}")
        return _in_float32(logits)

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._precision == "bfloat16" else nullcontext()


def _in_float32(logits: Tensor) -> Tensor:
    """Logits (b, k) in float32. Rows of float64 that are too large for what is done with them there, or would have no largest,
    are shifted and scaled, which changes no order."""
    single = logits.float()
    if logits.dtype != torch.float64 or logits.shape[1] < 2:
        return single
    two, single_two = logits.detach().topk(2, dim=1).values, single.detach().topk(2, dim=1).values
    tied = (two[:, 0] > two[:, 1]) & ~(single_two[:, 0] > single_two[:, 1])
    lost = logits.isfinite().all(dim=1) & (tied | (single.detach().abs().amax(dim=1) > _HUGE))
    if not bool(lost.any()):
        return single
    shifted = logits - logits.detach().amax(dim=1, keepdim=True)
    scaled = shifted / shifted.detach().abs().amax(dim=1, keepdim=True).clamp_min(_TINY)
    return torch.where(lost[:, None], scaled.float(), single)


def _equal_but_for_rounding(one: Tensor, other: Tensor) -> bool:
    """Whether logits (b, k) tell the same; what all classes have in common tells nothing."""
    one, other = (logits - logits.mean(dim=1, keepdim=True) for logits in (one, other))
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=_ROUNDING * one.abs().max().item())


def tile_of(images: Tensor, tile: int) -> Tensor:
    """As many images (tile, c, h, w), the given ones (b, c, h, w) over and over. Some modules take no batch of one."""
    return images.detach()[torch.arange(tile) % len(images)]


def _once(module: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    return module(x), 1


def _majority(draws: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The class (b,) that most draws (b, k) name, and whether all of their logits are finite (b,)."""
    logits = torch.stack(draws)
    votes = torch.zeros_like(draws[0]).index_put_(
        (torch.arange(logits.shape[1], device=logits.device).expand(len(draws), -1), logits.argmax(dim=2)),
        logits.new_ones(()),
        accumulate=True,
    )
    most = votes == votes.amax(dim=1, keepdim=True)
    predicted = torch.where(most, logits.mean(dim=0), -torch.inf).argmax(dim=1)
    return predicted, logits.isfinite().all(dim=2).all(dim=0)


def find_device(name: str) -> torch.device:
    """The device of this name; `auto` is a GPU where there is one. Raises UsageError where it cannot be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as failure:
        reason = str(failure).splitlines()[0]
        raise UsageError(f"--device {name}: not usable here ({reason}); auto takes a GPU where there is one") from None
    return device


def raise_if_memory_is_out(failure: Exception) -> None:
    """Raise MemoryError for what torch raises where a processor, unlike a GPU, has no memory left."""
    if isinstance(failure, RuntimeError) and "DefaultCPUAllocator" in str(failure):
        raise MemoryError(str(failure)) from failure


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies matrices in bfloat16 quicker than in float32, as far as this torch tells."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(unit, False) for unit in ("amx_bf16", "avx512_bf16"))


# The share of answers that must survive rounding for a search in it to be believed.
_SAME = 0.9

# Logits whose gradients, squares and sums float32 and float64 hold.
_HUGE, _TINY = 1e15, 1e-250

# Of the largest logit; sums in another order are far nearer, and what takes channels for pixels far from it.
_ROUNDING = 1e-3
# The share of a gradient's length by which that of a stand-in may be off.
_ASTRAY = 0.1


def require_exact_float32() -> None:
    """Turn off what trades float32 bits for speed: TF32, and the search for the fastest convolution of the day."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free for the next that need it, up to 32 MiB each; other C libraries go on as they do.

    By default it hands their memory back to the system, which clears every page of it anew: 17,000 in one forward and backward
    pass of 64 images through a small ResNet, an eighth of the time.
    """
    allocator = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if allocator is not None:
        for parameter, size in ((_TRIM_THRESHOLD, 2**31 - 1), (_MMAP_THRESHOLD, 2**25)):
            allocator(parameter, size)


# Of malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
