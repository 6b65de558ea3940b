"""The page of one evaluation: its numbers, what each attack achieved, the evidence, and how to reproduce and cite it."""

import json
import re
import shlex
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from markupsafe import Markup, escape

from kwbench.formatting import count_text, duration_text, interval_text, percent, plain
from kwbench.outcome import CLEAN
from kwbench.record.cascade import cascaded_attacks
from kwbench.record.certificates import bounds_text
from kwbench.record.summary import AttackSummary, Summary
from kwbench.report.html.grouping import prediction_text
from kwbench.report.html.leaderboard import Entry
from kwbench.report.html.model_facts import bibtex
from kwbench.report.leaderboard import judging_rule
from kwbench.statistics import Interval
from kwbench.verdict import Verdict

_KWBENCH = """@software{kwbench,
  author = {{The kwbench developers}},
  title = {{kwbench}: a robustness benchmark for image classifiers},
  version = {VERSION}
}"""


def evaluation_view(entry: Entry) -> SimpleNamespace:
    """Return what the template shows of an evaluation."""
    summary = entry.summary
    spec, n = summary.evaluation.spec, summary.n
    attacks = (*([summary.clean] if summary.clean else []), *summary.attacks)
    gap = entry.verdict.overestimate if entry.verdict else None
    return SimpleNamespace(
        model=summary.model,
        dataset=summary.dataset,
        threat=str(summary.threat),
        suite=spec.suite,
        n=n,
        created=summary.evaluation.created[:10],
        run=spec.identity,
        stochastic=summary.stochastic,
        cascade=summary.cascade,
        complete=summary.complete,
        missing=[_whole(reason) for reason in summary.missing],
        notes=summary.notes,
        earlier_version=summary.earlier_version,
        superseded=entry.row is None,
        prediction=prediction_text(summary),
        facts=entry.facts,
        clean=interval_text(summary.a_std, n),
        robust=None if summary.a_rob is None else interval_text(summary.a_rob, n),
        bounds=bounds_text(summary) + (f" ({summary.bounds})" if summary.bounds else ""),
        lowest=None if summary.a_rob_as_in_paper is None else interval_text(summary.a_rob_as_in_paper, n),
        of_paper="paper_attacks" in spec.spec,
        protocol=None if summary.a_protocol is None else (", ".join(summary.protocol), interval_text(summary.a_protocol, n)),
        overestimate=None if gap is None else f"{100 * gap.value:.1f} [{100 * gap.low:.1f}, {100 * gap.high:.1f}]",
        claim=entry.claim,
        verdict=None if entry.verdict is None else entry.verdict.conclusion,
        sentence=None if entry.verdict is None else _whole(entry.verdict.sentence()),
        findings=_findings(summary, entry.verdict),
        attacks=[_attack_row(attack, summary) for attack in attacks],
        skipped=list(summary.skipped.items()),
        used=summary.used,
        budget=summary.budget,
        command=_command(reproduction(summary)),
        recorded=_command(str(spec.provenance.get("command") or "")),
        bibtex=[_whole(text) for text in _citations(entry)],
        parameters=[(attack.name, readable(attack.spec.spec)) for attack in summary.attacks],
        provenance=readable(
            {
                "run": spec.identity,
                "created": summary.evaluation.created,
                **{name: value for name, value in spec.spec.items() if name not in ("attacks", "protocol")},
                "provenance": spec.provenance,
            }
        ),
    )


def reproduction(summary: Summary) -> str:
    """Return the command that repeats an evaluation with the same data, attacks and random numbers."""
    spec, origin = summary.evaluation.spec, summary.evaluation.origin
    words = ["kwbench", "evaluate", spec.model, *_suite_options(spec.suite)]
    words += ["--norm", spec.threat.norm, "--eps", spec.threat.eps_text, "--n", str(spec.n)]
    words += _data_options(str(spec.provenance.get("command") or ""), spec.model, spec.dataset)
    for name in ("seed", "tile"):
        if isinstance(origin.get(name), int):
            words += [f"--{name}", str(origin[name])]
    return shlex.join(words)


def _suite_options(suite: str) -> list[str]:
    """Return the options that name a suite, whose name on record ends with the parameters that were set."""
    name, _, settings = suite.partition(" with ")
    return ["--suite", name, *(word for setting in settings.split(", ") if setting for word in ("--set", setting))]


def _data_options(command: str, model: str, dataset: str) -> list[str]:
    """Return the options of the recorded command that say where images come from; by default the data set of the record."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    for option in ("--data", "--dataset"):
        if option in words[:-1]:
            return [option, words[words.index(option) + 1]]
    known = model.split("/", maxsplit=1)[0] if "/" in model else "digits"
    return [] if dataset == known else ["--dataset", dataset]


def readable(value: Mapping[str, Any]) -> Markup:
    """Return JSON for people; ASCII only, so that control and bidirectional characters appear as escapes."""
    return escape(json.dumps(value, indent=1, sort_keys=True, default=str, ensure_ascii=True))


def _citations(entry: Entry) -> list[str]:
    versions = entry.summary.evaluation.spec.provenance.get("versions") or entry.summary.evaluation.origin.get("versions")
    version = str(versions.get("kwbench", "")) if isinstance(versions, Mapping) else ""
    own = _KWBENCH.replace("VERSION", version)
    return [own, *([bibtex(entry.facts.paper_key, entry.facts.paper)] if entry.facts.paper else [])]


def _findings(summary: Summary, verdict: Verdict | None) -> list[SimpleNamespace]:
    """Return all findings: those that fire first, then those that could not be made."""
    if verdict is None:
        return []
    order = {"doubt": 0, "masking": 1, "note": 2}
    ordered = sorted(summary.findings, key=lambda finding: (not finding.fires, finding.figure is not None, order[finding.kind]))
    return [
        SimpleNamespace(
            check=finding.check,
            result=finding.kind if finding.fires else "not done" if finding.figure is None else "passed",
            fires=finding.fires,
            figure=None if finding.figure is None else f"{finding.figure:.3g}",
            threshold=f"{finding.threshold:.3g}",
            gauge=_gauge(finding.figure, finding.threshold),
            statement=_whole(finding.statement),
            samples=len(finding.samples),
        )
        for finding in ordered
    ]


def _gauge(figure: float | None, threshold: float) -> Markup | None:
    """Return a bar of the figure with a mark at the threshold; None if one of them is missing or negative."""
    if figure is None or figure < 0 or threshold < 0 or max(figure, threshold) == 0:
        return None
    scale = 96 / (1.25 * max(figure, threshold))
    return Markup(
        f'<svg class="gauge" width="96" height="12" viewBox="0 0 96 12" aria-hidden="true"><path class="track" d="M0 6H96"/>'
        f'<path class="value" d="M0 6H{figure * scale:.1f}"/><path class="limit" d="M{threshold * scale:.1f} 0V12"/></svg>'
    )


def _attack_row(attack: AttackSummary, summary: Summary) -> SimpleNamespace:
    in_cascade = attack.name in cascaded_attacks(summary.evaluation.spec)
    interval = attack.remaining if in_cascade else attack.accuracy
    return SimpleNamespace(
        name=attack.name,
        n=attack.n,
        accuracy=None if interval is None else (percent(interval.value, summary.n), _span(interval, summary.n)),
        notes=_notes(attack, summary.n),
        broke=attack.broke if attack.name != CLEAN else None,
        statuses=[(status, count, status in ("invalid", "error") and count > 0) for status, count in attack.statuses.items()],
        used=count_text(attack.used),
        budget="–" if attack.budget is None else count_text(attack.budget),
        forwards=count_text(attack.forwards),
        backwards=count_text(attack.backwards),
        seconds=duration_text(attack.seconds),
    )


def _notes(attack: AttackSummary, n: int) -> list[str]:
    """Return the result of the other judging rule if it differs, and the surrogate's own accuracy."""
    notes = []
    if attack.other_accuracy is not None and attack.other_accuracy != attack.accuracy:
        other = "clipped" if judging_rule(attack) == "distance" else "distance"
        notes.append(f"{other}: {percent(attack.other_accuracy.value, n)}")
    if attack.surrogate_accuracy is not None:
        notes.append(f"on {plain(attack.surrogate, 40)}: {percent(attack.surrogate_accuracy.value, n)}")
    return notes


def _span(interval: Interval, n: int) -> str:
    return f"{percent(interval.low, n)}–{percent(interval.high, n)}"


def _command(command: str) -> Markup:
    """Escape a command so that lines break between its options only; browsers break after the hyphens of an option too."""
    words = [Markup('<span class="option">{}</span>').format(_whole(part)) for part in re.split(r" (?=-)", command)]
    return Markup(" ").join(words) if command else Markup()


def _whole(text: str) -> Markup:
    """Escape a text that may be longer than a name, line by line."""
    return Markup("\n").join(escape(plain(line, 4000)) for line in text.split("\n"))
