"""Models of one logit, models that may abstain, and models that return predicted classes alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kwbench
from support.small_models import first_images, trained_cnn

EPS, N = "0.1", 24
SUITE = "cascade: true\nprotocol: [fgsm]\nattacks: {fgsm: {}, noop: {}}\n"


class Answering(nn.Module):
    """The trained CNN's logits in another form."""

    def __init__(self, form: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.form = trained_cnn(), form

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self.network(x))


def evaluate(form: Callable[[Tensor], Tensor], attacks: list[str], y: Tensor | None = None, **options: Any) -> Any:
    batch = first_images(N)
    labels = batch.y if y is None else y
    return kwbench.evaluate(Answering(form), batch.x, labels, attacks=attacks, eps=EPS, tile=16, **options)


def abstaining(threshold: float) -> Callable[[Tensor], Tensor]:
    """Abstain, as class 10, where the largest probability is below a threshold."""

    def form(logits: Tensor) -> Tensor:
        confident = logits.softmax(dim=1).amax(dim=1, keepdim=True) >= threshold
        return torch.cat([logits, torch.where(confident, logits.amin() - 1, logits.amax() + 1).expand(len(logits), 1)], dim=1)

    return form


class TestBinary:
    def test_one_logit_is_attacked_as_two_classes(self) -> None:
        odd = first_images(N).y % 2
        result = evaluate(lambda z: z[:, 1::2].amax(dim=1) - z[:, 0::2].amax(dim=1), ["fgsm", "apgd"], odd, binary=True)
        assert result.a_std.value > 0.9
        assert result.a_rob.value < result.a_std.value - 0.2
        assert "one logit an image became two classes" in result.notes

    def test_without_the_option_it_is_named(self) -> None:
        with pytest.raises(kwbench.CannotEvaluate, match=r"one logit z an image.*--binary"):
            evaluate(lambda z: z[:, 0], ["fgsm"], first_images(N).y % 2)


class TestAbstaining:
    def test_abstaining_counts_as_broken_and_the_accuracy_that_excuses_it_stands_beside(self) -> None:
        never, often = (evaluate(abstaining(threshold), ["fgsm"], abstain_class=10) for threshold in (0.0, 0.9))
        assert never.a_rob_excused.value == never.a_rob.value
        assert often.a_rob.value < often.a_rob_excused.value <= often.a_std.value
        # On clean images an abstention is an error.
        assert often.a_std.value < never.a_std.value
        assert any("if abstaining is excused" in note for note in often.notes)

    def test_a_model_that_cannot_abstain_has_no_such_accuracy(self) -> None:
        assert evaluate(lambda z: z, ["fgsm"]).a_rob_excused is None

    @pytest.mark.parametrize(
        ("abstain_class", "message"), [(3, "is a label of"), (11, "has 11 classes, numbered from 0"), (-1, "numbered from 0")]
    )
    def test_another_class_cannot_be_abstaining(self, abstain_class: int, message: str) -> None:
        with pytest.raises(kwbench.UsageError, match=message):
            evaluate(abstaining(0.5), ["fgsm"], abstain_class=abstain_class)


class TestPredictedClasses:
    def test_rays_and_hop_skip_jump_break_a_model_without_logits(self) -> None:
        attacks = ["rays", "foolbox:HopSkipJumpAttack"]
        steps = {"steps": 2, "max_gradient_eval_steps": 200}
        small = {"rays.queries": 300, **{f"foolbox:HopSkipJumpAttack.{name}": value for name, value in steps.items()}}
        result = evaluate(lambda z: z.argmax(dim=1), attacks, parameters=small, n=12)
        accuracies = result.attacks["accuracy"]
        assert accuracies["rays"] < result.a_std.value
        assert accuracies["foolbox:HopSkipJumpAttack"] < result.a_std.value

    @pytest.mark.parametrize("attack", ["fgsm", "square"])
    def test_attacks_on_gradients_or_scores_do_not_apply(self, attack: str) -> None:
        with pytest.raises(kwbench.UsageError, match="the model returns predicted classes alone"):
            evaluate(lambda z: z.argmax(dim=1), [attack])

    def test_a_protocol_of_gradients_says_nothing_about_them(self, tmp_path: Path) -> None:
        (tmp_path / "suite.yaml").write_text(SUITE)
        batch = first_images(8)
        model = Answering(lambda z: z.argmax(dim=1))
        result = kwbench.evaluate(model, batch.x, batch.y, suite=tmp_path / "suite.yaml", eps=EPS, tile=16)
        assert result.a_protocol is None
        assert set(result.summary.skipped) == {"fgsm"}
