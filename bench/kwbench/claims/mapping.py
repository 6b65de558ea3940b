"""How each claim can be measured: by which suite, on which of our networks, and on which network of full size."""

from dataclasses import dataclass
from typing import Literal

from kwbench.claims.claim import PAPERS, WORST, Claim

Reading = Literal["clean", "attack", "worst", "count", "natural"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """The attacks of a suite that measure a claim, the paper's reading first, then other readings.

    `reading` is the number to compare:
        clean: The accuracy without an attack.
        attack: The accuracy under each of `labels`.
        worst: The lowest accuracy under the attacks of the paper's table, and that under each of `labels` as other readings.
        count: The accuracy that a tool reports that runs `labels` one after the other.
        natural: The share of images that are right under a natural perturbation, including those that are wrong without it.
    """

    suite: str
    reading: Reading
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClaimMapping:
    """How a claim can be measured.

    Args:
        model: Our network that stands in for the paper's; None if there is none.
        differs: Differences between the two beyond those of their registry entries.
        full_size: The paper's network, an entry of the registry that `kwbench claims --registry FILE` writes; None if `model`
            is that network, or if the paper does not describe it.
        why_not: Why no measurement could be compared with the claim; empty if `model` or `full_size` is given.
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


# The papers' names and ours.
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

# Our networks by the training that the table of hicheur2024 names.
_HICHEUR = {
    "Regular training": "lenet",
    "Noise Injection": "lenet-pni",
    "Smoothing": "lenet-smoothing",
    "Smoothing, PGD": "lenet-smoothing-pgd",
    "Smoothing, PGD, FGSM": "lenet-smoothing-pgd-fgsm",
    "Smoothing, PGD, FGSM, CW": "lenet-smoothing-pgd-fgsm-cw",
    "Smoothing, PGD, FGSM, CW + Noise Injection": "lenet-pni-smoothing-pgd-fgsm-cw",
}

_OTHERS = "a number for other authors' networks, quoted from {}; the paper neither trained nor attacked them"
_AGGREGATE = "an aggregate of two norms above 100 %, which no accuracy can be"

_SOURCES = "the sources have width 16, too"
_BLACK_BOX = "the source is a VGG19 of width 16"
_STEM = "images of 32 pixels with a stem for that size, where the paper scales them up to 224"
_CNN3 = "the paper does not state the sizes of the three layers; we chose them"
_LENET = "the paper states neither the sizes of the layers nor the length of training; we chose both"

_TRANSFER_SOURCES = {
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
    **{("xiao2020", attack): Protocol("xiao2020-transfer", "attack", (label,)) for attack, label in _TRANSFER_SOURCES.items()},
    **{("xiao2020", attack): Protocol("xiao2020-natural", "natural", (label,)) for attack, label in _PERTURBATIONS.items()},
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

# The step size of appendix D.4 and, as another reading, that of the authors' public code.
_WORST_ON_MNIST = Protocol("xiao2020", "worst", ("pgd-0.01",))


def protocol_of(claim: Claim) -> Protocol | None:
    """Return the protocol that measures a claim; None if no suite has its attack."""
    if (claim.paper, claim.dataset, claim.attack) == ("xiao2020", "MNIST", WORST):
        return _WORST_ON_MNIST
    return _PROTOCOLS.get((claim.paper, claim.attack))


def map_claim(claim: Claim) -> ClaimMapping:
    """Return how a claim can be measured, or why it cannot be compared."""
    protocol = protocol_of(claim)
    if claim.architecture == "see paper":
        return ClaimMapping(None, None, (), None, _OTHERS.format(f"the {claim.quoted_from}"))
    if claim.percent > 100:
        return ClaimMapping(None, None, (), None, _AGGREGATE)
    return ClaimMapping(protocol, *_ours(claim), _full_size(claim), "" if protocol is not None else "no suite has this attack")


def _ours(claim: Claim) -> tuple[str | None, tuple[str, ...]]:
    """Our network that stands in for the claim's, and the differences beyond those of the registry entries."""
    activation = _ACTIVATIONS[claim.activation]
    if claim.paper == "hicheur2024" and claim.training in _HICHEUR:
        return f"cifar10/{_HICHEUR[claim.training]}", (_LENET,)
    if claim.dataset == "MNIST":
        return f"mnist/cnn3-{activation}{_TRAININGS[claim.training]}", (_CNN3,)
    if (claim.paper, claim.architecture, activation) == ("panousis2021", "WideResNet-34-1", "slwta2"):
        return PUBLISHED, ()
    available = claim.dataset == "CIFAR-10" and claim.architecture == "ResNet-18" and claim.training in ("Natural", "AT")
    if not available or claim.pretrained != "no":
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
    """The registry name of the paper's own network."""
    if claim.training in _HICHEUR or (claim.architecture, claim.activation) == ("WideResNet-34-1", "stochastic LWTA"):
        return None if claim.paper != "hicheur2024" or claim.training in _HICHEUR else f"cifar10/{_IBP}"
    architecture = _ARCHITECTURES[claim.architecture]
    if claim.paper == "costa2020" and architecture == "resnet18":
        architecture = "resnet18-224"
    training = _TRAININGS[claim.training]
    # Our small network has the name without a suffix.
    suffix = "-pretrained" if claim.pretrained == "imagenet" else "-paper" if architecture == "cnn3" else ""
    return f"{DATASETS[claim.dataset]}/{architecture}-{_ACTIVATIONS[claim.activation]}{training}{suffix}"
