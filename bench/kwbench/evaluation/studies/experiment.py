"""Run experiments and put their measurements on record, unless they are there."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kwbench.config.strict_yaml import parse_yaml
from kwbench.errors import UsageError
from kwbench.evaluation.execution.evaluator import open_evaluator
from kwbench.evaluation.execution.tasks import Observe
from kwbench.evaluation.identity import engine_revisions, library_versions
from kwbench.evaluation.request import Facts, Request
from kwbench.experiments import Experiment, Synthetic, configuration
from kwbench.record.measurement import Array, Measurement
from kwbench.record.provenance import code, digest, machine
from kwbench.record.store import Store


def measure(
    request: Request,
    name: str,
    experiment: Experiment,
    store: Store,
    *,
    images: Sequence[int] | None = None,
    command: str = "",
    time_limit: float | None = None,
) -> Measurement:
    """Run an experiment on a model, on the samples at these positions of the slice; None stands for all.

    Raises UsageError for an image that the slice does not have, else as evaluations do.
    """
    evaluator = open_evaluator(request, time_limit)
    try:
        facts = evaluator.facts
        rows = list(range(len(facts.samples))) if images is None else list(images)
        for row in rows:
            if not 0 <= row < len(facts.samples):
                raise UsageError(f"image {row}: the slice has {len(facts.samples)}, counted from 0")
        return recorded_on_model(
            facts, name, experiment, store, rows, lambda: evaluator.execute(Observe(rows, experiment)), command=command
        )
    finally:
        evaluator.close()


def recorded_on_model(
    facts: Facts,
    name: str,
    experiment: Experiment,
    store: Store,
    rows: Sequence[int],
    work: Callable[[], dict[str, Array]],
    *,
    command: str = "",
) -> Measurement:
    """Return the measurement of an experiment on rows of a model's slice: that on record, else of `work`, put on record."""
    spec = {
        "parameters": configuration(experiment),
        "revision": type(experiment).revision,
        "origin": facts.identity,
        "images": list(rows),
        "samples": [facts.samples[row] for row in rows],
        "attacks": facts.attacks if _uses_attacks(name) else {},
        # In the order of the arrays, which a JSON object does not keep.
        "labels": [label for label in facts.attacks if label not in facts.not_applicable] if _uses_attacks(name) else [],
    }
    provenance = {**machine(), **code(), "device": facts.device, "threads": facts.threads, "command": command}
    return _recorded(store, name, facts.model, facts.dataset, spec, provenance, work)


def parameters_in(settings: Sequence[str]) -> dict[str, Any]:
    """Parse the arguments of `--set`, PARAMETER=VALUE each. Raises UsageError for anything else."""
    parameters = {}
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator or not name:
            raise UsageError(f"--set {setting}: write PARAMETER=VALUE, such as points=50")
        parameters[name] = parse_yaml(f"value: {text}", f"--set {setting}")["value"]
    return parameters


def synthesize(name: str, experiment: Synthetic, seed: int, store: Store, *, command: str = "") -> Measurement:
    """Run an experiment that makes its own network."""
    spec = {"parameters": configuration(experiment), "revision": type(experiment).revision, "seed": seed}
    return _recorded(store, name, "", "", spec, {**machine(), **code(), "command": command}, lambda: experiment(seed))


def _uses_attacks(name: str) -> bool:
    return name == "answers"


def _recorded(
    store: Store,
    name: str,
    model: str,
    dataset: str,
    spec: Mapping[str, Any],
    provenance: Mapping[str, Any],
    work: Callable[[], dict[str, Array]],
) -> Measurement:
    whole = {
        "experiment": name,
        "model": model,
        "dataset": dataset,
        **spec,
        "engine": engine_revisions(),
        "libraries": library_versions(),
    }
    identity = digest(whole)
    known = store.experiments(identity)
    arrays = known[0].arrays if known else work()
    store.record_experiment(Measurement(identity, name, model, dataset, whole, provenance, arrays))
    return store.experiments(identity)[0]
