"""What data readers, experiments, statistics and checks compute."""

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from golden.attack_parts import engine
from golden.parts import Part, Revision, of_class
from golden.subjects import batch, kwta_network, model, relu_network, stochastic_network
from kwbench import statistics
from kwbench.attacks import build_attack
from kwbench.checks import CHECKS, Case, examine
from kwbench.data import DATA_SETS, DataSet, load_dataset, slice_hash
from kwbench.experiments import EXPERIMENTS, SYNTHETIC, Subject, build_experiment
from kwbench.finding import Finding
from kwbench.threat import ThreatModel

# Parameters that keep each experiment cheap.
EXPERIMENT_CASES: dict[str, dict[str, Any]] = {
    "landscape": {"points": 3},
    "logits": {"steps": 4},
    "patterns": {"directions": 2},
    "answers": {"examples": 1},
    "weights": {"steps": 3},
    "fit": {"points": 6, "width": 10, "steps": 10, "grid": 9},
    "layers": {"widths": [32], "gammas": [0.2], "inputs": 8, "outputs": 4, "directions": 4, "draws": 2},
}


def parts() -> list[Part]:
    """The data readers, the experiments, the statistics and the checks; no run is identified by the last two."""
    experiments = [
        Part(
            f"experiment {name}", partial(_experiment, name), partial(of_class, kind), engine if name in EXPERIMENTS else tuple
        )
        for name, kind in (EXPERIMENTS | SYNTHETIC).items()
    ]
    return [
        Part("data of the digits", lambda: {"": _described(load_dataset("digits"))}, _digits_revision),
        Part("data of users' files", _files, _files_revision),
        *experiments,
        Part("statistics", _statistics, None),
        Part("checks", _checks, None, engine),
    ]


def _digits_revision() -> Revision:
    return Revision("the revision of digits", "kwbench/data/__init__.py", DATA_SETS["digits"].revision)


def _files_revision() -> Revision:
    return Revision("DataSet.reader_revision", "kwbench/data/dataset.py", DataSet.reader_revision)


def _files() -> Mapping[str, Any]:
    outcomes = {}
    generator = np.random.RandomState(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        arrays: dict[str, NDArray[Any]] = {
            "pixels": generator.randint(0, 256, (12, 3, 4, 4), dtype=np.uint8),
            "floats": (generator.randint(0, 17, (12, 1, 4, 4)) / 16).astype(np.float32),
        }
        labels = np.arange(12) % 3
        for name, images in arrays.items():
            # The last image is there twice.
            images[11], labels[11] = images[10], labels[10]
            np.savez(root / f"{name}.npz", x_test=images, y_test=labels, x_train=images[:6], y_train=labels[:6])
            outcomes[f"npz of {name}"] = _described(load_dataset(name, data=root / f"{name}.npz"))
        for number, image in enumerate(arrays["pixels"][:8]):
            path = root / "folder" / ("cats", "dogs")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
        outcomes["folder"] = _described(load_dataset("folder", data=root / "folder"))
    return outcomes


def _described(data: DataSet) -> dict[str, Any]:
    splits = {"test": data.test, "train": data.train, "validation": data.validation}
    return {
        "classes": data.classes,
        "eps": str(data.threat),
        **{name: [len(split), slice_hash(split.batch(range(min(len(split), 50))).samples)] for name, split in splits.items()},
    }


def _experiment(name: str) -> Mapping[str, Any]:
    experiment = build_experiment(name, EXPERIMENT_CASES[name])
    if name in SYNTHETIC:
        return {array: values.ravel().tolist() for array, values in experiment(3).items()}
    attacks = {"pgd": build_attack("pgd", {"steps": 3, "relative_step_size": 0.4})}
    networks = {"relu": relu_network, "kwta": kwta_network}
    if name == "patterns":
        # Its values before ReLU are often exactly 0 on clean digits, so that patterns change at once.
        del networks["relu"]
    outcomes: dict[str, Any] = {}
    for network, make in networks.items():
        subject = Subject(model(make()), batch().take([0, 2, 6]), ThreatModel.of("linf", "0.15"), 0, attacks)
        for array, values in experiment(subject).items():
            outcomes[f"{network} {array}"] = values.ravel()[:200].tolist()
    return outcomes


def _statistics() -> Mapping[str, Any]:
    def ends(interval: statistics.Interval) -> list[float]:
        return [interval.value, interval.low, interval.high]

    shares = [0.0, 0.25, 0.5, 0.5, 0.98, 1.0]
    return {
        "hits": {f"{hits} of {n}": ends(statistics.accuracy_of_hits(hits, n)) for hits, n in ((0, 10), (7, 10), (360, 360))},
        "values": {"": ends(statistics.accuracy_of_values(shares)), "ones": ends(statistics.accuracy_of_values([1.0] * 8))},
        "mcnemar": [statistics.mcnemar(lost, 3, one_sided=side) for lost in (0, 3, 9) for side in (True, False)],
        "sign flip": [
            statistics.sign_flip(differences, one_sided=side)
            for differences in ([0.1, -0.02, 0.3, 0.0, 0.5], list(np.linspace(-0.1, 0.301, 30)))
            for side in (True, False)
        ],
        "difference": ends(statistics.difference_interval([0.2, -0.1, 0.0, 0.0, 0.7])),
    }


def _checks() -> Mapping[str, Any]:
    outcomes: dict[str, Any] = {}
    for network, make in {"relu": relu_network, "kwta": kwta_network, "stochastic": stochastic_network}.items():
        victim = model(make(), tile=16)
        images = batch(tuple(range(16)))
        predicted, _ = victim.predict(images.x)
        right = images.take((predicted == images.y).nonzero().squeeze(1).tolist())
        case = Case(victim, right, ThreatModel.of("linf", "0.15"), seed=0)
        for check in CHECKS:
            outcomes[f"{network} {check}"] = [_described_finding(finding) for finding in examine(check, case)]
    return outcomes


def _described_finding(finding: Finding) -> dict[str, Any]:
    # Figures of long searches differ between processors beyond the second decimal.
    figure = None if finding.figure is None else round(finding.figure, 2)
    return {"figure": figure, "threshold": finding.threshold, "fires": finding.fires, "kind": finding.kind}
