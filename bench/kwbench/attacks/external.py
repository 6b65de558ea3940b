"""Images that were made elsewhere, proposed as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

from kwbench.attacks.attack import Attack
from kwbench.data import Array, Batch
from kwbench.errors import DamagedData, UsageError
from kwbench.geometry import distance
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import TOLERANCE, ThreatModel

# The name of the attack in suites and on record.
EXTERNAL = "external"

# Samples that a message names.
_NAMED = 5


@dataclass(frozen=True)
class Proposals:
    """Images made elsewhere, as read from a file.

    Attributes:
        where: the file and its key, for messages.
        images: (m, c, h, w), float32.
        sha256: SHA-256 of images and positions.
        index: the position of each image's sample in the split (m,); None where they are the first m in order.
        labels: the labels that came with the images (m,), if any.
        paper: the address of the paper that describes the attack.
    """

    where: str
    images: Array
    sha256: str
    index: Array | None = None
    labels: Array | None = None
    paper: str = ""


@dataclass(frozen=True)
class External(Attack):
    """Propose images that were made elsewhere; for samples without one, the clean image.

    `sha256` identifies the images. Their passes are unknown and count as none.
    """

    norms = frozenset({"linf", "l2", "l1"})
    needs = "nothing"

    sha256: str = ""
    paper: str = ""
    images: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False, metadata={"parameter": False})

    @property
    def evidence_group(self) -> None:
        """See Attack; what they were made with is unknown."""
        return

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Return the image of each sample of x (b, c, h, w)."""
        proposed = [self.images.get(sample, image) for sample, image in zip(rng.samples, x, strict=True)]
        return torch.stack([image.to(x) for image in proposed])

    def proposing(self, proposals: Proposals, batch: Batch, threat: ThreatModel) -> Self:
        """Return the attack on the samples of an evaluation. Images outside [0, 1] by rounding alone are clipped by the judge.

        Raises:
            UsageError: the images have another shape, or are not as many as the samples.
            DamagedData: an image is NaN, outside [0, 1], outside the ball, or of another sample; the message names them.
        """
        where, images, index = proposals.where, proposals.images, proposals.index
        if images.shape[1:] != tuple(batch.x.shape[1:]):
            raise UsageError(f"{where}: images have shape {images.shape[1:]}, those of the samples {tuple(batch.x.shape[1:])}")
        if index is None and len(images) != len(batch):
            raise UsageError(f"{where}: holds {len(images)} images for {len(batch)} samples; they must be as many")
        rows = {position: row for row, position in enumerate(batch.indices)}
        positions = list(batch.indices) if index is None else [int(position) for position in index]
        if unknown := [position for position in positions if position not in rows]:
            raise UsageError(f"{where}: index: {_listed(unknown)}: no such sample among the {len(batch)} of the evaluation")
        if len(set(positions)) < len(positions):
            raise UsageError(f"{where}: index: names a sample twice")
        chosen = batch.take([rows[position] for position in positions])
        z = torch.from_numpy(images).to(chosen.x)
        if proposals.labels is not None:
            others = [k for k, label in enumerate(chosen.y.tolist()) if int(proposals.labels[k]) != label]
            _refuse(where, positions, others, "with another label than the sample; the images are of other samples")
        _require_images(where, positions, z)
        _require_close(where, positions, z, chosen.x, threat)
        by_sample = dict(zip(chosen.samples, z.cpu(), strict=True))
        return replace(self, sha256=proposals.sha256, paper=proposals.paper, images=by_sample)

    def declared(self) -> dict[str, Any]:
        """See Attack."""
        return {**super().declared(), "external": True}

    def passes(self, stochastic: bool) -> int:
        """See Attack."""
        return 0


def _require_images(where: str, positions: Sequence[int], z: Tensor) -> None:
    finite = z.isfinite().flatten(1).all(dim=1)
    _refuse(where, positions, (~finite).nonzero().flatten().tolist(), "NaN or infinity")
    low, high = z.flatten(1).amin(dim=1), z.flatten(1).amax(dim=1)
    outside = ((low < -TOLERANCE) | (high > 1 + TOLERANCE)).nonzero().flatten().tolist()
    if outside:
        first = outside[0]
        span = f"from {low[first].item():.7g} to {high[first].item():.7g}"
        _refuse(where, positions, outside, f"pixels outside [0, 1] (the first ranges {span}); undo the normalisation, or clip")


def _require_close(where: str, positions: Sequence[int], z: Tensor, x: Tensor, threat: ThreatModel) -> None:
    length = distance(x, z, threat.norm)
    outside = (length > threat.radius + TOLERANCE).nonzero().flatten().tolist()
    if not outside:
        return
    first = outside[0]
    # The nearest sample of an image tells whether it belongs to another one.
    nearest = torch.cdist(z[outside[:_NAMED]].flatten(1), x.flatten(1)).argmin(dim=1).tolist()
    if (swapped := [(k, other) for k, other in zip(outside, nearest, strict=False) if k != other]) and len(outside) > 1:
        one, other = swapped[0]
        why = f"far from their samples (the image of sample {positions[one]} is nearest to sample {positions[other]})"
        _refuse(where, positions, outside, f"{why}; give the images in the order of the data set, or their positions as index")
    measured = f"{length[first].item():.7g}"
    _refuse(where, positions, outside, f"outside the ball {threat} (the first at distance {measured})")


def _refuse(where: str, positions: Sequence[int], rows: Sequence[int], why: str) -> None:
    """Raise DamagedData that names the samples of these rows, if there are any."""
    if rows:
        _raise(where, [positions[row] for row in rows], why)


def _raise(where: str, positions: Sequence[int], why: str) -> NoReturn:
    plural = "" if len(positions) == 1 else "s"
    raise DamagedData(f"{where}: {len(positions)} image{plural} refused: sample{plural} {_listed(positions)}: {why}")


def _listed(positions: Sequence[int]) -> str:
    shown = ", ".join(map(str, positions[:_NAMED]))
    return shown if len(positions) <= _NAMED else f"{shown} and {len(positions) - _NAMED} more"
