"""What a device can do, and memory that is kept for reuse."""

import platform
import resource

import pytest
import torch

from kwbench.model import keep_freed_memory, precisions_on
from kwbench.model.device import has_bfloat16, has_tf32


@pytest.mark.parametrize(
    ("units", "by_intel", "has"),
    [
        ((), False, False),
        (("avx512_bf16",), False, True),
        (("avx512_bf16",), True, False),
        (("avx512_bf16", "amx_bf16"), True, True),
    ],
)
def test_bfloat16_is_of_processors_that_multiply_faster_in_it(
    monkeypatch: pytest.MonkeyPatch, units: tuple[str, ...], by_intel: bool, has: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(units, True))
    monkeypatch.setattr("kwbench.model.device._is_by_intel", lambda: by_intel)
    assert has_bfloat16(torch.device("cpu")) is has


def test_tf32_is_of_gpus_with_compute_capability_8_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    for capability, has in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert has_tf32(torch.device("cuda")) is has
        assert not has_tf32(torch.device("cpu"))
        assert "tf32" not in precisions_on(torch.device("cpu"))
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert not has_tf32(torch.device("cuda")), "AMD's have other units"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is of glibc")
def test_freed_memory_is_reused_without_page_faults() -> None:
    keep_freed_memory()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        kept = [torch.ones(5 << 20) for _ in range(8)]
        assert len(kept) == 8
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert min(faults() for _ in range(3)) < 1000, "8 tensors of 5120 pages"
