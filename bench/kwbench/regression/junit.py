"""The result of a check as JUnit XML, which CI systems display."""

from pathlib import Path
from xml.etree import ElementTree

from kwbench.files import write_whole
from kwbench.formatting import plain
from kwbench.regression.gate import CheckResult, Decision, ModelCheck


def write_junit(result: CheckResult, path: Path) -> None:
    """Write one test case per model, with its figures as properties: a regression is a failure, an undecided model an error.

    Raises CannotEvaluate if the file cannot be written.
    """
    decisions = [model.decision for model in result.models]
    suite = ElementTree.Element(
        "testsuite",
        name="kwbench check",
        tests=str(len(decisions)),
        failures=str(decisions.count(Decision.REGRESSION)),
        errors=str(decisions.count(Decision.UNDECIDED)),
        skipped="0",
    )
    for model in result.models:
        group = ".".join(part for part in ("kwbench", model.dataset, model.threat, model.suite) if part)
        case = ElementTree.SubElement(suite, "testcase", classname=plain(group), name=plain(model.model))
        properties = ElementTree.SubElement(case, "properties")
        for name, value in _figures(model).items():
            ElementTree.SubElement(properties, "property", name=name, value=value)
        if model.decision is not Decision.FINE:
            tag = "failure" if model.decision is Decision.REGRESSION else "error"
            element = ElementTree.SubElement(case, tag, message=plain(model.reason), type=model.decision.value)
            element.text = plain(model.reason, 2000)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    write_whole(path, ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n")


def _figures(model: ModelCheck) -> dict[str, str]:
    """Return the figures of a model that are known: accuracies and drops as fractions of 1 with the ends of their intervals."""
    figures: dict[str, object] = {"n": model.n, "baseline": model.baseline}
    for name, interval in (("a_rob", model.now), ("drop", model.drop)):
        if interval is not None:
            figures |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    if model.test is not None:
        figures |= {"p": model.test.p, "lost": model.test.lost, "gained": model.test.gained}
    figures |= {f"lost_to {plain(label)}": count for label, count in model.broken_by}
    if model.run is not None:
        figures["run"] = model.run
    return {
        name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in figures.items() if value is not None
    }
