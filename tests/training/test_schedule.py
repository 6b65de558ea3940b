"""Learning rates and the gamma of k-WTA, epoch by epoch."""

from typing import Any

import pytest

from kwbench.config.recipe import Recipe
from kwbench.config.strict_yaml import validate
from kwbench.data import DataSet
from kwbench.networks.activations import Kwta
from kwbench.networks.entries import build_module
from kwbench.training import train
from kwbench.training.schedule import phases
from support.training import LOWERING, entry, quiet


def test_incremental_training_lowers_gamma_step_by_step_to_exactly_the_target(few: DataSet) -> None:
    model = entry({"name": "kwta", "gamma": 0.2}, incremental=LOWERING | {"step": 0.2, "epochs": 2})
    module = build_module(model, (1, 8, 8), 10)
    assert model.recipe is not None
    winners = [layer for layer in module.modules() if isinstance(layer, Kwta)]
    gammas = [str(phase.gamma) for phase in phases(model.recipe, winners)]
    assert gammas == ["1/2", "1/2", "3/10", "3/10", "1/5", "1/5", "1/5"]
    trained = train(model, few, quiet)
    assert {str(layer.gamma) for layer in trained.modules() if isinstance(layer, Kwta)} == {"1/5"}


SCHEDULES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "constant": ({"kind": "constant"}, [1, 1, 1, 1, 1, 1]),
    "once": ({"kind": "drop", "after": 3}, [1, 1, 1, 0.1, 0.1, 0.1]),
    "halved at every epoch after": ({"kind": "drop", "after": 3, "factor": 0.5, "repeat": True}, [1, 1, 1, 0.5, 0.25, 0.125]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_follow_the_schedules_of_the_papers(name: str) -> None:
    schedule, expected = SCHEDULES[name]
    recipe = validate(Recipe, {"epochs": 6, "learning_rate": 1, "seed": 0, "schedule": schedule}, "recipe")
    assert [phase.learning_rate(0.5) for phase in phases(recipe, [])] == pytest.approx(expected)
