"""A frozen classifier, from pixels in [0, 1] (b, c, h, w) to logits (b, k), that counts its own work."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from kwbench.errors import CannotEvaluate, KwbenchError
from kwbench.randomness import derived_seed, seeded_globally


@dataclass(frozen=True, slots=True)
class Prediction:
    """How a stochastic classifier answers: by one draw, or by the mean of the logits of several (panousis2021 eq. 10)."""

    kind: Literal["draw", "mean_logits"] = "draw"
    draws: int = 1


@dataclass(slots=True)
class _Meter:
    """Work done so far, for each row of the batch under attack; `shared` is work that no row can be named for."""

    forwards: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    backwards: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    shared_forwards: int = 0
    shared_backwards: int = 0


class Model:
    """The classifier as every attack and the judge see it.

    Forward and backward passes of a deterministic module run on tiles of exactly `tile` samples, padded when short: float32
    convolutions round differently at other batch sizes, and an attack amplifies the difference. Hence a row's logits and
    gradients depend on that row alone. A stochastic module's tiles are not padded; its own randomness is reseeded at every
    pass from the stream set by `reseed`.

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
        self.module = module.to(self.device).eval().requires_grad_(False)
        self._stream: object = "unseeded"
        self._draw = 0
        self._common: int | None = None
        self._meter = _Meter()
        self._run: Callable[[nn.Module, Tensor], Tensor] = lambda module, x: module(x)
        self._passes = 1

    def __call__(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits (b, k) of x (b, c, h, w); differentiable in x. `rows` names the rows of the metered batch that pay for it."""
        if tuple(x.shape[1:]) != self.shape:
            raise CannotEvaluate(f"{self.name}: images are {tuple(x.shape[1:])}, the model takes {self.shape}")
        if self._common is not None:
            self._draw = self._common
        tiles = [self._predict(x[start : start + self.tile]) for start in range(0, len(x), self.tile)]
        for _ in range(self._passes):
            self._charge(len(x), rows, "forwards")
        logits = torch.cat(tiles) if tiles else x.new_zeros((0, self.classes))
        if logits.requires_grad:
            logits.register_hook(lambda _: self._charge(len(x), rows, "backwards"))  # type: ignore[no-untyped-call]
        return logits

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class (b,) and whether all logits are finite (b,), without gradients."""
        with torch.no_grad():
            logits = self(x)
        return logits.argmax(dim=1), logits.isfinite().all(dim=1)

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

    def measure_randomness(self, x: Tensor, draws: int = 5) -> bool:
        """Find out by trial whether two passes over the same images differ, and remember it in `stochastic`.

        On a GPU differences below 1e-5 of the largest logit are rounding, not randomness. Raises CannotEvaluate where the
        module raises.
        """
        self.stochastic = True  # every pass gets a seed of its own while we look
        self.reseed("measure randomness")
        with torch.no_grad(), self.raising_by_name():
            # Two that are not numbers are no difference: such a model is refused for what it says of clean images.
            answers = [self(x).nan_to_num() for _ in range(draws)]
        slack = 1e-5 * answers[0].abs().max().item() if self.device.type == "cuda" else 0.0
        self.stochastic = any(not bool(((answer - answers[0]).abs() <= slack).all()) for answer in answers[1:])
        return self.stochastic

    @contextmanager
    def raising_by_name(self) -> Iterator[None]:
        """Turn whatever the module raises in this block into a CannotEvaluate that names it."""
        try:
            yield
        except (KwbenchError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as failure:
            raise CannotEvaluate(f"{self.name}: the model raised {type(failure).__name__}: {failure}") from failure

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
    def running(self, run: Callable[[nn.Module, Tensor], Tensor], passes: int) -> Iterator[None]:
        """Let `run(module, x)` carry out every forward pass of this block, at the cost of `passes` of them."""
        before = self._run, self._passes
        self._run, self._passes = run, passes
        try:
            yield
        finally:
            self._run, self._passes = before

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
        meter, draws = self._meter, self.prediction.draws
        ledger: Tensor = getattr(meter, kind)
        if rows is not None and len(ledger):
            ledger.index_add_(0, rows.cpu(), torch.full((len(rows),), draws))
        elif size == len(ledger):
            ledger += draws
        else:
            shared = f"shared_{kind}"
            setattr(meter, shared, getattr(meter, shared) + size * draws)

    def _predict(self, x: Tensor) -> Tensor:
        answers = [self._forward(x) for _ in range(self.prediction.draws)]
        return answers[0] if len(answers) == 1 else torch.stack(answers).mean(dim=0)

    def _forward(self, x: Tensor) -> Tensor:
        # Where a pass has a seed of its own, rounding is drowned by what it draws, and padding would only cost.
        missing = 0 if self.stochastic else self.tile - len(x)
        # A copy either way: a module that writes into its input must not reach ours.
        full = torch.cat([x, x[-1:].detach().expand(missing, *x.shape[1:])]) if missing else x.clone()
        self._draw += 1
        seeded = seeded_globally(derived_seed(self._stream, self._draw)) if self.stochastic else nullcontext()
        with seeded:
            logits = self._run(self.module, full)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(full):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise CannotEvaluate(f"{self.name}: the model must return logits ({len(full)}, classes), it returned {got}")
        if logits.shape[1] != self.classes:
            raise CannotEvaluate(f"{self.name}: the model has {logits.shape[1]} classes, the data set has {self.classes}")
        if not logits.is_floating_point():
            raise CannotEvaluate(f"{self.name}: logits must be floating point, they are {logits.dtype}")
        return logits[: len(x)].float()


def require_exact_float32() -> None:
    """Turn off what trades float32 bits for speed: TF32, and the search for the fastest convolution of the day."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
