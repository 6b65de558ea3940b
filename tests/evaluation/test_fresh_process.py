"""Models whose answers change with use are asked in a fresh process, wherever they keep their state."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import kwbench
from kwbench.checks.case import Case
from kwbench.checks.state import outputs_depend_on_the_image_alone
from kwbench.errors import CannotEvaluate
from kwbench.evaluation.result import EvaluationResult
from kwbench.model.pristine import AskedFirst, Pristine
from kwbench.threat import ThreatModel
from support.small_models import first_images, trained_cnn, wrapped

# Fresh, it answers as a network does; in use, by the nearest of a few images, which no gradient leads away from.
DEFENCE = """
from pathlib import Path
import torch
from safetensors.torch import load_file
from torch import nn

CALLS = []

class Defence(nn.Module):
    seen = []

    def __init__(self, fresh):
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(512, 10),
        )
        self.network.load_state_dict(load_file(Path(__file__).with_name("weights.safetensors")))
        images = load_file(Path(__file__).with_name("images.safetensors"))
        self.images, self.labels = images["x"].flatten(1), images["y"]
        self.fresh = fresh

    def forward(self, x):
        if self.fresh(x):
            return self.network(x)
        nearest = torch.cdist(x.flatten(1), self.images).argmin(dim=1)
        return nn.functional.one_hot(self.labels[nearest], 10).float()

def warm():
    def few_calls(x):
        CALLS.append(len(x))
        return len(CALLS) <= 40
    return Defence(few_calls)

def screening():
    def unseen(x):
        near = [old for old in Defence.seen if (old - x[0]).abs().max() < 0.5]
        Defence.seen.append(x[0].detach().clone())
        return not near
    return Defence(unseen)

def sound():
    return Defence(lambda x: True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "defence.py").write_text(DEFENCE)
    weights = {name: weight.contiguous() for name, weight in trained_cnn().state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    batch = first_images(64)
    save_file({"x": batch.x, "y": batch.y}, tmp_path / "images.safetensors")
    (tmp_path / "short.yaml").write_text("attacks: {apgd: {steps: 5}}\n")
    return tmp_path


def evaluated(folder: Path, factory: str) -> EvaluationResult:
    return kwbench.evaluate(
        f"{folder / 'defence.py'}:{factory}",
        suite=folder / "short.yaml",
        dataset="digits",
        n=12,
        threads=1,
        keep_adversarials=False,
    )


@pytest.mark.parametrize("factory", ["warm", "screening"])
def test_robust_accuracy_is_that_of_images_asked_first(factory: str, folder: Path) -> None:
    result = evaluated(folder, factory)
    assert result.a_rob is not None
    assert result.a_rob.value == 0
    assert any("answers change with use" in note for note in result.notes)


def test_a_model_without_state_is_asked_here(folder: Path) -> None:
    result = evaluated(folder, "sound")
    assert not any("change with use" in note for note in result.notes)


class Counting(nn.Module):
    """Adds the number of its calls to the network's logits."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, c, h, w) to (b, k)."""
        Counting.calls += 1
        if float(x.detach().max()) > 2:
            raise ValueError("no image")
        logits: torch.Tensor = trained_cnn()(x)
        return logits * Counting.calls


@pytest.mark.parametrize("in_use", [True, False])
def test_the_check_of_state_compares_with_an_unused_model(in_use: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "calls", 0)
    batch, network = first_images(8), Counting() if in_use else trained_cnn()
    pristine = Pristine(network)
    try:
        model = wrapped(AskedFirst(network, pristine))
        model.pristine = pristine
        (finding,) = outputs_depend_on_the_image_alone(Case(model, batch, ThreatModel.of("linf", "0.1"), seed=0))
    finally:
        pristine.close()
    assert finding.fires == in_use
    assert finding.role == "unstable"


def test_each_question_is_the_first_and_has_the_gradient_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "calls", 0)
    x, network = first_images(3).x, trained_cnn()
    pristine = Pristine(Counting())
    try:
        asked = AskedFirst(Counting(), pristine)
        leaf = x.clone().requires_grad_()
        for _ in range(2):
            logits = asked(leaf)
            assert torch.equal(logits, network(x))
        (gradient,) = torch.autograd.grad(logits.square().sum(), leaf)
        expected = x.clone().requires_grad_()
        assert torch.equal(gradient, torch.autograd.grad(network(expected).square().sum(), expected)[0])
        assert Counting.calls == 0
        with pytest.raises(CannotEvaluate, match="asked first, the model raised ValueError: no image"):
            asked(x + 3)
    finally:
        pristine.close()
