"""What an evaluation needs at hand, model, data and attacks, in this process or in one of its own.

A user's own file runs in a freshly spawned process: its imports cannot clash with ours, and its crash is only its own.
"""

import math
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch

from kwbench.attacks import build_attack
from kwbench.attacks.attack import Attack
from kwbench.checks import Case, Question, Retried, Survivors, examine, retried
from kwbench.config.prediction import PredictionRule
from kwbench.config.registry import DEFAULT_DATASET, Registry, dataset_of, read_registry
from kwbench.config.suite import Suite
from kwbench.data import dataset_names, load_dataset, slice_hash
from kwbench.errors import CannotEvaluate, KwbenchError, NotApplicable, UsageError
from kwbench.evaluation.identity import attack_identity, engine_revisions, library_versions, network_revisions
from kwbench.evaluation.model_facts import MeasuredFacts
from kwbench.evaluation.processes import serving
from kwbench.experiments import Experiment, Subject
from kwbench.finding import Finding
from kwbench.judge import FRESH_DRAWS, SELECTION_DRAWS, judge, judge_clean
from kwbench.model import Model, Prediction, fill_tile, find_device, keep_freed_memory, require_exact_float32
from kwbench.networks.activations import effective_sparsity
from kwbench.networks.activations.swap import swapped
from kwbench.networks.loading import Loaded, is_file_model, load_entry, load_file_model
from kwbench.outcome import Outcome
from kwbench.record.measurement import Array
from kwbench.threat import ThreatModel

_Work = TypeVar("_Work")


@dataclass(frozen=True)
class Request:
    """What a user asks for, for one model. None stands for what the suite or the data set says."""

    model: str
    suite: Suite
    registry: Path | None = None
    checkpoint: Path | None = None
    dataset: str | None = None
    data: Path | None = None
    data_dir: Path | None = None
    download: bool = False
    split: Literal["test", "validation"] = "test"
    n: int | None = None
    norm: str | None = None
    eps: str | Fraction | None = None
    seed: int = 0
    batch_size: int = 256
    tile: int = 64
    device: str = "auto"
    threads: int | None = None
    # How a stochastic model answers; None stands for what its entry says.
    prediction: PredictionRule | None = None
    # Whether adversarial images are to be on record too.
    keep_adversarials: bool = False

    @property
    def dataset_name(self) -> str:
        """The data set asked for, or that of the model; of a user's own file and images, the name of these."""
        if self.dataset is None and is_file_model(self.model):
            return DEFAULT_DATASET if self.data is None else self.data.stem
        return self.dataset or dataset_of(self.model)


@dataclass(frozen=True)
class Facts:
    """What is known once everything is loaded, and what identifies the runs."""

    model: str
    dataset: str
    samples: tuple[str, ...]
    threat: ThreatModel
    stochastic: bool
    device: str
    # Everything about the model and the data that can change an outcome.
    identity: dict[str, Any]
    # By label: what identifies the attack, and beside it, as `declared`, what the checks of the record read.
    attacks: dict[str, dict[str, Any]]
    # The labels after which each is to run, if one of them gains; why an attack cannot be made for this model; the largest
    # number of passes, forwards and backwards, that it may spend on a sample.
    after: dict[str, list[str]]
    not_applicable: dict[str, str]
    # The labels that see only what still stands, and the most samples of it that some of them see.
    cascade: frozenset[str]
    screens: dict[str, int]
    passes: dict[str, int]
    whole_tiles: frozenset[str]
    # Evaluators that are worth having side by side, and the threads of each.
    workers: int
    threads: int
    # The share of values that survives each winner-take-all layer, by the layer's name; empty without such layers.
    effective_sparsity: dict[str, str]


class Evaluator(Protocol):
    """Judges slices of one evaluation. `rows` are positions in the slice."""

    facts: Facts

    def judge_clean(self, rows: Sequence[int]) -> list[Outcome]:
        """What the model says of the images themselves."""
        ...

    def judge(self, label: str, rows: Sequence[int], clean: Sequence[Outcome], to_beat: Sequence[int] | None) -> list[Outcome]:
        """What an attack achieves; `to_beat` as for `judge.judge`."""
        ...

    def examine(self, check: str, question: Question) -> list[Finding]:
        """What a diagnostic check finds."""
        ...

    def retry(self, survivors: Survivors) -> Retried:
        """What twice the budget leaves of them."""
        ...

    def observe(self, rows: Sequence[int], experiment: Experiment) -> dict[str, Array]:
        """What an experiment measures."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class LocalEvaluator:
    """An evaluation in this process."""

    def __init__(self, request: Request, threads: int | None = None) -> None:
        """With `threads`, one of several that were found to be worth having."""
        require_exact_float32()
        keep_freed_memory()
        self._request = request
        self._device = find_device(request.device)
        registry = None if is_file_model(request.model) and request.registry is None else read_registry(request.registry)
        if registry is not None and not is_file_model(request.model):
            registry.find(request.model)  # an unknown model is worth saying before its data set is
        self._dataset = load_dataset(
            self._request.dataset_name, data=request.data, data_dir=request.data_dir, download=request.download
        )
        split = self._dataset.test if request.split == "test" else self._dataset.validation
        n = min(request.suite.n or len(split), len(split)) if request.n is None else request.n
        if n < 1:
            raise UsageError(f"--n {n}: must be at least 1")
        if n > len(split):
            raise UsageError(f"--n {n}: {self._dataset.name} has {len(split)} {request.split} images")
        workers = 1 if threads else self._workers(n)
        torch.set_num_threads(threads or self._threads(workers))
        self._batch = split.batch(range(n)).to(self._device)
        self._threat = self._threat_model()
        name, loaded, prediction = self._load(registry)
        self._model = self._wrap(name, loaded, prediction)
        self._registry = registry
        # Random models show themselves on the images and near them.
        probe = self._batch.x[: request.tile]
        noise = torch.rand(probe.shape, generator=torch.Generator().manual_seed(0)).to(probe)
        near = (probe + (2 * noise - 1) * self._threat.radius).clamp(0, 1)
        stochastic = self._model.measure_randomness(probe, near)
        self._model.plan_passes(near)
        self._surrogates: dict[str, str] = {}
        self._not_applicable: dict[str, str] = {}
        self._model_facts = MeasuredFacts(self._model, self._threat, self._dataset.shape, (probe, near))
        self._attacks = self._build_attacks(stochastic)
        shares = effective_sparsity(loaded.module, fill_tile(self._batch.x, request.tile))
        self.facts = Facts(
            model=name,
            dataset=self._dataset.name if request.split == "test" else f"{self._dataset.name} ({request.split})",
            samples=self._batch.samples,
            threat=self._threat,
            stochastic=stochastic,
            device=_device_name(self._device),
            identity={
                "model_sha256": loaded.sha256,
                "entry": registry.find(request.model)[1].model_dump(mode="json", include=_BEHAVIOUR)
                if registry is not None and not is_file_model(request.model)
                else request.model.rpartition(":")[2],
                "prediction": self._model.rule.identity(),
                "data_sha256": slice_hash(self._batch.samples),
                "classes": self._model.classes,
                "norm": self._threat.norm,
                "eps": str(self._threat.eps),
                "seed": request.seed,
                "tile": request.tile,
                "device": self._device.type,
                "dtype": "float32",
                "draws": {"selection": SELECTION_DRAWS, "fresh": FRESH_DRAWS} if stochastic else None,
                "engine": engine_revisions(),
                "network": network_revisions(loaded.module),
                "reader": self._dataset.reader_revision,
                "libraries": library_versions(),
            },
            attacks={
                label: {
                    **attack_identity(attack_name, attack),
                    "declared": attack.declared(),
                    **({"surrogate_sha256": self._surrogates[label]} if label in self._surrogates else {}),
                }
                for label, (attack_name, attack) in self._attacks.items()
            },
            after={stage.label: list(stage.after) for stage in request.suite.stages(stochastic) if stage.after},
            not_applicable=self._not_applicable,
            cascade=frozenset(stage.label for stage in request.suite.stages(stochastic) if stage.cascade),
            screens={stage.label: stage.screen for stage in request.suite.stages(stochastic) if stage.screen},
            passes={
                label: passes
                for label, (_, attack) in self._attacks.items()
                if (passes := attack.passes(stochastic)) is not None
            },
            whole_tiles=frozenset(label for label, (_, attack) in self._attacks.items() if attack.whole_tiles),
            workers=workers,
            threads=torch.get_num_threads(),
            effective_sparsity={layer: str(share) for layer, share in shares.items()},
        )

    def judge_clean(self, rows: Sequence[int]) -> list[Outcome]:
        """See Evaluator."""
        return judge_clean(self._model, self._batch.take(rows), self._request.seed)

    def judge(self, label: str, rows: Sequence[int], clean: Sequence[Outcome], to_beat: Sequence[int] | None) -> list[Outcome]:
        """See Evaluator."""
        _, attack = self._attacks[label]
        return self._sparing(
            lambda: judge(
                self._model,
                attack,
                label,
                self._batch.take(rows),
                self._threat,
                self._request.seed,
                clean,
                to_beat=to_beat,
                keep=self._request.keep_adversarials,
            )
        )

    def examine(self, check: str, question: Question) -> list[Finding]:
        """See Evaluator."""
        batch = self._batch.take(question.rows)
        case = Case(self._model, batch, self._threat, self._request.seed, question.robust, self._model_facts.search_precision)
        return self._sparing(lambda: examine(check, case))

    def retry(self, survivors: Survivors) -> Retried:
        """See Evaluator."""
        batch = self._batch.take(survivors.rows)
        attacks = {label: attack for label, (_, attack) in self._attacks.items()}
        return self._sparing(lambda: retried(self._model, batch, self._threat, self._request.seed, survivors, attacks))

    def observe(self, rows: Sequence[int], experiment: Experiment) -> dict[str, Array]:
        """See Evaluator."""
        attacks = {label: attack for label, (_, attack) in self._attacks.items() if label not in self._not_applicable}
        subject = Subject(self._model, self._batch.take(rows), self._threat, self._request.seed, attacks)
        with self._model.raising_by_name():
            return experiment(subject)

    def close(self) -> None:
        """See Evaluator."""

    def _sparing(self, work: Callable[[], _Work]) -> _Work:
        """What the work comes to; if memory runs out, with no more rows than a tile at once."""
        try:
            return work()
        except (torch.OutOfMemoryError, MemoryError):
            if not self._model.limit_to_tiles():
                raise
        torch.cuda.empty_cache()
        return work()

    def _workers(self, n: int) -> int:
        """One for each core, if there are as many tiles; a GPU is best left to one."""
        return 1 if self._device.type == "cuda" else min(self._request.threads or _CORES, -(-n // self._request.tile))

    def _threads(self, workers: int) -> int:
        if workers == 1 and self._request.threads:
            return self._request.threads
        return 1 if math.prod(self._dataset.shape) <= _SMALL_IMAGE else max(1, (self._request.threads or _CORES) // workers)

    def _threat_model(self) -> ThreatModel:
        request = self._request
        default = request.suite.threat or self._dataset.threat
        norm = request.norm or default.norm
        if request.eps is None and norm != default.norm:
            raise UsageError(f"--norm {norm}: say how far with --eps; the default, {default}, is in another norm")
        return ThreatModel.of(norm, default.eps if request.eps is None else request.eps)

    def _load(self, registry: Registry | None) -> tuple[str, Loaded, Prediction]:
        request = self._request
        asked = Prediction(**request.prediction.model_dump()) if request.prediction is not None else None
        if is_file_model(request.model):
            path, _, factory = request.model.rpartition(":")
            # Files of one name in two folders are two models; from here on a path says nothing of the machine.
            file, here = Path(path), Path.cwd()
            file = file.absolute().relative_to(here) if file.absolute().is_relative_to(here) else file
            return f"{file.as_posix()}:{factory}", load_file_model(request.model), asked or Prediction()
        assert registry is not None
        name, entry = registry.find(request.model)
        rule = asked or Prediction(**entry.prediction.model_dump())
        return name, load_entry(registry, name, entry, self._dataset, request.checkpoint), rule

    def _wrap(self, name: str, loaded: Loaded, prediction: Prediction) -> Model:
        dataset = self._dataset
        classes = dataset.classes
        if not dataset.fixed_classes:
            # The labels of a small slice may miss the last classes; the model knows how many there are.
            answer = None
            # Whatever ails the module shows, under its name, where it is asked in earnest.
            with suppress(Exception), torch.no_grad():
                answer = loaded.module.to(self._device)(fill_tile(self._batch.x, self._request.tile))
            if isinstance(answer, torch.Tensor) and answer.dim() == 2 and answer.shape[1] > classes:
                classes = answer.shape[1]
        return Model(
            loaded.module,
            name=name,
            classes=classes,
            shape=dataset.shape,
            device=self._device,
            tile=self._request.tile,
            prediction=prediction,
        )

    def _build_attacks(self, stochastic: bool) -> dict[str, tuple[str, Attack]]:
        built: dict[str, tuple[str, Attack]] = {}
        suite = self._request.suite
        for stage in suite.stages(stochastic):
            each = stage.attack
            try:
                attack = build_attack(each.attack, each.parameters, self._surrogate_loader(stage.label))
            except NotApplicable as reason:
                if suite.by_name:
                    raise UsageError(f"attack {each.label!r} cannot be made for {self._model.name}: {reason}") from None
                self._not_applicable[stage.label] = str(reason)
                # It is a part of the protocol all the same, with all its parameters.
                attack = build_attack(each.attack, each.parameters, lambda _: self._model)
            if self._threat.norm not in attack.norms:
                raise UsageError(
                    f"attack {each.label!r} works in {', '.join(sorted(attack.norms))}, not in {self._threat.norm}"
                )
            if stage.doubled:
                doubled = attack.doubled(stage.doubled)
                if doubled is None:
                    raise UsageError(f"attack {each.label!r} cannot escalate: {each.attack} does not say what to double")
                attack = doubled
            if stage.cascade and (redundancy := attack.redundant(self._model_facts)) is not None:
                self._not_applicable[stage.label] = redundancy
            built[stage.label] = (each.attack, attack.resolved(self._model_facts))
        if not built.keys() - self._not_applicable.keys():
            kind = "stochastic" if stochastic else "deterministic"
            raise UsageError(f"suite {suite.name!r} has no attack for a {kind} model such as {self._model.name}")
        return built

    def _surrogate_loader(self, label: str) -> Callable[[str], Model]:
        def load(name: str) -> Model:
            if name.startswith("swap:"):
                return self._swapped(name)
            registry = self._registry or read_registry(self._request.registry)
            # A bare name means the surrogate of the data set at hand.
            at_hand = self._request.dataset_name
            if "/" not in name and at_hand not in dataset_names():
                raise NotApplicable(
                    "no surrogate is known for images of your own; --dataset says which data set they are like, "
                    f"or {label}.surrogate names a model of the registry"
                )
            found, entry = registry.find(name if "/" in name else f"{at_hand}/{name}")
            loaded = load_entry(registry, found, entry, self._dataset)
            self._surrogates[label] = loaded.sha256
            return Model(
                loaded.module,
                name=found,
                classes=self._dataset.classes,
                shape=self._dataset.shape,
                device=self._device,
                tile=self._request.tile,
            )

        return load

    def _swapped(self, name: str) -> Model:
        """The model under test with other activations; raises NotApplicable where it has none to replace."""
        surrogate = Model(
            swapped(self._model.module, name.removeprefix("swap:")),
            name=name,
            classes=self._model.classes,
            shape=self._dataset.shape,
            device=self._device,
            tile=self._request.tile,
        )
        surrogate.measure_randomness(self._batch.x[: self._request.tile])
        surrogate.plan_passes(self._batch.x[: self._request.tile])
        return surrogate


# As many as torch would take, before anybody told it otherwise.
_CORES = torch.get_num_threads()

# Values of an image up to which a second thread gains a tenth on idle cores, and on busy ones loses a factor of ten.
_SMALL_IMAGE = 28 * 28

# The parts of a registry entry that can change what a network answers.
_BEHAVIOUR = {"architecture", "activation", "normalise", "smoothing"}


def open_evaluator(request: Request, time_limit: float | None = None) -> Evaluator:
    """The evaluator for a request: a user's own file gets a process of its own, of which no answer takes over `time_limit`
    seconds.

    Raises UsageError, CannotEvaluate or DamagedData, whatever stands in the way.
    """
    try:
        if not is_file_model(request.model):
            return LocalEvaluator(request)
        spawned = SpawnedEvaluator(request, time_limit)
        spawned.wait()
        return spawned
    except (torch.OutOfMemoryError, MemoryError):
        raise CannotEvaluate(
            f"{request.model}: memory does not hold the model and {request.tile} samples at once; give a smaller --tile"
        ) from None


class SpawnedEvaluator:
    """The same in a spawned process, of use after `wait`. `threads` as for LocalEvaluator."""

    facts: Facts

    def __init__(self, request: Request, time_limit: float | None, threads: int | None = None) -> None:
        self._name, self._time_limit = request.model, time_limit
        self._serving = serving(__name__)
        self._send((request, threads))

    def wait(self) -> None:
        """Until all is loaded. Raises as `open_evaluator` does."""
        try:
            self._answer(None)  # our own imports take the time they take
            self.facts = self._answer(self._time_limit)
        except BaseException:
            self.close()
            raise

    def judge_clean(self, rows: Sequence[int]) -> list[Outcome]:
        """See Evaluator."""
        answer: list[Outcome] = self._ask("judge_clean", list(rows))
        return answer

    def judge(self, label: str, rows: Sequence[int], clean: Sequence[Outcome], to_beat: Sequence[int] | None) -> list[Outcome]:
        """See Evaluator."""
        answer: list[Outcome] = self._ask("judge", label, list(rows), list(clean), to_beat)
        return answer

    def examine(self, check: str, question: Question) -> list[Finding]:
        """See Evaluator."""
        answer: list[Finding] = self._ask("examine", check, question)
        return answer

    def retry(self, survivors: Survivors) -> Retried:
        """See Evaluator."""
        answer: Retried = self._ask("retry", survivors)
        return answer

    def observe(self, rows: Sequence[int], experiment: Experiment) -> dict[str, Array]:
        """See Evaluator."""
        answer: dict[str, Array] = self._ask("observe", list(rows), experiment)
        return answer

    def close(self) -> None:
        """See Evaluator."""
        self._serving.close()

    def _ask(self, method: str, *arguments: Any) -> Any:
        self._send((method, arguments))
        return self._answer(self._time_limit)

    def _send(self, what: Any) -> None:
        try:
            self._serving.pipe.send(what)
        except (BrokenPipeError, OSError):
            self._died()

    def _answer(self, limit: float | None) -> Any:
        if not self._serving.pipe.poll(limit):
            self.close()
            raise CannotEvaluate(f"{self._name}: no answer within {limit:g} s; the process was stopped")
        try:
            answer = self._serving.pipe.recv()
        except (EOFError, OSError):
            self._died()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _died(self) -> None:
        process = self._serving.process
        process.join(5)
        raise CannotEvaluate(f"{self._name}: its process died (exit code {process.exitcode}); what was finished is on record")


def serve(pipe: Connection) -> None:
    """The other end of a SpawnedEvaluator: answer one call after the other, until the pipe is closed."""
    try:
        request, threads = pipe.recv()
    except EOFError:
        return
    pipe.send("started")
    evaluator = _served(request.model, lambda: LocalEvaluator(request, threads))
    if isinstance(evaluator, BaseException):
        pipe.send(evaluator)
        return
    pipe.send(evaluator.facts)
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(_served(request.model, lambda: getattr(evaluator, method)(*arguments)))  # noqa: B023


def _served(name: str, work: Callable[[], Any]) -> Any:
    """What the work returns, or else why it does not."""
    try:
        return work()
    except (torch.OutOfMemoryError, MemoryError) as failure:
        torch.cuda.empty_cache()
        return type(failure)(str(failure))
    except KwbenchError as failure:
        return failure
    except Exception as failure:  # noqa: BLE001 - foreign code
        return _foreign(name, failure)


def _foreign(name: str, failure: Exception) -> CannotEvaluate:
    last = traceback.extract_tb(failure.__traceback__)[-1]
    return CannotEvaluate(f"{name}: {type(failure).__name__}: {failure} ({Path(last.filename).name}:{last.lineno})")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
