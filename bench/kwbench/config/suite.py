"""Suites: evaluation protocols as explicit lists of attacks, from a YAML file or from names on the command line."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from kwbench.config.strict_yaml import Strict, parse_yaml, read_yaml, validate
from kwbench.errors import UsageError, did_you_mean
from kwbench.outcome import CLEAN, escalated
from kwbench.threat import ThreatModel

_FOLDER = Path(__file__).parent / "suites"

# A data set's name, the first part of a model's name.
_DATASET_NAME = "[a-z0-9][a-z0-9._-]*"


@dataclass(frozen=True, slots=True)
class SuiteAttack:
    """One attack of a suite. An attack gains if it breaks a sample that all attacks before it left.

    Attributes:
        label: Its name in the suite.
        attack: The attack's name.
        when: The kind of models that it attacks.
        parameters: The parameters that differ from the attack's defaults.
        after: Run only if one of these earlier attacks gained; always if empty.
        escalate: Repeat it with its budget doubled as long as it gains, at most this often.
        screen: Attack this many of the remaining samples first, spread over all of them, and the others only if it gains there.
    """

    label: str
    attack: str
    when: Literal["always", "deterministic", "stochastic"] = "always"
    parameters: dict[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    escalate: int = 0
    screen: int | None = None

    def applies(self, stochastic: bool) -> bool:
        """Return whether the attack is for stochastic, or for deterministic, models."""
        return self.when == "always" or (self.when == "stochastic") == stochastic


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a suite: an attack, or its repetition with the budget doubled `doubled` times.

    Attributes:
        after: Run only if one of these earlier stages gained; always if empty.
        cascade: Attack only the samples that no earlier stage has broken, `screen` of them first.
    """

    label: str
    attack: SuiteAttack
    doubled: int = 0
    after: tuple[str, ...] = ()
    cascade: bool = False
    screen: int | None = None


@dataclass(frozen=True, slots=True)
class Suite:
    """A named evaluation protocol.

    Attributes:
        threat: The threat model; None for the data set's own.
        paper_attacks: The labels that the paper's table includes; None without a paper.
        cascade: Whether each attack sees only the samples that the attacks before it did not break.
        protocol: The labels whose worst case is the accuracy that a usual evaluation would report.
        by_name: The attacks were named on the command line, so each must be applicable.
        diagnose: Whether the evaluation is diagnosed and gets a verdict.
        n: Evaluate the first `n` images, or all if there are fewer; None for all.
        then: The labels of another suite's attacks that run last, as a cascade, after attacks that are none.
        apart: The labels of attacks that see all samples of a cascade: images that were made elsewhere.
        beside: The labels of attacks whose accuracies stand beside the worst case, which does not include them.
        datasets: The protocols on data sets where it differs.
    """

    name: str
    attacks: tuple[SuiteAttack, ...]
    description: str = ""
    threat: ThreatModel | None = None
    paper_attacks: tuple[str, ...] | None = None
    cascade: bool = False
    protocol: tuple[str, ...] | None = None
    by_name: bool = False
    diagnose: bool = False
    n: int | None = None
    then: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    datasets: Mapping[str, "Suite"] = field(default_factory=dict)

    @property
    def complete_search(self) -> SuiteAttack | None:
        """The attack that searches completely; its effort is also that of certificates."""
        return next((attack for attack in self.attacks if attack.attack == "complete-search"), None)

    def on(self, dataset: str) -> "Suite":
        """Return the protocol on a data set."""
        return self.datasets.get(dataset, replace(self, datasets={}))

    def stages(self, stochastic: bool) -> list[Stage]:
        """Return all stages that may run on a stochastic, or a deterministic, model, in order."""
        stages: list[Stage] = []
        for attack in self.attacks:
            if attack.applies(stochastic):
                cascade = (self.cascade or attack.label in self.then) and attack.label not in self.apart
                stages.append(Stage(attack.label, attack, after=attack.after, cascade=cascade, screen=attack.screen))
                for doubled in range(1, attack.escalate + 1):
                    after = (stages[-1].label,)
                    stages.append(
                        replace(stages[-1], label=escalated(attack.label, doubled), doubled=doubled, after=after, screen=None)
                    )
        return stages


class _AttackSection(Strict):
    model_config = ConfigDict(extra="allow")
    attack: str | None = None
    when: Literal["always", "deterministic", "stochastic"] = "always"
    after: str | list[str] = Field(default_factory=list)
    # Nobody has the time for more than 2 ** 10 times the budget.
    escalate: Annotated[int, Field(ge=0, le=10)] = 0
    screen: Annotated[int, Field(ge=1)] | None = None


class _ThreatSection(Strict):
    norm: str
    eps: str | float | int


class _Protocol(Strict):
    """The keys that a data set may override; those that it lacks are inherited."""

    threat: _ThreatSection | None = None
    paper_attacks: list[str] | None = None
    n: Annotated[int, Field(ge=1)] | None = None


class _DataSetSection(_Protocol):
    attacks: dict[str, _AttackSection] | None = None


class _File(_Protocol):
    attacks: dict[str, _AttackSection]
    description: str = ""
    cascade: bool = False
    protocol: list[str] | None = None
    diagnose: bool = False
    then: str | None = None
    datasets: dict[str, _DataSetSection] = Field(default_factory=dict)


def suite_names() -> list[str]:
    """Return the names of the suites that come with kwbench."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def read_suite(name: str) -> Suite:
    """Read a suite by name, or from a YAML file. Raises UsageError for unknown names and malformed files."""
    path = _FOLDER / f"{name}.yaml" if name in suite_names() else Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(
            f"suite {name!r} is unknown; {did_you_mean(name, suite_names(), listed_by='kwbench suites')}; or name a .yaml file"
        )
    data = read_yaml(path)
    file = validate(_File, data, str(path))
    for key in file.datasets:
        if not re.fullmatch(_DATASET_NAME, key):
            raise UsageError(f"{path}: datasets.{key}: names match {_DATASET_NAME}")
    sections = {key: _protocol_on(file, section) for key, section in file.datasets.items()}
    suites = {key: _suite(path.stem, section, f"{path}: datasets.{key}") for key, section in sections.items()}
    return replace(_suite(path.stem, file, str(path)), datasets=suites)


def _protocol_on(file: _File, section: _DataSetSection) -> _File:
    """Return the file with a data set's overrides. Its attacks replace all others, and so do its paper_attacks and protocol."""
    given = {key: getattr(section, key) for key in section.model_fields_set}
    if "attacks" in given:
        given = {"paper_attacks": None, "protocol": None} | given
    return file.model_copy(update=given)


def _suite(name: str, file: _File, where: str) -> Suite:
    if not file.attacks:
        raise UsageError(f"{where}: attacks: there is none")
    for key, labels in (("paper_attacks", file.paper_attacks), ("protocol", file.protocol)):
        for label in labels or []:
            if label not in file.attacks:
                raise UsageError(f"{where}: {key}: {label!r} is not among the attacks; {did_you_mean(label, file.attacks)}")
    suite = Suite(
        name=name,
        attacks=tuple(
            SuiteAttack(
                _checked_label(label, where),
                section.attack or label,
                section.when,
                dict(section.model_extra or {}),
                (section.after,) if isinstance(section.after, str) else tuple(section.after),
                section.escalate,
                section.screen,
            )
            for label, section in file.attacks.items()
        ),
        description=file.description,
        threat=ThreatModel.of(file.threat.norm, file.threat.eps) if file.threat else None,
        paper_attacks=tuple(file.paper_attacks) if file.paper_attacks is not None else None,
        cascade=file.cascade,
        protocol=tuple(file.protocol) if file.protocol is not None else None,
        diagnose=file.diagnose,
        n=file.n,
    )
    _check_order(suite, where)
    return suite if file.then is None else _followed(suite, read_suite(file.then), where)


def _followed(suite: Suite, after: Suite, where: str) -> Suite:
    """Append a cascade to a suite, which inherits the cascade's protocol and diagnosis."""
    if suite.cascade or suite.protocol or not after.cascade:
        raise UsageError(f"{where}: then: a suite without cascade and protocol can be followed by one that is a cascade")
    labels = [escalated(attack.label, doubled) for attack in after.attacks for doubled in range(attack.escalate + 1)]
    for attack in suite.attacks:
        if attack.label in labels:
            raise UsageError(f"{where}: attacks.{attack.label}: {after.name!r} has an attack of this label; choose another")
    return replace(
        suite,
        attacks=suite.attacks + after.attacks,
        protocol=after.protocol,
        diagnose=suite.diagnose or after.diagnose,
        then=tuple(attack.label for attack in after.attacks if attack.label not in (after.protocol or ())),
    )


def suite_of(names: Sequence[str]) -> Suite:
    """Return the suite of these attacks with default parameters; `all` alone is the suite of that name."""
    if list(names) == ["all"]:
        return read_suite("all")
    if not names:
        raise UsageError("--attack names no attack")
    labels = [_label_of(name) for name in names]
    if len(set(labels)) < len(labels):
        raise UsageError(f"--attack {','.join(names)}: an attack is named twice")
    attacks = tuple(SuiteAttack(_checked_label(label, "--attack"), name) for label, name in zip(labels, names, strict=True))
    return Suite(name="+".join(labels), attacks=attacks, by_name=True)


def _label_of(name: str) -> str:
    """Return the label of an attack: for one of the user's own, path/to/file.py:Class, the name of its class."""
    source, _, class_name = name.rpartition(":")
    return class_name if "." in source else name


def override(suite: Suite, settings: Sequence[str]) -> Suite:
    """Set parameters of a suite, written LABEL.PARAMETER=VALUE; nested ones are written LABEL.gradient.kind=eot.

    Raises UsageError for a label that the suite has on no data set, and for a nested parameter of a value that is no mapping.
    """
    for setting in settings:
        variants = [suite, *suite.datasets.values()]
        label, path, value = _parse_setting(setting, [attack.label for variant in variants for attack in variant.attacks])
        changed = [_with(variant, label, path, value, setting) for variant in variants]
        suite = replace(changed[0], datasets=dict(zip(suite.datasets, changed[1:], strict=True)))
    if not settings:
        return suite
    name = f"{suite.name} with {', '.join(settings)}"
    return replace(suite, name=name, datasets={key: replace(variant, name=name) for key, variant in suite.datasets.items()})


def _parse_setting(setting: str, labels: Sequence[str]) -> tuple[str, list[str], Any]:
    """Return the label, the parts of the parameter's name, and the value."""
    path, separator, text = setting.partition("=")
    # A label may itself contain dots: pgd-0.1.steps=5.
    label = max((known for known in labels if path.startswith(f"{known}.")), key=len, default=path.partition(".")[0])
    rest = path[len(label) + 1 :]
    if not separator or not label or not all(rest.split(".")):
        raise UsageError(f"--set {setting}: write LABEL.PARAMETER=VALUE, such as pgd.steps=100")
    if label not in labels:
        raise UsageError(f"--set {setting}: the suite has no attack {label!r}; {did_you_mean(label, labels)}")
    return label, rest.split("."), parse_yaml(f"value: {text}", f"--set {setting}")["value"]


def _with(suite: Suite, label: str, path: Sequence[str], value: Any, setting: str) -> Suite:
    """Return the suite with this parameter set, if it has the attack."""
    attacks = {attack.label: attack for attack in suite.attacks}
    if label not in attacks:
        return suite
    parameters = dict(attacks[label].parameters)
    inner = parameters
    *groups, last = path
    for group in groups:
        if not isinstance(inner.get(group) or {}, dict):
            raise UsageError(f"--set {setting}: {group!r} is {inner[group]!r} and has no parts")
        inner[group] = dict(inner.get(group) or {})
        inner = inner[group]
    inner[last] = value
    attacks[label] = replace(attacks[label], parameters=parameters)
    return replace(suite, attacks=tuple(attacks.values()))


def _checked_label(label: str, where: str) -> str:
    if label == CLEAN:
        raise UsageError(f"{where}: 'clean' is the name of the images themselves and cannot be an attack's")
    return label


def _check_order(suite: Suite, where: str) -> None:
    """Require that `after` names earlier attacks, and that the protocol of a cascade sees every sample."""
    known = [attack.label for attack in suite.attacks]
    seen: set[str] = set()
    for attack in suite.attacks:
        for label in attack.after:
            if label not in seen:
                why = f"must come before {attack.label!r}" if label in known else did_you_mean(label, known)
                raise UsageError(f"{where}: attacks.{attack.label}.after: {label!r} is not among the attacks before it; {why}")
        if attack.screen and not suite.cascade:
            raise UsageError(f"{where}: attacks.{attack.label}.screen: is for the attacks of a cascade")
        for doubled in range(1, attack.escalate + 1):
            if escalated(attack.label, doubled) in known:
                taken = escalated(attack.label, doubled)
                raise UsageError(f"{where}: attacks.{taken}: {attack.label!r} escalates to this label; choose another")
        seen.add(attack.label)
    if suite.cascade and suite.protocol:
        first = suite.attacks[: len(suite.protocol)]
        for attack in first:
            if attack.label not in suite.protocol or attack.after or attack.escalate or attack.screen:
                raise UsageError(
                    f"{where}: protocol: in a cascade its attacks must be the first, unconditional, without escalation or "
                    f"screen, to see every sample; {attack.label!r} is in the way"
                )
