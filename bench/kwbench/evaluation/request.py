"""Request for an evaluation, and the facts that are known once its model, data and attacks are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from torch import nn

from kwbench.attacks import ATTACKS, default_parameters
from kwbench.attacks.external import Proposals
from kwbench.certification.certificate import Prospects
from kwbench.config.prediction import PredictionRule
from kwbench.config.registry import DEFAULT_DATASET, dataset_of
from kwbench.config.suite import Suite, SuiteAttack
from kwbench.data import AS_IT_IS, DataForm, DataSet, load_dataset
from kwbench.networks.adapters import is_adapted
from kwbench.networks.user_names import is_file_model
from kwbench.threat import ThreatModel

# Samples in a forward pass unless told otherwise. On a GPU, trials may choose more.
DEFAULT_TILE = 64


@dataclass(frozen=True)
class Request:
    """One model, one suite, and how to run it. None stands for the default of the suite or of the data set.

    `model` names a registry entry or a user's file, path/to/file.py:factory; or, where `module` is given, the module in memory
    that is evaluated in this process. `images` are images in memory, in place of a data set's.
    """

    model: str
    suite: Suite
    module: nn.Module | None = None
    images: DataSet | None = None
    registry: Path | None = None
    checkpoint: Path | None = None
    # The key of the state dict in the checkpoint of the user's own model, and what its names begin with.
    checkpoint_key: str | None = None
    strip_prefix: str = ""
    dataset: str | None = None
    data: Path | None = None
    # How `data` is read.
    form: DataForm = AS_IT_IS
    # Lists the classes of a folder of images in the order of their labels.
    classes: Path | None = None
    data_dir: Path | None = None
    download: bool = False
    split: Literal["test", "validation"] = "test"
    n: int | None = None
    norm: str | None = None
    eps: str | Fraction | None = None
    seed: int = 0
    # Samples in a forward pass, or in one of another size with the same bits; part of a run's identity. None stands for 64, and
    # on a GPU for larger tiles, chosen by trial.
    tile: int | None = None
    # Tiles that were chosen by trial for this evaluation, by kind of pass, which are taken as they are.
    tiles: Mapping[str, int] = field(default_factory=dict)
    # Samples attacked together; it bounds memory and what an interruption loses, and changes no row.
    batch_size: int = 256
    device: str = "auto"
    threads: int | None = None
    # `float32` keeps every search exact, `auto` only those that leave no choice; see `under`.
    precision: Literal["auto", "float32"] = "auto"
    # How a stochastic model predicts; None stands for the rule of its registry entry.
    prediction: PredictionRule | None = None
    # Whether the model's single logit an image becomes two classes.
    binary: bool = False
    # The class by which the model abstains.
    abstain_class: int | None = None
    # Whether a user's file is run in a confined process, which decides nothing; see `execution.outside`.
    untrusted: bool = False
    # Whether that process sees only the files that it needs; see `execution.sandbox`.
    sandbox: bool = False
    # Bytes that the processes of a user's file may hold in memory, if so many can be spared; None stands for all of those.
    memory_limit: float | None = None
    keep_adversarials: bool = False
    # Images made elsewhere, which attacks `external` of the suite propose; by label.
    proposals: Mapping[str, Proposals] = field(default_factory=dict)
    # The worst case of so many broken samples is stored for people to look at, if they are among so many first samples.
    examples: int = 200
    examples_among: int = 1000

    @property
    def tile_size(self) -> int:
        """Samples in a forward pass, before any trial."""
        return DEFAULT_TILE if self.tile is None else self.tile

    @property
    def in_registry(self) -> bool:
        """Whether the model is an entry of the registry."""
        return self.module is None and not (is_adapted(self.model) or is_file_model(self.model))

    @property
    def in_own_process(self) -> bool:
        """Whether the model is a user's file or of another library, whose code runs in a process of its own."""
        return self.module is None and not self.in_registry and not self.untrusted

    @property
    def dataset_name(self) -> str:
        """Name of the data set: the one asked for, else that of the model, else that of the user's own images."""
        if self.dataset is not None:
            return self.dataset
        if self.in_registry:
            return dataset_of(self.model)
        if self.images is not None:
            return self.images.name
        return DEFAULT_DATASET if self.data is None else self.data.stem

    def under(self, suite: Suite) -> "Request":
        """Return the request with a suite as it is on the data set, in the request's precision.

        Attacks that are named one by one search in precision `auto` unless they state another; a suite says so itself. With
        `float32` no attack searches in another, which belongs to the name of a suite that it changes.
        """
        suite = suite.on(self.dataset_name)
        if self.precision == "auto":
            named = [_in_auto(attack) for attack in suite.attacks] if suite.by_name else suite.attacks
            return replace(self, suite=replace(suite, attacks=tuple(named)))
        exact = tuple(_in_float32(attack) for attack in suite.attacks)
        # The checks of a diagnosis search too.
        changes = exact != suite.attacks or suite.diagnose
        name = f"{suite.name} with precision=float32" if changes else suite.name
        return replace(self, suite=replace(suite, name=name, attacks=exact))

    def load_images(self) -> DataSet:
        """Return the images in memory, or else read the data set. Raises as `load_dataset` does."""
        return self.images or load_dataset(
            self.dataset_name,
            data=self.data,
            classes=self.classes,
            form=self.form,
            data_dir=self.data_dir,
            download=self.download,
        )


def _in_auto(attack: SuiteAttack) -> SuiteAttack:
    """Return the attack in precision `auto`, if it has a precision and states none."""
    return replace(attack, parameters={"precision": "auto", **attack.parameters}) if _has_precision(attack) else attack


def _in_float32(attack: SuiteAttack) -> SuiteAttack:
    """Return the attack in float32, its default."""
    others = {name: value for name, value in attack.parameters.items() if name != "precision"}
    return replace(attack, parameters=others) if _has_precision(attack) else attack


def _has_precision(attack: SuiteAttack) -> bool:
    return attack.attack in ATTACKS and "precision" in default_parameters(attack.attack)


@dataclass(frozen=True)
class Facts:
    """What is known about an evaluation once everything is loaded, and what identifies its runs.

    `identity` holds everything about model and data that can change an outcome; `attacks` the identity of each attack by
    label. `after` lists the labels of which one must have gained before an attack runs; `not_applicable` says why an attack
    cannot be made for this model. Attacks in `cascade` see only samples that no earlier attack broke, and those in `screens`
    at first only so many of them. `passes` bounds an attack's forward and backward passes per sample. Attacks in `whole_tiles`
    must always be given the same tiles. `workers` is the number of evaluators worth running side by side, `threads` the
    threads of each; `draws_itself` says that there can be only one, see `Loaded`. `effective_sparsity` is the share of values
    that each winner-take-all layer keeps, by the layer's name. `class_names` are the names of the classes by label, empty
    where they have none. `parameters` is the number of the model's parameters. `notes` are what a reader of the numbers must
    know about the model, one clause each; `claimed` are the accuracies that its library states; `answers` are its fingerprint.
    `prospects` are those of a complete search, None for a suite without one. `tiles` are those that were chosen by trial, by
    kind of pass. `seconds` are those that loading took, by phase; see `execution.timings`.
    """

    model: str
    dataset: str
    samples: tuple[str, ...]
    threat: ThreatModel
    stochastic: bool
    device: str
    identity: dict[str, Any]
    attacks: dict[str, dict[str, Any]]
    after: dict[str, list[str]]
    not_applicable: dict[str, str]
    cascade: frozenset[str]
    screens: dict[str, int]
    passes: dict[str, int]
    whole_tiles: frozenset[str]
    workers: int
    draws_itself: bool
    threads: int
    effective_sparsity: dict[str, str]
    class_names: tuple[str, ...]
    parameters: int
    notes: tuple[str, ...]
    claimed: dict[str, Any] | None
    answers: list[list[float | None]] | None
    prospects: Prospects | None = None
    tiles: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[tuple[str, ...], float] = field(default_factory=dict, compare=False)
