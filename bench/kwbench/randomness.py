"""Random numbers that depend on their address only.

The address of a draw is (seed, purpose, name, sample), so that batch size, order, early exit and resumption change nothing.
The generator is numpy's counter-based Philox, keyed by a hash of the address.
"""

import hashlib
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Raise it with every change that can change an outcome; see tests/golden.
REVISION = 1

_Draw = Callable[[np.random.Generator], npt.NDArray[np.float32]]


def _digest(*parts: object) -> bytes:
    text = "\x1f".join(str(part) for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def derived_seed(*parts: object) -> int:
    """Return a 63-bit seed for an address, for libraries that take one integer."""
    return int.from_bytes(_digest(*parts)[:8], "little") >> 1


@dataclass(frozen=True, slots=True)
class SampleRandom:
    """A stream of random numbers for each sample of a batch.

    `samples` are the hashes of the samples, one a row. Calls with the same `name` return the same numbers.
    """

    seed: int
    purpose: str
    samples: tuple[str, ...]

    def child(self, name: object) -> "SampleRandom":
        """Return the streams for a named part of the work, such as a restart."""
        return replace(self, purpose=f"{self.purpose}/{name}")

    def take(self, rows: Sequence[int] | Tensor) -> "SampleRandom":
        """Return the same streams for some of the rows."""
        chosen = rows.tolist() if isinstance(rows, Tensor) else rows
        return replace(self, samples=tuple(self.samples[row] for row in chosen))

    def for_parts(self, rows: Tensor, parts: Tensor) -> "SampleRandom":
        """Return a stream for each part of the work on a row: entry i is for part `parts[i]` of row `rows[i]`."""
        named = zip(rows.tolist(), parts.tolist(), strict=True)
        return replace(self, samples=tuple(f"{self.samples[row]}/{part}" for row, part in named))

    def batch_seed(self) -> int:
        """Return a 63-bit seed for the whole batch, for code that cannot draw per sample."""
        return derived_seed(self.seed, self.purpose, *self.samples)

    def uniform(self, name: object, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return float32 numbers (b, *shape), uniform on [low, high), on the CPU."""
        draws = self._draw(name, shape, lambda generator: generator.random(tuple(shape), dtype=np.float32))
        return draws.mul_(high - low).add_(low)

    def normal(self, name: object, shape: Sequence[int]) -> Tensor:
        """Return standard normal float32 numbers (b, *shape) on the CPU."""
        return self._draw(name, shape, lambda generator: generator.standard_normal(tuple(shape), dtype=np.float32))

    def _draw(self, name: object, shape: Sequence[int], draw: _Draw) -> Tensor:
        out = np.empty((len(self.samples), *shape), dtype=np.float32)
        for row, sample in enumerate(self.samples):
            key = np.frombuffer(_digest(self.seed, self.purpose, name, sample), dtype=np.uint64)
            out[row] = draw(np.random.Generator(np.random.Philox(key=key)))
        return torch.from_numpy(out)


@contextmanager
def seeded_globally(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and random for a block, and restore their states afterwards.

    For code from outside the package: stochastic models and attack libraries draw from the global generators.
    """
    with globals_restored():
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.manual_seed(seed)
        else:
            # The same numbers; torch.manual_seed would also keep a stack trace for a device that was never used.
            torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


@contextmanager
def globals_restored() -> Iterator[None]:
    """Restore the states of the global generators of torch, numpy and random when the block ends."""
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if started else []
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def generator_states(device: torch.device) -> dict[str, bytes]:
    """Return the states of the global generators of torch, numpy and random, and of torch's on a device that is a GPU."""
    states = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": pickle.dumps(np.random.get_state()),
        "random": pickle.dumps(random.getstate()),
    }
    if device.type == "cuda":
        states["torch.cuda"] = torch.cuda.get_rng_state(device).numpy().tobytes()
    return states
