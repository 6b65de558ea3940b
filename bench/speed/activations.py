"""Time of winner-take-all activations, compared with ReLU and with their papers' formulas.

    python bench/speed/activations.py [--threads 2] [--rounds 21]

All activations take turns in one process, on the same random values: (128, 64, 32, 32) float32 for the layers. A column holds
the median time, and median and quartiles of the ratio to ReLU in the same round. The networks are ResNet-18 of width 16 with
the CIFAR stem, on 128 images; the gradient is that of the pixels only. Writes Markdown to stdout, as in activations.md.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial

import torch
from measure import alternate, machine_line, markdown_table, ratio, spread
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.networks.activations import Kwta, Lwta, StochasticLwta
from kwbench.networks.architectures.resnet import ResNet18

SHAPE = (128, 64, 32, 32)
IMAGES = (128, 3, 32, 32)


class PaperKwta(nn.Module):
    """k-WTA as in its paper: the k-th largest value by topk, a mask by comparison, their product."""

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, ...) to the same shape."""
        flat = x.flatten(1)
        threshold = flat.topk(int(self.gamma * flat.shape[1]), dim=1).values[:, -1:]
        return (flat * (flat >= threshold).to(flat)).view(x.shape)


class PaperLwta(nn.Module):
    """LWTA with two units, by its definition: the maximum of each pair, a mask, their product."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, ...) to the same shape."""
        pairs = x.view(len(x), -1, 2, *x.shape[2:])
        return (pairs * (pairs == pairs.amax(dim=2, keepdim=True)).to(pairs)).view(x.shape)


class PaperStochasticLwta(nn.Module):
    """Stochastic LWTA with two units, as in its paper: a relaxed sample by Gumbel noise (eq. 7), times the values."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, ...) to the same shape."""
        pairs = x.view(len(x), -1, 2, *x.shape[2:])
        return (pairs * F.gumbel_softmax(F.log_softmax(pairs, dim=2), tau=0.01, dim=2)).view(x.shape)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "k-WTA 0.1": lambda: Kwta("0.1"),
    "k-WTA 0.1, paper": lambda: PaperKwta(0.1),
    "k-WTA 0.2": lambda: Kwta("0.2"),
    "k-WTA 0.2, paper": lambda: PaperKwta(0.2),
    "LWTA-2": lambda: Lwta("0.5"),
    "LWTA-2, paper": PaperLwta,
    "stochastic LWTA-2": lambda: StochasticLwta(2),
    "stochastic LWTA-2, paper": PaperStochasticLwta,
}


def network(activation: Callable[[], nn.Module]) -> nn.Module:
    """Return ResNet-18 of width 16 in evaluation mode, with the same weights on each call."""
    torch.manual_seed(0)
    return ResNet18(3, 10, activation, width=16).eval().requires_grad_(False)


def forward(module: nn.Module, x: Tensor) -> Tensor:
    """Run the forward pass only."""
    with torch.no_grad():
        output: Tensor = module(x)
    return output


def gradient(module: nn.Module, x: Tensor, upstream: Tensor) -> Tensor:
    """Run the forward and the backward pass; return the gradient of the input."""
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(module(leaf), leaf, upstream)[0]


def columns() -> Mapping[str, dict[str, Callable[[], object]]]:
    """Return what is timed, by column and activation."""
    torch.manual_seed(0)
    x, images = torch.randn(SHAPE), torch.rand(IMAGES)
    upstream, weights = torch.randn(SHAPE), torch.randn(len(images), 10)
    layers = {name: make().eval() for name, make in ACTIVATIONS.items()}
    networks = {name: network(make) for name, make in ACTIVATIONS.items()}
    return {
        "forward": {name: partial(forward, layer, x) for name, layer in layers.items()},
        "forward and backward": {name: partial(gradient, layer, x, upstream) for name, layer in layers.items()},
        "gradient of a network": {name: partial(gradient, module, images, weights) for name, module in networks.items()},
    }


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured = {column: alternate(runs, options.rounds) for column, runs in columns().items()}
    print(f"## {options.threads} thread(s)\n\n{machine_line(options.threads)}; {options.rounds} rounds\n")
    rows = []
    for name in ACTIVATIONS:
        cells: list[object] = [name]
        for seconds in measured.values():
            cells += [f"{1000 * spread(seconds[name]).median:.1f}", ratio(seconds[name], seconds["ReLU"])]
        rows.append(cells)
    header = ["activation"]
    for column in measured:
        header += [f"{column}, ms", "times ReLU"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
