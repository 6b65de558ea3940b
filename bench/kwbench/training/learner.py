"""One network under a recipe: its optimiser, and what each way of training makes of a batch.

PGD adversarial training (Madry et al. 2018, arXiv:1706.06083), TRADES (arXiv:1901.08573), free (arXiv:1904.12843) and fast
(arXiv:2001.03994) training, hicheur2024's mixture, and the ELBO of stochastic LWTA (panousis2021 eq. 9).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.config.recipe import Recipe
from kwbench.errors import CannotEvaluate
from kwbench.networks.activations import Kwta, Lwta, StochasticLwta, stochastic_divergence
from kwbench.training.adversaries import (
    full_step_size,
    kl_divergence,
    mixture_examples,
    pgd_examples,
    threat_of_epoch,
    trades_examples,
    warmup_factor,
)
from kwbench.training.augmentation import augment
from kwbench.training.schedule import Phase


class Learner:
    """A network, its optimiser, and all other state that a step of training changes.

    Attributes:
        kwta_layers: The layers whose gamma incremental training lowers.
        bfloat16: Whether forward passes run in mixed precision.
        generator: Draws the order of the images, their augmentation and the numbers of `mixture`.
        replays: Steps on each batch; more than one only in free training.
    """

    def __init__(self, module: nn.Module, recipe: Recipe, shape: tuple[int, ...], images: int, device: torch.device) -> None:
        """Initialise the weights by the recipe, for `images` training images of this shape (c, h, w)."""
        self.module, self.recipe, self.device = module, recipe, device
        self.kwta_layers = [layer for layer in module.modules() if isinstance(layer, Kwta)]
        self.bfloat16 = recipe.precision == "bfloat16"
        self.replays = recipe.free.replays if recipe.free else 1
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self._kl_weight = 1 / images if recipe.kl_weight is None else recipe.kl_weight
        if recipe.initial == "kaiming_normal":
            for layer in module.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self._memory_format = _memory_format(module, self.bfloat16, device)
        module.to(memory_format=self._memory_format)  # type: ignore[call-overload]
        self._optimiser = torch.optim.SGD(
            module.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
        )
        # The perturbation of free training, by position in the batch.
        self._perturbation = torch.zeros(recipe.batch_size if recipe.free else 0, *shape, device=device)

    def begin_epoch(self, phase: Phase) -> None:
        """Set k-WTA's gamma for an epoch, and training mode."""
        for layer in self.kwta_layers:
            layer.gamma = phase.gamma or layer.gamma
        self.module.train()

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of the following steps."""
        for group in self._optimiser.param_groups:
            group["lr"] = rate

    def augment(self, x: Tensor) -> Tensor:
        """Augment images (b, c, h, w), in the memory format of the network."""
        return augment(x, self.recipe, self.generator).contiguous(memory_format=self._memory_format)

    def step(self, x: Tensor, y: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Take one step of the optimiser on a batch.

        Returns the loss () without its KL term, which may not be finite, and the logits (b, k) of the images that the network
        was trained on. Raises CannotEvaluate if the network refuses values that are not finite.
        """
        try:
            return self._step(x, y, epoch)
        except ValueError as failure:  # winner-take-all layers refuse the NaN of a diverged network
            raise CannotEvaluate(f"training stopped in epoch {epoch + 1}: {failure}; lower learning_rate") from None

    def _step(self, x: Tensor, y: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        recipe = self.recipe
        perturbation: Tensor | None = None
        if recipe.free is not None:
            perturbation = self._perturbation[: len(x)].clone().requires_grad_()
            x = (x + perturbation).clamp(0, 1)
        else:
            x = self._attacked(x, y, epoch)
        if recipe.noise:
            x = x + recipe.noise * torch.randn_like(x)
        logits = self._logits(x)
        objective = F.cross_entropy(logits, y)
        if recipe.trades is not None:
            objective = objective + recipe.trades.beta * self._trades_divergence(x, logits, epoch)
        total = objective + self._kl_weight * stochastic_divergence(self.module)
        self._optimiser.zero_grad()
        total.backward()
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), recipe.clip_norm)
        self._optimiser.step()
        if perturbation is not None:
            self._update_perturbation(perturbation, epoch)
        return objective.detach(), logits.detach()

    def _attacked(self, x: Tensor, y: Tensor, epoch: int) -> Tensor:
        """Return the images to train on: the batch itself, or adversarial examples for it."""
        recipe = self.recipe
        if recipe.adversarial is not None:
            return pgd_examples(self._logits, x, y, recipe.adversarial, epoch)
        if recipe.fast is not None:
            return pgd_examples(self._logits, x, y, recipe.fast, epoch)
        if recipe.mixture is not None:
            number = int(torch.randint(0, 8, (), generator=self.generator))
            return mixture_examples(self._logits, x, y, recipe.mixture, number, epoch)
        return x

    def _trades_divergence(self, x: Tensor, logits: Tensor, epoch: int) -> Tensor:
        assert self.recipe.trades is not None
        natural = logits.log_softmax(dim=1)
        self.module.eval()  # the authors' implementation also searches in evaluation mode
        z = trades_examples(self._logits, x, natural.detach(), self.recipe.trades, epoch)
        self.module.train()
        return kl_divergence(self._logits(z), natural)

    def _update_perturbation(self, perturbation: Tensor, epoch: int) -> None:
        """Move the perturbation of free training along the gradient of the step just taken."""
        free = self.recipe.free
        assert free is not None
        assert perturbation.grad is not None
        radius = threat_of_epoch(free, epoch).radius
        moved = perturbation.detach() + full_step_size(free) * warmup_factor(free, epoch) * perturbation.grad.sign()
        self._perturbation[: len(perturbation)] = moved.clamp(-radius, radius)

    def _logits(self, x: Tensor) -> Tensor:
        """Return logits (b, k) in float32, in the network's current mode and the recipe's precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits: Tensor = self.module(x)
        return logits.float()

    def state(self) -> dict[str, Any]:
        """Return everything that later steps depend on."""
        return {
            "module": self.module.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "perturbation": self._perturbation,
            "random": [torch.get_rng_state(), self.generator.get_state()],
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.module.load_state_dict(state["module"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._perturbation = state["perturbation"].to(self.device)
        torch.set_rng_state(state["random"][0])
        self.generator.set_state(state["random"][1])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.device)


def _memory_format(module: nn.Module, bfloat16: bool, device: torch.device) -> torch.memory_format:
    """Return channels_last, which is faster, unless a layer copies or miscomputes images in that format.

    Stochastic LWTA reads samples in logical order, and would copy; in bfloat16 on a CPU, so would k-WTA and LWTA.
    """
    on_cpu = device.type == "cpu"
    ordered = (Kwta, Lwta, StochasticLwta) if bfloat16 and on_cpu else (StochasticLwta,)
    contiguous = any(isinstance(layer, ordered) or (on_cpu and _overruns(layer)) for layer in module.modules())
    return torch.contiguous_format if contiguous else torch.channels_last


def _overruns(layer: nn.Module) -> bool:
    """Return whether oneDNN may write out of bounds in the gradient of this layer's weights.

    It does in channels_last, for strided 1x1 convolutions with fewer input channels than its block of 8 or 16
    (github.com/uxlfoundation/oneDNN/issues/6035). Then the gradient is wrong, or the process hangs or crashes.
    """
    return (
        isinstance(layer, nn.Conv2d)
        and set(layer.kernel_size) == {1}
        and max(layer.stride) > 1
        and layer.in_channels // layer.groups < 16
    )
