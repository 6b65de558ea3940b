"""What a module may return, what is taken of it, and what is refused with advice."""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kwbench.errors import CannotEvaluate
from kwbench.model import are_answers, with_logits
from support.small_models import first_images, trained_cnn, wrapped

Named = namedtuple("Named", ["logits", "hidden"])


@dataclass
class ModelOutput:
    logits: Tensor


class Returning(nn.Module):
    """The CNN's logits in whatever form a function gives them."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.form, self.network = form, trained_cnn()

    def forward(self, x: Tensor) -> Any:
        return self.form(self.network(x))


@pytest.mark.parametrize(
    ("form", "note"),
    [
        (ModelOutput, "took .logits of ModelOutput"),
        (lambda z: Named(z, z.flatten()), "took .logits of Named"),
        (lambda z: {"hidden": z.flatten(), "logits": z}, 'took ["logits"] of dict'),
        (lambda z: (z, z.flatten()), "took the first of 2 outputs"),
        (lambda z: [z], "took the first of 1 outputs"),
    ],
)
def test_logits_are_found_and_where_is_said(form: Callable[[Tensor], Any], note: str) -> None:
    x = first_images(4).x
    module, notes = with_logits(Returning(form).eval(), x, 10)
    assert notes == (note,)
    torch.testing.assert_close(wrapped(module)(x), wrapped(trained_cnn())(x))


def test_a_module_that_returns_a_tensor_stays_as_it_is() -> None:
    assert with_logits(trained_cnn(), first_images(2).x, 10) == (trained_cnn(), ())


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_one_logit_becomes_two_classes_on_request(shape: tuple[int, ...]) -> None:
    x = first_images(4).x
    module, notes = with_logits(Returning(lambda z: z[:, 3].view(shape)).eval(), x, 2, binary=True)
    assert notes == ("one logit an image became two classes",)
    logit, logits = trained_cnn()(x)[:, 3], wrapped(module, classes=2)(x)
    torch.testing.assert_close(logits.softmax(dim=1)[:, 1], logit.sigmoid())


def test_more_than_one_logit_does_not_become_two_classes() -> None:
    module, _ = with_logits(trained_cnn(), first_images(4).x, 10, binary=True)
    torch.testing.assert_close(wrapped(module)(first_images(4).x), wrapped(trained_cnn())(first_images(4).x))


def test_predicted_classes_become_logits_without_gradient() -> None:
    x = first_images(4).x
    module, notes = with_logits(Returning(lambda z: z.argmax(dim=1)).eval(), x, 10)
    assert notes == ("returns predicted classes alone, so that only attacks on labels apply",)
    assert torch.equal(wrapped(module)(x).argmax(dim=1), trained_cnn()(x).argmax(dim=1))
    beyond, _ = with_logits(Returning(lambda z: z.argmax(dim=1) + 100).eval(), x, 10)
    with pytest.raises(ValueError, match="predicted classes 10"):
        beyond(x)
    more, _ = with_logits(Returning(lambda z: z.argmax(dim=1) + 100).eval(), x, 10, others=True)
    assert more(x).argmax(dim=1).tolist() == [10] * 4


@pytest.mark.parametrize(
    ("form", "advice"),
    [
        (lambda z: {"output": z}, "it returned dict with 'output'; wrap it"),
        (lambda z: (z.flatten(), z), "it returned tuple; wrap it"),
        (
            lambda z: z[:, :1],
            r"one logit z an image, \(64, 1\); --binary makes two classes of it, as does torch.cat\(\[-z, z\], dim=1\)",
        ),
        (
            lambda z: z[:, 0],
            r"one logit z an image, \(64,\); --binary makes two classes of it, as does torch.stack\(\[-z, z\], dim=1\)",
        ),
        (lambda z: z[..., None], r"it returned \(64, 10, 1\); wrap it"),
        (lambda z: z.long(), "logits must be floating point"),
    ],
)
def test_other_outputs_are_refused_with_advice(form: Callable[[Tensor], Any], advice: str) -> None:
    x = first_images(4).x
    module, notes = with_logits(Returning(form).eval(), x, 10)
    assert notes == ()
    with pytest.raises(CannotEvaluate, match=advice):
        wrapped(module)(x)


def test_minus_infinity_masks_a_class_and_nothing_else_is_an_answer() -> None:
    inf, nan = torch.inf, torch.nan
    logits = torch.tensor([[1.0, -inf], [-inf, -inf], [inf, 0.0], [nan, 0.0], [-inf, nan], [0.0, 1.0]])
    assert are_answers(logits).tolist() == [True, False, False, False, False, True]


class _AtMost(nn.Module):
    """Refuses batches of other than the allowed sizes."""

    def __init__(self, allowed: Callable[[int], bool]) -> None:
        super().__init__()
        self.allowed, self.network = allowed, trained_cnn()

    def forward(self, x: Tensor) -> Tensor:
        if not self.allowed(len(x)):
            raise ValueError("wrong batch size")
        logits: Tensor = self.network(x)
        return logits


@pytest.mark.parametrize(
    ("allowed", "size"), [(lambda n: n <= 32, 32), (lambda n: n == 1, 1), (lambda n: n == 50, 50), (lambda n: n == 100, 100)]
)
def test_a_model_of_few_images_or_of_a_fixed_number_names_the_tile(allowed: Callable[[int], bool], size: int) -> None:
    with pytest.raises(CannotEvaluate, match=rf"wrong batch size; it accepts {size} images? at once: give --tile {size}$"):
        wrapped(_AtMost(allowed)).measure_randomness(first_images(8).x)
    assert not wrapped(_AtMost(allowed), tile=size).measure_randomness(first_images(min(8, size)).x)


def test_a_model_that_adapts_in_forward_is_told_that_weights_are_frozen() -> None:
    class Adapting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

        @torch.enable_grad()
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.network(x)
            logits.logsumexp(dim=1).sum().backward()  # type: ignore[no-untyped-call]
            return logits

    with pytest.raises(CannotEvaluate, match=r"weights are frozen here: .* is not a fixed classifier"):
        wrapped(Adapting()).measure_randomness(first_images(8).x)
