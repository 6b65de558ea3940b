"""Prediction rules as text and as a section of a registry entry."""

import pytest

from kwbench.config.prediction import PredictionRule, parse_prediction_rule
from kwbench.config.registry import ModelEntry
from kwbench.config.strict_yaml import validate
from kwbench.errors import UsageError


def rule_of(**sections: object) -> PredictionRule:
    entry = {"architecture": {"name": "resnet18"}, "activation": {"name": "relu"}, **sections}
    return validate(ModelEntry, entry, "registry.yaml").prediction


def test_a_model_predicts_by_one_draw_unless_its_entry_has_another_rule() -> None:
    assert rule_of() == PredictionRule(kind="draw", draws=1)
    assert rule_of(prediction={"kind": "mean_logits", "draws": 8}).draws == 8


def test_a_rule_is_parsed_from_text() -> None:
    assert parse_prediction_rule("draw") == PredictionRule()
    assert parse_prediction_rule("mean_logits:10") == PredictionRule(kind="mean_logits", draws=10)
    assert parse_prediction_rule("vote:3") == PredictionRule(kind="vote", draws=3)
    assert parse_prediction_rule("frozen:0") == PredictionRule(kind="frozen")
    assert parse_prediction_rule("frozen:7") == PredictionRule(kind="frozen", seed=7)


@pytest.mark.parametrize(
    "text", ["", "vote", "vote:", "vote:x", "vote:0", "vote:-1", "vote:1.5", "vote:²", "draw:1", "frozen", "mean:3", ":3"]
)
def test_malformed_rules_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--prediction"):
        parse_prediction_rule(text)
