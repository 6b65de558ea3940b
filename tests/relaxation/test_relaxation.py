"""Relaxed backward passes: the module's own output, useful gradients, and a report of what could not be followed."""

import gc
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defences.hiding import HIDING, HIDING_AND_RANDOM, N, through_numpy
from defences.spellings import KWTA, LWTA, kwta, slwta
from kwbench.config.registry import read_registry
from kwbench.gradients import EXACT, Relaxed
from kwbench.networks.activations import Kwta
from kwbench.networks.entries import load_entry
from kwbench.randomness import SampleRandom
from kwbench.relaxation import relaxed, relaxed_pass, survey
from support.small_models import digits, first_images, trained_cnn, wrapped

EVERY_WAY = HIDING | HIDING_AND_RANDOM
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.t().contiguous().t(),
    "strided": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
}


class Of(nn.Module):
    """A function as a module, and what belongs to it."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **dict(self.named_children()))


def rows(n: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, N, generator=torch.Generator().manual_seed(seed))


def seeded(run: Callable[[nn.Module, Tensor], Tensor], module: nn.Module, x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return run(module, x)


def plainly(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = module(x.clone())
        return logits


def gradient(module: nn.Module, x: Tensor, run: Callable[..., Tensor] = relaxed, weights: Tensor | None = None) -> Tensor:
    """The gradient of a weighted sum of the answers; the same weights at every call."""
    x = x.detach().requires_grad_()
    answer = run(module, x)
    if weights is None:
        weights = torch.randn(answer.shape[1], generator=torch.Generator().manual_seed(3)).to(answer.dtype)
    return torch.autograd.grad((answer * weights).sum(), x)[0]


def run_plainly(module: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = module(x)
    return logits


def differences(module: nn.Module, x: Tensor, weights: Tensor, sigma: float = 0.5, draws: int = 2000) -> Tensor:
    """The gradient of the same sum smoothed over Gaussian noise, from values alone."""
    noise = torch.randn((draws, *x.shape), generator=torch.Generator().manual_seed(5))
    up, down = (
        (seeded(plainly, module, (x + sign * sigma * noise).flatten(0, 1)) * weights.repeat(draws, 1)).sum(dim=1)
        for sign in (1, -1)
    )
    return ((up - down).view(draws, -1, 1) * noise).mean(dim=0) / (2 * sigma)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", EVERY_WAY)
def test_the_output_is_that_of_the_module_bit_for_bit(way: str, form: str) -> None:
    module, x = Of(EVERY_WAY[way]), FORMS[form](rows())
    expected = seeded(plainly, module, x)
    assert torch.equal(seeded(relaxed, module, x.clone().requires_grad_()), expected)
    assert torch.equal(seeded(relaxed, module, x), expected)


@pytest.mark.parametrize("way", EVERY_WAY)
def test_the_gradient_points_uphill_on_the_smoothed_function(way: str) -> None:
    module, x = Of(EVERY_WAY[way]), rows()
    copies = 200 if way in HIDING_AND_RANDOM else 1
    width = plainly(module, x).shape[1]
    weights = torch.randn(len(x), width, generator=torch.Generator().manual_seed(3))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        found = gradient(module, x.repeat(copies, 1), weights=weights.repeat(copies, 1)).view(copies, *x.shape).mean(dim=0)
    assert bool(found.isfinite().all())
    assert bool((found != 0).any(dim=1).all())
    cosines = F.cosine_similarity(found, differences(module, x, weights), dim=1)
    assert cosines.mean() > (0.4 if way in ("logic", "first in order") else 0.6)


@pytest.mark.parametrize("way", HIDING)
def test_the_gradient_of_a_sample_does_not_depend_on_the_rest_of_the_batch(way: str) -> None:
    module, x = Of(HIDING[way]), rows()
    together = gradient(module, x)
    for other in (rows(seed=7), 100 * rows(seed=8)):
        torch.testing.assert_close(gradient(module, torch.cat([x[:2], other]))[:2], together[:2])
    torch.testing.assert_close(torch.cat([gradient(module, row) for row in x.split(1)]), together)  # type: ignore[no-untyped-call]


def test_nor_if_other_dimensions_are_flattened_into_the_batch() -> None:
    def folded(x: Tensor) -> Tensor:
        blocks = x.view(-1, 2)  # (3b, 2)
        return (blocks * torch.softmax(blocks / 0.01, dim=1)).view(x.shape)

    x = rows()
    company = torch.cat([x[:2], 100 * rows(seed=8)])
    torch.testing.assert_close(gradient(Of(folded), company)[:2], gradient(Of(folded), x)[:2])


@pytest.mark.parametrize("way", HIDING)
def test_the_survey_reports_every_relaxed_operation(way: str) -> None:
    found = survey(Of(HIDING[way]), rows())
    # Reading by a boolean mask gives a shape that depends on the pixels, which no relaxation can follow.
    assert found.unseen == (("the gradient ends at index",) if way == "writes where true" else ())
    assert found.relaxed or way == "data"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("way", ["sign", "table", "writes into a view", "top members", "saturated sigmoid", "rank", "no_grad"])
def test_gradients_have_the_float_type_of_the_input(way: str, dtype: torch.dtype) -> None:
    module, x = Of(HIDING[way]), rows().to(dtype)
    answer = relaxed(module, x.clone().requires_grad_())
    assert torch.equal(answer, plainly(module, x))
    found = gradient(module, x, weights=torch.ones(N, dtype=answer.dtype))
    assert found.dtype == dtype
    assert bool((found != 0).any())


def test_saturated_fused_attention_is_relaxed() -> None:
    def attend(x: Tensor) -> Tensor:
        query = x.view(-1, 1, N, 1)
        return F.scaled_dot_product_attention(100 * query, query, query).view(x.shape)

    module, x = Of(attend), rows()
    weights = torch.randn(8, N, generator=torch.Generator().manual_seed(3))
    assert torch.equal(relaxed(module, x.clone().requires_grad_()), module(x))
    cosines = F.cosine_similarity(gradient(module, x, weights=weights), differences(module, x, weights), dim=1)
    assert cosines.mean() > 0.5
    assert [relaxation.operation for relaxation in survey(module, x).relaxed if "attention" in relaxation.operation]


# Sound networks.


@cache
def zoo(name: str) -> nn.Module:
    registry = read_registry(Path(__file__).resolve().parents[2] / "registry.yaml")
    return load_entry(registry, *registry.find(name), digits()).module.requires_grad_(False)


def transformer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unfold(2, stride=2),
        Of(lambda x: x.transpose(1, 2)),
        nn.Linear(4, 16),
        nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True, norm_first=True),
        nn.LayerNorm(16),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def softplus() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Softplus(), nn.Linear(32, 10))


def mobile() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8)]
    return nn.Sequential(*layers, nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))


def clamping() -> nn.Module:
    torch.manual_seed(0)
    rectify = Of(lambda x: x.clamp(min=0))
    return nn.Sequential(nn.Conv2d(1, 8, 3), rectify, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10))


SOUND: dict[str, Callable[[], nn.Module]] = {
    "resnet18-relu": lambda: zoo("resnet18-relu"),
    "vgg11": lambda: zoo("vgg11"),
    "small": trained_cnn,
    "transformer": transformer,
    "softplus": softplus,
    "mobile": mobile,
    "clamping": clamping,
}


@pytest.mark.parametrize("name", SOUND)
def test_the_gradient_of_a_sound_network_is_the_exact_one(name: str) -> None:
    module, x = SOUND[name]().eval().requires_grad_(False), first_images(16).x
    torch.testing.assert_close(gradient(module, x), gradient(module, x, run_plainly), rtol=1e-4, atol=1e-6)
    found = survey(module, x)
    assert (found.relaxed, found.unseen) == ((), ())


@pytest.mark.parametrize("name", ["resnet18-slwta2", "resnet18-kwta0.1", "resnet18-lwta0.2"])
def test_every_gradient_of_the_zoo_is_followed(name: str) -> None:
    module, x = zoo(name), first_images(8).x.contiguous(memory_format=torch.channels_last)
    expected = seeded(plainly, module, x)
    assert torch.equal(seeded(relaxed, module, x.clone().requires_grad_()), expected)
    found = survey(module, x)
    assert found.unseen == ()
    assert any("layers" in relaxation.where or "blocks" in relaxation.where for relaxation in found.relaxed), found.relaxed


@pytest.mark.parametrize(("family", "way"), [*[("lwta", way) for way in LWTA], *[("kwta", way) for way in KWTA]])
def test_every_spelling_is_followed_except_numpy(family: str, way: str) -> None:
    module, x = (slwta if family == "lwta" else kwta)(way), first_images(4).x
    expected = seeded(plainly, module, x)
    torch.manual_seed(1)
    np.random.seed(0)
    if way != "numpy":
        assert torch.equal(seeded(relaxed, module, x.clone().requires_grad_()), expected)
    unseen = survey(module, x).unseen
    assert [text for text in unseen if "leave PyTorch" in text] if way == "numpy" else unseen == ()


# Other things that modules do.


def test_a_detour_through_numpy_is_guessed_in_a_second_pass() -> None:
    module, x = Of(through_numpy), rows()
    answer, passes = relaxed_pass(module, x.clone().requires_grad_())
    assert torch.equal(answer, module(x))
    assert passes == 2
    found = gradient(module, x)
    assert bool((found != 0).any(dim=1).all())
    assert any("leave PyTorch" in text for text in survey(module, x).unseen)
    assert relaxed_pass(Of(HIDING["sign"]), x.clone().requires_grad_())[1] == 1


def test_a_second_pass_has_the_same_randomness() -> None:
    module = Of(lambda x: through_numpy(x + torch.randn_like(x)) + float(np.random.rand()))
    x = rows()
    torch.manual_seed(1)
    np.random.seed(1)
    expected = module(x)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(relaxed(module, x.clone().requires_grad_()), expected)


def test_the_second_pass_is_counted() -> None:
    def forwards(module: nn.Module) -> int:
        model = wrapped(module)
        x = first_images(4).x
        with model.metering(4):
            Relaxed()(model, x, lambda logits: logits.amax(dim=1)[None], SampleRandom(0, "test", ("a", "b", "c", "d")))
        return model.work()[0][0]

    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert forwards(linear) == 1
    assert forwards(nn.Sequential(Of(lambda x: through_numpy(x.flatten(1))), nn.Linear(64, 10))) == 2


def test_an_operation_without_a_gradient_is_named_with_its_module() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            counts = torch.stack([torch.bincount(row.long().clamp(0, 3), minlength=4) for row in x])
            return x[:, :4] + counts

    module, x = nn.Sequential(nn.Identity(), Inner()), rows()
    assert torch.equal(relaxed(module, x.clone().requires_grad_()), module(x))
    assert survey(module, x).unseen == ("the gradient ends at bincount in 1, 8 times",)


@torch.library.custom_op("kwbench_tests::halve", mutates_args=())
def _halve(x: Tensor) -> Tensor:
    return x * 0.5


def test_so_is_a_custom_operation_without_a_gradient() -> None:
    module, x = Of(lambda x: _halve(x) + 0.1 * x), rows()
    assert torch.equal(relaxed(module, x.clone().requires_grad_()), module(x))
    assert survey(module, x).unseen == ("the gradient ends at kwbench_tests.halve",)
    assert survey(Of(_halve), x).unseen[-1] == "no gradient at all reaches the pixels"


def test_control_flow_that_depends_on_the_pixels_is_followed_and_reported() -> None:
    module, x = Of(lambda x: x.sign() if bool(x.sum() > 0) else x * (x > 0)), 0.5 + 0.1 * rows()
    for images in (x, x - 2):
        assert torch.equal(relaxed(module, images.clone().requires_grad_()), module(images))
        assert bool((gradient(module, images) != 0).any())
    assert "which operations run depends on the pixels" in survey(module, x + 1).unseen


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

    module, x = Of(purified, linear=linear), rows()
    assert torch.equal(relaxed(module, x.clone().requires_grad_()), module(x))
    torch.testing.assert_close(gradient(module, x), gradient(Of(soft, linear=linear), x, run_plainly))
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
    module, x = Of(lambda x: x.mul_(2).round_()), rows()
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
        gradient(Of(reused), x), gradient(Of(lambda x: x.sigmoid().square()), x, run_plainly), rtol=1e-5, atol=1e-6
    )


def test_overwritten_values_have_no_gradient() -> None:
    def overwritten(x: Tensor) -> Tensor:
        mask = x > 0
        mask[:, :3] = True
        mask[:, 3:].fill_(False)
        return mask.float() + 0 * x

    assert bool((gradient(Of(overwritten), rows()) == 0).all())


def test_global_modes_of_torch_are_restored_even_after_an_error() -> None:
    fast = torch.backends.mha.get_fastpath_enabled()
    relaxed(Of(HIDING["sign"]), rows().requires_grad_())
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled() == fast
    with pytest.raises(ValueError, match="not today"):
        relaxed(Of(_raises), rows().requires_grad_())
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


def test_more_softness_makes_gradients_flatter() -> None:
    def steepest(softness: float) -> float:
        return gradient(Of(HIDING["sign"]), rows(), lambda module, x: relaxed(module, x, softness)).abs().max().item()

    assert steepest(0.1) > steepest(1.0) > steepest(10.0) > 0


def test_all_spellings_of_an_activation_have_the_same_gradient() -> None:
    x = torch.randn(3, 40, 4, 4, generator=torch.Generator().manual_seed(0))
    found = [gradient(nn.Sequential(way(0.1), nn.Flatten()), x) for way in (*KWTA.values(), Kwta)]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_memory_is_freed_without_the_garbage_collector() -> None:
    module = Of(
        lambda x: torch.stack(
            [EVERY_WAY[way](x).sum(dim=1, keepdim=True) for way in ("exp over sum", "rank", "place of the largest")]
        ).sum(dim=0)
    )

    def alive() -> int:
        gradient(module, rows())
        return sum(type(item) is Tensor for item in gc.get_objects())

    alive()  # creates what is created once
    gc.collect()
    gc.disable()
    try:
        assert alive() == alive() == alive()
    finally:
        gc.enable()


def test_automatic_softness_depends_on_whether_the_model_is_random() -> None:
    batch = first_images(4)
    rng = SampleRandom(0, "test", ("a", "b", "c", "d"))
    for module, softness in (
        (nn.Sequential(Of(torch.sign), trained_cnn()), 0.3),
        (nn.Sequential(Of(lambda x: (x + 0.1 * torch.randn_like(x)).sign()), trained_cnn()), 1.0),
    ):
        model = wrapped(module)
        model.measure_randomness(batch.x)
        found = []
        for gradients in (Relaxed(), Relaxed(softness=softness)):
            model.reseed("again")
            found.append(gradients(model, batch.x, lambda logits: logits.amax(dim=1)[None], rng).gradients)
        assert torch.equal(*found)
    assert Relaxed().softness == "auto"
    with pytest.raises(ValueError, match="must be positive"):
        Relaxed(softness=0)


def test_relaxed_gradients_break_what_exact_ones_cannot() -> None:
    batch = first_images(32)
    model = wrapped(nn.Sequential(Of(lambda x: (x * 4).round() / 4), trained_cnn()))
    rng = SampleRandom(0, "test", tuple(map(str, range(32))))

    def margin(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, batch.y, reduction="none")[None]

    exact, soft = (kind(model, batch.x, margin, rng) for kind in (EXACT, Relaxed()))
    assert torch.equal(exact.logits, soft.logits)
    assert bool((exact.gradients == 0).all())
    moved = (batch.x + 0.2 * soft.gradients[0].sign()).clamp(0, 1)
    assert (model.predict(moved)[0] == batch.y).float().mean() < (model.predict(batch.x)[0] == batch.y).float().mean() - 0.4


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

    plain, compiled = Of(hard), Of(torch.compile(hard, backend="eager"))
    x = rows(4)
    compiled(x)  # compile before it is relaxed
    found = []
    for module in (plain, compiled):
        leaf = x.clone().requires_grad_()
        relaxed(module, leaf)[:, 0].sum().backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        found.append(leaf.grad)
    assert bool((found[0] != 0).any())
    assert torch.equal(*found)


def test_ties_do_not_change_which_operations_k_wta_runs() -> None:
    x = torch.linspace(0.1, 0.8, 16).repeat(2, 1).view(2, 1, 4, 4)
    x[0].view(-1)[-2:] = 0.9
    assert survey(nn.Sequential(Kwta("1/16"), nn.Flatten()), x).unseen == ()


@pytest.mark.parametrize("gamma", ["1/8", "1/4", "1/2"])
def test_the_gradient_of_a_k_wta_sample_does_not_depend_on_ties_in_other_samples(gamma: str) -> None:
    x = rows()
    tied = torch.ones_like(x)
    found = gradient(Kwta(gamma), x)
    for company in (tied, x.flip(0)):
        both = gradient(Kwta(gamma), torch.cat([x[:4], company[4:]]))
        assert torch.equal(both[:4], found[:4])
