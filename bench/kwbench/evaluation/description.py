"""Description of an evaluation for the record: what identifies it, and where it comes from."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kwbench.evaluation.request import Facts, Request
from kwbench.outcome import CLEAN
from kwbench.record.evaluation import AttackSpec, EvaluationSpec
from kwbench.record.provenance import code, digest, machine


def describe(request: Request, facts: Facts, command: str = "") -> EvaluationSpec:
    """Return the evaluation as it is put on record, with its identity and that of each of its attack runs."""
    origin = facts.identity
    clean: dict[str, Any] = {"attack": CLEAN, "parameters": {}}
    suite = request.suite
    attacks: list[AttackSpec] = []
    for label, attack in {CLEAN: clean, **facts.attacks}.items():
        # The clean images are the same at every radius, and predicted once.
        own_origin = {key: value for key, value in origin.items() if label != CLEAN or key not in ("norm", "eps")}
        # What an attack declares follows from what identifies it.
        own = {key: value for key, value in attack.items() if key != "declared"}
        identity = {"origin": own_origin, "label": label, **own}
        if label in facts.cascade:
            # Which samples it sees depends on all earlier attacks, and on whether they ran.
            earlier = [[run.identity, facts.after.get(run.label, [])] for run in attacks]
            identity["cascade"] = [earlier, facts.after.get(label, []), facts.screens.get(label)]
        attacks.append(AttackSpec(label, digest(identity), attack))
    spec = {
        "origin": origin,
        "suite": suite.name,
        "attacks": [attack.identity for attack in attacks],
        "protocol": [asdict(attack) for attack in suite.attacks],
        "model": facts.model,
        "dataset": facts.dataset,
        "cascade": sorted(facts.cascade) if suite.then or suite.apart else suite.cascade,
        "paper_attacks": _known(suite.paper_attacks, facts),
        "protocol_attacks": _known(suite.protocol, facts),
        "after": facts.after,
        "screens": facts.screens,
        "not_applicable": facts.not_applicable,
        "passes": facts.passes,
        **({"beside": list(suite.beside)} if suite.beside else {}),
    }
    return EvaluationSpec(
        # Which attacks do not apply is part of the identity; the reasons are messages.
        identity=digest({**spec, "not_applicable": sorted(facts.not_applicable)}),
        model=facts.model,
        dataset=facts.dataset,
        suite=suite.name,
        threat=facts.threat,
        n=len(facts.samples),
        stochastic=facts.stochastic,
        attacks=tuple(attacks),
        spec=spec,
        provenance={
            **machine(),
            **code(),
            "device": facts.device,
            "threads": facts.threads,
            "workers": facts.workers,
            "effective_sparsity": facts.effective_sparsity,
            "classes": list(facts.class_names),
            "parameters": facts.parameters,
            "notes": list(facts.notes),
            **({} if facts.claimed is None else {"claimed": facts.claimed}),
            "answers": facts.answers,
            **({"tiles": dict(facts.tiles)} if facts.tiles else {}),
            "command": command,
        },
    )


def _known(labels: Sequence[str] | None, facts: Facts) -> list[str] | None:
    return None if labels is None else [label for label in labels if label in facts.attacks]
