"""RobustBench's model zoo: robustbench:Carmon2019Unlabeled, on the data set and in the norm of the evaluation.

Croce et al. 2021, arXiv:2010.09670.
"""

import json
from pathlib import Path
from typing import Any

from robustbench.utils import load_model

from kwbench.errors import DamagedData, UsageError, did_you_mean
from kwbench.networks.adapters.adapter import Adapted, Wanted, missing, origin_of, sha256_of
from kwbench.networks.loaded import Claimed

_DATASETS = {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet": "imagenet"}
_NORMS = {"linf": "Linf", "l2": "L2"}

# RobustBench's own folders, relative to the working folder: of its weights, and of its claims.
_WEIGHTS, _CLAIMS = Path("models"), Path("model_info")


def load(wanted: Wanted) -> Adapted:
    """Load a model with RobustBench's own code from `models`/DATASET/NORM/NAME.pt, where RobustBench puts it.

    What the zoo claims is read from `model_info`, a folder of RobustBench's repository, if the working folder has it.
    """
    name = f"robustbench:{wanted.name}"
    if wanted.checkpoint is not None:
        raise UsageError(f"{name}: comes with its weights; put them into {_WEIGHTS}, or evaluate your own code")
    if wanted.dataset not in _DATASETS or wanted.norm not in _NORMS:
        raise UsageError(
            f"{name}: RobustBench has models for {', '.join(_DATASETS)} in {', '.join(_NORMS)}, not for {wanted.dataset} in "
            f"{wanted.norm}; choose with --dataset and --norm"
        )
    dataset, threat = _DATASETS[wanted.dataset], _NORMS[wanted.norm]
    address = _address(name, wanted.name, dataset, threat)
    folder = _WEIGHTS / dataset / threat
    if not _files(folder, wanted.name) and not wanted.download:
        raise missing(name, f"its weights are ({folder / wanted.name}.pt)", address)
    module = load_model(model_name=wanted.name, model_dir=str(_WEIGHTS), dataset=dataset, threat_model=threat)
    hashes = {file.name: sha256_of(file) for file in _files(folder, wanted.name)}
    origin = origin_of("robustbench", model=wanted.name, dataset=dataset, threat=threat, **hashes)
    return Adapted(module, origin, claimed=_claimed(_CLAIMS / dataset / threat / f"{wanted.name}.json"))


def _address(name: str, model: str, dataset: str, threat: str) -> str:
    """Return where RobustBench fetches a model's weights. Raises UsageError for a model that it does not have."""
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    zoo: Any = model_dicts[BenchmarkDataset(dataset)]
    known = list(zoo.get(ThreatModel(threat), {}))
    if model not in known:
        raise UsageError(f"{name}: RobustBench has no such model for {dataset} in {threat}; {did_you_mean(model, known)}")
    entry = zoo[ThreatModel(threat)][model].get("gdrive_id")
    files = entry if isinstance(entry, list) else [entry]
    return " and ".join(f"https://drive.google.com/uc?id={file}" for file in files if file) or "RobustBench's copy"


def _files(folder: Path, model: str) -> list[Path]:
    """Return the files of a model, or of the members of an ensemble."""
    return sorted([*folder.glob(f"{model}.pt"), *folder.glob(f"{model}.pt_m*.pt")])


def _claimed(path: Path) -> Claimed | None:
    """Return what RobustBench states about a model; None without its file. Raises DamagedData if it is malformed."""
    if not path.is_file():
        return None
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        shares = {key: float(info[key]) / 100 for key in ("clean_acc", "autoattack_acc", "external") if info.get(key)}
        eps = str(info["eps"])
    except (ValueError, KeyError, TypeError) as failure:
        raise DamagedData(f"{path}: not a file of RobustBench's model_info ({type(failure).__name__}: {failure})") from None
    return Claimed(
        by="RobustBench",
        eps=eps,
        a_std=shares.get("clean_acc"),
        autoattack=shares.get("autoattack_acc"),
        best_known=shares.get("external", shares.get("autoattack_acc")),
        paper=str(info.get("name") or ""),
        link=str(info.get("link") or ""),
    )
