"""A frozen classifier, from pixels in [0, 1] (b, c, h, w) to logits (b, k), that counts its own passes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from kwbench.errors import CannotEvaluate, KwbenchError
from kwbench.model.device import raise_if_memory_is_out
from kwbench.model.evaluation_mode import enter_evaluation_mode
from kwbench.model.forward import Forward, ForwardFunction, Precision, fill_tile
from kwbench.model.known_code import is_known_code
from kwbench.model.memory_layout import MemoryLayout
from kwbench.model.meter import Meter
from kwbench.model.outputs import are_answers
from kwbench.model.pass_plan import PassPlan
from kwbench.model.prediction import Prediction, majority
from kwbench.model.search_precision import SearchPrecision
from kwbench.model.tiles import TileTrial
from kwbench.randomness import derived_seed, generator_states, seeded_globally

# Outputs of two passes on a GPU that differ by less than this, relative to the largest logit, count as equal.
_GPU_ROUNDING = 1e-5


class Model:
    """The classifier as attacks, checks and the judge use it.

    A deterministic module runs forward and backward on tiles of exactly `tile` samples, padded when short. After
    `plan_passes` it also runs in other batch sizes that give the same bits. Float32 convolutions round differently at other
    batch sizes, and an attack amplifies the difference; so this makes the logits and gradients of a row depend on that row
    alone. Tiles of a stochastic module are not padded; its randomness is reseeded at every pass from the stream that `reseed`
    sets. With frozen randomness each image passes alone, because in a batch its noise would depend on its position.

    `prediction` is the requested rule. A module without randomness gives the same predictions under every rule, and `rule`
    says so after `measure_randomness`. `stochastic` tells attacks and the judge whether passes differ; with frozen randomness
    they do not.

    Images and logits are float32; in between a module may compute in its own precision.

    `shape` is (c, h, w). `beside` are modules that the module uses without having registered them. Raises CannotEvaluate if the
    module returns anything but floating-point logits (b, classes).
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
        beside: Sequence[nn.Module] = (),
    ) -> None:
        self.name = name
        self.classes = classes
        self.shape = tuple(shape)
        self.device = torch.device(device)
        self.tile = tile
        self.prediction = prediction or Prediction()
        self.stochastic = False
        self._frozen = False
        self.module = module
        enter_evaluation_mode(module)
        for part in (module, *beside):
            part.to(self.device)
            for weights in part.parameters():  # a scripted module does not accept requires_grad_ for all of them at once
                weights.requires_grad_(False)
        # The address of the current stream of random numbers, and the number of draws taken from it.
        self._stream: object = "unseeded"
        self._draw = 0
        # The draw at which every call starts in a block of `same_draws`.
        self._common: int | None = None
        # Answers as an unused model does, if there is a process that can; see `kwbench.model.pristine`.
        self.pristine: Callable[[Tensor], Tensor] | None = None
        self._meter = Meter(0, self.device)
        self._forward = Forward(self.module, name=name, classes=classes, device=self.device)
        self._plan_with(None, limited=False)

    def __call__(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return logits (b, k) of x (b, c, h, w), differentiable in x. `rows` (b,) are the metered rows to charge.

        Under the rule `vote` they are the mean log-probabilities of the draws, which a search can follow; `predict` counts
        the votes.
        """
        batches = [self._combine(draws) for draws in self._draws_by_batch(x, rows)]
        logits = torch.cat(batches) if len(batches) > 1 else batches[0] if batches else x.new_zeros((0, self.classes))
        if logits.requires_grad:
            logits.register_hook(lambda _: self._meter.charge("backwards", len(x), rows, self._draws))  # type: ignore[no-untyped-call]
        return logits

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class (b,) of x and whether the logits are an answer (b,) (see `are_answers`), without gradients."""
        with torch.no_grad():
            if not (self.stochastic and self.prediction.kind == "vote"):
                logits = self(x)
                return logits.argmax(dim=1), are_answers(logits)
            votes = [majority(draws) for draws in self._draws_by_batch(x, None)]
        if not votes:
            return torch.zeros(0, dtype=torch.long, device=x.device), torch.zeros(0, dtype=torch.bool, device=x.device)
        return torch.cat([predicted for predicted, _ in votes]), torch.cat([finite for _, finite in votes])

    def answer(self, x: Tensor) -> tuple[Tensor, bool]:
        """Return logits (b, k) of x without gradients, and whether every other pass is certain to repeat them.

        That is so if the module `is_known` and has drawn no random number.
        """
        known = self.is_known
        before = generator_states(self.device) if known else {}
        with torch.no_grad():
            logits = self(x)
        return logits, known and generator_states(self.device) == before

    @property
    def is_known(self) -> bool:
        """Whether only random numbers can change an answer: the module runs known code only (see `is_known_code`), on a CPU."""
        return self.device.type == "cpu" and is_known_code(self.module)

    def draws_nothing(self, x: Tensor) -> bool:
        """Whether the module `is_known` and a pass over x (b, c, h, w), at most a tile, draws no random number."""
        return self.is_known and not self._watched_pass(fill_tile(x, self.tile))[1]

    def count_correct(self, x: Tensor, y: Tensor, draws: int) -> tuple[Tensor, Tensor]:
        """Return how many of `draws` fresh predictions of each x equal y, as long (b,), and whether all were answers (b,).

        A prediction from logits that are no answer is not correct (see `are_answers`).
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
        """The prediction rule in effect: a single draw if the module is not random."""
        return self.prediction if self.stochastic or self._frozen else Prediction()

    def measure_randomness(self, *images: Tensor, draws: int = 5) -> bool:
        """Compare `draws` passes over the same images, set `stochastic` to whether they differ, and return it.

        Each of `images` is a batch (b, c, h, w) of at most a tile, and passes as a full tile. If a module draws nothing from
        the global generators and its first two passes over each batch agree, the other passes are over one tile with images of
        every batch; if it `is_known`, one pass is enough. On a GPU differences below 1e-5 of the largest logit count as
        rounding. Raises CannotEvaluate if the module raises, or if its randomness is to be frozen and cannot be.
        """
        self._frozen, self.stochastic = False, True  # so that every pass of the trial gets a seed of its own
        self.reseed("measure randomness")
        try:
            random = self._varies_on_any(images, draws)
        except CannotEvaluate as failure:
            raise CannotEvaluate(f"{failure}{self._tile_hint(images[0])}") from failure
        # Where the stream stands does not depend on how many passes sufficed.
        self._draw = draws
        self._frozen = random and self.prediction.kind == "frozen"
        self.stochastic = random and not self._frozen
        if self._frozen and any(self._varies(batch[:2], 1) for batch in images):
            raise CannotEvaluate(
                f"{self.name}: its randomness cannot be frozen, since it does not come from the global generators of torch, "
                "numpy or random, or the model changes from call to call"
            )
        return self.stochastic

    def plan_passes(self, images: Tensor) -> None:
        """Let trials on images (b, c, h, w) choose the fastest ways to pass a row that leave its bits unchanged.

        Trials run when a choice is first needed. They choose the memory layout on a CPU (`memory_layout`), batch sizes that
        give the bits of a tile (`batching`), recorded passes on a GPU (`cuda_graphs`), and the stand-in for searches
        (`search_precision`). A module that is stochastic or frozen keeps to plain passes.
        """
        probe = None if self.stochastic or self._frozen else fill_tile(images, self.tile)
        self._plan_with(probe, limited=self._plan.limited)

    def batch_sizes(self, *, gradients: bool) -> list[int]:
        """The batch sizes in use in the current precision, with or without gradients, the largest first."""
        return self._plan.batching(gradients=gradients).sizes

    def choose_tiles(
        self, precisions: Iterable[Precision], known: Mapping[str, int], trial: TileTrial
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Choose the tile of each kind of pass in these precisions, by trial unless it is `known` by its name.

        For search with gradients, search without, and float32 predictions, which are those that count, apart. Return all tiles
        by name, and those whose rows have other bits than a tile of `tile` rows. A module that is stochastic or frozen keeps
        its tile. Call it after `plan_passes`.
        """
        tiles: dict[str, int] = {}
        telling: dict[str, int] = {}
        kinds: set[Precision] = set() if self.stochastic or self._frozen else {"float32", *precisions}
        for precision in sorted(kinds):
            for gradients in (True, False):
                with self.computing_in(precision):
                    name, tile, differs = self._plan.choose_tiles(gradients, known, trial)
                tiles[name] = tile
                telling |= {name: tile} if differs else {}
        return tiles, telling

    def use_smaller_batches(self) -> bool:
        """To save memory, pass smaller batches that give the same bits, and record nothing, from now on; return whether that
        changes anything. No batch gets smaller than `tile`."""
        return self._plan.use_smaller_batches()

    @property
    def largest_tile(self) -> int:
        """The samples of the largest batch that rows are padded to, if a trial has chosen larger ones than `tile`."""
        return self._plan.largest_tile

    @contextmanager
    def raising_by_name(self) -> Iterator[None]:
        """Turn whatever the module raises in this block into a CannotEvaluate that names the model."""
        try:
            yield
        except (KwbenchError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as failure:
            raise_if_memory_is_out(failure)
            raise CannotEvaluate(
                f"{self.name}: the model raised {type(failure).__name__}: {failure}"
                f"{self._precision_hint()}{_freezing_hint(failure)}"
            ) from failure

    def _precision_hint(self) -> str:
        """A hint for modules that hold weights in another precision than float32; empty for others."""
        tensors = chain(self.module.parameters(), self.module.buffers())
        others = {tensor.dtype for tensor in tensors if tensor.is_floating_point()} - {torch.float32}
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in others))
        return f" (images come in float32, and the model holds {names}: forward must cast)" if others else ""

    def _tile_hint(self, images: Tensor) -> str:
        """A hint for modules that refuse a tile but accept another number of images; empty for others."""
        halves = [self.tile >> power for power in range(1, self.tile.bit_length())]
        others = [
            size for size in (*range(min(self.tile, 64) - 1, 0, -1), 96, 100, 128, 256) if size not in (*halves, self.tile)
        ]
        for size in (*halves, *others):
            with suppress(Exception), torch.no_grad():
                self._forward(fill_tile(images, size))
                return f"; it accepts {size} image{'s' if size > 1 else ''} at once: give --tile {size}"
        return ""

    def reseed(self, *address: object) -> None:
        """Restart the module's own randomness from the stream of this address."""
        self._stream, self._draw = address, 0

    @contextmanager
    def same_draws(self) -> Iterator[None]:
        """Give every call in this block the same random numbers, so that differences between calls have low variance."""
        self._common = self._draw
        try:
            yield
        finally:
            self._common = None

    def replacing_forward(self, function: ForwardFunction, *, may_be_tried: bool = False) -> AbstractContextManager[None]:
        """Carry out every forward pass of this block by `function(module, x)`, which returns the logits and the number of
        passes it took.

        `may_be_tried`: it has no effects and no memory, and the same object stands for the same function. Then passes may run
        in other batch sizes that give the same bits.
        """
        return self._forward.replaced_by(function, may_be_tried=may_be_tried)

    def computing_in(self, precision: Precision) -> AbstractContextManager[None]:
        """Compute in this precision until the block ends. Its results only guide a search; predictions count in float32.

        `folded` folds batch norms into convolutions, if a trial finds that logits change by rounding only. `tf32` runs the same
        with factors that a GPU rounds to TF32, `bfloat16` under torch's autocast.
        """
        return self._search_precision.computing_in(precision)

    def effective_precision(self, precision: Precision) -> Precision:
        """The precision that a search in `precision` computes in: folded where there is no TF32, and float32 where there are no
        batch norms to fold."""
        return self._search_precision.effective(precision)

    def tolerates(self, precision: Literal["tf32", "bfloat16"], images: Tensor) -> bool:
        """Return whether a precision preserves the predictions on images (b, c, h, w) and is faster on this device.

        A module with randomness tolerates none.
        """
        return not (self.stochastic or self._frozen) and self._search_precision.tolerates(precision, self, images)

    @contextmanager
    def metering(self, size: int) -> Iterator[None]:
        """Count passes per row of a batch of `size` samples until the block ends; read them with `work`."""
        self._meter = Meter(size, self.device)
        yield

    @contextmanager
    def aside(self, *address: object) -> Iterator[None]:
        """Charge the passes of this block to no row, and draw their randomness from the stream of this address."""
        meter, stream, draw = self._meter, self._stream, self._draw
        self._meter, self._stream, self._draw = Meter(0, self.device), address, 0
        try:
            yield
        finally:
            self._meter, self._stream, self._draw = meter, stream, draw

    def work(self) -> tuple[list[int], list[int]]:
        """Forwards and backwards of each row since `metering` began. Passes of unnamed rows are shared equally, rounded up."""
        return self._meter.work()

    def _plan_with(self, probe: Tensor | None, *, limited: bool) -> None:
        self._layout = MemoryLayout(self._forward, self.shape, probe)
        self._plan = PassPlan(self._forward, self._layout, self.tile, probe, limited=limited)
        self._search_precision = SearchPrecision(self._forward, self._layout, probe)

    def _varies_on_any(self, images: Sequence[Tensor], draws: int) -> bool:
        tiles = [fill_tile(batch, self.tile) for batch in images]
        firsts: list[Tensor | None] = []
        drawing = False
        for tile in tiles:
            first, drew = self._watched_pass(tile)
            if not drew and self.is_known:
                return False
            if self._varies(tile, 1, first):
                return True
            firsts.append(first)
            drawing |= drew
        if draws <= 2:
            return False
        if not drawing and len(tiles) > 1:
            share = -(-self.tile // len(tiles))
            tiles, firsts = [torch.cat([tile[:share] for tile in tiles])[: self.tile]], [None]
        return any(self._varies(tile, draws - 2, first) for tile, first in zip(tiles, firsts, strict=True))

    def _watched_pass(self, x: Tensor) -> tuple[Tensor, bool]:
        """Return logits (b, k) of one pass, and whether it moved a global generator of random numbers."""
        self._draw += 1
        with torch.no_grad(), self.raising_by_name(), seeded_globally(derived_seed(self._stream, self._draw)):
            before = generator_states(self.device)
            logits = self._forward(self._layout.copy(x))
            return logits, generator_states(self.device) != before

    def _varies(self, x: Tensor, draws: int, first: Tensor | None = None) -> bool:
        """Return whether `draws` passes over x (b, c, h, w) give other logits than the `first` of them (b, k)."""
        with torch.no_grad(), self.raising_by_name():
            first = self._draw_once(x) if first is None else first
            # Equal NaNs are no difference: such a model is refused for its logits on clean images.
            reference, *others = (
                logits.nan_to_num(0.0, 0.0, 0.0) for logits in (first, *(self._draw_once(x) for _ in range(draws)))
            )
        slack = _GPU_ROUNDING * reference.abs().max().item() if self.device.type == "cuda" else 0.0
        return any(not bool(((other - reference).abs() <= slack).all()) for other in others)

    @property
    def _draws(self) -> int:
        return self.prediction.draws if self.stochastic else 1

    def _draws_by_batch(self, x: Tensor, rows: Tensor | None) -> Iterator[list[Tensor]]:
        """Yield the logits (b, k) of as many draws as the rule takes, for each batch that x is split into."""
        if tuple(x.shape[1:]) != self.shape:
            raise CannotEvaluate(f"{self.name}: images are {tuple(x.shape[1:])}, the model takes {self.shape}")
        if self._common is not None:
            self._draw = self._common
        sizes = self._plan.split(x)
        self._forward.passes = 1
        # The backward pass of torch.split makes one copy of x; that of slices makes one for each slice.
        parts = torch.split(x, [*sizes[:-1], len(x) - sum(sizes[:-1])]) if len(sizes) > 1 else [x] * len(sizes)
        for size, part in zip(sizes, parts, strict=True):
            yield [self._draw_once(part, size) for _ in range(self._draws)]
        for _ in range(self._forward.passes):
            self._meter.charge("forwards", len(x), rows, self._draws)

    def _combine(self, draws: list[Tensor]) -> Tensor:
        if len(draws) == 1:
            return draws[0]
        if self.prediction.kind == "vote":
            # Counts of votes have no gradient. The scale of a draw has no weight in a mean of log-probabilities.
            draws = [logits.log_softmax(dim=1) for logits in draws]
        return torch.stack(draws).mean(dim=0)

    def _draw_once(self, x: Tensor, size: int | None = None) -> Tensor:
        """Logits (b, k) of one pass; a deterministic module gets x padded to `size`, or to a tile."""
        if self._frozen:
            seed = derived_seed("frozen", self.prediction.seed)
            return torch.cat(
                [self._seeded_pass(image.clone(memory_format=torch.contiguous_format), seed) for image in torch.split(x, 1)]
            )
        self._draw += 1
        if self.stochastic:
            # No padding: the module's randomness exceeds the rounding that padding avoids.
            return self._seeded_pass(self._layout.copy(x), derived_seed(self._stream, self._draw))
        missing = (size or self.tile) - len(x)
        if not missing:
            return self._plan.run(x)
        return self._plan.run(torch.cat([x, x[-1:].detach().expand(missing, *x.shape[1:])]))[: len(x)]

    def _seeded_pass(self, x: Tensor, seed: int) -> Tensor:
        with seeded_globally(seed):
            return self._forward(x)


def _freezing_hint(failure: Exception) -> str:
    """A hint for modules that take gradient steps in forward; empty for others."""
    if "does not require grad" not in str(failure):
        return ""
    return (
        " (weights are frozen here: a model that adapts them in forward is not a fixed classifier, as its answers depend on "
        "earlier images; evaluate it with the weights that it has adapted to)"
    )
