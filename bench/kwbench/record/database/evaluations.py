"""Queries on evaluations, the attack runs they share, and the findings of their checks."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import sqlalchemy as sa

from kwbench.errors import DamagedData, KwbenchError
from kwbench.finding import Finding
from kwbench.record.database import schema
from kwbench.record.database.checksums import REMEDY, checksum, next_position, require_position, without_command
from kwbench.record.database.statements import insert, lock, to_json, upsert
from kwbench.record.evaluation import AttackSpec, Evaluation, EvaluationSpec
from kwbench.threat import ThreatModel

# Damaged evaluations that an error names at most.
_NAMED = 5


@dataclass(slots=True)
class _Members:
    """The attacks of one evaluation, in order: as they are on record, and read."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    specs: list[AttackSpec] = field(default_factory=list)
    run_ids: dict[str, int] = field(default_factory=dict)


def adopt_evaluation(connection: sa.Connection, evaluation: Evaluation) -> None:
    """Insert an evaluation of another record, with its dates, as the newest one; one that is there stays as it is."""
    table = schema.evaluations
    lock(connection, schema.schema_revision)
    if connection.execute(sa.select(table.c.id).where(table.c.identity == evaluation.spec.identity)).scalar() is None:
        insert_evaluation(connection, evaluation.spec, created=evaluation.created, asked=evaluation.asked)


def insert_evaluation(
    connection: sa.Connection, spec: EvaluationSpec, *, created: str | None = None, asked: str | None = None
) -> None:
    """Insert an evaluation and its attack runs where they are missing, and note that it was asked for, by default now."""
    lock(connection, schema.schema_revision)
    now = datetime.now(UTC)
    asked = asked or now.isoformat(timespec="microseconds")
    table, runs = schema.evaluations, schema.attack_runs
    row = {
        "identity": spec.identity,
        "model": spec.model,
        "dataset": spec.dataset,
        "suite": spec.suite,
        "norm": spec.threat.norm,
        "eps": spec.threat.eps_text,
        "n": spec.n,
        "stochastic": spec.stochastic,
        "spec": to_json(spec.spec),
        "provenance": to_json(spec.provenance),
        "created": created or now.isoformat(timespec="seconds"),
        "asked": asked,
    }
    same = table.c.identity == spec.identity
    is_new = connection.execute(sa.select(table.c.id).where(same)).scalar() is None
    insert(connection, table, [row])
    # The same radius may be spelled otherwise now.
    connection.execute(sa.update(table).where(same).values(asked=asked, eps=spec.threat.eps_text))
    evaluation = connection.execute(sa.select(table.c.id).where(same)).scalar_one()
    insert(
        connection,
        runs,
        [{"identity": attack.identity, "label": attack.label, "spec": to_json(attack.spec)} for attack in spec.attacks],
    )
    identities = [attack.identity for attack in spec.attacks]
    ids = {
        run.identity: run.id
        for run in connection.execute(sa.select(runs.c.id, runs.c.identity).where(runs.c.identity.in_(identities)))
    }
    insert(
        connection,
        schema.members,
        [
            {"evaluation": evaluation, "attack_run": ids[identity], "position": position}
            for position, identity in enumerate(identities)
        ],
    )
    checksums = schema.evaluation_checksums
    state = {"evaluation": evaluation, **next_position(connection, checksums.c.position, evaluation)}
    if is_new:
        (recorded,) = connection.execute(sa.select(table).where(same))
        members = _select_members(connection, same)[evaluation]
        state |= {"checksum": _checksum(recorded, members), "findings": checksum()}
    upsert(connection, checksums, state)


def select_evaluations(
    connection: sa.Connection, identity: str | None = None, model: str | None = None, containing: str | None = None
) -> list[Evaluation]:
    """Return all evaluations, oldest first, or those with this identity, model, or text in their specification.

    Raises DamagedData that names those that are not what was written.
    """
    table, checksums = schema.evaluations, schema.evaluation_checksums
    chosen = sa.true() if identity is None else table.c.identity == identity
    if model is not None:
        chosen = chosen & (table.c.model == model)
    if containing is not None:
        chosen = chosen & table.c.spec.contains(containing, autoescape=True)
    members = _select_members(connection, chosen)
    rows = connection.execute(sa.select(table).where(chosen).order_by(table.c.id)).all()
    states = {state.evaluation: state for state in connection.execute(sa.select(checksums))}
    evaluations, damaged = [], []
    for row in rows:
        own, state = members.pop(row.id, _Members()), states.get(row.id)
        try:
            _require_whole(row, own, state)
            evaluations.append(_evaluation(row, own, state))
        except (KwbenchError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as failure:
            damaged.append(f"evaluation {row.id} ({row.model}, {row.dataset}): {failure}")
    if identity is None and model is None and containing is None:
        lost = sorted((members.keys() | states.keys()) - {row.id for row in rows})
        damaged += [f"evaluation {number}: its row is missing" for number in lost]
    if damaged:
        more = f"; and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
        raise DamagedData(f"damaged: {'; '.join(damaged[:_NAMED])}{more}; {REMEDY}")
    return evaluations


def _select_members(connection: sa.Connection, chosen: sa.ColumnElement[bool]) -> dict[int, _Members]:
    """Return the attacks of the chosen evaluations, by evaluation; also of evaluations whose row is lost, if all are chosen."""
    table, runs, members = schema.evaluations, schema.attack_runs, schema.members
    # Nearly all evaluations share the texts of their attacks' specifications.
    parsed: dict[str, tuple[str, Any]] = {}
    by_evaluation: dict[int, _Members] = {}
    query = (
        sa.select(members.c.evaluation, members.c.position, *(runs.c[name] for name in ("id", "identity", "label", "spec")))
        .join(runs, runs.c.id == members.c.attack_run)
        .outerjoin(table, table.c.id == members.c.evaluation)
        .where(chosen)
        .order_by(members.c.evaluation, members.c.position)
    )
    for evaluation, position, run, run_identity, label, text in connection.execute(query):
        if text not in parsed:
            parsed[text] = checksum(text), _attack_spec(text, run)
        digest, spec = parsed[text]
        own = by_evaluation.setdefault(evaluation, _Members())
        own.rows.append((position, run, run_identity, label, digest))
        own.specs.append(AttackSpec(label, run_identity, spec))
        own.run_ids[label] = run
    return by_evaluation


def _attack_spec(text: str, attack_run: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise DamagedData(f"damaged: the description of attack run {attack_run} is not JSON; {REMEDY}") from None


def _require_whole(row: sa.Row[Any], members: _Members, state: sa.Row[Any] | None) -> None:
    """Raise DamagedData unless an evaluation and its attacks are what was written, as far as that is on record."""
    listed = json.loads(row.spec).get("attacks")
    if listed is not None and listed != [attack.identity for attack in members.specs]:
        raise DamagedData(f"{len(members.specs)} attacks are on record, and not the {len(listed)} that were written")
    if state is not None:
        require_position(row.id, state.position, state.position_checksum)
    if state is not None and state.checksum is not None and state.checksum != _checksum(row, members):
        raise DamagedData("its fields or its attacks are not those that were written")


def _checksum(row: sa.Row[Any], members: _Members) -> str:
    fields = (row.id, row.identity, row.model, row.dataset, row.suite, row.norm, str(Fraction(row.eps)), row.n)
    return checksum(*fields, bool(row.stochastic), row.spec, without_command(row.provenance), row.created, members.rows)


def replace_findings(connection: sa.Connection, evaluation: int, findings: Sequence[Finding], checks: Sequence[str]) -> None:
    """Replace the findings of `checks`, and of those that `findings` come from, on an evaluation."""
    table, checksums = schema.findings, schema.evaluation_checksums
    own = checksums.c.evaluation == evaluation
    lock(connection, checksums, own)
    _require_findings(connection, [evaluation])
    replaced = [*checks, *(finding.check for finding in findings)]
    connection.execute(sa.delete(table).where(table.c.evaluation == evaluation, table.c.check.in_(replaced)))
    rows = [{"evaluation": evaluation, "check": finding.check, "finding": to_json(asdict(finding))} for finding in findings]
    insert(connection, table, rows)
    digest = _findings_checksum(_select_texts(connection, [evaluation]).get(evaluation, []))
    connection.execute(sa.update(checksums).where(own, checksums.c.findings.is_not(None)).values(findings=digest))


def select_findings(connection: sa.Connection, chosen: Collection[int] | None = None) -> dict[int, list[Finding]]:
    """Return the findings by evaluation, in the order of their recording; on at most `IDS_PER_QUERY` evaluations, or on all.

    Raises DamagedData if they are not those that were written.
    """
    texts = _require_findings(connection, chosen)
    return {owner: [_finding(text, owner) for _, text in rows] for owner, rows in texts.items()}


def _finding(text: str, evaluation: int) -> Finding:
    try:
        return Finding.from_json(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedData(f"damaged: a finding on evaluation {evaluation} cannot be read; {REMEDY}") from None


def _require_findings(connection: sa.Connection, chosen: Collection[int] | None) -> dict[int, list[tuple[str, str]]]:
    """Return the texts of findings; see `select_findings`."""
    checksums = schema.evaluation_checksums.c
    texts = _select_texts(connection, chosen)
    own = sa.true() if chosen is None else checksums.evaluation.in_(chosen)
    query = sa.select(checksums.evaluation, checksums.findings).where(own, checksums.findings.is_not(None))
    for owner, recorded in connection.execute(query):
        if recorded != _findings_checksum(texts.get(owner, [])):
            raise DamagedData(f"damaged: the findings on evaluation {owner} are not those that were written; {REMEDY}")
    return texts


def _select_texts(connection: sa.Connection, chosen: Collection[int] | None) -> dict[int, list[tuple[str, str]]]:
    """Return the check and the text of each finding, by evaluation, in the order of their recording."""
    table = schema.findings
    own = sa.true() if chosen is None else table.c.evaluation.in_(chosen)
    query = sa.select(table.c.evaluation, table.c.check, table.c.finding).where(own).order_by(table.c.id)
    texts: dict[int, list[tuple[str, str]]] = {}
    for owner, check, text in connection.execute(query):
        texts.setdefault(owner, []).append((check, text))
    return texts


def _findings_checksum(texts: Sequence[tuple[str, str]]) -> str:
    return checksum(*(part for text in texts for part in text))


def _evaluation(row: sa.Row[Any], members: _Members, state: sa.Row[Any] | None) -> Evaluation:
    spec = EvaluationSpec(
        identity=row.identity,
        model=row.model,
        dataset=row.dataset,
        suite=row.suite,
        # Early versions of kwbench reduced fractions.
        threat=ThreatModel.of(row.norm, Fraction(row.eps) if state is None else row.eps),
        n=row.n,
        stochastic=row.stochastic,
        attacks=tuple(members.specs),
        spec=json.loads(row.spec),
        provenance=json.loads(row.provenance),
    )
    return Evaluation(
        id=row.id,
        created=row.created,
        asked=row.asked,
        spec=spec,
        attack_runs=members.run_ids,
        position=0 if state is None else state.position,
        guarded=state is not None and state.checksum is not None,
    )
