"""Where a claim can be measured: by which suite, on which of our networks, and on which as the paper has it."""

from dataclasses import dataclass
from typing import Literal

from kwbench.claims.claim import CLEAN, WORST, Claim

Reading = Literal["clean", "attack", "worst", "count"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """The attacks of a suite that measure a claim, the paper's reading first, then others.

    `reading`: the accuracy without an attack, under each of `labels`, the least over the attacks of the paper's table, or what
    a tool counts that runs `labels` one after the other.
    """

    suite: str
    reading: Reading
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a claim can be measured.

    `model`: our network that stands for the paper's, None where there is none; `differs`: in what. `full_size`: the network as
    the paper has it, an entry of the registry that `kwbench claims --registry FILE` writes, None where ours is that.
    `why_not`: why nothing measured here could be compared with the claim; empty otherwise, and then one of them is named.
    """

    protocol: Protocol | None
    model: str | None
    differs: str
    full_size: str | None
    why_not: str

    @property
    def comparable(self) -> bool:
        """Whether a measurement can be set beside the claim."""
        return not self.why_not


# How the papers' words become names of ours.
_DATASETS = {"CIFAR-10": "cifar10", "SVHN": "svhn", "MNIST": "mnist"}
_ACTIVATIONS = {
    "ReLU": "relu",
    "k-WTA-0.1": "kwta0.1",
    "k-WTA-0.2": "kwta0.2",
    "LWTA-0.1": "lwta0.1",
    "LWTA-0.2": "lwta0.2",
    "stochastic LWTA": "slwta2",
}
_ARCHITECTURES = {
    "ResNet-18": "resnet18",
    "DenseNet-121": "densenet121",
    "WideResNet-22-10": "wrn22-10",
    "WideResNet-34-1": "wrn34-1",
    "WideResNet-34-5": "wrn34-5",
    "WideResNet-34-10": "wrn34-10",
    "AlexNet": "alexnet",
    "3-layer CNN": "cnn3",
}
_TRAININGS = {"Natural": "", "AT": "-at", "TRADES": "-trades", "FAT": "-free", "AT (PGD)": "-at"}

PUBLISHED = "cifar10/wrn34-1-slwta-panousis2021"

# By the training that hicheur2024's table names.
_HICHEUR = {
    "Regular training": "lenet",
    "Noise Injection": "lenet-pni",
    "Smoothing": "lenet-smoothing",
    "Smoothing, PGD": "lenet-smoothing-pgd",
    "Smoothing, PGD, FGSM": "lenet-smoothing-pgd-fgsm",
    "Smoothing, PGD, FGSM, CW": "lenet-smoothing-pgd-fgsm-cw",
    "Smoothing, PGD, FGSM, CW + Noise Injection": "lenet-pni-smoothing-pgd-fgsm-cw",
}

_OTHERS = "a figure of other authors' networks, quoted from {}; the paper neither trained nor attacked them"
_AGGREGATE = "an aggregate of two norms above 100 %, which no accuracy can be"

_WIDTH_16 = "width 16 where the paper has 64, fewer epochs, trained on a JPEG copy of CIFAR-10"
_FAST = "trained adversarially by single steps from a random start (fast) where the paper takes 8 steps of PGD"
_COPIES = "sources are copies of the same kind and size as ours"

_XIAO_TRANSFER = {
    "BB": "bb",
    "transfer from ReLU": "from-relu",
    "transfer from k-WTA-0.1": "from-kwta0.1",
    "transfer from ReLU (AT)": "from-relu-at",
    "transfer from k-WTA-0.1 (AT)": "from-kwta0.1-at",
}
_XIAO_NATURAL = {
    "gaussian noise 0.05": "gaussian-0.05",
    "gaussian noise 0.1": "gaussian-0.1",
    "translation": "translation",
    "rotation": "rotation",
    "color jitter": "colour-jitter",
}
_LABELS: dict[str, dict[str, tuple[str, ...]]] = {
    "xiao2020": {"PGD": ("pgd",), "C&W": ("cw", "cw-linf"), "DeepFool": ("deepfool",), "MIM": ("mim",)},
    "costa2020": {"PGD": ("pgd", "pgd-absolute"), "DeepFool": ("deepfool",)},
    "panousis2021": {
        "PGD-20": ("pgd",),
        "APGD-CE + EoT 20": ("apgd-ce-eot",),
        "APGD-DLR + EoT 20": ("apgd-dlr-eot",),
    },
    "hicheur2024": {
        "FGSM": ("fgsm",),
        "PGD": ("pgd", "pgd-10"),
        "PGD (L2 and Linf aggregated)": ("pgd", "pgd-10"),
        "C&W": ("cw", "cw-50"),
    },
}
_AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")


def protocol_of(claim: Claim) -> Protocol | None:
    """What measures a claim; None where no suite has it."""
    natural = claim.paper == "xiao2020" and claim.table == "5"
    if claim.attack in CLEAN:
        return Protocol("xiao2020-natural" if natural else claim.paper, "clean")
    if claim.attack == WORST:
        return Protocol(claim.paper, "worst")
    if claim.attack == "AutoAttack":
        return Protocol(claim.paper, "count", _AUTOATTACK)
    if natural and claim.attack in _XIAO_NATURAL:
        return Protocol("xiao2020-natural", "attack", (_XIAO_NATURAL[claim.attack],))
    if claim.paper == "xiao2020" and claim.attack in _XIAO_TRANSFER:
        return Protocol("xiao2020-transfer", "attack", (_XIAO_TRANSFER[claim.attack],))
    labels = _LABELS[claim.paper].get(claim.attack)
    return None if labels is None else Protocol(claim.paper, "attack", labels)


def place_of(claim: Claim) -> Place:
    """Where a claim can be measured, or why it cannot."""
    protocol = protocol_of(claim)
    if claim.architecture == "see paper":
        return Place(None, None, "", None, _OTHERS.format(f"the {claim.quoted_from}"))
    if claim.percent > 100:
        return Place(None, None, "", None, _AGGREGATE)
    model, differs = _ours(claim)
    full_size = None if model is not None and not differs else _full_size(claim)
    return Place(protocol, model, differs, full_size, "" if protocol is not None else "no suite has this attack")


def _ours(claim: Claim) -> tuple[str | None, str]:
    """The network of the registry that stands for the claim's, and in what it differs; equal networks differ in nothing."""
    activation = _ACTIVATIONS[claim.activation]
    if claim.paper == "hicheur2024" and claim.training in _HICHEUR:
        return f"cifar10/{_HICHEUR[claim.training]}", "sizes of layers and length of training are ours: the paper names neither"
    if claim.dataset == "MNIST":
        differs = "sizes of layers and batches are ours: the paper says 3 layers, 20 epochs, a learning rate of 0.01"
        return f"mnist/cnn3-{activation}{_TRAININGS[claim.training]}", differs
    if (claim.paper, claim.architecture, activation) == ("panousis2021", "WideResNet-34-1", "slwta2"):
        return PUBLISHED, ""
    here = claim.dataset == "CIFAR-10" and claim.architecture == "ResNet-18" and claim.training in ("Natural", "AT")
    if not here or claim.pretrained != "no":
        return None, ""
    differences = [_WIDTH_16]
    if claim.training == "AT":
        differences.append(_FAST)
    if claim.attack.startswith("transfer from"):
        differences.append(_COPIES)
    if claim.paper == "costa2020":
        differences.append("images of 32 pixels and the stem for them where the paper scales up to 224")
    return f"cifar10/resnet18-w16-{activation}{'-fast' if claim.training == 'AT' else ''}", "; ".join(differences)


def _full_size(claim: Claim) -> str | None:
    """The name of the claim's network as the paper has it."""
    if claim.architecture == "3-layer CNN" or claim.training in _HICHEUR:
        return None
    architecture = _ARCHITECTURES[claim.architecture]
    if claim.paper == "costa2020" and architecture == "resnet18":
        architecture = "resnet18-224"
    prior = "-ibp" if claim.paper == "hicheur2024" else ""
    pretrained = "-pretrained" if claim.pretrained == "imagenet" else ""
    name = f"{architecture}-{_ACTIVATIONS[claim.activation]}{prior}{_TRAININGS[claim.training]}{pretrained}"
    return f"{_DATASETS[claim.dataset]}/{name}"
