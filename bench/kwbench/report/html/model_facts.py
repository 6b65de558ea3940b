"""What reports say about a model beside its numbers: its network, its training, and the paper that describes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kwbench.config.registry import Paper, Registry
from kwbench.formatting import count_text
from kwbench.record.summary import Summary

_TRAININGS = {"adversarial": "adversarial (PGD)", "trades": "TRADES", "free": "free AT", "fast": "fast AT"}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model in a few words; empty where neither record nor registry tells. `parameters` is their number."""

    architecture: str
    activation: str
    training: str
    parameters: int | None
    paper: Paper | None
    paper_key: str

    @property
    def parameter_count(self) -> str:
        """Number of parameters as text; empty if unknown."""
        return "" if self.parameters is None else count_text(self.parameters)


def model_facts(summary: Summary, registry: Registry) -> ModelFacts:
    """Return the facts about an evaluation's model: network and activation from the record, the rest from the registry.

    The registry counts only if its entry describes the network that was evaluated.
    """
    entry = summary.evaluation.origin.get("entry")
    recorded = entry if isinstance(entry, Mapping) else {}
    known = registry.entries.get(summary.model)
    if known is not None and recorded and recorded.get("architecture") != known.architecture.model_dump():
        known = None
    architecture = known.architecture.model_dump() if known and not recorded else recorded.get("architecture", {})
    activation = known.activation.model_dump() if known and not recorded else recorded.get("activation", {})
    parameters = summary.evaluation.spec.provenance.get("parameters")
    recipe = known.recipe if known else None
    return ModelFacts(
        architecture=_words(architecture),
        activation=_words(activation),
        training="" if recipe is None else _TRAININGS.get(recipe.training, recipe.training),
        parameters=parameters if isinstance(parameters, int) else None,
        paper=registry.paper_of(summary.model) if known else None,
        paper_key=known.paper or "" if known else "",
    )


def bibtex(key: str, paper: Paper) -> str:
    """Return the BibTeX entry of a paper."""
    kind = "misc" if paper.venue in ("", "arXiv") else "inproceedings"
    venue = {} if kind == "misc" else {"booktitle": paper.venue}
    fields: dict[str, Any] = {"author": paper.authors, "title": f"{{{paper.title}}}", **venue, "year": paper.year}
    if paper.url is not None:
        fields["url"] = paper.url
    lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}}}"


def _words(described: Any) -> str:
    """Return a network's name and parameters: `resnet18, width 16`."""
    if not isinstance(described, Mapping) or "name" not in described:
        return ""
    others = [f"{name} {value}" for name, value in described.items() if name != "name" and value is not None]
    return ", ".join([str(described["name"]).replace("_", " "), *others])
