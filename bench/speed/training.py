"""Measure images a second in training, beside a bare loop of the same passes.

    python bench/speed/training.py [--width 64] [--n 10000] [--batch-sizes 128,512] [--rounds 3] [--device auto]

An epoch of `kwbench train` of ResNet-18 on random images (3, 32, 32), with usual augmentation, in mixed bfloat16 where the
machine has it: natural, fast adversarial (one step) and adversarial training (PGD-10). The bare loop takes as many forward and
backward passes in plain torch, with channels last, without optimiser, augmentation and adversary. Both take turns in one
process, after an epoch that is not timed. Writes Markdown to stdout.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from measure import alternate, machine_line, markdown_table, ratio, spread, waiting
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.config.registry import ModelEntry
from kwbench.config.strict_yaml import validate
from kwbench.data import DataSet, Split
from kwbench.model import find_device, has_bfloat16
from kwbench.networks.architectures.resnet import ResNet18
from kwbench.threat import ThreatModel
from kwbench.training import train

# The trainings, with their passes forward and backward for each image.
TRAININGS: Mapping[str, tuple[dict[str, Any], int]] = {
    "natural": ({}, 1),
    "fast": ({"fast": {"eps": "8/255"}}, 2),
    "PGD-10": ({"adversarial": {"eps": "8/255", "steps": 10, "step_size": "2/255"}}, 11),
}


def random_images(n: int) -> DataSet:
    """Return n random training images (3, 32, 32), and no others to speak of."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    split = Split(images, draw.integers(0, 10, n))
    few = Split(images[:2], split.labels[:2])
    return DataSet("cifar10", 10, few, split, few.empty(), ThreatModel.of("linf", "8/255"))


def entry_of(width: int, batch_size: int, precision: str, training: dict[str, Any]) -> ModelEntry:
    """Return an entry that trains for one epoch."""
    recipe = {"epochs": 1, "learning_rate": 0.01, "seed": 0, "batch_size": batch_size, "precision": precision}
    recipe |= {"shift": 4, "flip": True} | training
    network = {"name": "resnet18", "width": width}
    return validate(ModelEntry, {"architecture": network, "activation": {"name": "relu"}, "recipe": recipe}, "training.py")


def bare_passes(network: nn.Module, x: Tensor, y: Tensor, batch_size: int, passes: int, bfloat16: bool) -> None:
    """Take so many forward and backward passes over each batch; the last one by the weights, the others by the pixels."""
    for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):  # type: ignore[no-untyped-call]
        for number in range(passes):
            leaf = images.detach().requires_grad_(number < passes - 1)
            network.requires_grad_(number == passes - 1)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
                logits = network(leaf)
            F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        network.zero_grad()


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--n", type=int, default=10_000, help="images of an epoch (default: 10000)")
    parser.add_argument("--batch-sizes", default="128,512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = find_device(options.device)
    bfloat16 = has_bfloat16(device)
    precision = "bfloat16" if bfloat16 else "float32"
    dataset = random_images(options.n)
    images = dataset.train.batch(range(options.n)).to(device)
    x = images.x.contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    network = ResNet18(3, 10, nn.ReLU, width=options.width).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    about = f"{precision}; {options.rounds} rounds; {machine_line(options.threads, device)}"
    print(f"ResNet-18, width {options.width}; {options.n} images; {about}\n")
    header = ["batch", "training", "images a second", "passes an image", "share of the bare loop"]
    print(markdown_table(header, []), flush=True)
    for batch_size in map(int, options.batch_sizes.split(",")):
        for name, (training, passes) in TRAININGS.items():
            entry = entry_of(options.width, batch_size, precision, training)
            sides: dict[str, Callable[[], object]] = {
                "kwbench": waiting(partial(train, entry, dataset, lambda _: None, str(device)), device),
                "bare": waiting(partial(bare_passes, network, x, images.y, batch_size, passes, bfloat16), device),
            }
            seconds = alternate(sides, options.rounds)
            rate = options.n / spread(seconds["kwbench"]).median
            share = ratio(seconds["bare"], seconds["kwbench"])
            print(f"| {batch_size} | {name} | {rate:,.0f} | {passes} | {share} |", flush=True)


if __name__ == "__main__":
    main()
