"""Choice of the batch sizes and CUDA graph recordings with which a deterministic module computes its rows fastest."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

import torch
from torch import Tensor

from kwbench.model.batching import Batching, measure_batching, tiles_only
from kwbench.model.cuda_graphs import RecordedPass, Recorder, find_recorder
from kwbench.model.forward import Forward, ForwardFunction, call_module, fill_tile, measure_pass
from kwbench.model.memory_layout import MemoryLayout
from kwbench.model.tiles import Kind, TileTrial, name_of

# A way to pass: its kind, and what carries it out.
_Way = tuple[Kind, ForwardFunction | None]

# A trial takes about as long as four passes over a tile. A function that replaces the module's pass may run only a few times.
_PADDED_BEFORE_TRIAL = 8


class PassPlan:
    """Select batch sizes and recordings by trial, on first use.

    A tile is a batch of `tile` rows, or of what `choose_tiles` found for a kind of pass. A batch size or recording is used only
    if it saves time and gives every row the same bits as a pass over a tile.

    `probe`: images (tile, c, h, w) for the trials. Without them every batch is a padded tile, and nothing is recorded.
    `limited`: to save memory, use no batch larger than a tile and no recording.
    """

    def __init__(self, forward: Forward, layout: MemoryLayout, tile: int, probe: Tensor | None, *, limited: bool) -> None:
        self.limited = limited
        self._forward, self._layout, self._tile, self._probe = forward, layout, tile, probe
        self._batchings: dict[_Way, Batching] = {}
        # For each batch size. None if a recording fails, is slower or gives other bits.
        self._recordings: dict[tuple[_Way, int], RecordedPass | None] = {}
        # How many padded batches passed in ways for which no trial has been worth its cost yet.
        self._padded: Counter[_Way] = Counter()
        self._record = None if limited else find_recorder(forward.device)
        # The tiles of kinds of passes that have one of their own.
        self._tiles: dict[Kind, int] = {}

    def choose_tiles(self, gradients: bool, known: Mapping[str, int], trial: TileTrial) -> tuple[str, int, bool]:
        """Choose the tile of passes in the current precision by trial, unless it is `known` by its name.

        Return the name of the kind of pass, its tile, and whether its rows have other bits than those of the default tile.
        """
        kind = (self._forward.precision, gradients)
        if (name := name_of(kind)) not in known and self._probe is not None:
            images = self._probe
            self._tiles[kind] = trial.choose(
                lambda size: measure_pass(self._compute, fill_tile(images, size), gradients=gradients)[1]
            )
        elif name in known:
            self._tiles[kind] = known[name]
        way = self._way(gradients)
        tile = self._tile_of(way)
        self._batchings.pop(way, None)
        return name, tile, self._tile not in self.batching(gradients=gradients).sizes

    def _way(self, gradients: bool) -> _Way:
        return (self._forward.precision, gradients), self._forward.function

    def _tile_of(self, way: _Way) -> int:
        kind, function = way
        return self._tiles.get(kind, self._tile) if function is call_module else self._tile

    def batching(self, *, gradients: bool) -> Batching:
        """Return the batch sizes for the current precision, with or without gradients; only the tile if the module raises."""
        way = self._way(gradients)
        if way not in self._batchings:
            self._batchings[way] = self._try_batch_sizes(gradients)
        return self._batchings[way]

    def split(self, x: Tensor) -> list[int]:
        """Return the sizes of the batches into which to split x (b, c, h, w); the last may need padding."""
        if not self._applies_to(x) or not self._trial_pays(x):
            return tiles_only(self._tile).split(len(x))
        return self.batching(gradients=x.requires_grad).split(len(x))

    def _trial_pays(self, x: Tensor) -> bool:
        """Return whether x passes by the module itself, or so many padded batches have passed this way that a trial pays."""
        way = self._way(x.requires_grad)
        if way[1] is call_module:
            return True
        self._padded[way] += len(x) % self._tile != 0
        return self._padded[way] > _PADDED_BEFORE_TRIAL

    def run(self, x: Tensor) -> Tensor:
        """Return logits (b, k) of one pass over a copy of x (b, c, h, w), replayed if a recording is faster."""
        images = self._layout.copy(x)
        recording = self._recording_for(images)
        return self._forward(images) if recording is None else recording(images)

    def use_smaller_batches(self) -> bool:
        """Record nothing and allow no batch above a tile from now on; return whether that changes anything.

        Where it does not, tiles that were chosen by trial are given up for the next smaller batch of the same bits.
        """
        self.limited = True
        changes = any(self._recordings.values())
        self._recordings, self._record = {}, None
        smaller = {way: batching.at_most(self._tile_of(way)) for way, batching in self._batchings.items()}
        if not changes and smaller == self._batchings:
            smaller |= {
                way: batching.at_most(batching.sizes[1])
                for way, batching in self._batchings.items()
                if len(batching.sizes) > 1 and batching.sizes[1] >= self._tile
            }
        changes |= smaller != self._batchings
        self._batchings = smaller
        return changes

    @property
    def largest_tile(self) -> int:
        """The samples of the smallest batch in use for the kind of pass for which this is largest; at least the tile."""
        return max([self._tile, *(batching.sizes[-1] for batching in self._batchings.values())])

    def _applies_to(self, x: Tensor) -> bool:
        """Return whether a pass over x is like the trials: it has gradients if x requires them, and may be tried."""
        return self._probe is not None and self._forward.function is not None and x.requires_grad == torch.is_grad_enabled()

    def _compute(self, x: Tensor) -> Tensor:
        """Return the logits (b, k) of a pass without a recording."""
        return self._forward(self._layout.copy(x))

    def _try_batch_sizes(self, gradients: bool) -> Batching:
        tile = self._tile_of(self._way(gradients))
        if self._probe is not None:
            # A tile that was chosen by trial is the largest that is worth it.
            larger, probe = not self.limited and tile == self._tile, fill_tile(self._probe, tile)
            # If the module raises here, it also raises in a real pass, where the error names the model.
            with suppress(Exception):
                return measure_batching(lambda x: measure_pass(self._compute, x, gradients=gradients), probe, larger=larger)
        return tiles_only(tile)

    def _recording_for(self, x: Tensor) -> RecordedPass | None:
        """Return the recording to replay for x, or None if there is none to use."""
        if self._record is None or self._probe is None or not self._applies_to(x):
            return None
        key = (self._way(x.requires_grad), len(x))
        if key not in self._recordings:
            try:
                self._recordings[key] = self._try_recording(x, self._record, self._probe)
            except Exception:  # noqa: BLE001 - foreign code that cannot be recorded may raise anything
                self._recordings[key] = None
        return self._recordings[key]

    def _try_recording(self, x: Tensor, record: Recorder, probe: Tensor) -> RecordedPass | None:
        """Record a pass over as many images as x has; return it if it is faster than the pass and gives the same bits."""
        gradients = x.requires_grad
        # Two different batches, so that a recording that ignores its input fails the comparison.
        batches = [fill_tile(images, len(x)) for images in (probe, 1 - probe)]
        computed = [measure_pass(self._compute, images, gradients=gradients) for images in batches]
        recording = RecordedPass(self._forward, x, record, gradients=gradients)
        replayed = [
            measure_pass(lambda leaf: recording(self._layout.copy(leaf)), images, gradients=gradients) for images in batches
        ]
        same = all(
            torch.equal(expected, result)
            for (expectations, _), (results, _) in zip(computed, replayed, strict=True)
            for expected, result in zip(expectations, results, strict=True)
        )
        faster = min(seconds for _, seconds in replayed) < min(seconds for _, seconds in computed)
        return recording if same and faster else None
