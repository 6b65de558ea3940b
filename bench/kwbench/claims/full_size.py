"""The papers' own networks at full size, as registry entries: recipes for training on a GPU, without checkpoints.

A setting that a paper does not state is taken from the code that it names or from the other papers; a comment here says so.
Some are stated nowhere and are our choice: Nesterov momentum, Kaiming initialisation, half precision, the weight decay unless
an entry names another, and that ImageNet weights get normalised pixels, as torchvision trained them.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import cache
from io import StringIO
from typing import Any

from ruamel.yaml import YAML

from kwbench.config.registry import ModelEntry
from kwbench.config.strict_yaml import validate

Section = dict[str, Any]

_TITLE = "# The networks of the papers as they have them. Train one: kwbench train NAME --registry THIS --pin --device cuda"

# eps of attacks and adversarial training, by data set (xiao2020 4.1, D.1).
_EPS = {"cifar10": "0.031", "svhn": "0.047", "mnist": "0.3"}

# torchvision's ImageNet weights.
_IMAGENET = {
    "alexnet": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "resnet18-224": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
}

# The mean and standard deviation of ImageNet's channels, with which those weights were trained.
_NORMALISE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

_ACTIVATIONS: dict[str, Section] = {
    "relu": {"name": "relu"},
    "kwta0.1": {"name": "kwta", "gamma": 0.1},
    "kwta0.2": {"name": "kwta", "gamma": 0.2},
    "lwta0.1": {"name": "lwta", "gamma": 0.1},
    "lwta0.2": {"name": "lwta", "gamma": 0.2},
    "slwta2": {"name": "stochastic_lwta", "units": 2},
}

_ARCHITECTURES: dict[str, Section] = {
    "resnet18": {"name": "resnet18", "width": 64},
    "densenet121": {"name": "densenet121"},
    "wrn22-10": {"name": "wide_resnet", "depth": 22, "widen": 10},
    "wrn34-1": {"name": "wide_resnet", "depth": 34, "widen": 1},
    "wrn34-5": {"name": "wide_resnet", "depth": 34, "widen": 5},
    "wrn34-10": {"name": "wide_resnet", "depth": 34, "widen": 10},
    "alexnet": {"name": "alexnet"},
    "resnet18-224": {"name": "resnet18_imagenet", "width": 64},
    "vgg19": {"name": "vgg19"},
    # The paper does not state the sizes; these are our choice.
    "cnn3": {"name": "cnn3", "width": 16, "hidden": 128},
}

# Shifts by up to 4 pixels and mirrored images, for "random crop and random flip".
_AUGMENTED = {"seed": 0, "shift": 4, "flip": True, "precision": "bfloat16"}

# xiao2020 D.1: 0.1 for 50 epochs, 0.01 for 30, batches of 256.
_XIAO = {
    **_AUGMENTED,
    "epochs": 80,
    "learning_rate": 0.1,
    "batch_size": 256,
    "schedule": {"kind": "drop", "after": 50, "factor": 0.1},
}

# xiao2020 2.2 and D.1: 50 epochs at gamma = 0.2, then gamma falls by 0.005 every 2 epochs; the learning rate is not stated.
_INCREMENTAL = {
    **_AUGMENTED,
    "epochs": 50,
    "learning_rate": 0.1,
    "batch_size": 256,
    "schedule": {"kind": "constant"},
    "incremental": {"start": 0.2, "step": "0.005", "epochs": 2, "learning_rate": 0.01},
}


@cache
def full_size_entries() -> Mapping[str, ModelEntry]:
    """Return the networks that `map_claim` names as `full_size` and the surrogates of transfer attacks, by name."""
    return {name: validate(ModelEntry, entry, name) for name, entry in _entries()}


def full_size_registry() -> str:
    """Return these entries as the text of a registry file."""
    yaml, stream = YAML(), StringIO()
    yaml.default_flow_style = None
    yaml.width = 1 << 20
    yaml.dump({"models": dict(_entries())}, stream)
    return f"{_TITLE}\n{stream.getvalue()}"


def _entries() -> Iterator[tuple[str, Section]]:
    for dataset in ("cifar10", "svhn"):
        yield f"{dataset}/vgg19", _entry("vgg19", "relu", _XIAO)
        for activation in ("relu", "kwta0.1", "kwta0.2"):
            for training, train in _TRAININGS.items():
                yield f"{dataset}/resnet18-{activation}{training}", _entry("resnet18", activation, train(dataset, activation))
            for architecture, address in _IMAGENET.items():
                name = f"{dataset}/{architecture}-{activation}"
                yield name, _entry(architecture, activation, _costa())
                tuned = _entry(architecture, activation, _costa(address))
                yield f"{name}-pretrained", tuned | {"normalise": deepcopy(_NORMALISE)}
    for architecture in ("resnet18", "densenet121", "wrn22-10"):
        activations = ("lwta0.1", "lwta0.2") if architecture == "resnet18" else tuple(_ACTIVATIONS)[:5]
        for activation in activations:
            for training in ("", "-at"):
                recipe = _TRAININGS[training]("cifar10", activation)
                yield f"cifar10/{architecture}-{activation}{training}", _entry(architecture, activation, recipe)
    for activation in ("relu", "kwta0.1"):
        for training in ("", "-at"):
            recipe = {**_TRAININGS[training]("cifar10", activation), "seed": 1}
            yield f"cifar10/resnet18-{activation}{training}-copy", _entry("resnet18", activation, recipe)
    for architecture in ("wrn34-1", "wrn34-5", "wrn34-10"):
        for activation in ("relu", "slwta2"):
            if (architecture, activation) != ("wrn34-1", "slwta2"):  # the authors published it
                yield f"cifar10/{architecture}-{activation}-at", _entry(architecture, activation, _PANOUSIS)
    for activation in ("relu", "kwta0.1"):
        for training, recipe in _MNIST.items():
            yield f"mnist/cnn3-{activation}{training}-paper", _entry("cnn3", activation, recipe)
    prior = _entry("wrn34-1", "slwta2", _HICHEUR)
    yield "cifar10/wrn34-1-slwta2-ibp-at", prior | {"architecture": {**_ARCHITECTURES["wrn34-1"], "name": "wide_resnet_ibp"}}


def _entry(architecture: str, activation: str, recipe: Mapping[str, Any]) -> Section:
    # Copied, because YAML would write shared values as anchors, which registries reject.
    return deepcopy(
        {"architecture": _ARCHITECTURES[architecture], "activation": _ACTIVATIONS[activation], "recipe": dict(recipe)}
    )


def _natural(dataset: str, activation: str) -> Section:
    return _INCREMENTAL if activation == "kwta0.1" else _XIAO


def _adversarial(dataset: str, activation: str) -> Section:
    # "untargeted PGD attack with 8 iterations"; the step size is not stated.
    return {**_XIAO, "adversarial": {"eps": _EPS[dataset], "steps": 8, "step_size": "0.01"}}


def _trades(dataset: str, activation: str) -> Section:
    # 1 / lambda = 6; the other settings are from the authors' code.
    return {**_XIAO, "trades": {"eps": _EPS[dataset], "steps": 10, "step_size": "0.007", "beta": 6.0}}


def _free(dataset: str, activation: str) -> Section:
    # m = 8 replays, and an eighth of the epochs.
    schedule = {"kind": "drop", "after": 6, "factor": 0.1}
    return {**_XIAO, "epochs": 10, "schedule": schedule, "free": {"eps": _EPS[dataset], "replays": 8}}


_TRAININGS: dict[str, Callable[[str, str], Section]] = {"": _natural, "-at": _adversarial, "-trades": _trades, "-free": _free}


# xiao2020 D.4: a learning rate of 0.01 and 20 epochs. It does not state the sizes of the three layers, the batch size or the
# step size of adversarial training. TRADES is as in its authors' code for MNIST.
_MNIST_NATURAL = {"seed": 0, "epochs": 20, "learning_rate": 0.01, "schedule": {"kind": "constant"}}
_MNIST = {
    "": _MNIST_NATURAL,
    "-at": {**_MNIST_NATURAL, "adversarial": {"eps": _EPS["mnist"], "steps": 8, "step_size": "0.1"}},
    "-trades": {**_MNIST_NATURAL, "trades": {"eps": _EPS["mnist"], "steps": 40, "step_size": "0.01", "beta": 6.0}},
    # "20 epochs for all the methods", here with 8 passes over the images in each epoch; the authors of free training divide
    # the number of epochs by 8 instead.
    "-free": {**_MNIST_NATURAL, "free": {"eps": _EPS["mnist"], "replays": 8}},
}


def _costa(pretrained: str | None = None) -> Section:
    """The recipe of costa2020, section 3.2; with `pretrained`, fine-tuning of the weights at that address."""
    common = {**_AUGMENTED, "batch_size": 64, "clip_norm": 0.5}
    if pretrained is not None:
        tuned = {"epochs": 10, "learning_rate": 0.01, "schedule": {"kind": "constant"}}
        return {**common, **tuned, "pretrained": pretrained}
    return {**common, "epochs": 80, "learning_rate": 0.1, "schedule": {"kind": "drop", "after": 50, "factor": 0.1}}


# panousis2021 3: batches of 128, the learning rate halved at every epoch after the 75th. The checkpoint states 100 epochs, and
# the adversary is that of Wu et al.
_PANOUSIS = {
    **_AUGMENTED,
    "epochs": 100,
    "learning_rate": 0.1,
    "batch_size": 128,
    "schedule": {"kind": "drop", "after": 75, "factor": 0.5, "repeat": True},
    "adversarial": {"eps": "8/255", "steps": 10, "step_size": "0.007"},
}

# hicheur2024, "Parameters".
_HICHEUR = {
    **_AUGMENTED,
    "epochs": 30,
    "learning_rate": 0.1,
    "schedule": {"kind": "constant"},
    "adversarial": {"eps": "8/255", "steps": 20, "step_size": "0.007"},
}
