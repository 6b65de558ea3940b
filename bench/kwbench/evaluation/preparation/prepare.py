"""Preparation of an evaluation: its data, its threat model, and its model with the randomness that it shows."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kwbench.checks.state import answers_change_with_use, depends_on_the_batch
from kwbench.config.registry import Registry, read_registry
from kwbench.data import Batch, DataSet
from kwbench.errors import CannotEvaluate, UsageError
from kwbench.evaluation.execution.outside import load_outside
from kwbench.evaluation.execution.timings import DATA, LOADING, PROBES, Timings
from kwbench.evaluation.fingerprint import Answers, fingerprint
from kwbench.evaluation.request import Request
from kwbench.geometry import project, steepest
from kwbench.model import Model, Prediction, fill_tile, find_device, with_logits
from kwbench.model.pristine import AskedFirst, Pristine
from kwbench.networks.adapters import Wanted, is_adapted, load_adapted
from kwbench.networks.entries import load_entry
from kwbench.networks.in_memory import device_of, loaded_in_memory
from kwbench.networks.loaded import Loaded
from kwbench.networks.user_files import load_file_model
from kwbench.networks.user_names import is_path, parse_file_model, require_model_name
from kwbench.threat import ThreatModel

# Threads that torch uses unless told otherwise.
CORES = torch.get_num_threads()

_ASKED_FIRST = "its answers change with use, so that each pass here is the first of a fresh process"

# Steps of gradient ascent, of eps each, to where the model's randomness is measured too.
_UPHILL = 3

# Values of an image up to which a second thread gains a tenth on idle cores, and loses a factor of ten on busy ones.
_SMALL_IMAGE = 28 * 28

# Fields of a registry entry that can change what a network predicts.
_BEHAVIOUR = {"architecture", "activation", "normalise", "smoothing"}


@dataclass(frozen=True)
class Prepared:
    """A model ready to be attacked, its samples and the threat model.

    `probes` are two tiles of images, one of samples and one of noisy ones inside the ball, on which the model's randomness
    and speed were measured. `entry` is what identifies the model beside its weights: the behaviour of its registry entry, or
    the name of its factory. `workers` is the number of evaluators worth running side by side. `answers` are the model's
    fingerprint.
    """

    name: str
    registry: Registry | None
    dataset: DataSet
    batch: Batch
    threat: ThreatModel
    model: Model
    loaded: Loaded
    entry: Any
    probes: tuple[Tensor, Tensor]
    stochastic: bool
    workers: int
    answers: Answers | None

    @property
    def device(self) -> torch.device:
        """Device that the model runs on."""
        return self.model.device


def prepare(
    request: Request, threads: int | None = None, time_limit: float | None = None, timings: Timings | None = None
) -> Prepared:
    """Load data and model, and measure the model's randomness; with `threads`, as one of several evaluators.

    Sets the number of torch's threads. Raises UsageError, CannotEvaluate or DamagedData, as loading does.
    """
    timings = timings or Timings()
    with timings.phase(*DATA):
        registry = read_registry(request.registry) if request.in_registry or request.registry is not None else None
        if request.in_registry:
            assert registry is not None
            require_model_name(request.model)
            registry.find(request.model)  # an unknown model is reported before its data set is loaded
        device = device_of(request.module) if request.module is not None and request.device == "auto" else None
        device = device or find_device(request.device)
        dataset = request.load_images()
        split = dataset.test if request.split == "test" else dataset.validation
        n = _number_of_samples(request, dataset, len(split))
        workers = 1 if threads or request.module is not None else _workers(request, device, n)
        torch.set_num_threads(threads or _threads(request, dataset, workers))
        batch = split.batch(range(n)).to(device)
        threat = _threat_model(request, dataset)
    with timings.phase(*LOADING):
        name, loaded, entry, prediction = _load(request, registry, dataset, threat.norm, time_limit)
    with timings.phase(*PROBES), _naming_default_data(request, dataset):
        for part in (loaded.module, *loaded.hidden):
            part.to(device)
        # Only a user's own code can keep state where a copy of the module would share it.
        pristine = Pristine.of(loaded.module, device) if request.in_own_process else None
        images = fill_tile(batch.x, request.tile_size)
        others = not dataset.fixed_classes
        module, notes = with_logits(loaded.module, images, dataset.classes, binary=request.binary, others=others)
        if module is not loaded.module:
            pristine = None
        loaded = replace(loaded, notes=(*loaded.notes, *notes))
        answering = replace(loaded, module=module)
        model = _wrap(request, name, answering, prediction, dataset, batch, device)
        probe = batch.x[: request.tile_size]
        near, *ends = _probes(model, batch.take(range(len(probe))), threat)
        stochastic = model.measure_randomness(probe, near, *ends)
        if loaded.draws_itself:
            workers = 1  # every pass moves its generators on, so that a row depends on those before it
        if pristine is not None and not stochastic:
            if answers_change_with_use(model, probe, pristine):
                loaded = replace(loaded, module=AskedFirst(loaded.module, pristine), notes=(*loaded.notes, _ASKED_FIRST))
                answering = loaded
                model = _wrap(request, name, answering, prediction, dataset, batch, device)
            model.pristine = pristine
        alone = bool(depends_on_the_batch(model, probe).any())
        if alone:
            # Users ask for one image at a time: so do the attacks and the judge, and padding hides nothing.
            model = _wrap(replace(request, tile=1), name, answering, prediction, dataset, batch, device)
        answers = fingerprint(model, probe)
        if not alone:
            model.plan_passes(near)
    return Prepared(name, registry, dataset, batch, threat, model, loaded, entry, (probe, near), stochastic, workers, answers)


@contextmanager
def _naming_default_data(request: Request, dataset: DataSet) -> Iterator[None]:
    """Say with an error of a user's model on which images it occurred, if the user named none."""
    try:
        yield
    except CannotEvaluate as failure:
        if (
            request.in_registry
            or request.module is not None
            or (request.data, request.dataset, request.images) != (None, None, None)
        ):
            raise
        shape = "x".join(map(str, dataset.shape))
        raise CannotEvaluate(
            f"{failure}; it got images of {dataset.name} ({shape}), since no others were named: "
            "--data FILE takes your own, --dataset NAME a known data set"
        ) from failure


def _probes(model: Model, batch: Batch, threat: ThreatModel) -> list[Tensor]:
    """Return images with noise and, unless answers are certain to repeat, images where attacks end: some are random only there.

    These are corners of the ball, and images uphill of the loss.
    """
    x = batch.x
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    near = (x + (2 * noise - 1) * threat.radius).clamp(0, 1)
    if model.draws_nothing(x):
        return [near]
    corner = project(x + torch.where(noise < 0.5, -1.0, 1.0) * threat.radius, x, threat)
    return [near, corner, _uphill(model, batch, threat)]


def _uphill(model: Model, batch: Batch, threat: ThreatModel) -> Tensor:
    """Return where a few large steps of gradient ascent end; the images themselves, if the model has no gradient."""
    z = batch.x
    # An error here is raised again, under the model's name, when the model is first evaluated.
    with suppress(Exception), model.aside("uphill"):
        for _ in range(_UPHILL):
            z = z.detach().requires_grad_()
            loss = cross_entropy(model(z), batch.y, reduction="sum")
            gradient = torch.autograd.grad(loss, z)[0].nan_to_num(0.0, 0.0, 0.0)
            z = project(z.detach() + threat.radius * steepest(gradient, threat.norm), batch.x, threat)
    return z.detach()


def _number_of_samples(request: Request, dataset: DataSet, available: int) -> int:
    n = min(request.suite.n or available, available) if request.n is None else request.n
    for proposals in request.proposals.values():
        if proposals.index is None and (count := len(proposals.images)) != n:
            if request.n is not None or count > available:
                raise UsageError(f"{proposals.where}: holds {count} images for {n} samples; they must be as many")
            n = count
    if n < 1:
        raise UsageError(f"--n {n}: must be at least 1")
    if n > available:
        raise UsageError(f"--n {n}: {dataset.name} has {available} {request.split} images")
    return n


def _workers(request: Request, device: torch.device, n: int) -> int:
    """Return one evaluator a core, if there are as many tiles; a GPU serves one only."""
    return 1 if device.type == "cuda" else min(request.threads or CORES, -(-n // request.tile_size))


def _threads(request: Request, dataset: DataSet, workers: int) -> int:
    if workers == 1 and request.threads:
        return request.threads
    return 1 if math.prod(dataset.shape) <= _SMALL_IMAGE else max(1, (request.threads or CORES) // workers)


def _threat_model(request: Request, dataset: DataSet) -> ThreatModel:
    default = request.suite.threat or dataset.threat
    norm = request.norm or default.norm
    if request.eps is None and norm != default.norm:
        raise UsageError(f"--norm {norm}: give a radius with --eps; the default, {default}, is in another norm")
    return ThreatModel.of(norm, default.eps if request.eps is None else request.eps)


def _load(
    request: Request, registry: Registry | None, dataset: DataSet, norm: str, time_limit: float | None
) -> tuple[str, Loaded, Any, Prediction]:
    """Return the model's name on record, the model, what identifies it beside its weights, and its prediction rule."""
    rule = Prediction(**request.prediction.model_dump()) if request.prediction is not None else None
    if request.module is not None:
        return request.model, loaded_in_memory(request.module), "in memory", rule or Prediction()
    if not request.in_registry:
        if is_adapted(request.model):
            return *_load_adapted(request, dataset, norm), rule or Prediction()
        model = parse_file_model(request.model)
        weights: dict[str, Any] = {
            "checkpoint": request.checkpoint,
            "key": request.checkpoint_key,
            "strip_prefix": request.strip_prefix,
        }
        name, factory = f"{_on_record(model.source)}:{model.call}", model.call
        if request.untrusted:
            loaded, factory = (
                load_outside(request.model, time_limit, request.memory_limit, sandbox=request.sandbox, **weights),
                f"{factory}, from outside",
            )
        else:
            loaded = load_file_model(request.model, **weights)
        return name, loaded, factory, rule or Prediction()
    assert registry is not None
    if request.checkpoint_key is not None or request.strip_prefix:
        raise UsageError(
            "--key, --strip-prefix: are for a checkpoint of your own; `kwbench convert` makes one for the registry"
        )
    name, entry = registry.find(request.model)
    rule = rule or Prediction(**entry.prediction.model_dump())
    loaded = load_entry(registry, name, entry, dataset, request.checkpoint)
    return name, loaded, entry.model_dump(mode="json", include=_BEHAVIOUR), rule


def _load_adapted(request: Request, dataset: DataSet, norm: str) -> tuple[str, Loaded, Any]:
    """Return the name on record of a model of another library, the model, and what identifies it beside its weights."""
    prefix, _, name = request.model.partition(":")
    wanted = Wanted(
        name,
        request.dataset_name,
        dataset.shape,
        dataset.classes,
        norm,
        request.download,
        request.checkpoint,
        request.checkpoint_key,
        request.strip_prefix,
    )
    loaded = load_adapted(request.model, wanted)
    return f"{prefix}:{_on_record(name)}", loaded, dict(loaded.origin)


def _on_record(source: str) -> str:
    """Return a file or folder relative to the working directory, so that its name does not depend on the machine; or a name."""
    if not is_path(source) and not Path(source).exists():
        return source
    file, folder = Path(source), Path.cwd()
    return (file.absolute().relative_to(folder) if file.absolute().is_relative_to(folder) else file).as_posix()


def _wrap(
    request: Request,
    name: str,
    loaded: Loaded,
    prediction: Prediction,
    dataset: DataSet,
    batch: Batch,
    device: torch.device,
) -> Model:
    classes = dataset.classes
    if not dataset.fixed_classes or request.abstain_class is not None:
        # The labels of a small slice may miss the last classes, and abstaining is one more; the number of logits tells.
        logits = None
        # An error here is raised again, under the model's name, when the model is first evaluated.
        with suppress(Exception), torch.no_grad():
            logits = loaded.module(fill_tile(batch.x, request.tile_size))
        if isinstance(logits, Tensor) and logits.dim() == 2:
            if logits.shape[1] < classes:
                raise CannotEvaluate(f"{name}: {_too_few_classes(logits.shape[1], dataset)}")
            classes = logits.shape[1]
    _require_abstaining(request.abstain_class, name, classes, dataset)
    return Model(
        loaded.module,
        name=name,
        classes=classes,
        shape=dataset.shape,
        device=device,
        tile=request.tile_size,
        prediction=prediction,
        beside=loaded.hidden,
    )


def _require_abstaining(abstain_class: int | None, name: str, classes: int, dataset: DataSet) -> None:
    """Raise UsageError unless the class by which a model abstains is one of its own, and no label."""
    if abstain_class is None:
        return
    option, labels = f"--abstain-class {abstain_class}", dataset.test.labels
    if not 0 <= abstain_class < classes:
        raise UsageError(f"{option}: {name} has {classes} classes, numbered from 0")
    if int(labels.min()) <= abstain_class <= int(labels.max()):
        raise UsageError(f"{option}: is a label of {dataset.name}, so a prediction of it is no abstention")
    if dataset.fixed_classes and classes != dataset.classes + 1:
        wanted = f"{dataset.name} has {dataset.classes}, so that {dataset.classes + 1} are needed"
        raise UsageError(f"{option}: {name} has {classes} classes; {wanted}")


def _too_few_classes(known: int, dataset: DataSet) -> str:
    """Return why a model that knows so many classes does not fit the labels, and what to do."""
    first = min(int(split.labels.min()) for split in (dataset.test, dataset.train) if len(split))
    last = dataset.classes - 1
    # Whoever counts from 1, or from a class that stands for the background, uses at least half of the classes.
    if first > 0 and known / 2 <= last - first + 1 <= known:
        return (
            f"labels run from {first} to {last}, but the model's {known} classes are numbered from 0; "
            f"subtract {first} from the labels"
        )
    return f"the model has {known} classes, but a label is {last}; labels count from 0"
