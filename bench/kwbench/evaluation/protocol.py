"""Protocols: the usual evaluation that a strong suite is compared with, and the verdict on it."""

from kwbench.config.suite import Suite, read_suite, suite_names, suite_of
from kwbench.errors import UsageError
from kwbench.record.summary import Summary
from kwbench.verdict import Verdict, verdict


def protocol_suite(protocol: str) -> Suite:
    """Return the suite of that name or YAML file, or the one of the attacks listed, separated by commas."""
    if protocol in suite_names() or protocol.endswith((".yaml", ".yml")):
        return read_suite(protocol)
    return suite_of([name.strip() for name in protocol.split(",") if name.strip()])


def verdict_against(summary: Summary, protocol: str | None, rival: Summary | None) -> Verdict:
    """Return the verdict on a protocol from a strong evaluation; without a rival, on the suite's own protocol.

    `rival` is the evaluation of the same model under `protocol`. Raises UsageError if threat model or samples differ.
    """
    if rival is None:
        return verdict(summary, summary.findings)
    if (rival.threat, rival.index.tolist()) != (summary.threat, summary.index.tolist()):
        raise UsageError(
            f"--protocol {protocol}: attacks at {rival.threat}, {summary.evaluation.spec.suite} at {summary.threat}; "
            "give --norm and --eps"
        )
    return verdict(summary, summary.findings, None if rival.robust_values is None else (str(protocol), rival.robust_values))
