"""The identity of a run: everything that can change its outcomes, and nothing else.

Parts of kwbench take part by an integer `revision`, which is raised when their behaviour changes; tests/golden fails where it
was forgotten. Comments, names of modules and messages may change freely. Code from outside the package takes part by its
content hash, libraries by their version.
"""

from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

from kwbench import geometry, judge, model, randomness
from kwbench.attacks import parameters_of
from kwbench.attacks.attack import Attack
from kwbench.record import cascade

# Every run computes with these.
_LIBRARIES = ("numpy", "torch")


def engine_revisions() -> dict[str, int]:
    """Return the revisions of the parts of kwbench that take part in every run."""
    return {
        "cascade": cascade.REVISION,
        "geometry": geometry.REVISION,
        "judge": judge.REVISION,
        "model": model.REVISION,
        "randomness": randomness.REVISION,
    }


def network_revisions(*modules: nn.Module) -> dict[str, int]:
    """Return the revisions of kwbench's own architectures and activations inside modules, by class name."""
    kinds = {type(part) for module in modules for part in module.modules()}
    own = [kind for kind in kinds if kind.__module__.startswith("kwbench.") and hasattr(kind, "revision")]
    return {kind.__name__: int(kind.revision) for kind in sorted(own, key=lambda kind: kind.__name__)}


def library_versions(libraries: Iterable[str] = ()) -> dict[str, str]:
    """Return the installed versions of torch, numpy and `libraries`; "not installed" for a missing one."""
    installed = {}
    for library in sorted({*_LIBRARIES, *libraries}):
        try:
            installed[library] = version(library)
        except PackageNotFoundError:
            installed[library] = "not installed"
    return installed


def attack_identity(name: str, attack: Attack) -> Mapping[str, Any]:
    """Return what identifies a configured attack: its name, parameters, revisions and the libraries it wraps."""
    identity: dict[str, Any] = {
        "attack": name,
        "parameters": parameters_of(attack),
        "revisions": attack.revisions(),
    }
    if attack.code_sha256 is not None:
        # The place of the file does not matter.
        identity |= {"attack": name.rpartition("/")[2], "code_sha256": attack.code_sha256}
    if attack.libraries:
        identity["libraries"] = {library: library_versions([library])[library] for library in attack.libraries}
    return identity
