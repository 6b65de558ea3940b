"""The registry of models: what `registry.yaml` says, checked. One entry a model; nothing here loads a network."""

import hashlib
import os
import re
import tempfile
from fractions import Fraction
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from filelock import FileLock
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import CommentMark
from ruamel.yaml.scalarstring import DoubleQuotedScalarString
from ruamel.yaml.tokens import CommentToken

from kwbench.config.strict_yaml import Strict, read_yaml, validate
from kwbench.errors import UsageError, did_you_mean
from kwbench.threat import exact_fraction

# Bare names belong to this data set.
DEFAULT_DATASET = "digits"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)?")


def _fraction(value: Any) -> Any:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            return exact_fraction(value)
        except ValueError:
            raise ValueError("must be a number or a fraction such as 8/255") from None
    return value


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path:
        raise ValueError("must be a path below the registry's folder")
    return path


Exact = Annotated[Fraction, BeforeValidator(_fraction)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Architecture(Strict):
    """A network by name, with the sizes that it takes."""

    model_config = ConfigDict(extra="allow")
    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class Activation(Architecture):
    """An activation by name, with the parameters that it takes; `gamma` stays as written, for an exact fraction."""


class Normalise(Strict):
    """Mean and standard deviation of each channel, in pixel units of [0, 1]."""

    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]


class Source(Strict):
    """What the authors published: a public address, the hash of what lies there, and how its keys become ours.

    `key` is where the file keeps the state dict, None if it is one.
    """

    url: Annotated[str, Field(pattern=r"^https://[!-~]+$")]
    sha256: Sha256
    key: str | None = None
    # A name in `kwbench.networks.converting.CONVERTERS`; None keeps the keys.
    converter: str | None = None


class Checkpoint(Strict):
    """Where the weights lie, relative to the registry, and what they must hash to.

    Where they come from `source`, `kwbench convert` makes the file.
    """

    file: Annotated[str, AfterValidator(_inside)]
    sha256: Sha256
    source: Source | None = None


class PredictionRule(Strict):
    """How a stochastic model answers; see `kwbench.model.Prediction`."""

    kind: Literal["draw", "mean_logits", "vote", "frozen"] = "draw"
    draws: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _one_draw_is_one(self) -> "PredictionRule":
        if self.kind in ("draw", "frozen") and self.draws != 1:
            raise ValueError("a single draw is one draw; the mean of several is kind: mean_logits, their majority kind: vote")
        if self.kind != "frozen" and self.seed:
            raise ValueError("a seed is for kind: frozen; other draws are fresh")
        return self


def prediction_rule(text: str) -> PredictionRule:
    """The rule that a text such as draw, mean_logits:10, vote:10 or frozen:0 names. Raises UsageError for any other."""
    kind, separator, number = text.partition(":")
    parameter = {"mean_logits": "draws", "vote": "draws", "frozen": "seed"}.get(kind)
    wrong = UsageError(f"--prediction {text}: write draw, mean_logits:DRAWS, vote:DRAWS or frozen:SEED")
    if (kind != "draw" and parameter is None) or bool(separator) != (parameter is not None):
        raise wrong
    if parameter is None:
        return PredictionRule()
    if not (number.isascii() and number.isdigit()):
        raise wrong
    return validate(PredictionRule, {"kind": kind, parameter: int(number)}, f"--prediction {text}")


class _Ball(Strict):
    """Where the adversary of a training may look, in linf."""

    eps: Exact
    # The radius grows linearly from zero over the first epochs, which starts winner-take-all networks more gently.
    warmup_epochs: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if not 0 < self.eps <= 1:
            raise ValueError("eps must lie in (0, 1]")
        return self


class _Steps(_Ball):
    steps: Annotated[int, Field(ge=1)]
    step_size: Exact

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if not 0 < self.step_size <= 1:
            raise ValueError("step_size must lie in (0, 1]")
        return self


class TrainingAttack(_Steps):
    """The PGD adversary of adversarial training (Madry et al. 2018, arXiv:1706.06083), from a random start."""


class Trades(_Steps):
    """TRADES (Zhang et al. 2019, arXiv:1901.08573): cross-entropy, and `beta` times the divergence that PGD can find.

    `beta` is what the paper calls 1 / lambda.
    """

    beta: Annotated[float, Field(gt=0)] = 6.0


class _OneStep(_Ball):
    step_size: Exact | None = None

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if self.step_size is not None and not 0 < self.step_size <= 2:
            raise ValueError("step_size must lie in (0, 2]")
        return self


class Free(_OneStep):
    """Free adversarial training (Shafahi et al. 2019, arXiv:1904.12843): each batch is learned from `replays` times in a row,
    and every backward pass moves both the weights and the perturbation. An epoch is `replays` passes over the images.

    By eps if not said, as in the paper; in a ball as large as MNIST's that only jumps between its corners.
    """

    replays: Annotated[int, Field(ge=1)] = 8


class Fast(_OneStep):
    """Fast adversarial training (Wong et al. 2020, arXiv:2001.03994): one step from a random start; 1.25 eps if not said."""


class Mixture(_Steps):
    """hicheur2024's sampled training: for each batch a number from 0 to 7. 0 adds Gaussian noise of deviation `sigma`, 1 is
    FGSM, 2 PGD, 3 Carlini and Wagner's attack, 4 to 7 nothing. A number whose attack is not in `attacks` does nothing either.

    eps, steps and step_size are those of FGSM and PGD; C&W takes `steps` steps of Adam at `constant` and `confidence`.
    """

    attacks: Annotated[list[Literal["noise", "fgsm", "pgd", "cw"]], Field(min_length=1)]
    # The paper does not say it.
    sigma: Annotated[float, Field(gt=0, le=1)] = 0.1
    constant: Annotated[float, Field(gt=0)] = 1e-4
    confidence: Annotated[float, Field(ge=0)] = 0.01


class Incremental(Strict):
    """Lower k-WTA's gamma step by step after training at `start` (xiao2020 2.2): by `step` every `epochs` epochs.

    `final_epochs` more at the target, under a learning rate that falls to zero, are ours: small data sets need them.
    """

    start: Exact
    step: Exact
    epochs: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0)]
    final_epochs: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _possible(self) -> "Incremental":
        if not 0 < self.start <= 1 or not 0 < self.step < 1:
            raise ValueError("start must lie in (0, 1] and step in (0, 1)")
        return self


class Schedule(Strict):
    """How the learning rate runs over the epochs.

    `one_cycle` rises over the first fifth and falls to zero, `constant` stays, `drop` is multiplied by `factor` after epoch
    `after`: once, as in xiao2020 D.1 (after 50, by 0.1), or with `repeat` at every epoch from then on, as in panousis2021
    (after 75, by 0.5).
    """

    kind: Literal["one_cycle", "constant", "drop"] = "one_cycle"
    after: Annotated[int, Field(ge=1)] | None = None
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    repeat: bool = False

    @model_validator(mode="after")
    def _whole(self) -> "Schedule":
        if (self.kind == "drop") != (self.after is not None):
            raise ValueError("kind: drop needs after, the last epoch at the full learning rate, and no other kind takes it")
        return self


class Recipe(Strict):
    """How `kwbench train` makes the checkpoint: SGD with momentum.

    Training is natural, or one of adversarial, trades, free, fast and mixture.
    """

    epochs: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    # The data set whose training images are learned from; None is the one in the model's name.
    dataset: str | None = None
    # Weights to start from, torchvision's address of an ImageNet network; the last layer stays fresh.
    pretrained: Annotated[str, Field(pattern=r"^https://[!-~]+-[0-9a-f]{8}\.pth$")] | None = None
    # Sums round differently in other numbers of threads; None takes what torch takes, and reproduces on equal machines only.
    threads: Annotated[int, Field(ge=1)] | None = None
    # bfloat16: mixed precision; about twice as fast where the processor has it.
    precision: Literal["float32", "bfloat16"] = "float32"
    # How the checkpoint keeps the weights.
    storage: Literal["float32", "float16"] = "float32"
    batch_size: Annotated[int, Field(ge=2)] = 128
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    # Of the weights before training: He's normal for ReLU, or what PyTorch gives its layers, which is smaller.
    initial: Literal["kaiming_normal", "pytorch"] = "kaiming_normal"
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    schedule: Schedule = Schedule()
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    # Training images are moved by up to this many pixels each way.
    shift: Annotated[int, Field(ge=0)] = 0
    # Training images are mirrored, left to right, every other time.
    flip: bool = False
    # Gaussian noise of this deviation on the training images, as smoothing wants (Cohen et al. 2019, arXiv:1902.02918).
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    adversarial: TrainingAttack | None = None
    trades: Trades | None = None
    free: Free | None = None
    fast: Fast | None = None
    mixture: Mixture | None = None
    incremental: Incremental | None = None
    # The weight of the KL term of a stochastic network's ELBO; None is eq. 9 of panousis2021, one part in the training set.
    kl_weight: Annotated[float, Field(ge=0)] | None = None

    @property
    def training(self) -> str:
        """In one word, how the network is trained: natural, adversarial, trades, free, fast or mixture."""
        return next((kind for kind in _TRAININGS if getattr(self, kind) is not None), "natural")

    @model_validator(mode="after")
    def _one_training(self) -> "Recipe":
        given = [kind for kind in _TRAININGS if getattr(self, kind) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are two ways to train; keep one of them")
        return self

    @model_validator(mode="after")
    def _within_the_epochs(self) -> "Recipe":
        warmup = getattr(getattr(self, self.training, None), "warmup_epochs", 0)
        if warmup >= self.epochs and warmup:
            raise ValueError(f"warmup_epochs: {warmup} of {self.epochs} epochs never reach eps; it must be less")
        if self.schedule.after is not None and self.schedule.after > self.epochs:
            raise ValueError(f"schedule.after: {self.schedule.after} never comes in {self.epochs} epochs")
        return self


_TRAININGS = ("adversarial", "trades", "free", "fast", "mixture")


class ModelEntry(Strict):
    """One model of the registry."""

    architecture: Architecture
    activation: Activation
    checkpoint: Checkpoint | None = None
    recipe: Recipe | None = None
    normalise: Normalise | None = None
    # Gaussian noise of this deviation on the pixels at every pass, in training and after (Cohen et al. 2019).
    smoothing: Annotated[float, Field(gt=0, le=1)] | None = None
    prediction: PredictionRule = PredictionRule()
    description: str = ""


class _File(Strict):
    models: dict[str, ModelEntry]


class Registry:
    """The entries of a registry file, by full name, and behind them those that come with kwbench."""

    def __init__(self, path: Path, entries: dict[str, ModelEntry], behind: "Registry | None" = None) -> None:
        self.path = path
        self.own = entries
        self.behind = behind

    @property
    def entries(self) -> dict[str, ModelEntry]:
        """Every entry that can be found, the file's own first."""
        return {**self.own, **(self.behind.entries if self.behind else {}), **self.own}

    def find(self, name: str) -> tuple[str, ModelEntry]:
        """The entry's name and content; `digits/x` and `x` are the same. Raises UsageError with a suggestion."""
        short = name.removeprefix(f"{DEFAULT_DATASET}/")
        if short not in self.entries:
            raise UsageError(
                f"model {name!r} is not in {self.path}; {did_you_mean(short, self.entries, listed_by='kwbench models')} "
                "(a model of your own is written path/to/file.py:factory)"
            )
        return short, self.entries[short]

    def holding(self, name: str) -> "Registry":
        """The registry whose own entry `name` is; its folder is where the entry's checkpoint lies."""
        return self if name in self.own or self.behind is None else self.behind.holding(name)

    def checkpoint_path(self, name: str) -> Path:
        """Where the checkpoint of an entry lies, or would lie once trained."""
        registry = self.holding(name)
        checkpoint = registry.own[name].checkpoint
        file = checkpoint.file if checkpoint else f"models/{dataset_of(name)}/{name.rsplit('/', maxsplit=1)[-1]}.safetensors"
        return registry.path.parent / file


def dataset_of(name: str) -> str:
    """The data set that a model's name says it was trained for."""
    return name.split("/", maxsplit=1)[0] if "/" in name else DEFAULT_DATASET


def read_registry(path: Path | None = None) -> Registry:
    """The registry at `path`, or `registry.yaml` of the working folder if there is one, before the one that comes with kwbench.

    Raises UsageError if it is malformed, naming file and key.
    """
    starter = _starter_path()
    behind = Registry(starter, _read_entries(starter))
    here = path or Path("registry.yaml")
    if (path is None and not here.exists()) or (here.exists() and here.samefile(starter)):
        return behind
    return Registry(here, _read_entries(here), behind)


def _read_entries(path: Path) -> dict[str, ModelEntry]:
    try:
        # A command reads the registry more than once, and YAML takes a quarter of a second each time.
        state = path.stat()
    except OSError:
        return _entries(path, None)
    return dict(_entries(path, (state.st_ino, state.st_mtime_ns, state.st_size)))


@lru_cache(maxsize=8)
def _entries(path: Path, state: tuple[int, ...] | None) -> dict[str, ModelEntry]:
    """The entries of a file; `state` changes when the file does."""
    file = validate(_File, read_yaml(path), str(path))
    for name in file.models:
        if not _NAME.fullmatch(name):
            raise UsageError(f"{path}: models.{name}: names match [dataset/]name in a-z, 0-9, '.', '_' and '-'")
        short = name.removeprefix(f"{DEFAULT_DATASET}/")
        if short != name and short in file.models:
            raise UsageError(f"{path}: models.{name}: the same model as models.{short}; keep one of them")
    return {name.removeprefix(f"{DEFAULT_DATASET}/"): entry for name, entry in file.models.items()}


def _starter_path() -> Path:
    """`registry.yaml` as the wheel carries it, or that of the source tree."""
    starter = Path(__file__).parents[1] / "starter" / "registry.yaml"
    return starter if starter.exists() else Path(__file__).parents[3] / "registry.yaml"


def _last_block(mapping: CommentedMap) -> CommentedMap:
    """The mapping whose last line is the last line of `mapping`."""
    value = mapping[list(mapping)[-1]]
    return _last_block(value) if isinstance(value, CommentedMap) and not value.fa.flow_style() else mapping


def _move_comment_below(earlier: CommentedMap, later: CommentedMap) -> None:
    """Take the comment lines below `earlier` below `later`: the parser holds them for a part of what stands above."""
    tokens = earlier.ca.items.get(list(earlier)[-1])
    if tokens is None or tokens[2] is None:
        return
    beside, newline, below = tokens[2].value.partition("\n")
    if not below:
        return
    tokens[2].value = beside + newline
    later.ca.items[list(later)[-1]] = [None, None, CommentToken("\n" + below, CommentMark(0), None), None]


def pin_checkpoint(registry: Registry, name: str, file: Path, sha256: str) -> None:
    """Write a checkpoint's place and hash into the registry file, leaving everything else, comments too, as it is.

    Raises UsageError if the checkpoint does not lie below the registry's folder.
    """
    registry = registry.holding(name)
    root = registry.path.parent.resolve()
    try:
        relative = file.resolve().relative_to(root).as_posix()
    except ValueError:
        raise UsageError(f"{file}: a pinned checkpoint must lie below {root}") from None
    # Models are trained side by side, and two that end together must both be pinned.
    with FileLock(Path(tempfile.gettempdir()) / f"kwbench-{hashlib.sha256(str(root).encode()).hexdigest()[:16]}.lock"):
        _write_pin(registry, name, relative, sha256)


def _write_pin(registry: Registry, name: str, relative: str, sha256: str) -> None:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 1 << 20  # no line is folded
    data = yaml.load(registry.path.read_text(encoding="utf-8"))
    key = name if name in data["models"] else f"{DEFAULT_DATASET}/{name}"
    entry = data["models"][key]
    pinned = {"file": relative, "sha256": DoubleQuotedScalarString(sha256)}
    if "checkpoint" in entry:
        entry["checkpoint"].update(pinned)
    else:
        last = _last_block(entry)
        entry["checkpoint"] = CommentedMap(pinned)
        _move_comment_below(last, entry["checkpoint"])
    draft = registry.path.with_name(f".{registry.path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as stream:
        yaml.dump(data, stream)
    draft.replace(registry.path)
