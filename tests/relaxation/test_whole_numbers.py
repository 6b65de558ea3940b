"""A soft choice passes through integer tensors: lookups, selections, counts and arithmetic on whole numbers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.relaxation import relaxed, survey

CLASSES = 6
EYE = torch.eye(CLASSES)
NAMES = torch.arange(CLASSES)
SHUFFLED = torch.tensor([3, 0, 5, 1, 4, 2])
BACK = SHUFFLED.argsort()


def one_hot(labels: Tensor) -> Tensor:
    return F.one_hot(labels, CLASSES).float()


def filled_one_by_one(z: Tensor) -> Tensor:
    labels = torch.zeros(len(z), dtype=torch.long)
    for row in range(len(z)):
        labels[row] = z[row].argmax()
    return one_hot(labels)


def overwritten_by_a_mask(z: Tensor) -> Tensor:
    labels = z.argmax(1)
    labels[z.amax(1) < -100] = 3
    return one_hot(labels)


def filtered(z: Tensor) -> Tensor:
    return one_hot(z.argmax(1).masked_fill(z.amax(1) < -100, 0))


# Ways to answer the one-hot label of logits z (b, 6) by whole numbers.
WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "lookup": lambda z: one_hot(NAMES[z.argmax(1)]),
    "shuffled and back": lambda z: one_hot(BACK[SHUFFLED[z.argmax(1)]]),
    "embedding": lambda z: F.embedding(NAMES[z.argmax(1)], EYE),
    "columns": lambda z: EYE[:, z.argmax(1)].t(),
    "index_select": lambda z: EYE.index_select(0, z.topk(1).indices.squeeze(1)),
    "index_select of the other dimension": lambda z: EYE.index_select(1, z.argmax(1)).t(),
    "gather": lambda z: one_hot(NAMES.expand_as(z).gather(1, z.argmax(1, keepdim=True)).squeeze(1)),
    "take": lambda z: torch.take(EYE, z.argmax(1, keepdim=True) * CLASSES + NAMES),
    "where": lambda z: one_hot(torch.where(z.amax(1) > 0, z.argmax(1), (z + 0.01).argmax(1))),
    "masked_fill": filtered,
    "written by a mask": overwritten_by_a_mask,
    "filled one by one": filled_one_by_one,
    "mode": lambda z: one_hot(torch.stack([z.argmax(1), (2 * z).argmax(1), (z - 1).argmax(1)]).mode(0).values),
    "median": lambda z: one_hot(torch.stack([z.argmax(1), (2 * z).argmax(1), (z - 1).argmax(1)]).median(0).values),
    "maximum": lambda z: one_hot(torch.maximum(z.argmax(1), (2 * z).argmax(1))),
    "bincount": lambda z: torch.stack([torch.bincount(row, minlength=CLASSES) for row in z.argmax(1, keepdim=True)]).float(),
    "scatter_add": lambda z: torch.zeros_like(z).scatter_add(1, z.argmax(1, keepdim=True), torch.ones(len(z), 1)),
    "equality": lambda z: (z.argmax(1, keepdim=True) == NAMES).float(),
    "order": lambda z: (z.argmax(1, keepdim=True) >= NAMES).float() - (z.argmax(1, keepdim=True) > NAMES).float(),
    "arithmetic": lambda z: one_hot((z.argmax(1) * 3 + 1 - 1) // 3),
    "bits": lambda z: one_hot((z.argmax(1) ^ 5) ^ 5),
    "last of a sort": lambda z: EYE[z.sort(1).indices[:, -1]],
    "first of an argsort": lambda z: one_hot(z.argsort(1, descending=True)[:, 0]),
    "k-th value": lambda z: one_hot(z.kthvalue(CLASSES, 1).indices),
    "first of the three largest": lambda z: one_hot(NAMES[z.topk(3, 1).indices])[:, 0],
    "flipped": lambda z: one_hot(CLASSES - 1 - z.flip(1).argmax(1)),
    "rolled": lambda z: one_hot(z.argmax(1).roll(1).roll(-1)),
    "joined": lambda z: one_hot(torch.cat([z[:2].argmax(1), z[2:].argmax(1)])),
    "bytes": lambda z: one_hot(z.argmax(1).to(torch.uint8).long()),
}


class Labelled(nn.Module):
    """Logits, answered by a function of them."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(x.flatten(1)[:, :CLASSES] * 2)


def images(n: int = 8) -> Tensor:
    return torch.rand(n, 1, 2, CLASSES // 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("way", WAYS)
def test_a_label_written_by_whole_numbers_has_the_values_of_the_label_and_a_gradient_that_changes_it(way: str) -> None:
    module, x = Labelled(WAYS[way]), images().requires_grad_()
    answer = relaxed(module, x, 0.3)
    label = x.detach().flatten(1).argmax(1)
    assert torch.equal(answer.detach(), module(x.detach()))
    assert torch.equal(answer.detach(), one_hot(label))
    (gradient,) = torch.autograd.grad(answer.gather(1, label[:, None]).sum(), x)
    # The answer for the label rises with its own logit, and falls with the runner-up's.
    runner_up = x.detach().flatten(1).topk(2, dim=1).indices[:, 1]
    assert bool((gradient.flatten(1).gather(1, label[:, None]) > 0).all())
    assert bool((gradient.flatten(1).gather(1, runner_up[:, None]) < 0).all())
    assert survey(module, images()).unseen == ()


def test_the_votes_of_nearest_neighbours_have_a_gradient_towards_another_vote() -> None:
    torch.manual_seed(0)
    stored, labels = torch.rand(40, CLASSES), torch.randint(CLASSES, (40,))

    def vote(z: Tensor) -> Tensor:
        return one_hot(labels[torch.cdist(z, stored).topk(3, dim=1, largest=False).indices]).sum(1)

    module, x = Labelled(vote), images().requires_grad_()
    votes = relaxed(module, x, 0.1)
    assert torch.equal(votes.detach(), module(x.detach()))
    for target in range(CLASSES):
        (gradient,) = torch.autograd.grad(votes[:, target].sum(), x, retain_graph=True)
        z = x.detach()
        for _ in range(30):
            z = z + 0.05 * torch.autograd.grad(relaxed(module, z.requires_grad_(), 0.1)[:, target].sum(), z)[0].sign()
            z = z.detach()
        assert gradient.abs().sum() > 0
        assert module(z)[:, target].mean() > votes[:, target].mean() + 1


def test_a_rounded_number_that_names_a_class_has_a_gradient() -> None:
    module, x = Labelled(lambda z: one_hot((z[:, 0] * 2).long())), images().requires_grad_()
    answer = relaxed(module, x)
    (gradient,) = torch.autograd.grad((answer * NAMES).sum(), x)
    assert bool((gradient[:, 0, 0, 0] > 0).all())
    assert survey(module, images()).unseen == ()


def test_a_column_that_is_drawn_is_not_relaxed_by_a_gradient_of_zero() -> None:
    table = torch.rand(3, CLASSES)

    def column(z: Tensor) -> Tensor:
        return table[:, torch.multinomial(z.softmax(1), 1).squeeze(1)].t()

    x = images().requires_grad_()
    (gradient,) = torch.autograd.grad(relaxed(Labelled(column), x).sum(), x)
    assert bool((gradient.flatten(1).abs().amax(1) > 0).all())
