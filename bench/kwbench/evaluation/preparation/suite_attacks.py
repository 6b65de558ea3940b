"""The attacks of a suite, built for one model: surrogates loaded, automatic parameters resolved."""

from collections.abc import Callable

import torch
from torch import Tensor

from kwbench.attacks import build_attack
from kwbench.attacks.attack import Attack
from kwbench.attacks.external import EXTERNAL, External
from kwbench.attacks.search.student import Lessons
from kwbench.config.registry import read_registry
from kwbench.config.suite import Stage
from kwbench.data import dataset_names
from kwbench.errors import NotApplicable, UsageError
from kwbench.evaluation.preparation.model_facts import MeasuredFacts
from kwbench.evaluation.preparation.prepare import Prepared
from kwbench.evaluation.request import Request
from kwbench.model import Model, returns_labels
from kwbench.networks.activations.surrogates import swap_activations
from kwbench.networks.entries import load_entry

# The training images that students of the model learn from, beside the samples of the evaluation.
_LESSONS = 1500


class SuiteAttacks:
    """The attacks of a request's suite, by label, with their registered names.

    `surrogates` are the SHA-256 of the surrogates by label, `not_applicable` the reasons why attacks cannot be made.
    """

    def __init__(self, request: Request, prepared: Prepared) -> None:
        """Raises UsageError for attacks that do not exist, do not fit the norm, or, if named, the model."""
        self._request, self._prepared = request, prepared
        self.model_facts = MeasuredFacts(
            prepared.model,
            prepared.threat,
            prepared.dataset.shape,
            prepared.probes,
            Lessons(_images_to_learn_from(prepared), request.seed),
            exact=request.precision == "float32",
        )
        self.surrogates: dict[str, str] = {}
        self.not_applicable: dict[str, str] = {}
        self.stages = request.suite.stages(prepared.stochastic)
        self.by_label = {stage.label: (stage.attack.attack, self._build(stage)) for stage in self.stages}
        if not self.by_label.keys() - self.not_applicable.keys():
            kind = "stochastic" if prepared.stochastic else "deterministic"
            raise UsageError(f"suite {request.suite.name!r} has no attack for a {kind} model such as {prepared.name}")

    def _build(self, stage: Stage) -> Attack:
        suite, threat, asked = self._request.suite, self._prepared.threat, stage.attack
        if asked.attack == EXTERNAL:
            return External().proposing(self._request.proposals[stage.label], self._prepared.batch, threat)
        try:
            attack = build_attack(asked.attack, asked.parameters, self._surrogate_loader(stage.label))
        except NotApplicable as reason:
            if suite.by_name:
                raise UsageError(f"attack {asked.label!r} cannot be made for {self._prepared.name}: {reason}") from None
            self.not_applicable[stage.label] = str(reason)
            # It remains part of the protocol, with all its parameters.
            attack = build_attack(asked.attack, asked.parameters, lambda _: self._prepared.model)
        if threat.norm not in attack.norms:
            limits = f"works in {', '.join(sorted(attack.norms))}, not in {threat.norm}"
            if not stage.cascade:
                raise UsageError(f"attack {asked.label!r} {limits}")
            self.not_applicable[stage.label] = limits
        if returns_labels(self._prepared.model.module) and not attack.from_labels:
            lack = "the model returns predicted classes alone"
            if suite.by_name:
                raise UsageError(f"attack {asked.label!r} cannot be made for {self._prepared.name}: {lack}")
            self.not_applicable[stage.label] = lack
        if stage.doubled:
            doubled = attack.doubled(stage.doubled)
            if doubled is None:
                raise UsageError(f"attack {asked.label!r} cannot escalate: {asked.attack} does not say what to double")
            attack = doubled
        if (
            stage.cascade
            and stage.label not in self.not_applicable
            and (redundancy := attack.redundant(self.model_facts)) is not None
        ):
            self.not_applicable[stage.label] = redundancy
        return attack.resolved(self.model_facts)

    def _surrogate_loader(self, label: str) -> Callable[[str], Model]:
        def load(name: str) -> Model:
            if name.startswith("swap:"):
                return self._swapped(name)
            registry = self._prepared.registry or read_registry(self._request.registry)
            # A bare name belongs to the data set of the evaluation.
            dataset_name = self._request.dataset_name
            if "/" not in name and dataset_name not in dataset_names():
                raise NotApplicable(
                    "no surrogate is known for images of your own; --dataset says which data set they are like, "
                    f"or {label}.surrogate names a model of the registry"
                )
            full_name, entry = registry.find(name if "/" in name else f"{dataset_name}/{name}")
            loaded = load_entry(registry, full_name, entry, self._prepared.dataset)
            self.surrogates[label] = loaded.sha256
            return Model(
                loaded.module,
                name=full_name,
                classes=self._prepared.dataset.classes,
                shape=self._prepared.dataset.shape,
                device=self._prepared.device,
                tile=self._request.tile_size,
            )

        return load

    def _swapped(self, name: str) -> Model:
        """Return the model with its activations replaced. Raises NotApplicable where it has none to replace."""
        model, probe = self._prepared.model, self._prepared.batch.x[: self._request.tile_size]
        surrogate = Model(
            swap_activations(model.module, name.removeprefix("swap:")),
            name=name,
            classes=model.classes,
            shape=self._prepared.dataset.shape,
            device=self._prepared.device,
            tile=self._request.tile_size,
        )
        # The model itself has been measured with more.
        surrogate.measure_randomness(probe, draws=2)
        surrogate.plan_passes(probe)
        return surrogate


def _images_to_learn_from(prepared: Prepared) -> Tensor:
    """Return the first training images, and the samples of the evaluation in an order that does not depend on theirs."""
    batch, train = prepared.batch, prepared.dataset.train
    order = sorted(range(len(batch)), key=lambda row: batch.samples[row])
    first = train.batch(range(min(len(train), _LESSONS))).x.to(batch.x) if len(train) else batch.x[:0]
    return torch.cat([first, batch.x[order]])
