"""Random numbers that depend on their address only.

The address of a draw is (seed, purpose, name, sample), so that batch size, order, early exit and resumption change nothing.
The generator is numpy's counter-based Philox, keyed by a hash of the address. A GPU computes the same numbers itself.
"""

import hashlib
import math
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

# Of Philox4x64-10: the number of rounds, the factors, and what the keys grow by, as signed integers.
_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93 - 2**64, 0xCA5A826395121157 - 2**64)
_KEY_STEPS = (0x9E3779B97F4A7C15 - 2**64, 0xBB67AE8584CAA73B - 2**64)
_LOW = 2**32 - 1


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

    def uniform(
        self, name: object, shape: Sequence[int], low: float = 0.0, high: float = 1.0, *, device: torch.device | None = None
    ) -> Tensor:
        """Return float32 numbers (b, *shape), uniform on [low, high), on `device`, by default the CPU."""
        if device is None or device.type == "cpu":
            draws = self._draw(name, shape, lambda generator: generator.random(tuple(shape), dtype=np.float32))
        else:
            keys = np.frombuffer(b"".join(self._key(name, sample) for sample in self.samples), dtype=np.int64)
            on_device = torch.from_numpy(keys.reshape(-1, 2).copy()).to(device, non_blocking=True)
            draws = philox_uniform(on_device, math.prod(shape)).view(-1, *shape)
        return draws.mul_(high - low).add_(low)

    def normal(self, name: object, shape: Sequence[int]) -> Tensor:
        """Return standard normal float32 numbers (b, *shape) on the CPU."""
        return self._draw(name, shape, lambda generator: generator.standard_normal(tuple(shape), dtype=np.float32))

    def _draw(self, name: object, shape: Sequence[int], draw: _Draw) -> Tensor:
        out = np.empty((len(self.samples), *shape), dtype=np.float32)
        for row, sample in enumerate(self.samples):
            key = np.frombuffer(self._key(name, sample), dtype=np.uint64)
            out[row] = draw(np.random.Generator(np.random.Philox(key=key)))
        return torch.from_numpy(out)

    def _key(self, name: object, sample: str) -> bytes:
        return _digest(self.seed, self.purpose, name, sample)


def philox_uniform(keys: Tensor, count: int) -> Tensor:
    """Return the first `count` numbers (b, count) of `Generator.random` in float32 under each of these keys (b, 2).

    Philox4x64-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405) in int64, whose products wrap as unsigned ones do, on the
    device of the keys. Bit for bit those of numpy.
    """
    blocks = torch.arange(1, -(-count // 8) + 1, device=keys.device).expand(len(keys), -1)
    zero = torch.zeros_like(blocks)
    words, (first_key, second_key) = [blocks, zero, zero, zero], keys[:, :, None].unbind(1)
    for _ in range(_ROUNDS):
        (high, low), (other_high, other_low) = (
            _wide_product(word, by) for word, by in zip(words[::2], _MULTIPLIERS, strict=True)
        )
        words = [other_high ^ words[1] ^ first_key, other_low, high ^ words[3] ^ second_key, low]
        first_key, second_key = first_key + _KEY_STEPS[0], second_key + _KEY_STEPS[1]
    halves = torch.stack([half for word in words for half in (word & _LOW, word >> 32 & _LOW)], dim=2)
    return (halves.flatten(1)[:, :count] >> 8).float() * 2.0**-24


def _wide_product(words: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Return the upper and lower 64 bits of unsigned products of words (b, n)."""
    low, high, by_low, by_high = words & _LOW, words >> 32 & _LOW, by & _LOW, by >> 32 & _LOW
    crossed, other = by_low * high, by_high * low
    middle = (by_low * low >> 32 & _LOW) + (crossed & _LOW) + (other & _LOW)
    return by_high * high + (crossed >> 32 & _LOW) + (other >> 32 & _LOW) + (middle >> 32 & _LOW), words * by


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
