"""kwbench diagnose: checks, verdicts and rival protocols."""

from pathlib import Path

from support.command_line import FAST, Kwbench, refused

# A cascade with its own protocol, small enough for a test.
DIAGNOSED = """\
cascade: true
diagnose: true
protocol: [pgd]
attacks:
  pgd: {attack: apgd, steps: 10}
  es: {attack: apgd, loss: margin, steps: 10, gradient: {kind: es, sigma: 0.05, draws: 10}}
"""
SMALL = ("--n", "48", "--eps", "0.08", "--tile", "16")


def test_each_check_is_printed_with_its_figure_and_then_the_verdict(kwb: Kwbench, tmp_path: Path) -> None:
    (tmp_path / "strong.yaml").write_text(DIAGNOSED)
    result = kwb("diagnose", "small", "--suite", "strong.yaml", *SMALL)
    assert result.code == 0, result.err
    for words in ("shattered gradients", "threshold", "twice the budget", "never proof"):
        assert words in result.out
    assert any(word in result.out for word in ("Confirmed:", "Inconclusive:", "Overestimated:"))


def test_evaluate_and_show_repeat_the_verdict_in_their_json(kwb: Kwbench, tmp_path: Path) -> None:
    (tmp_path / "strong.yaml").write_text(DIAGNOSED)
    result = kwb("diagnose", "small", "--suite", "strong.yaml", *SMALL, "--json").json
    assert result["verdict"]["protocol"] == "pgd"
    assert result["verdict"]["overestimate"].keys() == {"value", "low", "high"}
    assert {"check", "kind", "fires", "figure", "threshold", "statement", "samples"} == result["findings"][0].keys()
    again = kwb("evaluate", "small", "--suite", "strong.yaml", *SMALL, "--json").json
    assert again["verdict"] == result["verdict"]
    assert kwb("show", "small", "--json").json["verdict"] == result["verdict"]
    assert kwb("evaluate", "small", *FAST, "--json").json["verdict"] is None


def test_the_suite_can_be_compared_with_another_protocol(kwb: Kwbench, tmp_path: Path) -> None:
    (tmp_path / "strong.yaml").write_text(DIAGNOSED)
    result = kwb(
        "diagnose", "small", "--suite", "strong.yaml", "--protocol", "noop", *SMALL[:3], "0.2", *SMALL[4:], "--json"
    ).json
    assert (result["verdict"]["verdict"], result["verdict"]["protocol"]) == ("overestimated", "noop")
    assert result["verdict"]["overestimate"]["value"] > 0.5


def test_a_protocol_with_another_threat_model_is_refused(kwb: Kwbench, tmp_path: Path) -> None:
    (tmp_path / "strong.yaml").write_text(DIAGNOSED)
    (tmp_path / "weak.yaml").write_text("threat: {norm: l2, eps: 0.1}\nattacks:\n  noop: {}\n")
    answer = kwb("diagnose", "small", "--suite", "strong.yaml", "--protocol", "weak.yaml", "--n", "16", "--tile", "16")
    refused(answer, 2, "--protocol", "l2")
