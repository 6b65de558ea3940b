"""Measure what this machine does in a given time: gradients a second, launches and the disk, and what follows from them."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kwbench.cli.doctor import Diagnosis

# An image in a larger batch must take at most this share of its time before for the batch to be worth it; see `model.tiles`.
_WORTHWHILE = 0.95
# Shares of the time: gradients, then launches and the disk alike.
_GRADIENTS, _OTHER = 0.8, 0.1
_CIFAR = (3, 32, 32)


def measure_speed(
    seconds: float = 20.0, *, device: str = "auto", folder: Path = Path(), width: int | None = None
) -> list[Diagnosis]:
    """Measure for about so many seconds on a device, and in the folder of the record.

    The network is a ResNet-18 for images (3, 32, 32) with seeded weights, of width 64 on a GPU and 16 on a CPU.
    """
    rates = _gradient_rates(_GRADIENTS * seconds, device, width)
    launch, write = _launch_seconds(_OTHER * seconds, device), _write_seconds(_OTHER * seconds, folder)
    lines = [
        Diagnosis(f"gradients, {precision}, batch {batch}", "ok", f"{rate:,.0f} a second")
        for (precision, batch), rate in rates.items()
    ]
    (precision, _), best = max(rates.items(), key=lambda item: item[1])
    exact = max(rate for (kind, _), rate in rates.items() if kind == "float32")
    return [
        *lines,
        Diagnosis("launch", "ok", f"{1e6 * launch:.1f} us for an operation on one value"),
        Diagnosis("disk", "ok", f"{1e3 * write:.1f} ms for a small file that is safe on disk"),
        Diagnosis("choice", "note", f"search in {precision}: {best / exact:.1f} times as many gradients as in exact float32"),
        Diagnosis("choice", "note", _choice_of_batch(rates, precision)),
    ]


def _choice_of_batch(rates: dict[tuple[str, int], float], precision: str) -> str:
    """Return which batch to take: the largest that still gains 5 % an image in this precision."""
    chosen, best = 0, 0.0
    for (kind, batch), rate in sorted(rates.items(), key=lambda item: item[0][1]):
        if kind == precision and _WORTHWHILE * rate >= best:
            chosen, best = batch, rate
    largest = max(batch for _, batch in rates)
    return f"batches of {chosen}: {'the largest tried' if chosen == largest else 'larger ones gain less than 5 % an image'}"


def _gradient_rates(seconds: float, device_name: str, width: int | None) -> dict[tuple[str, int], float]:
    """Return gradients a second by precision and batch."""
    import torch
    from torch import nn

    from kwbench.model import Model, find_device, keep_freed_memory, precisions_on, require_exact_float32
    from kwbench.networks.architectures.resnet import ResNet18

    require_exact_float32()
    keep_freed_memory()
    device = find_device(device_name)
    on_gpu = device.type == "cuda"
    batches = (64, 256, 1024) if on_gpu else (16, 64)
    precisions = precisions_on(device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ResNet18(_CIFAR[0], 10, nn.ReLU, width=width or (64 if on_gpu else 16)).eval()
        images = torch.rand((max(batches), *_CIFAR), device=device)
    rates: dict[tuple[str, int], float] = {}
    for batch in batches:
        model = Model(network, name="ResNet-18", classes=10, shape=_CIFAR, device=device, tile=batch)
        model.plan_passes(images[:batch])

        def gradient(model: Model = model, batch: int = batch) -> None:
            leaf = images[:batch].clone().requires_grad_()
            torch.autograd.grad(model(leaf).sum(), leaf)
            if on_gpu:
                torch.cuda.synchronize(device)

        for precision in precisions:
            with model.computing_in(precision):
                rates[precision, batch] = batch / _seconds_of(gradient, seconds / len(batches) / len(precisions))
    return rates


def _launch_seconds(seconds: float, device_name: str) -> float:
    """Return how long an operation on a single value takes, one of many in a row."""
    import torch

    from kwbench.model import find_device

    value = torch.zeros(1, device=find_device(device_name))

    def many() -> None:
        for _ in range(1000):
            value.add_(1)
        value.item()

    return _seconds_of(many, seconds) / 1000


def _write_seconds(seconds: float, folder: Path) -> float:
    """Return how long it takes until a page of a file is safe on disk, as at the end of a transaction."""
    with tempfile.TemporaryFile(dir=folder) as file:

        def write() -> None:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())

        return _seconds_of(write, seconds)


def _seconds_of(work: Callable[[], None], limit: float) -> float:
    """Return the least seconds of `work`, after a first time that prepares it, within about `limit` seconds."""
    ends = time.perf_counter() + limit
    work()
    least = float("inf")
    while least == float("inf") or time.perf_counter() + least < ends:
        started = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - started)
    return least
