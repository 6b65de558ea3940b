"""Time of winner-take-all activations, compared with ReLU and with their papers' formulas.

    python bench/speed/activations.py [--threads 2] [--rounds 21] [--samples 128] [--device auto]

All activations take turns in one process, on the same random values: (128, 64, 32, 32) float32, or
another number of samples, for the layers. A column holds
the median time, and median and quartiles of the ratio to ReLU in the same round. The networks are ResNet-18 of width 16 with
the CIFAR stem, on as many images; the gradient is that of the pixels only. Writes Markdown to stdout, as in activations.md.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial

import torch
from measure import alternate, machine_line, markdown_table, ratio, spread, waiting
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.model import find_device
from kwbench.networks.activations import Kwta, Lwta, StochasticLwta
from kwbench.networks.architectures.resnet import ResNet18

# Of one sample.
SHAPE = (64, 32, 32)
IMAGE = (3, 32, 32)


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


def columns(samples: int, device: torch.device) -> Mapping[str, dict[str, Callable[[], object]]]:
    """Return what is timed, by column and activation."""
    torch.manual_seed(0)
    x, images = torch.randn(samples, *SHAPE).to(device), torch.rand(samples, *IMAGE).to(device)
    upstream, weights = torch.randn(samples, *SHAPE).to(device), torch.randn(samples, 10).to(device)
    layers = {name: make().eval().to(device) for name, make in ACTIVATIONS.items()}
    networks = {name: network(make).to(device) for name, make in ACTIVATIONS.items()}
    runs: dict[str, dict[str, Callable[[], object]]] = {
        "forward": {name: partial(forward, layer, x) for name, layer in layers.items()},
        "forward and backward": {name: partial(gradient, layer, x, upstream) for name, layer in layers.items()},
        "gradient of a network": {name: partial(gradient, module, images, weights) for name, module in networks.items()},
    }
    return {column: {name: waiting(run, device) for name, run in by_name.items()} for column, by_name in runs.items()}


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = find_device(options.device)
    measured = {column: alternate(runs, options.rounds) for column, runs in columns(options.samples, device).items()}
    about = f"{machine_line(options.threads, device)}; {options.samples} samples; {options.rounds} rounds"
    print(f"## {options.threads} thread(s)\n\n{about}\n")
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
