"""Counted passes."""

import torch

from support.small_models import cnn, first_images


def test_work_is_counted_row_by_row() -> None:
    model, x = cnn(tile=4), first_images(6).x
    with model.metering(6):
        model(x)
        model(x[:2], torch.tensor([5, 1]))
        leaf = x[:1].clone().requires_grad_()
        logits = model(leaf, torch.tensor([3]))
        for index in range(3):
            torch.autograd.grad(logits[0, index], leaf, retain_graph=True)
        assert model.work() == ([1, 2, 1, 2, 1, 2], [0, 0, 0, 3, 0, 0])
        model(x[:3])  # without rows: shared equally, rounded up
        assert model.work()[0] == [2, 3, 2, 3, 2, 3]


def test_a_model_can_be_called_without_metering() -> None:
    cnn()(first_images(2).x, torch.tensor([0, 7]))
