"""Measure input gradients a second: kwbench's passes in each precision, and bare loops in plain torch.

    python bench/speed/throughput.py [--network wrn28-10] [--batches 64,256,1024] [--rounds 5] [--device auto]

The weights are seeded, the images (3, 32, 32) random. All sides take turns in one process. The bare loops are exact float32,
float32 with the defaults of torch (TF32 in convolutions), and mixed bfloat16 with channels last. The share is the throughput
relative to the fastest bare loop of the same batch. Memory is the peak beyond weights and images, on a GPU. Writes Markdown to
stdout.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from measure import alternate, machine_line, markdown_table, peak_memory, ratio, spread, torch_defaults, waiting
from torch import Tensor, nn

from kwbench.model import Model, Precision, find_device, has_bfloat16, keep_freed_memory, precisions_on, require_exact_float32
from kwbench.networks.activations import Kwta
from kwbench.networks.architectures.resnet import ResNet18
from kwbench.networks.architectures.wide_resnet import WideResNet

SHAPE = (3, 32, 32)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "wrn28-10": lambda: WideResNet(3, 10, nn.ReLU, depth=28, widen=10),
    "wrn10-1": lambda: WideResNet(3, 10, nn.ReLU, depth=10, widen=1),
    "resnet18": lambda: ResNet18(3, 10, nn.ReLU),
    "resnet18-kwta0.1": lambda: ResNet18(3, 10, lambda: Kwta("0.1")),
}


def seeded(name: str, device: torch.device) -> nn.Module:
    """Return a network in evaluation mode whose parameters need no gradients, with the same weights on each call."""
    torch.manual_seed(0)
    return NETWORKS[name]().eval().requires_grad_(False).to(device)


def gradient(forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the gradient of the sum of the logits by the pixels."""
    leaf = images.clone().requires_grad_()
    return torch.autograd.grad(forward(leaf).float().sum(), leaf)[0]


def bare_sides(network: nn.Module, channels_last: nn.Module, images: Tensor) -> dict[str, Callable[[], object]]:
    """Return the loops in plain torch, one batch each; `channels_last` is a copy of the network."""
    stored = images.contiguous(memory_format=torch.channels_last)

    def with_defaults() -> None:
        with torch_defaults():
            gradient(network, images)

    def in_bfloat16() -> None:
        with torch.autocast(images.device.type, torch.bfloat16):
            gradient(channels_last, stored)

    sides: dict[str, Callable[[], object]] = {"bare, float32": partial(gradient, network, images)}
    if images.device.type == "cuda":
        sides["bare, float32 with TF32"] = with_defaults
    if has_bfloat16(images.device):
        sides["bare, bfloat16"] = in_bfloat16
    return sides


def own_sides(network: nn.Module, images: Tensor) -> dict[str, Callable[[], object]]:
    """Return the passes of kwbench in each precision, with tiles of the batch."""
    model = Model(network, name="network", classes=10, shape=SHAPE, device=images.device, tile=len(images))
    model.plan_passes(images)

    def side(precision: Precision) -> None:
        with model.computing_in(precision):
            gradient(model, images)

    return {f"kwbench, {precision}": partial(side, precision) for precision in precisions_on(images.device)}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="wrn28-10")
    parser.add_argument("--batches", default="64,256,1024")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    require_exact_float32()
    keep_freed_memory()
    device = find_device(options.device)
    network = seeded(options.network, device)
    channels_last = seeded(options.network, device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    print(f"{options.network}; {options.rounds} rounds; {machine_line(options.threads, device)}\n")
    header = ["batch", "passes", "gradients a second", "share of the fastest bare loop", "memory, MiB"]
    print(markdown_table(header, []), flush=True)
    for size in map(int, options.batches.split(",")):
        images = torch.rand(size, *SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
        bare = bare_sides(network, channels_last, images)
        sides = {name: waiting(run, device) for name, run in (bare | own_sides(network, images)).items()}
        seconds = alternate(sides, options.rounds)
        fastest = min(bare, key=lambda name: spread(seconds[name]).median)
        for name, side in sides.items():
            rate = size / spread(seconds[name]).median
            share = ratio(seconds[fastest], seconds[name])
            print(f"| {size} | {name} | {rate:,.0f} | {share} | {peak_memory(side, device)} |", flush=True)


if __name__ == "__main__":
    main()
