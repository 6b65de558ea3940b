"""Models that hide everything but their labels fall to a student of these labels, or to the network inside them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.attacks.search.student import Lessons
from kwbench.attacks.search.submodules import classifiers_within
from kwbench.attacks.student import Student
from kwbench.attacks.submodules import Submodules
from kwbench.judge import judge, judge_clean
from kwbench.model import Model
from kwbench.outcome import Outcome
from kwbench.threat import ThreatModel
from support.small_models import Noisy, broken, cnn, digits, first_images, trained_cnn, wrapped

THREAT = ThreatModel.of("linf", "0.2")


class Listed(nn.Module):
    """Answers the label of a network, which leaves PyTorch as a list."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        labels: list[int] = self.network(x).argmax(dim=1).tolist()
        return torch.stack([torch.eye(10)[label] for label in labels]).to(x)


class Decoy(Listed):
    """Answers the label of a network; the other logits are distances to grey, with honest gradients that lead nowhere."""

    def forward(self, x: Tensor) -> Tensor:
        grey = (x - 0.5).abs().flatten(1).mean(dim=1, keepdim=True)
        return 5 * super().forward(x) + grey * torch.linspace(0, 1, 10)


class Voting(Listed):
    """Answers the votes of the 5 nearest stored images in the space of logits, by a loop over their numbers."""

    def forward(self, x: Tensor) -> Tensor:
        stored = digits().train.batch(range(300))
        nearest = torch.cdist(self.network(x), self.network(stored.x)).topk(5, dim=1, largest=False).indices
        votes = torch.zeros(len(x), 10)
        for row, neighbours in enumerate(nearest.tolist()):
            for neighbour in neighbours:
                votes[row, int(stored.y[neighbour])] += 1
        return votes


def lessons() -> Lessons:
    return Lessons(digits().train.batch(range(1000)).x)


def outcomes(victim: Model, attack: Student | Submodules, n: int = 32) -> list[Outcome]:
    batch = first_images(n)
    return judge(victim, attack, "attack", batch, THREAT, 0, judge_clean(victim, batch, 0))


@pytest.mark.parametrize("defence", [Listed, Voting])
def test_a_student_of_the_labels_leads_to_adversarial_images(defence: type[nn.Module]) -> None:
    victim = wrapped(defence(trained_cnn()))
    assert broken(outcomes(victim, Student(queries=1024, lessons=lessons()))).float().mean() > 0.75


def test_a_student_learns_from_a_noisy_model() -> None:
    victim = wrapped(Noisy(Listed(trained_cnn()), 0.02))
    assert victim.measure_randomness(first_images(8).x)
    rows = outcomes(victim, Student(queries=1024, selection_draws=3, lessons=lessons()))
    assert sum(row.fresh_correct for row in rows) < 0.3 * sum(row.fresh_draws for row in rows)


def test_a_student_is_taught_once_and_its_lessons_are_charged_to_no_sample() -> None:
    taught = lessons()
    victim, attack = wrapped(Listed(trained_cnn())), Student(queries=64, targets=2, steps=2, lessons=taught)
    first = outcomes(victim, attack, 8)
    student = taught.student_of(victim, 64, THREAT)
    assert outcomes(victim, attack, 8)[0].forwards == first[0].forwards == 2
    assert taught.student_of(victim, 64, THREAT) is student
    other = lessons().student_of(victim, 64, THREAT)
    x = first_images(8).x
    assert torch.equal(student(x), other(x))


def test_the_network_inside_a_decoy_is_found_and_attacked() -> None:
    victim = wrapped(Decoy(trained_cnn()))
    names = classifiers_within(victim, first_images(16).x)
    assert names[0] == "network" or names == ("network.5",)
    assert broken(outcomes(victim, Submodules(names=names, steps=10))).float().mean() > 0.8


@pytest.mark.parametrize("part", [nn.Identity(), nn.LogSoftmax(dim=1), nn.BatchNorm1d(10, affine=False)])
def test_a_plain_network_has_no_other_classifier_inside(part: nn.Module) -> None:
    assert classifiers_within(wrapped(nn.Sequential(trained_cnn(), part).eval()), first_images(16).x) == ()


def test_a_hidden_layer_as_wide_as_the_classes_are_many_is_no_classifier() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10))
    assert classifiers_within(wrapped(network), first_images(64).x) == ()


def test_the_models_own_randomness_is_not_disturbed_by_lessons() -> None:
    victim = wrapped(Noisy(trained_cnn(), 0.1))
    victim.measure_randomness(first_images(8).x)
    x = first_images(8).x
    victim.reseed("here")
    first = [victim(x) for _ in range(2)]
    victim.reseed("here")
    again = [victim(x)]
    lessons().student_of(victim, 64, THREAT)
    again.append(victim(x))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_noise_serves_where_no_images_are_known() -> None:
    student = Lessons().student_of(cnn(), 512, THREAT)
    assert F.softmax(student(first_images(8).x), dim=1).isfinite().all()
