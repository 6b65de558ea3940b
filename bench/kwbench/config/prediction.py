"""Prediction rules: how one class is predicted from a stochastic model's draws."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kwbench.config.strict_yaml import Strict, validate
from kwbench.errors import UsageError

# The parameter that follows the colon in a rule's text.
_PARAMETERS = {"mean_logits": "draws", "vote": "draws", "frozen": "seed"}


class PredictionRule(Strict):
    """How a stochastic model predicts; `kwbench.model.Prediction` defines the kinds."""

    kind: Literal["draw", "mean_logits", "vote", "frozen"] = "draw"
    draws: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _check_parameters(self) -> "PredictionRule":
        if self.kind in ("draw", "frozen") and self.draws != 1:
            raise ValueError("a single draw is one draw; the mean of several is kind: mean_logits, their majority kind: vote")
        if self.kind != "frozen" and self.seed:
            raise ValueError("a seed is for kind: frozen; other draws are fresh")
        return self


def parse_prediction_rule(text: str) -> PredictionRule:
    """Return the rule written as draw, mean_logits:DRAWS, vote:DRAWS or frozen:SEED. Raises UsageError for any other text."""
    kind, separator, number = text.partition(":")
    parameter = _PARAMETERS.get(kind)
    malformed = UsageError(f"--prediction {text}: write draw, mean_logits:DRAWS, vote:DRAWS or frozen:SEED")
    if (kind != "draw" and parameter is None) or bool(separator) != (parameter is not None):
        raise malformed
    if parameter is None:
        return PredictionRule()
    if not (number.isascii() and number.isdigit()):
        raise malformed
    return validate(PredictionRule, {"kind": kind, parameter: int(number)}, f"--prediction {text}")
