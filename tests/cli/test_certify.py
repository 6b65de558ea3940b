"""kwbench certify: what it prints, and what it keeps."""

from pathlib import Path

import pytest
from torch import nn

from kwbench.errors import CannotEvaluate
from kwbench.experiments import Subject
from kwbench.experiments.certificates import Certificates
from kwbench.record.store import Store
from kwbench.threat import ThreatModel
from support.command_line import Kwbench
from support.small_models import Noisy, first_images, trained_cnn, wrapped

CERTIFY = ("certify", "small", "--n", "8", "--eps", "0.004", "--budget", "0", "--set", "apgd.steps=5", "--db", "certified.db")


def test_robust_accuracy_is_bounded_from_both_sides_and_certificates_are_kept(
    kwb: Kwbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kwb(*CERTIFY, "--json")
    assert first.code == 0, first.err
    result = first.json
    assert set(result["certified_images"]) <= set(result["standing_images"])
    assert 0 < len(result["certified_images"]) == round(8 * result["certified"])
    assert result["certified"] <= result["a_rob"]

    def refuse(self: Certificates, subject: Subject) -> None:
        raise AssertionError("certificates on record are made again")

    monkeypatch.setattr(Certificates, "__call__", refuse)
    assert kwb(*CERTIFY, "--json").json == result
    text = kwb(*CERTIFY).out
    assert f"certified {100 * result['certified']:.1f} <= A_rob <= {100 * result['a_rob']:.1f}" in text
    kept = [made for made in Store.open(str(Path("certified.db"))).experiments() if made.experiment == "certificate"]
    assert len(kept) == len(result["standing_images"])


def test_models_that_cannot_be_certified_are_named_with_the_reason() -> None:
    batch, threat = first_images(1), ThreatModel.of("linf", "0.1")
    with pytest.raises(CannotEvaluate, match="small: not certified: the layer Softplus"):
        Certificates()(Subject(wrapped(nn.Sequential(trained_cnn(), nn.Softplus())), batch, threat, 0, {}))
    noisy = wrapped(Noisy(trained_cnn(), 0.1))
    noisy.stochastic = True
    with pytest.raises(CannotEvaluate, match="small: not certified: its predictions are random"):
        Certificates()(Subject(noisy, batch, threat, 0, {}))


def test_a_model_that_cannot_be_certified_does_not_stop_the_others(kwb: Kwbench) -> None:
    result = kwb("certify", "unknown.py:net", *CERTIFY[1:], "--json")
    assert result.code != 0
    certified, failed = result.json
    assert certified["model"].endswith("small")
    assert "unknown.py" in failed["error"]
