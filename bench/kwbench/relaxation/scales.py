"""How wide the smooth function beside a hard one is: `softness` times the mean magnitude of a sample's values."""

from dataclasses import dataclass

import torch
from torch import Tensor

# The number of values per sample that suffice for a mean magnitude.
_ENOUGH = 2048

# A mean magnitude below this is one of zeros.
_ZERO = 1e-20


@dataclass(slots=True)
class Scales:
    """Scales for a batch of `batch` samples. They depend on one sample at a time wherever tensors keep samples apart."""

    softness: float
    batch: int

    def scale(self, x: Tensor) -> Tensor:
        """The mean magnitude of each sample's values, times the softness; broadcasts against x."""
        return self.scale_from(self.subsample(x), x)

    def scale_from(self, values: Tensor, x: Tensor) -> Tensor:
        """The same, from some of the values of x."""
        magnitudes = values.detach().abs().nan_to_num_(0.0, 0.0, 0.0)
        if self.separates_samples(x):
            means = magnitudes.reshape(self.batch, -1).mean(dim=1)
            means = self.per_sample(means.masked_fill_(means <= _ZERO, 1.0), x)
        else:
            # Samples cannot be told apart. Rounding to a power of two makes one sample hardly depend on the others.
            mean = magnitudes.float().mean()
            means = torch.exp2(mean.log2().round()).masked_fill_(mean <= _ZERO, 1.0).to(magnitudes.dtype)
        return means if self.softness == 1 else means * self.softness

    def separates_samples(self, x: Tensor) -> bool:
        """Whether the first dimension of x is a multiple of the batch size."""
        return x.dim() > 0 and len(x) > 0 and len(x) % self.batch == 0

    def per_sample(self, values: Tensor, x: Tensor) -> Tensor:
        """Reshape one value per sample (batch,) so that it broadcasts against x."""
        times = len(x) // self.batch
        return (values if times == 1 else values.repeat_interleave(times)).view(-1, *[1] * (x.dim() - 1))

    def holds_throughout(self, condition: Tensor) -> Tensor:
        """Whether a condition holds for all values of a sample; broadcasts against them."""
        if not self.separates_samples(condition):
            return condition.all()
        return self.per_sample(condition.reshape(self.batch, -1).all(dim=1), condition)

    def subsample(self, x: Tensor, whole: int | None = None) -> Tensor:
        """Return values of each sample on a regular grid, detached: enough for a mean. The dimension `whole` stays whole."""
        x = x.detach()
        whole = whole % x.dim() if whole is not None and x.dim() else None
        if self.separates_samples(x) and len(x) > self.batch and whole != 0:
            x = x.unflatten(0, (self.batch, -1))  # type: ignore[no-untyped-call]
            whole = whole + 1 if whole is not None else None
        for dim in range(x.dim() - 1, 0, -1):
            step = min(x.shape[dim], -(-x.numel() // (max(len(x), 1) * _ENOUGH)))
            if dim != whole and step > 1:
                x = x[(slice(None),) * dim + (slice(None, None, step),)]
        return x
