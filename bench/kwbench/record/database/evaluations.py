"""Queries on evaluations, the attack runs they share, and the findings of their checks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from kwbench.finding import Finding
from kwbench.record.database import schema
from kwbench.record.database.statements import insert, to_json
from kwbench.record.evaluation import AttackSpec, Evaluation, EvaluationSpec
from kwbench.threat import ThreatModel


def insert_evaluation(connection: sa.Connection, spec: EvaluationSpec) -> None:
    """Insert an evaluation and its attack runs where they are missing, and note that it was asked for now."""
    now = datetime.now(UTC)
    asked = now.isoformat(timespec="microseconds")
    table, runs = schema.evaluations, schema.attack_runs
    row = {
        "identity": spec.identity,
        "model": spec.model,
        "dataset": spec.dataset,
        "suite": spec.suite,
        "norm": spec.threat.norm,
        "eps": str(spec.threat.eps),
        "n": spec.n,
        "stochastic": spec.stochastic,
        "spec": to_json(spec.spec),
        "provenance": to_json(spec.provenance),
        "created": now.isoformat(timespec="seconds"),
        "asked": asked,
    }
    insert(connection, table, [row])
    same = table.c.identity == spec.identity
    connection.execute(sa.update(table).where(same).values(asked=asked))
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


def select_evaluations(connection: sa.Connection, identity: str | None = None) -> list[Evaluation]:
    """Return all evaluations, oldest first, or the one with this identity."""
    table, runs, members = schema.evaluations, schema.attack_runs, schema.members
    chosen = sa.true() if identity is None else table.c.identity == identity
    # Nearly all evaluations share the texts of their attacks' specifications.
    parsed: dict[str, Mapping[str, Any]] = {}
    attacks: dict[int, tuple[list[AttackSpec], dict[str, int]]] = {}
    query = (
        sa.select(members.c.evaluation, *(runs.c[name] for name in ("id", "identity", "label", "spec")))
        .join(runs, runs.c.id == members.c.attack_run)
        .join(table, table.c.id == members.c.evaluation)
        .where(chosen)
        .order_by(members.c.evaluation, members.c.position)
    )
    for evaluation, run, run_identity, label, text in connection.execute(query):
        if text not in parsed:
            parsed[text] = json.loads(text)
        specs, run_ids = attacks.setdefault(evaluation, ([], {}))
        specs.append(AttackSpec(label, run_identity, parsed[text]))
        run_ids[label] = run
    rows = connection.execute(sa.select(table).where(chosen).order_by(table.c.id))
    return [_evaluation(row, *attacks.get(row.id, ([], {}))) for row in rows]


def replace_findings(connection: sa.Connection, evaluation: int, findings: Sequence[Finding], checks: Sequence[str]) -> None:
    """Replace the findings of `checks`, and of those that `findings` come from, on an evaluation."""
    table = schema.findings
    replaced = [*checks, *(finding.check for finding in findings)]
    connection.execute(sa.delete(table).where(table.c.evaluation == evaluation, table.c.check.in_(replaced)))
    rows = [{"evaluation": evaluation, "check": finding.check, "finding": to_json(asdict(finding))} for finding in findings]
    insert(connection, table, rows)


def select_findings(connection: sa.Connection, evaluation: int | None = None) -> dict[int, list[Finding]]:
    """Return the findings by evaluation, in the order of their recording; of one evaluation, or of all."""
    table = schema.findings
    chosen = sa.true() if evaluation is None else table.c.evaluation == evaluation
    query = sa.select(table.c.evaluation, table.c.finding).where(chosen).order_by(table.c.id)
    findings: dict[int, list[Finding]] = {}
    for owner, text in connection.execute(query):
        fields = json.loads(text)
        findings.setdefault(owner, []).append(Finding.from_json(fields))
    return findings


def _evaluation(row: sa.Row[Any], attacks: list[AttackSpec], attack_runs: Mapping[str, int]) -> Evaluation:
    spec = EvaluationSpec(
        identity=row.identity,
        model=row.model,
        dataset=row.dataset,
        suite=row.suite,
        threat=ThreatModel.of(row.norm, row.eps),
        n=row.n,
        stochastic=row.stochastic,
        attacks=tuple(attacks),
        spec=json.loads(row.spec),
        provenance=json.loads(row.provenance),
    )
    return Evaluation(id=row.id, created=row.created, asked=row.asked, spec=spec, attack_runs=attack_runs)
