"""The result of a check as JUnit XML, which CI systems display."""

from pathlib import Path
from xml.etree import ElementTree

from kwbench.files import write_whole
from kwbench.formatting import plain
from kwbench.regression.gate import CheckResult, Decision


def write_junit(result: CheckResult, path: Path) -> None:
    """Write one test case per model: a regression is a failure, an undecided model an error.

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
        if model.decision is not Decision.FINE:
            tag = "failure" if model.decision is Decision.REGRESSION else "error"
            element = ElementTree.SubElement(case, tag, message=plain(model.reason), type=model.decision.value)
            element.text = plain(model.reason, 2000)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    write_whole(path, ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n")
