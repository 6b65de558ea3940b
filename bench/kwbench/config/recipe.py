"""Training recipes: the `recipe` section of a registry entry, from which `kwbench train` makes the checkpoint."""

from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kwbench.config.strict_yaml import Strict
from kwbench.threat import exact_fraction


def _parse_fraction(value: Any) -> Any:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            return exact_fraction(value)
        except ValueError:
            raise ValueError("must be a number or a fraction such as 8/255") from None
    return value


Exact = Annotated[Fraction, BeforeValidator(_parse_fraction)]


class _Ball(Strict):
    """The linf ball of radius `eps` in which a training's adversary searches."""

    eps: Exact
    # The radius grows linearly from zero over these epochs, which starts winner-take-all networks more gently.
    warmup_epochs: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check_eps(self) -> Self:
        if not 0 < self.eps <= 1:
            raise ValueError("eps must lie in (0, 1]")
        return self


class _ManySteps(_Ball):
    steps: Annotated[int, Field(ge=1)]
    step_size: Exact

    @model_validator(mode="after")
    def _check_step_size(self) -> Self:
        if not 0 < self.step_size <= 1:
            raise ValueError("step_size must lie in (0, 1]")
        return self


class TrainingAttack(_ManySteps):
    """The PGD adversary of adversarial training (Madry et al. 2018, arXiv:1706.06083), from a random start."""


class Trades(_ManySteps):
    """TRADES (Zhang et al. 2019, arXiv:1901.08573): cross-entropy plus `beta` times the largest divergence that PGD finds.

    `beta` is the paper's 1 / lambda.
    """

    beta: Annotated[float, Field(gt=0)] = 6.0


class _OneStep(_Ball):
    step_size: Exact | None = None

    @model_validator(mode="after")
    def _check_step_size(self) -> Self:
        if self.step_size is not None and not 0 < self.step_size <= 2:
            raise ValueError("step_size must lie in (0, 2]")
        return self


class Free(_OneStep):
    """Free adversarial training (Shafahi et al. 2019, arXiv:1904.12843).

    The network trains on each batch `replays` times in a row, and every backward pass updates both the weights and the
    perturbation. An epoch is `replays` passes over the images.

    `step_size` is eps by default, as in the paper. In a ball as large as MNIST's such a step only jumps between corners.
    """

    replays: Annotated[int, Field(ge=1)] = 8


class Fast(_OneStep):
    """Fast adversarial training (Wong et al. 2020, arXiv:2001.03994): one step, of 1.25 eps by default, from a random start."""


class Mixture(_ManySteps):
    """The sampled training of hicheur2024, which draws a number from 0 to 7 for each batch.

    0 adds Gaussian noise of standard deviation `sigma`, 1 is FGSM, 2 PGD, 3 Carlini and Wagner's attack, 4 to 7 leave the
    batch as it is. So does a number whose attack is not in `attacks`.

    eps, steps and step_size belong to FGSM and PGD. C&W takes `steps` steps of Adam at `constant` and `confidence`.
    """

    attacks: Annotated[list[Literal["noise", "fgsm", "pgd", "cw"]], Field(min_length=1)]
    # Not given in the paper.
    sigma: Annotated[float, Field(gt=0, le=1)] = 0.1
    constant: Annotated[float, Field(gt=0)] = 1e-4
    confidence: Annotated[float, Field(ge=0)] = 0.01


class Incremental(Strict):
    """Incremental training of k-WTA (xiao2020 2.2): after training at `start`, lower gamma by `step` every `epochs` epochs.

    `final_epochs` more epochs at the target gamma, with a learning rate that falls to zero, are our addition: small data sets
    need them.
    """

    start: Exact
    step: Exact
    epochs: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0)]
    final_epochs: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check_ranges(self) -> "Incremental":
        if not 0 < self.start <= 1 or not 0 < self.step < 1:
            raise ValueError("start must lie in (0, 1] and step in (0, 1)")
        return self


class Schedule(Strict):
    """The learning rate over the epochs.

    - `one_cycle` rises over the first fifth of the epochs and then falls to zero.
    - `constant` keeps the learning rate.
    - `drop` multiplies it by `factor` after epoch `after`: once, as in xiao2020 D.1 (after 50, by 0.1), or with `repeat` at
      every epoch from then on, as in panousis2021 (after 75, by 0.5).
    """

    kind: Literal["one_cycle", "constant", "drop"] = "one_cycle"
    after: Annotated[int, Field(ge=1)] | None = None
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    repeat: bool = False

    @model_validator(mode="after")
    def _check_after(self) -> "Schedule":
        if (self.kind == "drop") != (self.after is not None):
            raise ValueError("kind: drop needs after, the last epoch at the full learning rate, and no other kind takes it")
        return self


class Recipe(Strict):
    """How `kwbench train` makes the checkpoint: SGD with momentum, on natural or on adversarial images.

    At most one of adversarial, trades, free, fast and mixture may be given; without any, training is natural.
    """

    epochs: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    # The data set to train on; by default the one in the model's name.
    dataset: str | None = None
    # Initial weights: torchvision's address of an ImageNet network. The last layer stays random if its classes differ.
    pretrained: Annotated[str, Field(pattern=r"^https://[!-~]+-[0-9a-f]{8}\.pth$")] | None = None
    # Sums round differently with other numbers of threads. By default torch chooses, and only equal machines reproduce.
    threads: Annotated[int, Field(ge=1)] | None = None
    # bfloat16 is mixed precision, about twice as fast on processors that support it.
    precision: Literal["float32", "bfloat16"] = "float32"
    # The type of the weights in the checkpoint.
    storage: Literal["float32", "float16"] = "float32"
    batch_size: Annotated[int, Field(ge=2)] = 128
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    # Initialisation of the weights: He's normal for ReLU, or PyTorch's default, whose weights are smaller.
    initial: Literal["kaiming_normal", "pytorch"] = "kaiming_normal"
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    schedule: Schedule = Schedule()
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    # Augmentation: random translation by up to this many pixels in each direction.
    shift: Annotated[int, Field(ge=0)] = 0
    # Augmentation: horizontal flip with probability one half.
    flip: bool = False
    # Augmentation: Gaussian noise of this standard deviation, for randomised smoothing (Cohen et al. 2019, arXiv:1902.02918).
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    adversarial: TrainingAttack | None = None
    trades: Trades | None = None
    free: Free | None = None
    fast: Fast | None = None
    mixture: Mixture | None = None
    incremental: Incremental | None = None
    # The weight of the KL term in a stochastic network's ELBO; by default 1 / n, n training images (panousis2021 eq. 9).
    kl_weight: Annotated[float, Field(ge=0)] | None = None

    @property
    def training(self) -> str:
        """The kind of training: natural, adversarial, trades, free, fast or mixture."""
        return next((kind for kind in _ADVERSARIAL_TRAININGS if getattr(self, kind) is not None), "natural")

    @model_validator(mode="after")
    def _check_one_training(self) -> "Recipe":
        given = [kind for kind in _ADVERSARIAL_TRAININGS if getattr(self, kind) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are two ways to train; keep one of them")
        return self

    @model_validator(mode="after")
    def _check_epochs(self) -> "Recipe":
        warmup = getattr(getattr(self, self.training, None), "warmup_epochs", 0)
        if warmup >= self.epochs and warmup:
            raise ValueError(f"warmup_epochs: {warmup} of {self.epochs} epochs never reach eps; it must be less")
        if self.schedule.after is not None and self.schedule.after > self.epochs:
            raise ValueError(f"schedule.after: {self.schedule.after} never comes in {self.epochs} epochs")
        return self


_ADVERSARIAL_TRAININGS = ("adversarial", "trades", "free", "fast", "mixture")
