"""A frozen classifier, from pixels in [0, 1] (b, c, h, w) to logits (b, k), that counts its own work."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kwbench.errors import CannotEvaluate, KwbenchError
from kwbench.randomness import derived_seed, seeded_globally


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

    Forward and backward passes of a deterministic module run on tiles of exactly `tile` samples, padded when short: float32
    convolutions round differently at other batch sizes, and an attack amplifies the difference. Hence a row's logits and
    gradients depend on that row alone. A stochastic module's tiles are not padded; its own randomness is reseeded at every
    pass from the stream set by `reseed`. With frozen randomness each image passes alone: in a batch, what an image meets
    would depend on its place there.

    `prediction` is the rule asked for; a module without randomness gives the same answers under every rule, and `rule` says
    so once `measure_randomness` knows. `stochastic` is what attacks and the judge go by: frozen, a random module is not.

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
        self.module = module.to(self.device).eval().requires_grad_(False)
        self._stream: object = "unseeded"
        self._draw = 0
        self._common: int | None = None
        self._meter = _Meter()
        self._run: Callable[[nn.Module, Tensor], tuple[Tensor, int]] = lambda module, x: (module(x), 1)
        # The most forward passes that any tile of the latest call took.
        self._passes = 1

    def __call__(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits (b, k) of x (b, c, h, w); differentiable in x. `rows` names the rows of the metered batch that pay for it.

        Under a vote they are the mean log-probabilities of its draws, to search by; `predict` counts the votes.
        """
        answers = [self._combined(draws) for draws in self._draws_by_tile(x, rows)]
        logits = torch.cat(answers) if answers else x.new_zeros((0, self.classes))
        if logits.requires_grad:
            logits.register_hook(lambda _: self._charge(len(x), rows, "backwards"))  # type: ignore[no-untyped-call]
        return logits

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class (b,) and whether all logits are finite (b,), without gradients."""
        with torch.no_grad():
            if not (self.stochastic and self.prediction.kind == "vote"):
                logits = self(x)
                return logits.argmax(dim=1), logits.isfinite().all(dim=1)
            votes = [_majority(draws) for draws in self._draws_by_tile(x, None)]
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

        Each of `images` is a batch of at most a tile. On a GPU differences below 1e-5 of the largest logit are rounding, not
        randomness. Raises CannotEvaluate where the module raises, or if its randomness is to be frozen and cannot be.
        """
        self._frozen, self.stochastic = False, True  # every pass gets a seed of its own while we look
        self.reseed("measure randomness")
        random = any(self._varies(x, draws) for x in images)
        self._frozen = random and self.prediction.kind == "frozen"
        self.stochastic = random and not self._frozen
        if self._frozen and any(self._varies(x[:2], 2) for x in images):
            raise CannotEvaluate(
                f"{self.name}: its randomness cannot be frozen, since it does not come from the global generators of torch, "
                "numpy or random, or the model changes from call to call"
            )
        return self.stochastic

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
    def running(self, run: Callable[[nn.Module, Tensor], tuple[Tensor, int]]) -> Iterator[None]:
        """Let `run(module, x)` carry out every forward pass of this block; it returns the logits and the passes it took."""
        before = self._run
        self._run = run
        try:
            yield
        finally:
            self._run = before

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
            ledger.index_add_(0, rows.cpu(), torch.full((len(rows),), draws))
        elif size == len(ledger):
            ledger += draws
        else:
            shared = f"shared_{kind}"
            setattr(meter, shared, getattr(meter, shared) + size * draws)

    @property
    def _draws(self) -> int:
        return self.prediction.draws if self.stochastic else 1

    def _draws_by_tile(self, x: Tensor, rows: Tensor | None) -> Iterator[list[Tensor]]:
        """For each tile of x, the logits (b, k) of as many passes as the rule of prediction takes."""
        if tuple(x.shape[1:]) != self.shape:
            raise CannotEvaluate(f"{self.name}: images are {tuple(x.shape[1:])}, the model takes {self.shape}")
        if self._common is not None:
            self._draw = self._common
        self._passes = 1
        for start in range(0, len(x), self.tile):
            yield [self._draw_once(x[start : start + self.tile]) for _ in range(self._draws)]
        for _ in range(self._passes):
            self._charge(len(x), rows, "forwards")

    def _combined(self, draws: list[Tensor]) -> Tensor:
        if len(draws) == 1:
            return draws[0]
        if self.prediction.kind == "vote":
            # A count of votes has no gradient. In the mean of log-probabilities no draw outweighs the others by its scale.
            draws = [logits.log_softmax(dim=1) for logits in draws]
        return torch.stack(draws).mean(dim=0)

    def _draw_once(self, x: Tensor) -> Tensor:
        """Logits (b, k) of at most a tile of images."""
        if self._frozen:
            return torch.cat(
                [self._pass(image.clone(), derived_seed("frozen", self.prediction.seed)) for image in torch.split(x, 1)]
            )
        self._draw += 1
        if self.stochastic:
            # Where a pass has a seed of its own, rounding is drowned by what it draws, and padding would only cost.
            return self._pass(x.clone(), derived_seed(self._stream, self._draw))
        missing = self.tile - len(x)
        full = torch.cat([x, x[-1:].detach().expand(missing, *x.shape[1:])]) if missing else x.clone()
        return self._pass(full, None)[: len(x)]

    def _pass(self, x: Tensor, seed: int | None) -> Tensor:
        """One pass of the module; x is a copy, for a module that writes into its input must not reach ours."""
        with seeded_globally(seed) if seed is not None else nullcontext():
            logits, passes = self._run(self.module, x)
        self._passes = max(self._passes, passes)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise CannotEvaluate(f"{self.name}: the model must return logits ({len(x)}, classes), it returned {got}")
        if logits.shape[1] != self.classes:
            raise CannotEvaluate(f"{self.name}: the model has {logits.shape[1]} classes, the data set has {self.classes}")
        if not logits.is_floating_point():
            raise CannotEvaluate(f"{self.name}: logits must be floating point, they are {logits.dtype}")
        return logits.float()


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


def require_exact_float32() -> None:
    """Turn off what trades float32 bits for speed: TF32, and the search for the fastest convolution of the day."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
