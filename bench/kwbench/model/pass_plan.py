"""Choice of the batch sizes and CUDA graph recordings with which a deterministic module computes its rows fastest."""

from collections.abc import Mapping
from contextlib import suppress

import torch
from torch import Tensor

from kwbench.model.batching import Batching, measure_batching, tiles_only
from kwbench.model.cuda_graphs import RecordedPass, Recorder, find_recorder
from kwbench.model.forward import Forward, Precision, fill_tile, measure_pass
from kwbench.model.memory_layout import MemoryLayout
from kwbench.model.tiles import Kind, TileTrial, name_of


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
        # Keys: precision, and whether with gradients.
        self._batchings: dict[Kind, Batching] = {}
        # Keys: precision, whether with gradients, and batch size. None if a recording fails, is slower or gives other bits.
        self._recordings: dict[tuple[Precision, bool, int], RecordedPass | None] = {}
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
        tile = self._tile_of(kind)
        self._batchings.pop(kind, None)
        return name, tile, self._tile not in self.batching(gradients=gradients).sizes

    def _tile_of(self, kind: Kind) -> int:
        return self._tiles.get(kind, self._tile)

    def batching(self, *, gradients: bool) -> Batching:
        """Return the batch sizes for the current precision, with or without gradients; only the tile if the module raises."""
        key = (self._forward.precision, gradients)
        if key not in self._batchings:
            self._batchings[key] = self._try_batch_sizes(gradients)
        return self._batchings[key]

    def split(self, x: Tensor) -> list[int]:
        """Return the sizes of the batches into which to split x (b, c, h, w); the last may need padding."""
        batching = self.batching(gradients=x.requires_grad) if self._applies_to(x) else tiles_only(self._tile)
        return batching.split(len(x))

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
        smaller = {kind: batching.at_most(self._tile_of(kind)) for kind, batching in self._batchings.items()}
        if not changes and smaller == self._batchings:
            smaller |= {
                kind: batching.at_most(batching.sizes[1])
                for kind, batching in self._batchings.items()
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
        """Return whether a pass over x is like the trials: it calls the module itself, and has gradients if x requires them."""
        return self._probe is not None and self._forward.is_plain and x.requires_grad == torch.is_grad_enabled()

    def _compute(self, x: Tensor) -> Tensor:
        """Return the logits (b, k) of a pass without a recording."""
        return self._forward(self._layout.copy(x))

    def _try_batch_sizes(self, gradients: bool) -> Batching:
        tile = self._tile_of((self._forward.precision, gradients))
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
        key = (self._forward.precision, x.requires_grad, len(x))
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
