"""Evaluation protocols: an explicit list of attacks, from a YAML file, or from the names on a command line."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from kwbench.errors import UsageError, did_you_mean
from kwbench.strict_yaml import Strict, parse_yaml, read_yaml, validate
from kwbench.threat import ThreatModel

_FOLDER = Path(__file__).parent / "suites"


@dataclass(frozen=True, slots=True)
class SuiteAttack:
    """One attack of a suite: its label there, the attack's name, for which models it is, and the parameters given."""

    label: str
    attack: str
    when: Literal["always", "deterministic", "stochastic"] = "always"
    parameters: dict[str, Any] = field(default_factory=dict)

    def applies(self, stochastic: bool) -> bool:
        """Whether models of this kind are to be attacked with it."""
        return self.when == "always" or (self.when == "stochastic") == stochastic


@dataclass(frozen=True, slots=True)
class Suite:
    """A named protocol. `threat` None means the data set's own; `paper_attacks` are the labels that the paper's table
    includes, None where there is no paper."""

    name: str
    attacks: tuple[SuiteAttack, ...]
    description: str = ""
    threat: ThreatModel | None = None
    paper_attacks: tuple[str, ...] | None = None


class _AttackSection(Strict):
    model_config = ConfigDict(extra="allow")
    attack: str | None = None
    when: Literal["always", "deterministic", "stochastic"] = "always"


class _ThreatSection(Strict):
    norm: str
    eps: str | float | int


class _File(Strict):
    attacks: dict[str, _AttackSection]
    description: str = ""
    threat: _ThreatSection | None = None
    paper_attacks: list[str] | None = None


def suite_names() -> list[str]:
    """The suites that come with kwbench."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def read_suite(name: str) -> Suite:
    """A suite by name, or from a YAML file. Raises UsageError for unknown names and malformed files."""
    path = _FOLDER / f"{name}.yaml" if name in suite_names() else Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"suite {name!r} is unknown; {did_you_mean(name, suite_names())}; or name a .yaml file")
    data = read_yaml(path)
    file = validate(_File, data, str(path))
    if not file.attacks:
        raise UsageError(f"{path}: attacks: there is none")
    for label in file.paper_attacks or []:
        if label not in file.attacks:
            raise UsageError(f"{path}: paper_attacks: {label!r} is not among the attacks; {did_you_mean(label, file.attacks)}")
    return Suite(
        name=path.stem,
        attacks=tuple(
            SuiteAttack(
                _checked_label(label, str(path)), section.attack or label, section.when, dict(section.model_extra or {})
            )
            for label, section in file.attacks.items()
        ),
        description=file.description,
        threat=ThreatModel.of(file.threat.norm, file.threat.eps) if file.threat else None,
        paper_attacks=tuple(file.paper_attacks) if file.paper_attacks is not None else None,
    )


def suite_of(names: Sequence[str]) -> Suite:
    """The suite of these attacks with their defaults; `all` alone is the suite of that name."""
    if list(names) == ["all"]:
        return read_suite("all")
    if not names:
        raise UsageError("--attack names no attack")
    if len(set(names)) < len(names):
        raise UsageError(f"--attack {','.join(names)}: an attack is named twice")
    return Suite(name="+".join(names), attacks=tuple(SuiteAttack(_checked_label(name, "--attack"), name) for name in names))


def override(suite: Suite, settings: Sequence[str]) -> Suite:
    """The suite with parameters set, each written LABEL.PARAMETER=VALUE; nested ones LABEL.gradient.kind=eot.

    Raises UsageError for a label that the suite lacks, and for a parameter inside one that has no parts.
    """
    attacks = {attack.label: attack for attack in suite.attacks}
    for setting in settings:
        path, separator, text = setting.partition("=")
        # A label may hold dots itself: pgd-0.1.steps=5.
        label = max((each for each in attacks if path.startswith(f"{each}.")), key=len, default=path.partition(".")[0])
        rest = path[len(label) + 1 :]
        if not separator or not label or not all(rest.split(".")):
            raise UsageError(f"--set {setting}: write LABEL.PARAMETER=VALUE, such as pgd.steps=100")
        if label not in attacks:
            raise UsageError(f"--set {setting}: the suite has no attack {label!r}; {did_you_mean(label, attacks)}")
        parameters = dict(attacks[label].parameters)
        inner = parameters
        *groups, last = rest.split(".")
        for group in groups:
            if not isinstance(inner.get(group) or {}, dict):
                raise UsageError(f"--set {setting}: {group!r} is {inner[group]!r} and has no parts")
            inner[group] = dict(inner.get(group) or {})
            inner = inner[group]
        inner[last] = parse_yaml(f"value: {text}", f"--set {setting}")["value"]
        attacks[label] = replace(attacks[label], parameters=parameters)
    name = f"{suite.name} with {', '.join(settings)}" if settings else suite.name
    return replace(suite, name=name, attacks=tuple(attacks.values()))


def _checked_label(label: str, where: str) -> str:
    if label == "clean":
        raise UsageError(f"{where}: 'clean' is the name of the images themselves and cannot be an attack's")
    return label
