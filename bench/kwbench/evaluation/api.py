"""The Python API; `kwbench.evaluate`, `kwbench.attack` and `kwbench.diagnose` are these functions."""

import inspect
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kwbench.attacks.external import Proposals
from kwbench.config.prediction import parse_prediction_rule
from kwbench.config.suite import Suite, SuiteAttack, override, read_suite, suite_of
from kwbench.data import DataForm
from kwbench.errors import CannotEvaluate, UsageError
from kwbench.evaluation.arguments import attack_names, attack_parameters, check_names, check_numbers, samples_in_memory
from kwbench.evaluation.proposals import proposals_from_arrays, read_proposals, suite_with
from kwbench.evaluation.protocol import protocol_suite, verdict_against
from kwbench.evaluation.request import Request
from kwbench.evaluation.result import EvaluationResult, result_of
from kwbench.evaluation.runner import Progress
from kwbench.evaluation.runner import evaluate as run
from kwbench.networks.in_memory import unchanged
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import Summary


def evaluate(model: str | nn.Module, x: Any = None, y: Any = None, **options: Any) -> EvaluationResult:
    """See kwbench.evaluate, whose options these are."""
    call = _Call(model, x, y, **options)
    with call.opened() as store:
        summary = call.run(call.suite(), store)
        return result_of(store, summary, call.images(summary))


def diagnose(
    model: str | nn.Module, x: Any = None, y: Any = None, *, protocol: str | None = None, **options: Any
) -> EvaluationResult:
    """See kwbench.diagnose, whose options these are."""
    check_names(options, _OPTIONS)
    call = _Call(model, x, y, **options)
    with call.opened() as store:
        rival = None if protocol is None else call.run(protocol_suite(protocol), store)
        if rival is not None and not rival.complete:
            raise CannotEvaluate(f"{rival.model}: {protocol} is incomplete: {'; '.join(rival.missing)}")
        summary = call.run(replace(call.suite(default="strong"), diagnose=True), store, thoroughly=True)
        return result_of(store, summary, call.images(summary), verdict_against(summary, protocol, rival))


def verify(
    model: str | nn.Module,
    adversarials: Any,
    x: Any = None,
    y: Any = None,
    *,
    attack_name: str,
    paper: str,
    key: str | None,
    worst_case: bool,
    **options: Any,
) -> EvaluationResult:
    """See kwbench.verify, whose options these are."""
    check_names(options, _OPTIONS)
    call = _Call(model, x, y, **options)
    alone = options.get("suite") is None and options.get("attacks") is None
    suite, label = suite_with(None if alone else call.suite(), attack_name, worst_case=worst_case)
    from_file = isinstance(adversarials, str | Path)
    proposals = (
        read_proposals(Path(adversarials), key=key, paper=paper)
        if from_file
        else proposals_from_arrays(adversarials, "adversarials", paper=paper)
    )
    with call.opened() as store:
        summary = call.run(suite, store, proposals={label: proposals})
        return result_of(store, summary, call.images(summary))


def attack(
    name: str,
    model: str | nn.Module,
    x: Any,
    y: Any,
    arguments: Mapping[str, Any],
    options: Mapping[str, Any],
    /,
    **parameters: Any,
) -> Tensor:
    """See kwbench.attack. `arguments` are its own, `options` other ones of evaluate, `parameters` those of the attack."""
    if not isinstance(name, str):
        raise UsageError(f"name: {type(name).__name__}; give the name of an attack first, then the model")
    for option in options.keys() & arguments.keys():
        raise UsageError(f"options: {option} is an argument of kwbench.attack itself; write {option}=")
    check_names(options, _OPTIONS - {"suite", "attacks", "parameters", "keep_adversarials"})
    suite = Suite(name=name, attacks=(SuiteAttack(name, name, parameters=dict(parameters)),), by_name=True)
    call = _Call(model, x, y, **arguments, **options)
    with call.opened() as store:
        summary = call.run(suite, store)
        if not summary.complete:
            notes = (outcome.note for outcome in store.outcomes(summary.evaluation.attack_runs[name]) if outcome.note)
            raise CannotEvaluate(f"{name}: {'; '.join(summary.missing)} ({next(notes, 'no reason was given')})")
        return result_of(store, summary, call.images(summary)).adversarials


class _Call:
    """One call of the API: what was asked for, checked and brought into the form of a request."""

    def __init__(
        self,
        model: str | nn.Module,
        x: Any,
        y: Any,
        *,
        suite: str | Path | None = None,
        attacks: str | Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
        eps: str | float | Fraction | None = None,
        norm: str | None = None,
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
        progress: Callable[[Progress], None] | None = None,
        keep_adversarials: bool = True,
    ) -> None:
        if isinstance(model, type):
            raise UsageError(f"model: the class {model.__name__}; give an instance of it")
        if not isinstance(model, str | nn.Module):
            raise UsageError(f"model: {type(model).__name__}; give a torch.nn.Module, a name, or path/to/file.py:factory")
        if isinstance(model, nn.Module) and checkpoint is not None:
            raise UsageError("checkpoint: load the weights into the module before it is evaluated")
        if split not in ("test", "validation"):
            raise UsageError(f"split: {split!r}; it is test or validation")
        if precision not in ("auto", "float32"):
            raise UsageError(f"precision: {precision!r}; it is auto or float32")
        if split != "test" and x is not None:
            raise UsageError(f"split: {split!r}; images in memory are the test split, leave it out")
        if not isinstance(suite, str | Path | None):
            raise UsageError(f"suite: {suite!r}; give the name of a suite or a YAML file; attacks= takes names of attacks")
        if progress is not None and not callable(progress):
            raise UsageError(f"progress: {progress!r}; give a function, which is called after each batch")
        check_numbers(n=n, seed=seed, tile=tile, threads=threads, time_limit=time_limit, memory_limit=memory_limit)
        if suite is not None and attacks is not None:
            raise UsageError("suite and attacks: give one of them; a suite lists its attacks")
        self._module = model if isinstance(model, nn.Module) else None
        self._suite_name, self._attacks, self._parameters = suite, attacks, attack_parameters(parameters)
        self._db, self._progress, self._time_limit = db, progress or (lambda _: None), time_limit
        images = None
        if x is not None:
            if data is not None:
                raise UsageError("x, data: give one of them; data is read in place of images in memory")
            in_memory = name or type(model).__name__ if self._module is not None else "images"
            images = samples_in_memory(x, y, n, in_memory, dataset)
        elif self._module is not None and dataset is None and data is None:
            raise UsageError("x, y: give images and labels, or name a data set with dataset=, for a module in memory")
        elif y is not None:
            raise UsageError("y: labels without images")
        self._request = Request(
            model=name or (model if isinstance(model, str) else type(model).__name__),
            suite=Suite("", ()),
            module=self._module,
            images=images,
            registry=_path(registry),
            checkpoint=_path(checkpoint),
            checkpoint_key=checkpoint_key,
            strip_prefix=strip_prefix,
            dataset=dataset,
            data=_path(data),
            classes=_path(classes),
            form=DataForm(resize, center_crop, None if keys is None else (keys[0], keys[1]), severity),
            data_dir=_path(data_dir),
            download=download,
            split=split,
            n=n,
            norm=norm,
            eps=str(eps) if isinstance(eps, float | int) else eps,
            seed=seed,
            tile=tile,
            device=str(device),
            threads=threads,
            precision=precision,
            prediction=parse_prediction_rule(prediction) if prediction is not None else None,
            binary=binary,
            abstain_class=abstain_class,
            memory_limit=None if memory_limit is None else memory_limit * 1e9,
            keep_adversarials=keep_adversarials,
        )
        if isinstance(model, str):
            self._request = replace(self._request, model=model)

    def suite(self, default: str = "all") -> Suite:
        """Return the suite that was asked for, with its parameters. Raises UsageError for unknown names."""
        if self._suite_name is not None:
            suite = read_suite(str(self._suite_name))
        elif self._attacks is not None:
            suite = suite_of(attack_names(self._attacks))
        else:
            suite = read_suite(default)
        settings = [f"{key}={json.dumps(value, default=str)}" for key, value in self._parameters.items()]
        return override(suite, settings)

    @contextmanager
    def opened(self) -> Iterator[Store]:
        """Open the database; without one, a temporary one that is deleted in the end."""
        with nullcontext(self._db) if self._db is not None else tempfile.TemporaryDirectory(prefix="kwbench-") as location:
            store = Store.open(str(location) if self._db is not None else f"{location}/results.db", create=True, deferred=True)
            try:
                yield store
            finally:
                store.close()

    def run(
        self,
        suite: Suite,
        store: Store,
        *,
        thoroughly: bool = False,
        proposals: Mapping[str, Proposals] | None = None,
    ) -> Summary:
        """Evaluate under a suite and return the summary. The module is left as it was given."""
        request = replace(self._request.under(suite), proposals=proposals or {})
        threads = torch.get_num_threads()
        # The caller's inference mode would leave the attacks without gradients.
        with torch.inference_mode(False), unchanged(self._module) if self._module is not None else nullcontext():
            try:
                evaluation = run(
                    request,
                    store,
                    self._progress,
                    command="Python API",
                    time_limit=self._time_limit,
                    thoroughly=thoroughly,
                )
            finally:
                torch.set_num_threads(threads)
        return summaries(store, [evaluation])[0]

    def images(self, summary: Summary) -> Tensor | None:
        """Return the clean images of an evaluation (n, c, h, w); None where adversarial images were not kept."""
        request = self._request
        if not request.keep_adversarials:
            return None
        dataset = request.load_images()
        split = dataset.test if request.split == "test" else dataset.validation
        return split.batch(summary.index.tolist()).x


# Names of the options of evaluate.
_OPTIONS = frozenset(inspect.signature(_Call).parameters) - {"model", "x", "y"}


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
