"""Where a claim can be measured: by which suite, on which of our networks, and on which as the paper has it."""

from dataclasses import dataclass
from typing import Literal

from kwbench.claims.claim import PAPERS, WORST, Claim

Reading = Literal["clean", "attack", "worst", "count", "natural"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """The attacks of a suite that measure a claim, the paper's reading first, then others.

    `reading`: the accuracy without an attack, under each of `labels`, the least over the attacks of the paper's table (and then
    that under each of `labels`, in other readings), what a tool counts that runs `labels` one after the other, or the share of
    images that are right under a natural perturbation, whatever they were before.
    """

    suite: str
    reading: Reading
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClaimMapping:
    """Where a claim can be measured.

    `model`: our network that stands for the paper's, None where there is none; `differs`: in what besides what their entries
    say. `full_size`: the network as the paper has it, an entry of the registry that `kwbench claims --registry FILE` writes,
    None where ours is that, or the paper does not say how it is.
    `why_not`: why nothing measured here could be compared with the claim; empty otherwise, and then one of them is named.
    """

    protocol: Protocol | None
    model: str | None
    differs: tuple[str, ...]
    full_size: str | None
    why_not: str

    @property
    def comparable(self) -> bool:
        """Whether a measurement can be set beside the claim."""
        return not self.why_not


# How the papers' words become names of ours.
DATASETS = {"CIFAR-10": "cifar10", "SVHN": "svhn", "MNIST": "mnist"}
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
_IBP = "wrn34-1-slwta2-ibp-at"

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

_SOURCES = "sources of width 16 as well"
_BLACK_BOX = "the source is a VGG19 of width 16"
_STEM = "images of 32 pixels and the stem for them where the paper scales up to 224"
_CNN3 = "the paper does not name the sizes of the three layers; they are ours"
_LENET = "the paper names neither sizes of layers nor length of training; both are ours"

_SOURCES_OF_TABLE_3 = {
    "transfer from ReLU": "from-relu",
    "transfer from k-WTA-0.1": "from-kwta0.1",
    "transfer from ReLU (AT)": "from-relu-at",
    "transfer from k-WTA-0.1 (AT)": "from-kwta0.1-at",
}
_PERTURBATIONS = {
    "gaussian noise 0.05": "gaussian-0.05",
    "gaussian noise 0.1": "gaussian-0.1",
    "translation": "translation",
    "rotation": "rotation",
    "color jitter": "colour-jitter",
}

# By paper and attack.
_PROTOCOLS: dict[tuple[str, str], Protocol] = {
    ("xiao2020", "PGD"): Protocol("xiao2020", "attack", ("pgd",)),
    ("xiao2020", "C&W"): Protocol("xiao2020", "attack", ("cw", "cw-linf")),
    ("xiao2020", "DeepFool"): Protocol("xiao2020", "attack", ("deepfool",)),
    ("xiao2020", "MIM"): Protocol("xiao2020", "attack", ("mim",)),
    ("xiao2020", "BB"): Protocol("xiao2020-bb", "attack", ("bb",)),
    **{("xiao2020", each): Protocol("xiao2020-transfer", "attack", (label,)) for each, label in _SOURCES_OF_TABLE_3.items()},
    **{("xiao2020", each): Protocol("xiao2020-natural", "natural", (label,)) for each, label in _PERTURBATIONS.items()},
    ("xiao2020", "clean"): Protocol("xiao2020-natural", "clean"),
    ("costa2020", "PGD"): Protocol("costa2020", "attack", ("pgd", "pgd-absolute")),
    ("costa2020", "DeepFool"): Protocol("costa2020", "attack", ("deepfool",)),
    ("panousis2021", "PGD-20"): Protocol("panousis2021", "attack", ("pgd",)),
    ("panousis2021", "AutoAttack"): Protocol("panousis2021", "count", ("apgd-ce", "apgd-t", "fab-t", "square")),
    ("panousis2021", "APGD-CE + EoT 20"): Protocol("panousis2021", "attack", ("apgd-ce-eot",)),
    ("panousis2021", "APGD-DLR + EoT 20"): Protocol("panousis2021", "attack", ("apgd-dlr-eot",)),
    ("hicheur2024", "FGSM"): Protocol("hicheur2024", "attack", ("fgsm",)),
    ("hicheur2024", "PGD"): Protocol("hicheur2024", "attack", ("pgd", "pgd-10")),
    ("hicheur2024", "PGD (L2 and Linf aggregated)"): Protocol("hicheur2024", "attack", ("pgd", "pgd-10")),
    ("hicheur2024", "C&W"): Protocol("hicheur2024", "attack", ("cw", "cw-50")),
    **{(paper, "A_std"): Protocol(paper, "clean") for paper in PAPERS},
    ("xiao2020", WORST): Protocol("xiao2020", "worst"),
}

# Beside the step size that D.4 says, that of the authors' public code.
_WORST_ON_MNIST = Protocol("xiao2020", "worst", ("pgd-0.01",))


def protocol_of(claim: Claim) -> Protocol | None:
    """What measures a claim; None where no suite has it."""
    if (claim.paper, claim.dataset, claim.attack) == ("xiao2020", "MNIST", WORST):
        return _WORST_ON_MNIST
    return _PROTOCOLS.get((claim.paper, claim.attack))


def map_claim(claim: Claim) -> ClaimMapping:
    """Where a claim can be measured, or why it cannot."""
    protocol = protocol_of(claim)
    if claim.architecture == "see paper":
        return ClaimMapping(None, None, (), None, _OTHERS.format(f"the {claim.quoted_from}"))
    if claim.percent > 100:
        return ClaimMapping(None, None, (), None, _AGGREGATE)
    return ClaimMapping(protocol, *_ours(claim), _full_size(claim), "" if protocol is not None else "no suite has this attack")


def _ours(claim: Claim) -> tuple[str | None, tuple[str, ...]]:
    """The network of the registry that stands for the claim's, and in what it differs besides its entry."""
    activation = _ACTIVATIONS[claim.activation]
    if claim.paper == "hicheur2024" and claim.training in _HICHEUR:
        return f"cifar10/{_HICHEUR[claim.training]}", (_LENET,)
    if claim.dataset == "MNIST":
        return f"mnist/cnn3-{activation}{_TRAININGS[claim.training]}", (_CNN3,)
    if (claim.paper, claim.architecture, activation) == ("panousis2021", "WideResNet-34-1", "slwta2"):
        return PUBLISHED, ()
    here = claim.dataset == "CIFAR-10" and claim.architecture == "ResNet-18" and claim.training in ("Natural", "AT")
    if not here or claim.pretrained != "no":
        return None, ()
    differs = []
    if claim.attack.startswith("transfer from"):
        differs.append(_SOURCES)
    if claim.attack == "BB":
        differs.append(_BLACK_BOX)
    if claim.paper == "costa2020":
        differs.append(_STEM)
    return f"cifar10/resnet18-w16-{activation}{'-fast' if claim.training == 'AT' else ''}", tuple(differs)


def _full_size(claim: Claim) -> str | None:
    """The name of the claim's network as the paper has it."""
    if claim.training in _HICHEUR or (claim.architecture, claim.activation) == ("WideResNet-34-1", "stochastic LWTA"):
        return None if claim.paper != "hicheur2024" or claim.training in _HICHEUR else f"cifar10/{_IBP}"
    architecture = _ARCHITECTURES[claim.architecture]
    if claim.paper == "costa2020" and architecture == "resnet18":
        architecture = "resnet18-224"
    training = _TRAININGS[claim.training]
    # Ours has the plain name.
    suffix = "-pretrained" if claim.pretrained == "imagenet" else "-paper" if architecture == "cnn3" else ""
    return f"{DATASETS[claim.dataset]}/{architecture}-{_ACTIVATIONS[claim.activation]}{training}{suffix}"
