"""Claimed beside measured: for each claim what is on record, or how to get it. A pure view of the record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from kwbench.claims.claim import Claim
from kwbench.claims.full_size import full_size_entries
from kwbench.claims.lint import lint
from kwbench.claims.mapping import DATASETS, PUBLISHED, Place, Protocol, place_of
from kwbench.config.prediction import PredictionRule
from kwbench.config.recipe import Recipe
from kwbench.config.registry import ModelEntry, Registry, read_registry
from kwbench.errors import UsageError
from kwbench.outcome import Outcome, Status
from kwbench.record.single_draw_protocol import single_draw_accuracy
from kwbench.record.store import Store
from kwbench.record.summary import Summary, summaries
from kwbench.statistics import Interval, accuracy_of_hits
from kwbench.threat import ThreatModel
from kwbench.verdict import verdict_on_record

State = Literal["run", "runnable", "not comparable"]

# Where the full-size networks are written to, in the commands that are named.
REGISTRY_FILE = "papers.yaml"


@dataclass(frozen=True, slots=True)
class Measurement:
    """A number on record: the attack's label, or A_std or A_rob, and the evaluation that it comes from."""

    label: str
    accuracy: Interval
    standing: Summary = field(repr=False)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A claim and what is known of it here.

    `status`: `run`, there are `measured` figures, the paper's reading first; `runnable`, by `commands` on `hardware`; or
    `not comparable`, as `place.why_not` says. `model`: the network that was, or would be, measured; `differs`: in what it is
    not the paper's. `strong`: A_rob of the same network under the strong suite at the same radius.
    `verdict` is that evaluation's, empty where there is none. `remarks` are the rules of the lint that concern the claim.
    """

    claim: Claim
    place: Place
    status: State
    model: str
    differs: tuple[str, ...]
    measured: tuple[Measurement, ...]
    strong: Measurement | None
    verdict: str
    commands: tuple[str, ...]
    hardware: str
    remarks: tuple[str, ...]


def comparisons(
    claims: Sequence[Claim],
    store: Store | None,
    registry: Registry | None = None,
    *,
    on_record: Sequence[Summary] | None = None,
) -> list[Comparison]:
    """Each claim with what is on record of it; nothing is where there is no store. The registry has our networks.

    `on_record`: the store's standings, where they have been read already.
    """
    known = (registry or read_registry()).entries
    if on_record is None:
        on_record = [] if store is None else summaries(store)
    found = _Record(store, _of_newest_weights(on_record, known))
    remarks: dict[Claim, list[str]] = {}
    for remark in lint(claims):
        for each in remark.claims:
            remarks.setdefault(each, []).append(remark.rule)
    return [_comparison(each, found, known, tuple(remarks.get(each, ()))) for each in claims]


def unclaimed(claims: Sequence[Claim], on_record: Sequence[Summary], registry: Registry | None = None) -> list[Summary]:
    """What is on record of networks of the registry, on the claims' data sets, that stand beside no claim.

    Complete evaluations of their newest weights: for each network, suite, data set and radius that on the most images, the
    newest of them.
    """
    known = (registry or read_registry()).entries
    places = [place_of(each) for each in claims]
    claimed = {name for place in places for name in (place.model, place.full_size)}
    others = {name for name in known if name not in claimed and name.partition("/")[0] in DATASETS.values()}
    kept: dict[tuple[str, str, str, str], Summary] = {}
    for each in sorted(_of_newest_weights(on_record, known), key=lambda each: (each.n, each.evaluation.asked)):
        if each.complete and each.model in others:
            kept[each.model, each.evaluation.spec.suite, each.dataset, str(each.threat)] = each
    return [kept[key] for key in sorted(kept)]


def _comparison(claim: Claim, record: "_Record", known: Mapping[str, ModelEntry], remarks: tuple[str, ...]) -> Comparison:
    place = place_of(claim)
    if not place.comparable:
        return Comparison(claim, place, "not comparable", "", (), (), None, "", (), "", remarks)
    # Ours comes first in what is to be done, and the paper's own in what has been.
    models = [each for each in (place.model if place.model in known else None, place.full_size) if each is not None]
    measured: tuple[Measurement, ...] = ()
    for model in reversed(models):
        if measured := record.measured(model, place, claim.threat):
            models = [model]
            break
    if not models:
        raise UsageError(f"the registry has no model {place.model!r}, which {claim.name} needs")
    model = models[0]
    strong = record.strong(model, claim.threat, measured[0].standing) if measured else None
    found = None if strong is None else verdict_on_record(strong.standing)
    return Comparison(
        claim=claim,
        place=place,
        status="run" if measured else "runnable",
        model=model,
        differs=() if model == place.full_size else _differs(place, known[model]),
        measured=measured,
        strong=strong,
        verdict="" if found is None else found.conclusion,
        commands=_commands(
            claim,
            place,
            model,
            pinned=model in known and known[model].checkpoint is not None,
            images=measured[0].standing.n if measured else None,
            strong_images=None if strong is None else strong.standing.n,
        ),
        hardware="one GPU" if model == place.full_size else "a CPU",
        remarks=remarks,
    )


def _differs(place: Place, ours: ModelEntry) -> tuple[str, ...]:
    theirs = full_size_entries()[place.full_size] if place.full_size is not None else None
    told = differences(ours, theirs) if theirs is not None else []
    return (*(["; ".join(told)] if told else []), *place.differs)


def differences(ours: ModelEntry, theirs: ModelEntry) -> list[str]:
    """In what one network is not another, by their entries: sizes, epochs, images, and how it was trained."""
    found = [
        f"{name} {value} for {theirs.architecture.parameters.get(name)}"
        for name, value in ours.architecture.parameters.items()
        if theirs.architecture.parameters.get(name) != value
    ]
    a, b = ours.recipe, theirs.recipe
    if a is None or b is None:
        return found
    if _epochs(a) != _epochs(b):
        found.append(f"{_epochs(a)} epochs for {_epochs(b)}")
    if a.dataset is not None:
        found.append(f"trained on {a.dataset}")
    if (mine := _training(a)) != (its := _training(b)):
        found.append(f"{mine} for {its}")
    return found


def _epochs(recipe: Recipe) -> int:
    """All epochs, those of incremental training included."""
    more = recipe.incremental
    # Down to 0.1, whichever way it goes there.
    steps = 0 if more is None else round((more.start - Fraction(1, 10)) / more.step)
    return recipe.epochs + (0 if more is None else steps * more.epochs + more.final_epochs)


_TRAININGS = {
    "natural": "natural training",
    "adversarial": "PGD adversarial training",
    "trades": "TRADES",
    "free": "free adversarial training",
    "fast": "fast adversarial training",
    "mixture": "sampled training",
}


def _training(recipe: Recipe) -> str:
    """How a network is trained, in a few words; the adversary's step sizes papers do not say."""
    steps = getattr(getattr(recipe, recipe.training, None), "steps", None)
    return _TRAININGS[recipe.training] + (f" ({steps} steps)" if steps is not None else "")


def _commands(
    claim: Claim, place: Place, model: str, *, pinned: bool, images: int | None, strong_images: int | None
) -> tuple[str, ...]:
    """What to type for the claim and for the strong suite, each on its own line; on as many images as have been measured."""
    assert place.protocol is not None
    full = model == place.full_size
    registry = f" --registry {REGISTRY_FILE}" if full else ""
    sources = _sources(claim, model) if full else {}
    prepare = []
    if full:
        prepare = [f"kwbench claims{registry}"]
        prepare += [f"kwbench train {each}{registry} --download --pin --device cuda" for each in (*sources.values(), model)]
    elif model == PUBLISHED:
        prepare = [f"kwbench convert {model} --download"]
    elif not pinned:
        prepare = [f"kwbench train {model} --download --pin"]
    setting = "".join(f" --set {label}.surrogate={each}" for label, each in sources.items())
    few, strong_few = ("" if n is None else f" --n {n}" for n in (images, strong_images))
    run = [f"kwbench evaluate {model}{registry} --suite {place.protocol.suite}{setting} --download{few}"]
    if claim.threat is not None:
        threat = f"--norm {claim.norm} --eps {claim.eps}"
        run.append(f"kwbench evaluate {model}{registry} --suite strong {threat} --download{strong_few}")
    return (*prepare, *run)


def _sources(claim: Claim, model: str) -> dict[str, str]:
    """The surrogates at full size of the suite that measures a transfer, by label."""
    dataset = model.partition("/")[0]
    if claim.attack == "BB":
        return {"bb": f"{dataset}/vgg19"}
    if not claim.attack.startswith("transfer from"):
        return {}
    return {f"from-{each}": f"{dataset}/resnet18-{each}-copy" for each in ("relu", "kwta0.1", "relu-at", "kwta0.1-at")}


class _Record:
    """What is on record, by model and suite."""

    def __init__(self, store: Store | None, on_record: Sequence[Summary]) -> None:
        self._store = store
        self._found: dict[tuple[str, str], list[Summary]] = {}
        for each in on_record:
            self._found.setdefault((each.model, each.evaluation.spec.suite), []).append(each)

    def measured(self, model: str, place: Place, threat: ThreatModel | None) -> tuple[Measurement, ...]:
        """The figures that stand beside a claim; those on the most images, the newest of them."""
        protocol = place.protocol
        assert protocol is not None
        suites = [protocol.suite]
        if model == place.full_size:
            # Transfer from sources of full size; which, is part of the suite's name.
            suites += [suite for its, suite in self._found if its == model and _only_sources_differ(suite, protocol)]
        candidates = [
            (each, figures)
            for suite in suites
            for each in self._found.get((model, suite), ())
            if threat in (None, each.threat) and (figures := self._figures(each, place))
        ]
        if not candidates:
            return ()
        return max(candidates, key=lambda pair: (pair[0].n, pair[0].evaluation.asked))[1]

    def strong(self, model: str, threat: ThreatModel | None, beside: Summary) -> Measurement | None:
        """A_rob under the strong suite at this radius, on the same images if there is one on them."""
        candidates = [
            each
            for each in self._found.get((model, "strong"), ())
            if threat is not None and each.threat == threat and each.a_rob is not None
        ]
        if not candidates:
            return None
        best = max(candidates, key=lambda each: (_images(each) == _images(beside), each.n, each.evaluation.asked))
        assert best.a_rob is not None
        return Measurement("A_rob", best.a_rob, best)

    def _figures(self, standing: Summary, place: Place) -> tuple[Measurement, ...]:
        protocol = place.protocol
        assert protocol is not None
        named: list[tuple[str, Interval | None]] = []
        attacks = {each.name: each.accuracy for each in standing.attacks}
        if protocol.reading == "clean":
            named = [("A_std", standing.a_std)]
        elif protocol.reading == "worst":
            named = [("A_rob", standing.a_rob_as_in_paper), *((label, attacks.get(label)) for label in protocol.labels)]
        elif protocol.reading == "count":
            named = [("all", self._count(standing, protocol.labels))]
        elif protocol.reading == "natural":
            named = [(label, self._right_after(standing, label)) for label in protocol.labels]
        else:
            named = [(label, attacks.get(label)) for label in protocol.labels]
        if named[0][1] is None:
            return ()
        return tuple(Measurement(label, each, standing) for label, each in named if each is not None)

    def _right_after(self, standing: Summary, label: str) -> Interval | None:
        """The share of images that are right under a perturbation, also of those that were wrong before."""
        known = {each.name: each.accuracy for each in standing.attacks}
        if standing.stochastic or known.get(label) is None:
            return known.get(label)
        assert self._store is not None
        rows = self._store.outcomes(standing.evaluation.attack_runs[label])
        return accuracy_of_hits(sum(each.prediction == each.label for each in rows), len(rows))

    def _count(self, standing: Summary, labels: Sequence[str]) -> Interval | None:
        """What a tool counts that runs these attacks in turn on what still stands, with one look after each."""
        assert self._store is not None
        runs = standing.evaluation.attack_runs
        known = {each.name for each in standing.attacks if each.accuracy is not None}
        if standing.clean is None or standing.a_std is None or not known.issuperset(labels):
            return None
        clean, *attacks = (self._store.outcomes(runs[label]) for label in (standing.clean.name, *labels))
        if standing.stochastic:
            return single_draw_accuracy(clean, attacks).expected
        return _union(attacks)


def _of_newest_weights(on_record: Sequence[Summary], known: Mapping[str, ModelEntry]) -> list[Summary]:
    """The usual evaluations, for each model only of its newest weights."""
    usual = [each for each in on_record if _usual(each, known)]
    newest = {each.model: each for each in sorted(usual, key=lambda each: each.evaluation.asked)}
    return [each for each in usual if _weights(each) == _weights(newest[each.model])]


def _only_sources_differ(suite: str, protocol: Protocol) -> bool:
    name, _, settings = suite.partition(" with ")
    each = [setting.partition("=")[0] for setting in settings.split(", ")]
    return name == protocol.suite and all(path.endswith(".surrogate") for path in each)


def _union(attacks: Sequence[Sequence[Outcome]]) -> Interval:
    """The share of images that each of the attacks left standing."""
    held = [{each.sample for each in rows if each.status is Status.HELD} for rows in attacks]
    return accuracy_of_hits(len(set.intersection(*held)), len(attacks[0]))


def _usual(standing: Summary, known: Mapping[str, ModelEntry]) -> bool:
    """On test images, and predicted as the model's entry says: by a single draw, as papers do, or by the vote of smoothing."""
    entry = known.get(standing.model)
    usual = entry.prediction if entry is not None else PredictionRule()
    rule = standing.evaluation.origin.get("prediction", {})
    same = (rule.get("kind", "draw"), rule.get("draws", 1)) == (usual.kind, usual.draws)
    return not standing.dataset.endswith(" (validation)") and same


def _weights(standing: Summary) -> Any:
    return standing.evaluation.origin.get("model_sha256")


def _images(standing: Summary) -> Any:
    return standing.evaluation.origin.get("data_sha256")


def claims_json(found: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Comparisons as JSON values: accuracies as fractions of 1, the claim in percent as printed."""
    return [_json(each) for each in found]


def _json(each: Comparison) -> dict[str, Any]:
    claim, place = each.claim, each.place
    return {
        "paper": claim.paper,
        "table": claim.table,
        "dataset": claim.dataset,
        "architecture": claim.architecture,
        "pretrained": claim.pretrained,
        "training": claim.training,
        "activation": claim.activation,
        "attack": claim.attack,
        "norm": claim.norm or None,
        "eps": claim.eps or None,
        "claimed_percent": claim.percent,
        "quoted_from": claim.quoted_from or None,
        "inferred": list(claim.inferred),
        "status": each.status,
        "why_not": place.why_not or None,
        "model": each.model or None,
        "full_size": place.full_size,
        "differs": list(each.differs),
        "suite": None if place.protocol is None else place.protocol.suite,
        "measured": [_measurement_json(one) for one in each.measured],
        "strong": None if each.strong is None else _measurement_json(each.strong),
        "verdict": each.verdict or None,
        "commands": list(each.commands),
        "hardware": each.hardware or None,
        "remarks": list(each.remarks),
    }


def _measurement_json(each: Measurement) -> Mapping[str, Any]:
    one = each.accuracy
    return {
        "label": each.label,
        "accuracy": {"value": one.value, "low": one.low, "high": one.high},
        "model": each.standing.model,
        "dataset": each.standing.dataset,
        "n": each.standing.n,
        "run": each.standing.evaluation.spec.identity,
    }
