"""The zoo's winner-take-all networks with the same weights and their activation implemented in other ways.

The activations are those of user_files/winner_take_all.py, which does not depend on kwbench. user_files/spellings.py offers the
same networks as users' own models.
"""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from defences.user_files.winner_take_all import KWTA, LWTA
from kwbench.config.registry import read_registry
from kwbench.networks.activations import Kwta, StochasticLwta
from kwbench.networks.entries import load_entry
from support.small_models import digits

__all__ = ["FILE", "HIDDEN", "KWTA", "LWTA", "kwta", "slwta", "swap"]

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).resolve().parent / "user_files" / "spellings.py"

# kwbench cannot see operations outside PyTorch. It does see custom autograd Functions and scripts, below autograd.
HIDDEN = frozenset({"numpy"})


def slwta(way: str, name: str = "resnet18-slwta2") -> nn.Module:
    """Return a trained stochastic LWTA network of the zoo with its activations implemented in this way."""
    return swap(_zoo(name), StochasticLwta, LWTA[way])


def kwta(way: str, name: str = "resnet18-kwta0.1") -> nn.Module:
    """Return a trained k-WTA network of the zoo with its activations implemented in this way."""
    network = _zoo(name)
    (gamma,) = {float(layer.gamma) for layer in network.modules() if isinstance(layer, Kwta)}
    return swap(network, Kwta, lambda: KWTA[way](gamma))


def swap(network: nn.Module, kind: type[nn.Module], make: Callable[[], nn.Module]) -> nn.Module:
    """Replace every submodule of this kind by a new one, in place, and return the network."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, kind):
                setattr(module, name, make())
    return network.eval().requires_grad_(False)


def _zoo(name: str) -> nn.Module:
    registry = read_registry(ROOT / "registry.yaml")
    return load_entry(registry, *registry.find(name), digits()).module
