"""Every way of writing a winner-take-all activation gives the values of kwbench's own."""

import pytest
import torch
from torch import nn

from conftest import shared
from defences.spellings import FILE, HIDDEN, KWTA, LWTA, kwta, slwta
from kwbench.networks.activations import Kwta, StochasticLwta
from kwbench.networks.user_files import load_file_model
from support.small_models import digits, first_images


@pytest.mark.parametrize("way", LWTA)
@pytest.mark.parametrize("shape", [(20_000, 6), (300, 6, 8, 8)])
def test_a_winner_is_drawn_as_often_as_softmax_says(way: str, shape: tuple[int, ...]) -> None:
    values = torch.tensor([0.3, -0.4, 1.5, -1.0, -2.0, -2.0])
    x = values.view(1, 6, *[1] * (len(shape) - 2)).expand(shape).clone()
    torch.manual_seed(0)
    out = LWTA[way]()(x).detach()
    assert out.shape == x.shape
    share = (out / x).movedim(1, 0).flatten(1).mean(dim=1)
    expected = values.view(3, 2).softmax(dim=1).flatten()
    # 19,200 draws or more; a relaxed draw at temperature 0.01 adds nothing to the mean that could be noticed.
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0)


@pytest.mark.parametrize("way", LWTA)
def test_blocks_and_positions_are_drawn_apart_and_anew(way: str) -> None:
    torch.manual_seed(0)
    layer = LWTA[way]()
    x = torch.full((64, 8, 4, 4), 1.0)
    first, second = (layer(x)[:, ::2].round().flatten(1) for _ in range(2))
    both = torch.cat([first, second], dim=1)
    assert both.unique(dim=0).shape[0] == 64  # type: ignore[no-untyped-call]
    correlations = torch.corrcoef(both.T) - torch.eye(128)
    assert correlations.abs().max() < 0.7


@pytest.mark.parametrize("way", LWTA)
def test_stochastic_networks_classify_digits_equally_well_in_every_spelling(way: str) -> None:
    batch = first_images(180)
    torch.manual_seed(0)
    with torch.no_grad():
        right = torch.stack([slwta(way)(batch.x).argmax(dim=1) == batch.y for _ in range(3)]).float().mean()
    assert right > 0.95


@pytest.mark.parametrize("way", KWTA)
@pytest.mark.parametrize("shape", [(50, 40), (8, 5, 6, 6)])
def test_k_wta_gives_the_same_values_and_gradients(way: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(shape)
    spelled, reference = KWTA[way](0.1)(x), Kwta(0.1)(x)
    torch.testing.assert_close(spelled, reference, rtol=0, atol=0)
    gradients = [torch.autograd.grad((out * weight).sum(), x)[0] for out in (spelled, reference)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("way", KWTA)
def test_k_wta_networks_give_the_same_logits_in_every_spelling(way: str) -> None:
    batch = first_images(180)
    with torch.no_grad():
        reference, theirs = kwta("topk")(batch.x), kwta(way)(batch.x)
    # Black borders give equal values: if one of them is the k-th, >= keeps them all and topk exactly k.
    same = (reference - theirs).abs().amax(dim=1) < 1e-3
    assert same.float().mean() > 0.95
    assert (reference.argmax(dim=1) == theirs.argmax(dim=1)).float().mean() > 0.98


def test_no_activation_of_kwbench_remains_after_a_swap() -> None:
    for network in (slwta("softmax"), kwta("topk")):
        kinds = {type(layer) for layer in network.modules()}
        assert not kinds & {Kwta, StochasticLwta, nn.ReLU}
        assert kinds & {*LWTA.values(), *KWTA.values()}
    assert LWTA.keys() > HIDDEN


@pytest.mark.parametrize("factory", ["slwta_softmax", "kwta_topk"])
def test_a_users_file_holds_the_same_network(factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FILE.parent))
    kind, _, way = factory.partition("_")
    theirs = load_file_model(f"{FILE}:{factory}").module
    reference = slwta(way) if kind == "slwta" else kwta(way)
    assert theirs.state_dict().keys() == reference.state_dict().keys()
    x = digits().test.batch(range(20)).x
    answers = []
    for network in (theirs, reference):
        torch.manual_seed(0)
        with torch.no_grad():
            answers.append(network(x))
    torch.testing.assert_close(*answers, rtol=0, atol=0)


def test_the_published_network_classifies_cifar10_in_a_users_file(monkeypatch: pytest.MonkeyPatch) -> None:
    shared("checkpoints/panousis2021-wrn34-1-slwta.pt")
    import numpy as np

    monkeypatch.syspath_prepend(str(FILE.parent))
    network = load_file_model(f"{FILE}:published_no_grad").module
    with np.load(shared("data/cifar10-exact-subset.npz")) as arrays:
        x, y = torch.from_numpy(arrays["x_test"][:64]).float() / 255, torch.from_numpy(arrays["y_test"][:64])
    torch.manual_seed(0)
    with torch.no_grad():
        right = (network(x).argmax(dim=1) == y).float().mean()
    # The paper says 87.0 of 10,000.
    assert right > 0.75
