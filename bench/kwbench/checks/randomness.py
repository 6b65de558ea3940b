"""Checks of stochastic models: how random are predictions and gradients, and does a fixed seed help the adversary?"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.attacks.pgd import Pgd
from kwbench.checks.attacks import accuracy_under
from kwbench.checks.case import Case, percent
from kwbench.checks.zero_gradients import margin_of
from kwbench.finding import Check, Criterion, Finding
from kwbench.gradients import EXACT, Eot
from kwbench.model import Model
from kwbench.randomness import derived_seed, seeded_globally

# Predictions per image, and the share of differing ones from which on a model is random in more than its last bits.
DRAWS = 20
SPREAD = 0.01
# Random directions in d dimensions have a cosine of 1 / sqrt(d); below this most of the gradient is noise.
COSINE = 0.2
# Draws of an averaged gradient, as many as strong evaluations can afford at every step.
MEAN_DRAWS = 16
# The seeds under which a stochastic model is frozen, and the noise of accuracies on so few samples.
SEEDS = 5
FROZEN = 0.05

RANDOMNESS = Criterion("randomness", kind="note")
NOISE = Criterion("gradient noise", kind="masking")
AVERAGED_NOISE = Criterion("averaged gradient noise", kind="masking", role="misleading")
FROZEN_RANDOMNESS = Criterion("frozen randomness", kind="masking")
ABOVE_STANDARD = Criterion(
    "above standard", kind="doubt", remedy="an evaluation whose robust accuracy does not exceed the clean accuracy"
)


def predictions_vary(case: Case) -> list[Finding]:
    """Measure how often a stochastic model's prediction differs from its most frequent one."""
    if not case.model.stochastic:
        return []
    case.random("randomness")
    x = case.batch.x
    votes = torch.zeros((len(x), case.model.classes), device=x.device)
    for _ in range(DRAWS):
        predicted, _ = case.model.predict(x)
        votes[torch.arange(len(x), device=x.device), predicted] += 1
    spread = 1 - votes.amax(dim=1) / DRAWS
    figure = spread.mean().item()
    statement = f"of {DRAWS} predictions of the same image {percent(figure)} differ from the most frequent one, on average"
    return [RANDOMNESS.finding(figure, SPREAD, statement, samples=case.samples(spread > 0))]


def gradients_repeat(case: Case) -> list[Finding]:
    """Measure the cosine of gradients from two independent draws, and of two means of 16 draws."""
    if not case.model.stochastic:
        return []
    rng = case.random("gradient noise")
    loss = margin_of(case)
    findings = []
    for criterion, gradient, draws in ((NOISE, EXACT, 1), (AVERAGED_NOISE, Eot(draws=MEAN_DRAWS), MEAN_DRAWS)):
        first, second = (case.estimate(case.batch.x, loss, rng, gradient).gradients[0].flatten(1) for _ in range(2))
        cosine = F.cosine_similarity(first.double(), second.double(), dim=1, eps=1e-300).nan_to_num()
        figure = cosine.mean().item()
        statement = (
            f"gradients from {draws} draw{'s' if draws > 1 else ''} and from as many others have a cosine of {figure:.2f}; "
            "near 0 they are noise"
        )
        samples = case.samples(cosine < COSINE)
        findings.append(criterion.finding(figure, COSINE, statement, fires=figure < COSINE, samples=samples))
    return findings


def frozen_is_weaker(case: Case) -> list[Finding]:
    """Compare the accuracy under PGD of the network frozen at a known seed with the expected robust accuracy.

    An adversary who knows the seed is the stronger one: frozen <= expected <= standard accuracy. Five seeds. Only for models
    that predict by single draws: the mean or the vote of several is another classifier.
    """
    if not case.model.stochastic or not case.robust or case.model.prediction.kind != "draw":
        return []
    attack = Pgd(steps=10, relative_step_size=1 / 4, loss="margin", early_exit=False)
    accuracies = []
    for seed in range(SEEDS):
        model = case.model
        # The same tile size: noise depends on the position in a tile.
        frozen = Model(
            _Frozen(model.module, derived_seed(case.seed, "frozen", seed)),
            name=model.name,
            classes=model.classes,
            shape=model.shape,
            device=model.device,
            tile=model.tile,
        )
        frozen_case = replace(case, model=frozen)
        accuracies.append(accuracy_under(frozen_case, attack, case.threat, f"frozen {seed}").mean().item())
    expected = sum(case.robust) / len(case.robust)
    lead = sum(accuracies) / SEEDS - expected
    case.random("standard")
    excess = expected - case.accuracy(case.batch.x).mean().item()
    return [
        FROZEN_RANDOMNESS.finding(
            lead,
            FROZEN,
            f"the accuracy under PGD at a known seed differs by {100 * lead:+.0f} points from the expected robust accuracy; it "
            "should not be higher",
        ),
        ABOVE_STANDARD.finding(
            excess,
            FROZEN,
            f"the robust accuracy differs by {100 * excess:+.0f} points from the clean accuracy, which is its upper bound",
        ),
    ]


class _Frozen(nn.Module):
    """A network whose randomness is the same in every forward pass."""

    def __init__(self, network: nn.Module, seed: int) -> None:
        super().__init__()
        self.network, self.seed = network, seed

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (b, k) of x (b, c, h, w)."""
        with seeded_globally(self.seed):
            logits: Tensor = self.network(x)
        return logits


VARIATION = Check("randomness", predictions_vary, (RANDOMNESS,), passes=20, always=True)
REPETITION = Check("gradient noise", gradients_repeat, (NOISE, AVERAGED_NOISE), passes=68)
FREEZING = Check("frozen randomness", frozen_is_weaker, (FROZEN_RANDOMNESS, ABOVE_STANDARD), passes=115)
