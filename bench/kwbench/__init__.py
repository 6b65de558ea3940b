"""kwbench measures the robust accuracy of image classifiers, with the evidence.

    import kwbench

    result = kwbench.evaluate(model, x, y, suite="strong", eps="8/255")
    result.a_std, result.a_rob, result.verdict    # accuracies with 95 % intervals, and whether A_rob can be believed
    result.attacks, result.samples                # DataFrames: one row an attack, one row a sample
    result.adversarials                           # tensor: the worst image of each sample, judged

    adversarial = kwbench.attack("apgd", model, x, y, eps="8/255", steps=50)
    kwbench.results("results.db")                 # the record as a DataFrame

A model is a torch.nn.Module, the name of a registry entry, or a file of your own, "path/to/defence.py:factory". It maps pixels
in [0, 1], float32 of shape (b, c, h, w), to logits (b, classes). Images are tensors or arrays, a Dataset, a DataLoader, or
those of a named data set. Every failure is a KwbenchError, except what your own `progress` raises.
"""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kwbench.errors import CannotEvaluate, DamagedData, KwbenchError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, Dataset

    from kwbench.evaluation.result import EvaluationResult
    from kwbench.evaluation.runner import Progress

    Model = str | nn.Module
    Images = Tensor | np.ndarray[Any, Any] | Dataset[Any] | DataLoader[Any] | None
    Labels = Tensor | np.ndarray[Any, Any] | Sequence[int] | None

__all__ = [
    "CannotEvaluate",
    "DamagedData",
    "KwbenchError",
    "UsageError",
    "attack",
    "diagnose",
    "evaluate",
    "results",
    "verify",
]


def evaluate(
    model: "Model",
    x: "Images" = None,
    y: "Labels" = None,
    *,
    suite: str | Path | None = None,
    attacks: str | Sequence[str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    eps: str | float | Fraction | None = None,
    norm: Literal["linf", "l2", "l1"] | None = None,
    n: int | None = None,
    seed: int = 0,
    name: str | None = None,
    dataset: str | None = None,
    data: str | Path | None = None,
    classes: str | Path | None = None,
    resize: int | None = None,
    center_crop: int | None = None,
    keys: tuple[str, str] | None = None,
    severity: int | None = None,
    data_dir: str | Path | None = None,
    download: bool = False,
    split: Literal["test", "validation"] = "test",
    registry: str | Path | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_key: str | None = None,
    strip_prefix: str = "",
    prediction: str | None = None,
    binary: bool = False,
    abstain_class: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    tile: int | None = None,
    precision: Literal["auto", "float32"] = "auto",
    time_limit: float | None = None,
    memory_limit: float | None = None,
    db: str | Path | None = None,
    progress: "Callable[[Progress], None] | None" = None,
    keep_adversarials: bool = True,
) -> "EvaluationResult":
    """Attack a model and measure its robust accuracy.

    A module in memory is evaluated in this process, in evaluation mode, and left as it was given. A file of your own runs in a
    process of its own.

    Args:
        model: a module from pixels in [0, 1] (b, c, h, w) to logits (b, classes); or a name of the registry, such as
            "resnet18-kwta0.1"; or "path/to/defence.py:factory", perhaps with arguments: "defence.py:factory(depth=28)".
        x: images (n, c, h, w) in [0, 1], or uint8; or a Dataset of (image, label), or a DataLoader. None: the data set's.
        y: labels (n,), integers; None where x is a Dataset or a DataLoader.
        suite: name of a suite, or a YAML file; default "all". "strong" ends with a verdict.
        attacks: names of attacks, in place of a suite.
        parameters: attack parameters by "label.parameter", such as {"pgd.steps": 100}.
        eps: radius, "8/255" or 0.031; default: that of the suite or data set, else 8/255.
        norm: norm of the radius; default: that of the suite or data set, else "linf".
        n: only the first n samples.
        seed: seed of all random numbers. The same seed gives the same outcomes.
        name: name of a module in memory on record; default: its class.
        dataset: data set to evaluate on, or, with x, the one that the images are like, for surrogates and the default radius.
        data: npz file or folder of images.
        classes: file with the classes of a folder in the order of the model's outputs, one name a line or JSON; default: the
            folders in natural order.
        resize: length of the shorter side to which images of `data` are resized.
        center_crop: side of the square that is then cut out of their centre.
        keys: names of images and labels in `data`.
        severity: from 1 to 5, for a file of CIFAR-10-C.
        data_dir: folder of torchvision's data sets.
        download: whether to download a missing data set.
        split: "test" or "validation".
        registry: registry file.
        checkpoint: checkpoint file of a registry entry, whose pinned hash still holds, or of a file of your own.
        checkpoint_key: dotted key of the state dict in the checkpoint of a file of your own.
        strip_prefix: what names in that checkpoint begin with, such as "module.".
        prediction: how a stochastic model predicts: "draw", "mean_logits:10", "vote:10" or "frozen:0".
        binary: whether the module returns one logit z an image, which becomes two classes of logits 0 and z.
        abstain_class: the class by which the model abstains, beside those of the data; abstaining counts as wrong.
        device: "auto", "cpu", "cuda" or "cuda:1"; for a module in memory "auto" is where it is.
        threads: threads of torch.
        tile: samples in a forward pass; part of the run's identity. None: 64, or on a GPU what a trial chooses.
        precision: precision of searches. "auto": attacks named one by one, and those whose suite says so, search in the fastest
            precision that does not mislead them; "float32": all search in float32. Predictions count in float32 either way.
        time_limit: for a file of your own: seconds after which its process is stopped.
        memory_limit: for a file of your own, on Linux: GB of memory above which its processes are stopped; default: what can
            be spared.
        db: SQLite file or SQLAlchemy URL of the record; None: no record.
        progress: called with a `kwbench.evaluation.runner.Progress` after each batch.
        keep_adversarials: whether to keep the adversarial images, for `result.adversarials`.

    Returns:
        Accuracies, verdict, tables and adversarial images.

    Raises:
        UsageError: an unknown name, or a value out of range.
        CannotEvaluate: the model or its data cannot be used, or raise an exception.
        DamagedData: a checkpoint, data set or database is not what it should be.
    """
    options = dict(locals())
    from kwbench.evaluation.api import evaluate as run

    return run(**options)


def diagnose(
    model: "Model",
    x: "Images" = None,
    y: "Labels" = None,
    *,
    suite: str | Path = "strong",
    protocol: str | None = None,
    **options: Any,
) -> "EvaluationResult":
    """Judge whether a robust accuracy can be believed: evaluate, run every check of model and record, and reach a verdict.

    Args:
        model: as for `evaluate`.
        x: as for `evaluate`.
        y: as for `evaluate`.
        suite: the suite whose robust accuracy is judged.
        protocol: a suite or attacks to compare it with; default: the suite's own protocol.
        options: the other options of `evaluate`.

    Returns:
        As `evaluate`, with `findings` and `verdict`.

    Raises as `evaluate` does.
    """
    from kwbench.evaluation.api import diagnose as run

    return run(model, x, y, suite=suite, protocol=protocol, **options)


def verify(
    model: "Model",
    adversarials: "str | Path | Tensor | np.ndarray[Any, Any]",
    x: "Images" = None,
    y: "Labels" = None,
    *,
    attack_name: str = "images",
    paper: str = "",
    key: str | None = None,
    worst_case: bool = False,
    **options: Any,
) -> "EvaluationResult":
    """Judge adversarial images that were made elsewhere: their distance, their pixels, and fresh predictions.

    Args:
        model: as for `evaluate`.
        adversarials: images (n, c, h, w) in the order of the samples, or a file of them: npz, npy, or torch.save.
        x: as for `evaluate`.
        y: as for `evaluate`.
        attack_name: name of the attack that made the images; its label is "NAME (external)".
        paper: address of its paper.
        key: key of the images in the file; default: a usual one, such as AutoAttack's `adv_complete`.
        worst_case: whether the worst case of the other attacks includes the images.
        options: the other options of `evaluate`; `suite` or `attacks` name other attacks, by default none.

    Returns:
        As `evaluate`.

    Raises:
        DamagedData: an image is NaN, outside [0, 1], outside the ball, or of another sample; the message names them.
        UsageError, CannotEvaluate: as for `evaluate`.
    """
    from kwbench.evaluation.api import verify as run

    return run(model, adversarials, x, y, attack_name=attack_name, paper=paper, key=key, worst_case=worst_case, **options)


def attack(
    name: str,
    model: "Model",
    x: "Images" = None,
    y: "Labels" = None,
    *,
    eps: str | float | Fraction | None = None,
    norm: Literal["linf", "l2", "l1"] | None = None,
    seed: int = 0,
    device: str = "auto",
    options: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> "Tensor":
    """Run one attack, judge its proposals, and return the adversarial images.

    Args:
        name: name of the attack; `kwbench attacks` lists them.
        model: as for `evaluate`.
        x: as for `evaluate`.
        y: as for `evaluate`.
        eps: as for `evaluate`.
        norm: as for `evaluate`.
        seed: as for `evaluate`.
        device: as for `evaluate`.
        options: other options of `evaluate`, such as {"dataset": "digits", "n": 100}.
        parameters: parameters of the attack, such as steps=50.

    Returns:
        Images (n, c, h, w), float32 in [0, 1], on the CPU: the judged adversarial image of each sample, or the clean image
        where the attack failed or the model was wrong before.

    Raises:
        CannotEvaluate: the attack proposed an image that is not finite or outside the ball, or raised an exception.
        UsageError, DamagedData: as for `evaluate`.
    """
    from kwbench.evaluation.api import attack as run

    arguments = {"eps": eps, "norm": norm, "seed": seed, "device": device}
    return run(name, model, x, y, arguments, options or {}, **parameters)


def results(db: str | Path = "results.db") -> "pd.DataFrame":
    """Return the record as a DataFrame: one row for each evaluation and attack.

    Columns hold accuracies with their intervals, verdicts, costs, threat model and hashes. `db` is a SQLite file or an
    SQLAlchemy URL. Raises CannotEvaluate if it is missing, DamagedData if it is not a kwbench database.
    """
    from kwbench.verdict.frame import results as read  # pandas is slow to import, and `import kwbench` must not be

    return read(str(db))
