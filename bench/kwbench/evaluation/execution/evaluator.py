"""Evaluators: everything an evaluation needs, loaded, in this process or in a spawned one.

A user's own file runs in a freshly spawned process: its imports cannot clash with kwbench's, and a crash is contained.
"""

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import torch

from kwbench.attacks.attack import Attack
from kwbench.checks import Case, Question, Retried, Survivors, caveats, examine, retried
from kwbench.data import Batch, slice_hash
from kwbench.data.classes import mapping_note
from kwbench.errors import CannotEvaluate, KwbenchError
from kwbench.evaluation.execution.channel import Channel, NoAnswer
from kwbench.evaluation.execution.outside import OutsideModel
from kwbench.evaluation.execution.processes import STALLED, server_process
from kwbench.evaluation.execution.tampering import Integrity
from kwbench.evaluation.execution.tasks import Task
from kwbench.evaluation.execution.timings import PROBES, Timings
from kwbench.evaluation.identity import attack_identity, engine_revisions, library_versions, network_revisions
from kwbench.evaluation.preparation.known_tiles import tiles_for
from kwbench.evaluation.preparation.prepare import Prepared, prepare
from kwbench.evaluation.preparation.suite_attacks import SuiteAttacks
from kwbench.evaluation.request import Facts, Request
from kwbench.experiments import Experiment, Subject
from kwbench.files import cache_folder
from kwbench.finding import Finding
from kwbench.judge import FRESH_DRAWS, SELECTION_DRAWS, judge, judge_clean
from kwbench.model import Model, Precision, fill_tile, keep_freed_memory, require_exact_float32
from kwbench.model.tiles import TileTrial
from kwbench.networks.activations import effective_sparsity
from kwbench.outcome import Outcome
from kwbench.record.measurement import Array

_Result = TypeVar("_Result")


class Evaluator(Protocol):
    """Carries out the tasks of one evaluation."""

    facts: Facts

    def execute(self, task: Task[_Result]) -> _Result:
        """Return the task's result. Raises CannotEvaluate where the model fails or memory runs out."""
        ...

    def close(self) -> None:
        """Release processes and memory."""
        ...


class LocalEvaluator:
    """An evaluator in this process."""

    def __init__(self, request: Request, threads: int | None = None, time_limit: float | None = None) -> None:
        """Load everything; with `threads`, as one of several evaluators. Raises as `preparation.prepare` does.

        `time_limit` bounds the seconds of a pass of a model that is evaluated from outside its process.
        """
        require_exact_float32()
        keep_freed_memory()
        self._request = request
        timings = Timings()
        self._prepared = prepare(request, threads, time_limit, timings)
        self._model, self._batch, self._threat = self._prepared.model, self._prepared.batch, self._prepared.threat
        with timings.phase(*PROBES):
            self._suite = SuiteAttacks(request, self._prepared)
            self._attacks = {label: attack for label, (_, attack) in self._suite.by_label.items()}
            facts = _facts(request, self._prepared, self._suite)
        self.facts = replace(facts, seconds=timings.seconds())

    @property
    def tile(self) -> int:
        """Samples in a forward pass."""
        return self._request.tile_size

    @property
    def model(self) -> Model:
        """The model under evaluation, on its device."""
        return self._model

    @property
    def batch(self) -> Batch:
        """All samples of the evaluation, on the model's device."""
        return self._batch

    def execute(self, task: Task[_Result]) -> _Result:
        """See Evaluator."""
        return task.run(self)

    def judge_clean(self, rows: Sequence[int]) -> list[Outcome]:
        """Return the outcomes of the clean images."""
        return self._sparing_memory(lambda: judge_clean(self._model, self._batch.take(rows), self._request.seed))

    def judge(self, label: str, rows: Sequence[int], clean: Sequence[Outcome], to_beat: Sequence[int] | None) -> list[Outcome]:
        """Return the outcomes of an attack; `to_beat` as in `judge.judge`. Raises MemoryError where memory runs out."""
        among = self._request.examples_among if self._request.examples else 0
        return self._sparing_memory(
            lambda: judge(
                self._model,
                self._attacks[label],
                label,
                self._batch.take(rows),
                self._threat,
                self._request.seed,
                clean,
                to_beat=to_beat,
                keep=self._request.keep_adversarials,
                examples=[self.facts.samples[row] for row in rows if row < among],
            )
        )

    def run_check(self, check: str, question: Question) -> list[Finding]:
        """Return the findings of a check."""
        batch = self._batch.take(question.rows)
        case = Case(
            self._model, batch, self._threat, self._request.seed, question.robust, self._suite.model_facts.search_precision
        )
        return self._sparing_memory(lambda: examine(check, case))

    def retry(self, survivors: Survivors) -> Retried:
        """Return the accuracies of survivors before and after attacks of twice the budget."""
        batch = self._batch.take(survivors.rows)
        return self._sparing_memory(
            lambda: retried(self._model, batch, self._threat, self._request.seed, survivors, self._attacks)
        )

    def observe(self, rows: Sequence[int], experiment: Experiment) -> dict[str, Array]:
        """Return the arrays that an experiment measures."""
        attacks = {label: attack for label, attack in self._attacks.items() if label not in self._suite.not_applicable}
        subject = Subject(self._model, self._batch.take(rows), self._threat, self._request.seed, attacks)
        with self._model.raising_by_name():
            return experiment(subject)

    def close(self) -> None:
        """See Evaluator."""
        for module in self._prepared.loaded.module.modules():
            if isinstance(module, OutsideModel):
                module.close()

    def _sparing_memory(self, work: Callable[[], _Result]) -> _Result:
        """Return the result of `work`; if memory runs out, try again in smaller batches that give the same bits."""
        while True:
            try:
                return work()
            except (torch.OutOfMemoryError, MemoryError):
                if not self._model.use_smaller_batches():
                    raise
            torch.cuda.empty_cache()


def _facts(request: Request, prepared: Prepared, suite: SuiteAttacks) -> Facts:
    attacks = {label: attack for label, (_, attack) in suite.by_label.items()}
    sparsity = effective_sparsity(prepared.loaded.module, fill_tile(prepared.batch.x, request.tile_size))
    dataset = prepared.dataset
    device = prepared.device
    tiles, telling_tiles = _tiles(request, prepared, attacks)
    return Facts(
        model=prepared.name,
        dataset=dataset.name if request.split == "test" else f"{dataset.name} ({request.split})",
        samples=prepared.batch.samples,
        threat=prepared.threat,
        stochastic=prepared.stochastic,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        identity={
            "model_sha256": prepared.loaded.sha256,
            "entry": prepared.entry,
            "prediction": prepared.model.rule.identity(),
            "data_sha256": slice_hash(prepared.batch.samples),
            "classes": prepared.model.classes,
            "norm": prepared.threat.norm,
            "eps": str(prepared.threat.eps),
            "seed": request.seed,
            "tile": prepared.model.tile,
            "device": device.type,
            "dtype": "float32",
            "draws": {"selection": SELECTION_DRAWS, "fresh": FRESH_DRAWS} if prepared.stochastic else None,
            "engine": engine_revisions(),
            "network": network_revisions(prepared.loaded.module, *prepared.loaded.hidden),
            "reader": dataset.reader_revision,
            "libraries": library_versions(),
            **({"tiles": telling_tiles} if telling_tiles else {}),
            **({"binary": True} if request.binary else {}),
            **({"abstain_class": request.abstain_class} if request.abstain_class is not None else {}),
        },
        attacks={
            label: {
                **attack_identity(name, attack),
                "declared": attack.declared(),
                **({"surrogate_sha256": suite.surrogates[label]} if label in suite.surrogates else {}),
            }
            for label, (name, attack) in suite.by_label.items()
        },
        after={stage.label: list(stage.after) for stage in suite.stages if stage.after},
        not_applicable=suite.not_applicable,
        cascade=frozenset(stage.label for stage in suite.stages if stage.cascade),
        screens={stage.label: stage.screen for stage in suite.stages if stage.screen},
        passes={
            label: passes for label, attack in attacks.items() if (passes := attack.passes(prepared.stochastic)) is not None
        },
        whole_tiles=frozenset(label for label, attack in attacks.items() if attack.whole_tiles),
        workers=prepared.workers,
        draws_itself=prepared.loaded.draws_itself,
        threads=torch.get_num_threads(),
        effective_sparsity={layer: str(share) for layer, share in sparsity.items()},
        class_names=dataset.class_names,
        parameters=sum(weights.numel() for weights in prepared.loaded.module.parameters()),
        notes=(
            *prepared.loaded.notes,
            *([prepared.loaded.claimed.sentence()] if prepared.loaded.claimed is not None else []),
            *([mapping_note(dataset.class_names)] if dataset.class_names else []),
            *_caveats(request, prepared, suite),
            *_provenance_notes(request),
        ),
        claimed=None if prepared.loaded.claimed is None else asdict(prepared.loaded.claimed),
        answers=prepared.answers,
        prospects=suite.model_facts.prospects if request.suite.complete_search is not None else None,
        tiles=tiles,
    )


def _tiles(request: Request, prepared: Prepared, attacks: Mapping[str, Attack]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the tiles chosen on a GPU by kind of pass, and those that tell runs apart; none on a CPU or with a --tile."""
    model, device = prepared.model, prepared.device
    # A model whose rows depend on each other gets a tile of one image.
    if device.type != "cuda" or request.tile is not None or model.tile != request.tile_size:
        return {}, {}
    precisions: set[Precision] = {attack.search_precision for attack in attacks.values()}
    # The last steps of Auto-PGD in bfloat16 are folded.
    precisions |= {"folded"} if "bfloat16" in precisions else set()
    trial = TileTrial.on_gpu(device, len(prepared.batch))
    return tiles_for(model, prepared.loaded.sha256, precisions, trial, cache_folder("tiles"), request.tiles)


def _caveats(request: Request, prepared: Prepared, suite: SuiteAttacks) -> list[str]:
    near = prepared.probes[1]
    attacks = [attack for label, (_, attack) in suite.by_label.items() if label not in suite.not_applicable]
    return caveats(
        prepared.model,
        near,
        prepared.batch.y[: len(near)],
        follows_gradients=any(attack.needs == "gradients" and attack.evidence_group in ("exact", None) for attack in attacks),
        strong=request.suite.diagnose,
    )


def _provenance_notes(request: Request) -> list[str]:
    """Return where images that were made elsewhere come from, and whether the worst case includes them."""
    notes = []
    for label, proposals in request.proposals.items():
        made = f"made elsewhere ({proposals.paper})" if proposals.paper else "made elsewhere"
        counts = "; A_rob does not include them" if label in request.suite.beside else ""
        notes.append(f"{label}: images {made} and judged here{counts}")
    return notes


def open_evaluator(request: Request, time_limit: float | None = None, threads: int | None = None) -> Evaluator:
    """Return the evaluator for a request; a user's file gets a process of its own.

    That process is stopped if a task takes longer than `time_limit` seconds. `threads` as for LocalEvaluator. Raises
    UsageError, CannotEvaluate or DamagedData.
    """
    try:
        if not request.in_own_process:
            return LocalEvaluator(request, threads, time_limit)
        spawned = SpawnedEvaluator(request, time_limit, threads)
        spawned.wait()
        return spawned
    except (torch.OutOfMemoryError, MemoryError):
        raise CannotEvaluate(
            f"{request.model}: memory does not hold the model and {request.tile_size} samples at once; give a smaller --tile"
        ) from None


class SpawnedEvaluator:
    """An evaluator in a spawned process, ready after `wait`. `threads` as for LocalEvaluator."""

    facts: Facts

    def __init__(self, request: Request, time_limit: float | None, threads: int | None = None) -> None:
        self._name, self._time_limit = request.model, time_limit
        self._child = server_process(__name__)
        if request.in_own_process:
            self._child.memory.start(request.memory_limit)
        self._send((request, threads))

    def wait(self) -> None:
        """Wait until everything is loaded. Raises as `open_evaluator` does."""
        try:
            self._receive(None)  # kwbench's own imports are not subject to the time limit
            self._child.pipe.patience = STALLED
            self.facts = self._receive(self._time_limit)
        except BaseException:
            self.close()
            raise

    def execute(self, task: Task[_Result]) -> _Result:
        """See Evaluator."""
        self._send(task)
        result: _Result = self._receive(self._time_limit)
        return result

    def close(self) -> None:
        """See Evaluator."""
        self._child.close()

    def _send(self, message: Any) -> None:
        try:
            self._child.pipe.send(message)
        except NoAnswer as failure:
            self._raise_stopped(failure)
        except OSError:
            self._raise_died()

    def _receive(self, limit: float | None) -> Any:
        try:
            message = self._child.pipe.recv(limit)
        except NoAnswer as failure:
            self._raise_stopped(failure)
        except (EOFError, OSError):
            self._raise_died()
        except Exception as failure:  # noqa: BLE001 - foreign code may write anything into the pipe
            self.close()
            raise CannotEvaluate(
                f"{self._name}: its process sent what is no answer ({type(failure).__name__}); does it write to files that "
                "it did not open?"
            ) from None
        if isinstance(message, KwbenchError | torch.OutOfMemoryError | MemoryError):
            raise message
        if isinstance(message, BaseException):
            raise CannotEvaluate(f"{self._name}: its process sent what is no answer ({type(message).__name__})")
        return message

    def _raise_stopped(self, failure: NoAnswer) -> NoReturn:
        self.close()
        raise CannotEvaluate(f"{self._name}: {failure}; the process was stopped") from None

    def _raise_died(self) -> NoReturn:
        process = self._child.process
        process.join(5)
        reason = self._child.memory.exceeded or f"died (exit code {process.exitcode})"
        raise CannotEvaluate(f"{self._name}: its process {reason}; what was finished is on record")


def serve(pipe: Channel) -> None:
    """Serve a SpawnedEvaluator at the other end of the pipe: execute its tasks until the pipe is closed."""
    try:
        request, threads = pipe.recv()
    except EOFError:
        return
    pipe.send("started")
    integrity = Integrity() if request.in_own_process else None
    evaluator = result_or_failure(request.model, lambda: LocalEvaluator(request, threads), integrity)
    if isinstance(evaluator, BaseException):
        pipe.send(evaluator)
        return
    pipe.send(evaluator.facts)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(result_or_failure(request.model, lambda: evaluator.execute(task), integrity))  # noqa: B023


def result_or_failure(name: str, work: Callable[[], Any], integrity: Integrity | None = None) -> Any:
    """Return the result of `work`, or the exception to raise at the other end of the pipe; see `Integrity`."""
    try:
        result = work()
        if integrity is not None and (replaced := integrity.replaced()) is not None:
            return CannotEvaluate(
                f"{name}: its code replaces {replaced} of kwbench, so it could decide its own outcomes; "
                "--untrusted evaluates it from another process"
            )
        return result
    except (torch.OutOfMemoryError, MemoryError) as failure:
        torch.cuda.empty_cache()
        # Subclasses of libraries, such as NumPy's, cannot be made from a message alone.
        kind = torch.OutOfMemoryError if isinstance(failure, torch.OutOfMemoryError) else MemoryError
        return kind(str(failure))
    except KwbenchError as failure:
        return failure
    except Exception as failure:  # noqa: BLE001 - foreign code may raise anything
        return _foreign(name, failure)


def _foreign(name: str, failure: Exception) -> CannotEvaluate:
    last = traceback.extract_tb(failure.__traceback__)[-1]
    return CannotEvaluate(f"{name}: {type(failure).__name__}: {failure} ({Path(last.filename).name}:{last.lineno})")
