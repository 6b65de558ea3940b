"""Evaluation protocols: an explicit list of attacks, from a YAML file, or from the names on a command line."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from kwbench.errors import UsageError, did_you_mean
from kwbench.strict_yaml import Strict, parse_yaml, read_yaml, validate
from kwbench.threat import ThreatModel

_FOLDER = Path(__file__).parent / "suites"


@dataclass(frozen=True, slots=True)
class SuiteAttack:
    """One attack of a suite: its label there, the attack's name, for which models it is, and the parameters given.

    `after`: it runs only if one of these attacks before it gained; always if there are none. `escalate`: as long as it gains,
    it runs again with its budget doubled, at most so often.
    """

    label: str
    attack: str
    when: Literal["always", "deterministic", "stochastic"] = "always"
    parameters: dict[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    escalate: int = 0

    def applies(self, stochastic: bool) -> bool:
        """Whether models of this kind are to be attacked with it."""
        return self.when == "always" or (self.when == "stochastic") == stochastic


@dataclass(frozen=True, slots=True)
class Stage:
    """What a suite runs at one time: an attack, or its repetition with the budget doubled `doubled` times.

    It runs only if one of the stages `after` gained; always if there are none.
    """

    label: str
    attack: SuiteAttack
    doubled: int = 0
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Suite:
    """A named protocol. `threat` None means the data set's own; `paper_attacks` are the labels that the paper's table
    includes, None where there is no paper.

    `cascade`: each attack sees only the samples that those before it left standing. `protocol`: the labels whose worst case
    is the accuracy that a usual evaluation would report. `by_name`: its attacks were asked for by name, so each must apply.
    `diagnose`: the evaluation is diagnosed and gets a verdict.
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

    def stages(self, stochastic: bool) -> list[Stage]:
        """All that may have to run on a model of this kind, in order."""
        found = []
        for attack in self.attacks:
            if attack.applies(stochastic):
                found.append(Stage(attack.label, attack, after=attack.after))
                for doubled in range(1, attack.escalate + 1):
                    found.append(Stage(escalated(attack.label, doubled), attack, doubled, (found[-1].label,)))
        return found


def escalated(label: str, doubled: int) -> str:
    """The label of an attack whose budget was doubled so many times: `es`, `es x2`, `es x4`."""
    return f"{label} x{2**doubled}" if doubled else label


class _AttackSection(Strict):
    model_config = ConfigDict(extra="allow")
    attack: str | None = None
    when: Literal["always", "deterministic", "stochastic"] = "always"
    after: str | list[str] = Field(default_factory=list)
    # 2 ** 10 times the budget is more than anybody has.
    escalate: Annotated[int, Field(ge=0, le=10)] = 0


class _ThreatSection(Strict):
    norm: str
    eps: str | float | int


class _File(Strict):
    attacks: dict[str, _AttackSection]
    description: str = ""
    threat: _ThreatSection | None = None
    paper_attacks: list[str] | None = None
    cascade: bool = False
    protocol: list[str] | None = None
    diagnose: bool = False


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
    for key, labels in (("paper_attacks", file.paper_attacks), ("protocol", file.protocol)):
        for label in labels or []:
            if label not in file.attacks:
                raise UsageError(f"{path}: {key}: {label!r} is not among the attacks; {did_you_mean(label, file.attacks)}")
    suite = Suite(
        name=path.stem,
        attacks=tuple(
            SuiteAttack(
                _checked_label(label, str(path)),
                section.attack or label,
                section.when,
                dict(section.model_extra or {}),
                (section.after,) if isinstance(section.after, str) else tuple(section.after),
                section.escalate,
            )
            for label, section in file.attacks.items()
        ),
        description=file.description,
        threat=ThreatModel.of(file.threat.norm, file.threat.eps) if file.threat else None,
        paper_attacks=tuple(file.paper_attacks) if file.paper_attacks is not None else None,
        cascade=file.cascade,
        protocol=tuple(file.protocol) if file.protocol is not None else None,
        diagnose=file.diagnose,
    )
    _check_order(suite, str(path))
    return suite


def suite_of(names: Sequence[str]) -> Suite:
    """The suite of these attacks with their defaults; `all` alone is the suite of that name."""
    if list(names) == ["all"]:
        return read_suite("all")
    if not names:
        raise UsageError("--attack names no attack")
    if len(set(names)) < len(names):
        raise UsageError(f"--attack {','.join(names)}: an attack is named twice")
    attacks = tuple(SuiteAttack(_checked_label(name, "--attack"), name) for name in names)
    return Suite(name="+".join(names), attacks=attacks, by_name=True)


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


def _check_order(suite: Suite, where: str) -> None:
    """Conditions name what runs before; a protocol in a cascade sees every sample."""
    known = [attack.label for attack in suite.attacks]
    seen: set[str] = set()
    for attack in suite.attacks:
        for label in attack.after:
            if label not in seen:
                why = f"must come before {attack.label!r}" if label in known else did_you_mean(label, known)
                raise UsageError(f"{where}: attacks.{attack.label}.after: {label!r} is not among the attacks before it; {why}")
        for doubled in range(1, attack.escalate + 1):
            if escalated(attack.label, doubled) in known:
                taken = escalated(attack.label, doubled)
                raise UsageError(f"{where}: attacks.{taken}: {attack.label!r} escalates to this label; choose another")
        seen.add(attack.label)
    if suite.cascade and suite.protocol:
        first = suite.attacks[: len(suite.protocol)]
        for attack in first:
            if attack.label not in suite.protocol or attack.after or attack.escalate:
                raise UsageError(
                    f"{where}: protocol: in a cascade its attacks must be the first, unconditional and without escalation, "
                    f"to see every sample; {attack.label!r} is in the way"
                )
