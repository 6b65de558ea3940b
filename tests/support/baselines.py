"""Models on record whose A_rob is known, and baselines changed by hand."""

import hashlib
import json
from pathlib import Path

import numpy as np

from kwbench.record.evaluation import Evaluation
from kwbench.record.store import Store
from support.records import drawn, network, record, specification


def net(store: Store, rob: float, *, checkpoint: str, model: str = "net", **options: object) -> Evaluation:
    """Record a deterministic model with this A_rob under PGD and AutoAttack."""
    return network(store, model, 0.97, {"pgd": rob + 0.1, "autoattack": rob}, checkpoint=checkpoint, **options)  # type: ignore[arg-type]


def random_net(store: Store, shift: float, *, checkpoint: str, seed: int) -> Evaluation:
    """Record a stochastic model; `shift` lowers its accuracy under PGD."""
    rng = np.random.default_rng(seed)
    p = np.random.default_rng(0).beta(4, 2, 360)
    rows = {
        label: drawn(rng.binomial(100, p * part), rng.binomial(100, p * part))
        for label, part in (("clean", 1), ("pgd", 0.9 - shift))
    }
    return record(store, specification("random", n=360, stochastic=True, checkpoint=checkpoint), rows)


def rewrite(path: Path, content: dict[str, object]) -> None:
    """Write a baseline with the checksum of its contents."""
    lines = [json.dumps(row, sort_keys=True) for row in content["entries"]]  # type: ignore[attr-defined]
    content["sha256"] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    path.write_text(json.dumps(content))
