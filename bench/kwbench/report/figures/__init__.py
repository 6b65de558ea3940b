"""The figures: every experiment on record as a picture, and where each of its numbers comes from."""

import json
import re
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup, escape

from kwbench.formatting import plain
from kwbench.record.measurement import Measurement
from kwbench.record.summary import Summary
from kwbench.report.figures.attacks import answers, landscapes, logits
from kwbench.report.figures.figure import Figure
from kwbench.report.figures.networks import fits, layers, learning, patterns, weights
from kwbench.report.figures.series import sparsities, sweeps, transfers
from kwbench.report.leaderboard import Board
from kwbench.report.page import rendered

__all__ = ["Figure", "figure_files", "figures", "figures_html"]

# In the order of the page, with what each is about.
_SECTIONS = {
    "transfer": "Transfer between networks",
    "sparsity": "Accuracy against gamma and incremental training",
    "sweep": "Accuracy against the radius and an attack's parameters",
    "fit": "A function of one number",
    "logits": "Logits along an attack",
    "learning": "Loss along training",
    "weights": "Loss as weights and images move",
    "layers": "Theorem 1 and appendix B on random layers",
    "patterns": "Activation patterns of trained networks",
    "landscape": "Loss landscapes",
    "answers": "True-class probabilities and examples",
}

_DRAWN: dict[str, Callable[[Sequence[Measurement]], list[Figure]]] = {
    "fit": fits,
    "logits": logits,
    "learning": learning,
    "weights": weights,
    "layers": layers,
    "patterns": patterns,
    "landscape": landscapes,
    "answers": answers,
}
_SERIES: dict[str, Callable[[Sequence[Measurement], Mapping[str, Summary]], list[Figure]]] = {
    "sweep": sweeps,
    "sparsity": sparsities,
}


def figures(measured: Sequence[Measurement], standings: Sequence[Summary], boards: Sequence[Board]) -> list[Figure]:
    """Every figure that the record can give, in the order of the page; experiments of one kind on equal terms share one."""
    known = {each.evaluation.spec.identity: each for each in standings}
    drawn = transfers(boards)
    for group in _groups(measured):
        kind = group[0].experiment
        if kind in ("sweep", "sparsity"):
            complete = [each for each in group if all(identity in known for identity in each.spec["evaluations"])]
            drawn += _SERIES[kind](complete, known) if complete else []
        elif kind in _DRAWN:
            drawn += _DRAWN[kind](group)
    order = list(_SECTIONS)
    drawn.sort(key=lambda each: order.index(each.section))
    return _named(drawn)


def figures_html(drawn: Sequence[Figure]) -> str:
    """The figures as one self-contained HTML page."""
    sections = [
        {
            "id": section,
            "title": title,
            "figures": [
                {
                    "name": each.name,
                    "caption": _whole(each.caption),
                    "svg": Markup(each.svg),
                    "sources": [
                        {
                            "model": source.model or "a network of its own",
                            "identity": source.identity[:12],
                            "record": escape(json.dumps(source.record, indent=1, sort_keys=True, default=str)),
                        }
                        for source in each.sources
                    ],
                }
                for each in drawn
                if each.section == section
            ],
        }
        for section, title in _SECTIONS.items()
        if any(each.section == section for each in drawn)
    ]
    return rendered("figures.html.j2", sections=sections)


def figure_files(drawn: Sequence[Figure]) -> dict[str, str]:
    """The figures as SVG files, by name."""
    return {f"figures/{each.name}.svg": each.svg for each in drawn}


def _whole(words: str) -> Markup:
    return escape(plain(words, 2000))


def _groups(measured: Sequence[Measurement]) -> list[list[Measurement]]:
    """The newest of each experiment, those on equal terms together, in the order of the record."""
    newest: dict[tuple[str, str], Measurement] = {}
    for each in measured:
        key = (_terms(each), each.model)
        newest.pop(key, None)
        newest[key] = each
    groups: dict[str, list[Measurement]] = {}
    for (terms, _), each in newest.items():
        groups.setdefault(terms, []).append(each)
    return list(groups.values())


def _terms(each: Measurement) -> str:
    """What experiments must have in common to stand in one figure: all but the network and the versions."""
    spec, origin = each.spec, each.spec.get("origin", {})
    shared = {
        name: spec.get(name) for name in ("parameters", "samples", "over", "values", "suite", "seed", "labels", "attacks")
    }
    shared["origin"] = {name: origin.get(name) for name in ("data_sha256", "norm", "eps", "seed")}
    if each.experiment in ("answers", "sparsity"):
        shared["model"] = each.model
    return json.dumps([each.experiment, each.dataset, shared], sort_keys=True)


def _named(drawn: Sequence[Figure]) -> list[Figure]:
    """Each with a name of its own; of several that would share one, the second gets a 2."""
    taken: dict[str, int] = {}
    found = []
    for each in drawn:
        slug = re.sub(r"[^a-z0-9.]+", "-", each.name.lower()).strip("-.")[:80] or each.section
        taken[slug] = taken.get(slug, 0) + 1
        name = slug if taken[slug] == 1 else f"{slug}-{taken[slug]}"
        found.append(Figure(name, each.section, each.title, each.caption, each.svg, each.sources))
    return found
