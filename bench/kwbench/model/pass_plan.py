"""How the rows of a batch pass through a deterministic module: in which batch sizes, and recorded or not, chosen by trial."""

from contextlib import suppress

import torch
from torch import Tensor

from kwbench.model.batching import Batching, measure_batching, tiles_only
from kwbench.model.cuda_graphs import RecordedPass, Recorder, find_recorder
from kwbench.model.forward import Forward, Precision, fill_tile, measure_pass
from kwbench.model.memory_layout import MemoryLayout


class PassPlan:
    """Batch sizes and recordings that give every row the bits it has in a tile, found by trial on first use.

    `probe` is a tile of images (tile, c, h, w) for the trials; without it rows pass in padded tiles. `limited` allows no batch
    above a tile and no recording, to save memory.
    """

    def __init__(self, forward: Forward, layout: MemoryLayout, tile: int, probe: Tensor | None, *, limited: bool) -> None:
        self.limited = limited
        self._forward, self._layout, self._tile, self._probe = forward, layout, tile, probe
        # By precision, without gradients and with.
        self._batchings: dict[tuple[Precision, bool], Batching] = {}
        # By precision, gradients and batch size; None where a pass is not worth recording or cannot be recorded.
        self._recordings: dict[tuple[Precision, bool, int], RecordedPass | None] = {}
        self._record = None if limited else find_recorder(forward.device)

    def batching(self, *, gradients: bool) -> Batching:
        """The batch sizes to use in the current precision, with or without gradients; the tile alone if the module raises."""
        key = (self._forward.precision, gradients)
        if key not in self._batchings:
            self._batchings[key] = self._batching_by_trial(gradients)
        return self._batchings[key]

    def split(self, x: Tensor) -> list[int]:
        """The sizes of the batches in which x (b, c, h, w) passes; the last may exceed the rows that remain."""
        batching = self.batching(gradients=x.requires_grad) if self._applies_to(x) else tiles_only(self._tile)
        return batching.split(len(x))

    def run(self, x: Tensor) -> Tensor:
        """Return logits (b, k) of one pass over a copy of x (b, c, h, w), replayed if a recording is faster."""
        images = self._layout.copy(x)
        recording = self._recording_for(images)
        return self._forward(images) if recording is None else recording(images)

    def limit_to_tiles(self) -> bool:
        """Allow no batch above a tile and no recording from now on; return whether that changes anything."""
        self.limited = True
        larger = [key for key, batching in self._batchings.items() if batching.sizes[0] > self._tile]
        for key in larger:
            del self._batchings[key]
        recorded = any(self._recordings.values())
        self._recordings, self._record = {}, None
        return bool(larger) or recorded

    def _applies_to(self, x: Tensor) -> bool:
        """Whether x passes as in the trials: through the module itself, with gradients if it requires them."""
        return self._probe is not None and self._forward.is_plain and x.requires_grad == torch.is_grad_enabled()

    def _compute(self, x: Tensor) -> Tensor:
        return self._forward(self._layout.copy(x))

    def _batching_by_trial(self, gradients: bool) -> Batching:
        if self._probe is not None:
            # If the module raises here, it also raises in a real pass, where the error names the model.
            with suppress(Exception):
                return measure_batching(
                    lambda x: measure_pass(self._compute, x, gradients=gradients), self._probe, larger=not self.limited
                )
        return tiles_only(self._tile)

    def _recording_for(self, x: Tensor) -> RecordedPass | None:
        """Return the recording to replay for x, or None if the pass has to be computed."""
        if self._record is None or self._probe is None or not self._applies_to(x):
            return None
        key = (self._forward.precision, x.requires_grad, len(x))
        if key not in self._recordings:
            try:
                self._recordings[key] = self._recording_by_trial(x, self._record, self._probe)
            except Exception:  # noqa: BLE001 - foreign code that cannot be recorded may raise anything
                self._recordings[key] = None
        return self._recordings[key]

    def _recording_by_trial(self, x: Tensor, record: Recorder, probe: Tensor) -> RecordedPass | None:
        """Record a pass over as many images as x; return it if it gives the bits of a computed pass in less time."""
        gradients = x.requires_grad
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
