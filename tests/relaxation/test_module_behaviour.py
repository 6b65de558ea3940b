"""Modules that write in place, use gradients themselves, are scripted or compiled."""

import gc
import subprocess
import sys
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defences.hiding import HIDING, N
from kwbench.relaxation import relaxed, survey
from support.relaxation import EVERY_WAY, FunctionModule, exact, gradient, rows


def test_a_purification_step_by_gradients_is_differentiated() -> None:
    linear = nn.Linear(N, N).requires_grad_(False)

    def purified(x: Tensor, linear: nn.Module) -> Tensor:
        with torch.enable_grad():
            clean = x.detach().clone().requires_grad_()
            away = (linear(clean).view(-1, 2, 3).relu() - 1).square().sum()
            (step,) = torch.autograd.grad(away, clean)
        return x.detach() - 0.1 * step

    def soft(x: Tensor, linear: nn.Module) -> Tensor:
        (step,) = torch.autograd.grad((linear(x).view(-1, 2, 3).relu() - 1).square().sum(), x, create_graph=True)
        return x - 0.1 * step

    module, x = FunctionModule(purified, linear=linear), rows()
    assert torch.equal(relaxed(module, x.clone().requires_grad_()), module(x))
    torch.testing.assert_close(gradient(module, x), gradient(FunctionModule(soft, linear=linear), x, exact))
    assert survey(module, x).unseen == ()


def test_buffers_are_written_once_a_pass() -> None:
    class Counting(nn.Module):
        calls: Tensor
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.normalise = nn.BatchNorm1d(N)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("mean", torch.zeros(N))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(dim=0))
            out: Tensor = self.normalise(x) * (x > self.mean)
            return out

    one, other, x = Counting(), Counting(), rows()
    assert torch.equal(relaxed(one, x.clone().requires_grad_()), other(x))
    for name, buffer in one.named_buffers():
        assert torch.equal(buffer, dict(other.named_buffers())[name]), name
        assert not buffer.requires_grad
    assert one.calls == 1


def test_a_module_that_writes_into_its_input_does_not_change_the_images() -> None:
    module, x = FunctionModule(lambda x: x.mul_(2).round_()), rows()
    before = x.clone()
    assert torch.equal(relaxed(module, x.requires_grad_()), (2 * before).round())
    assert torch.equal(x, before)


def test_tensors_saved_for_the_backward_pass_survive_in_place_writes() -> None:
    def reused(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x.sigmoid()
            z = y * y
            y.zero_()
        return z + y

    x = rows()
    torch.testing.assert_close(
        gradient(FunctionModule(reused), x),
        gradient(FunctionModule(lambda x: x.sigmoid().square()), x, exact),
        rtol=1e-5,
        atol=1e-6,
    )


def test_overwritten_values_have_no_gradient() -> None:
    def overwritten(x: Tensor) -> Tensor:
        mask = x > 0
        mask[:, :3] = True
        mask[:, 3:].fill_(False)
        return mask.float() + 0 * x

    assert bool((gradient(FunctionModule(overwritten), rows()) == 0).all())


def test_global_modes_of_torch_are_restored_even_after_an_error() -> None:
    fast = torch.backends.mha.get_fastpath_enabled()
    relaxed(FunctionModule(HIDING["sign"]), rows().requires_grad_())
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled() == fast
    with pytest.raises(ValueError, match="not today"):
        relaxed(FunctionModule(_raises), rows().requires_grad_())
    assert torch.backends.mha.get_fastpath_enabled() == fast


def _raises(x: Tensor) -> Tensor:
    raise ValueError("not today")


def test_the_inside_of_scripted_and_traced_modules_is_relaxed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        inner = nn.Sequential(nn.Linear(N, N), nn.Softmax(dim=1)).requires_grad_(False)
        inner.get_parameter("0.weight").mul_(100)
        modules = [torch.jit.script(inner), torch.jit.trace(inner, rows())]  # type: ignore[no-untyped-call]
    for module in modules:
        for _ in range(3):  # the interpreter optimises after a few passes
            assert torch.equal(relaxed(module, rows().requires_grad_()), module(rows()))
            assert bool((gradient(module, rows()) != 0).any(dim=1).all())


def test_memory_is_freed_without_the_garbage_collector() -> None:
    module = FunctionModule(
        lambda x: torch.stack(
            [EVERY_WAY[way](x).sum(dim=1, keepdim=True) for way in ("exp over sum", "rank", "place of the largest")]
        ).sum(dim=0)
    )

    def alive() -> int:
        gradient(module, rows())
        return sum(type(item) is Tensor for item in gc.get_objects())

    alive()  # creates everything that is created only once
    gc.collect()
    gc.disable()
    try:
        assert alive() == alive() == alive()
    finally:
        gc.enable()


def test_the_compiler_is_not_imported_for_a_module_that_does_not_use_it() -> None:
    program = (
        "import sys, torch\n"
        "from kwbench.relaxation import relaxed\n"
        "x = torch.rand(2, 3, requires_grad=True)\n"
        "relaxed(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Softmax(1)), x).sum().backward()\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_compiled_part_is_relaxed_like_any_other() -> None:
    def hard(x: Tensor) -> Tensor:
        return F.softmax(500 * x, dim=1)  # so sharp that its own gradient is zero

    plain, compiled = FunctionModule(hard), FunctionModule(torch.compile(hard, backend="eager"))
    x = rows(4)
    compiled(x)  # compile before it is relaxed
    gradients = []
    for module in (plain, compiled):
        leaf = x.clone().requires_grad_()
        relaxed(module, leaf)[:, 0].sum().backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    assert bool((gradients[0] != 0).any())
    assert torch.equal(*gradients)
