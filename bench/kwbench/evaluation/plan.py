"""What evaluations would take, from the seconds that the record holds for the same attacks, and the order to spend time in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log

from kwbench.evaluation.description import describe
from kwbench.evaluation.request import Facts, Request
from kwbench.outcome import CLEAN
from kwbench.record.cascade import Stage, stages
from kwbench.record.evaluation import AttackSpec, Evaluation, EvaluationSpec
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.tally import Tally


@dataclass(frozen=True)
class AttackPlan:
    """What an attack would take that is still to run.

    Attributes:
        label: its label in the suite; `clean` for the clean images.
        samples: samples without an outcome on record. In a cascade the attack sees only those that are not broken by then.
        passes: the forward and backward passes of these samples at most; None where the attack does not bound them.
        seconds: of one evaluator; None where the record has no timing.
        timed_on: the model on record whose seconds these are, scaled to as many samples; empty without a timing.
    """

    label: str
    samples: int
    passes: int | None
    seconds: float | None
    timed_on: str


@dataclass(frozen=True)
class Plan:
    """What the evaluation of a model would take: its attacks that are not on record, in order."""

    model: str
    suite: str
    n: int
    attacks: tuple[AttackPlan, ...]

    @property
    def seconds(self) -> float:
        """Seconds of the attacks that have a timing."""
        return sum(attack.seconds or 0.0 for attack in self.attacks)

    @property
    def untimed(self) -> tuple[str, ...]:
        """The labels of the attacks without a timing."""
        return tuple(attack.label for attack in self.attacks if attack.seconds is None)


def plan(request: Request, facts: Facts, store: Store) -> Plan:
    """Return what an evaluation would take, once its facts are known.

    The seconds of an attack are those on record of the same attack, with the same parameters, on the most similar model: the
    same model if that was attacked, else one on the same data set with the nearest number of parameters. They are scaled to
    the number of samples; of a cascade, an attack is taken to see the same share of them as there. Diagnosis and certificates
    are not counted.
    """
    spec = describe(request, facts)
    known = store.evaluations()
    tallies = store.tallies()
    runs = {attack.identity: evaluation.attack_runs[attack.label] for evaluation in known for attack in evaluation.spec.attacks}
    timed = [
        (evaluation, stages(evaluation.spec, [tallies.get(run) for run in evaluation.attack_runs.values()]))
        for evaluation in known
        if (evaluation.spec.dataset, evaluation.spec.stochastic) == (spec.dataset, spec.stochastic)
    ]
    attacks = []
    recorded = [tallies.get(runs.get(attack.identity, -1)) for attack in spec.attacks]
    for attack, tally, stage in zip(spec.attacks, recorded, stages(spec, recorded), strict=True):
        clean_is_known = len(stage.best) == spec.n
        targets = int(stage.targets.sum()) if clean_is_known else spec.n
        samples = targets if tally is None else max(0, targets - len(tally))
        if stage.skipped is not None or not samples or (clean_is_known and stage.finished):
            continue
        bound = 1 if attack.label == CLEAN else facts.passes.get(attack.label)
        seconds, model = _timing(spec, attack, timed, tallies)
        attacks.append(
            AttackPlan(
                attack.label,
                samples,
                None if bound is None else bound * samples,
                None if seconds is None else seconds * samples / targets,
                model,
            )
        )
    return Plan(facts.model, request.suite.name, spec.n, tuple(attacks))


def in_order_of_information(requests: Sequence[Request], store: Store) -> list[int]:
    """Return the positions of requests, those first whose evaluation tells most.

    Models without a complete evaluation on their data set come first, in the order given. The others follow,
    those first whose A_rob on record has the widest interval.
    """
    widths: dict[tuple[str, str], float] = {}
    for summary in summaries(store):
        if summary.complete and summary.a_rob is not None:
            key = (summary.model, summary.dataset)
            width = summary.a_rob.high - summary.a_rob.low
            widths[key] = min(width, widths.get(key, 1.0))
    # An interval is never wider than 1.
    return sorted(
        range(len(requests)), key=lambda position: -widths.get((requests[position].model, requests[position].dataset_name), 2.0)
    )


def _timing(
    spec: EvaluationSpec,
    asked: AttackSpec,
    timed: Sequence[tuple[Evaluation, Sequence[Stage]]],
    tallies: Mapping[int, Tally],
) -> tuple[float | None, str]:
    """Return the seconds of an attack for `spec.n` samples, and the model that they were measured on; None without any."""
    candidates: list[tuple[tuple[bool, float, int], float, str]] = []
    for evaluation, course in timed:
        other = evaluation.spec
        for attack, stage in zip(other.attacks, course, strict=True):
            tally = tallies.get(evaluation.attack_runs[attack.label])
            # An attack that was not needed there takes no time; one that was interrupted tells nothing.
            if not _same_attack(attack.spec, asked.spec) or (stage.skipped is None and (tally is None or not stage.finished)):
                continue
            seconds = 0.0 if stage.skipped is not None or tally is None else tally.seconds
            unlike = abs(log(_parameters(other) / _parameters(spec)))
            rank = (other.model != spec.model, unlike, -evaluation.position)
            candidates.append((rank, seconds * spec.n / other.n, other.model))
    if not candidates:
        return None, ""
    _, seconds, model = min(candidates)
    return seconds, model


def _same_attack(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    return all(one.get(key) == other.get(key) for key in ("attack", "parameters"))


def _parameters(spec: EvaluationSpec) -> int:
    count = spec.provenance.get("parameters")
    return count if isinstance(count, int) and count > 0 else 1
