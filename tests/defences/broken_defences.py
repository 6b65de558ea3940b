"""What is expected of eleven defences of the zoo, in linf 0.2 on the first 64 test images, written down before they were run.

None is trained adversarially, and a plain attack breaks the network inside: any robustness measured is a failure of the attack.
Each is a kind that has fooled evaluations before: the self-study course of Carlini et al. (defences/zoo/registry.py) and
Athalye et al. 2018 (arXiv:1802.00420).
"""

from dataclasses import dataclass
from typing import Literal

from defences.zoo.activations import jump, random_neurons, rounded_features, sign_features
from defences.zoo.defence import Defence
from defences.zoo.ensembles import majority_vote
from defences.zoo.inputs import detached, numpy_detour, quantised_input, thermometer_code
from defences.zoo.outputs import scaled_logits
from defences.zoo.random_inputs import random_resizing
from defences.zoo.registry import DEFENCES

Verdict = Literal["overestimated", "confirmed", "inconclusive"]


@dataclass(frozen=True)
class Expectation:
    """A defence, and what its evaluation must show.

    Attributes:
        defence: the defence.
        truth: upper bound on the true robust accuracy: the accuracy of the defence on the images of PGD on its substitute.
        flattery: lower bound on the accuracy after plain PGD (40 steps, torch's cross-entropy, exact gradients); 1 if plain PGD
            cannot run.
        verdict: the expected verdict on the result of Auto-PGD with exact gradients, the protocol of the strong suite.
        reason: why that verdict is right.
    """

    defence: Defence
    truth: float
    flattery: float
    verdict: Verdict
    reason: str

    @property
    def name(self) -> str:
        return self.defence.name


_BY_FACTORY = {defence.factory: defence for defence in DEFENCES}

EXPECTATIONS = (
    Expectation(
        _BY_FACTORY[jump],
        truth=0.0,
        flattery=0.12,
        verdict="confirmed",
        reason="small steps are misled and leave one sample in eight, but Auto-PGD's larger steps cross the jumps",
    ),
    Expectation(
        _BY_FACTORY[rounded_features],
        truth=1 / 32,
        flattery=0.85,
        verdict="overestimated",
        reason="every gradient is exactly zero: the protocol stays near its random start",
    ),
    Expectation(
        _BY_FACTORY[sign_features],
        truth=1 / 32,
        flattery=0.8,
        verdict="overestimated",
        reason="every gradient is exactly zero: the protocol stays near its random start",
    ),
    Expectation(
        _BY_FACTORY[detached],
        truth=1 / 32,
        flattery=0.85,
        verdict="overestimated",
        reason="every gradient is exactly zero: the protocol stays near its random start",
    ),
    Expectation(
        _BY_FACTORY[quantised_input],
        truth=1 / 32,
        flattery=0.85,
        verdict="overestimated",
        reason="every gradient is exactly zero, though the radius spans more than one level either way",
    ),
    Expectation(
        _BY_FACTORY[scaled_logits],
        truth=1 / 32,
        flattery=0.85,
        verdict="confirmed",
        reason="torch's cross-entropy has no gradient here, but kwbench's losses are right at any scale of the logits",
    ),
    Expectation(
        _BY_FACTORY[random_neurons],
        truth=0.1,
        flattery=0.15,
        verdict="confirmed",
        reason="one draw a step is noisy, but many steps average the noise as well as many draws do (Gao et al. 2022)",
    ),
    Expectation(
        _BY_FACTORY[random_resizing],
        truth=0.04,
        flattery=0.1,
        verdict="confirmed",
        reason="one draw a step is noisy, but many steps average the noise as well as many draws do (Gao et al. 2022)",
    ),
    Expectation(
        _BY_FACTORY[majority_vote],
        truth=0.08,
        flattery=1.0,
        verdict="overestimated",
        reason="counts of votes have no graph: without a gradient the protocol is no more than its random start",
    ),
    Expectation(
        _BY_FACTORY[thermometer_code],
        truth=1 / 32,
        flattery=1.0,
        verdict="overestimated",
        reason="comparisons cut the graph: without a gradient the protocol is no more than its random start",
    ),
    Expectation(
        _BY_FACTORY[numpy_detour],
        truth=1 / 32,
        flattery=1.0,
        verdict="overestimated",
        reason="the detour cuts the graph: without a gradient the protocol is no more than its random start",
    ),
)
