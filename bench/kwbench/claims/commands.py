"""The commands that measure a claim, and how the network that they measure differs from the paper's."""

from fractions import Fraction

from kwbench.claims.claim import Claim
from kwbench.claims.full_size import full_size_entries
from kwbench.claims.mapping import PUBLISHED, ClaimMapping
from kwbench.config.recipe import Recipe
from kwbench.config.registry import ModelEntry

# The file in the commands that has the networks at full size.
REGISTRY_FILE = "papers.yaml"

_TRAININGS = {
    "natural": "natural training",
    "adversarial": "PGD adversarial training",
    "trades": "TRADES",
    "free": "free adversarial training",
    "fast": "fast adversarial training",
    "mixture": "sampled training",
}


def commands_for(
    claim: Claim, mapping: ClaimMapping, model: str, *, pinned: bool, images: int | None, strong_images: int | None
) -> tuple[str, ...]:
    """Return the shell commands that measure a claim, and then the network's robust accuracy under the suite `strong`.

    Args:
        model: The network to measure, one of those that `mapping` names.
        pinned: Whether the registry has its checkpoint; if not, the first command trains it.
        images, strong_images: The number of test images for each of the two evaluations; None for all.
    """
    assert mapping.protocol is not None
    full_size = model == mapping.full_size
    registry = f" --registry {REGISTRY_FILE}" if full_size else ""
    surrogates = _surrogates(claim, model) if full_size else {}
    prepare = []
    if full_size:
        prepare = [f"kwbench claims{registry}"]
        networks = (*surrogates.values(), model)
        prepare += [f"kwbench train {network}{registry} --download --pin --device cuda" for network in networks]
    elif model == PUBLISHED:
        prepare = [f"kwbench convert {model} --download"]
    elif not pinned:
        prepare = [f"kwbench train {model} --download --pin"]
    setting = "".join(f" --set {label}.surrogate={surrogate}" for label, surrogate in surrogates.items())
    first_n, strong_first_n = ("" if n is None else f" --n {n}" for n in (images, strong_images))
    run = [f"kwbench evaluate {model}{registry} --suite {mapping.protocol.suite}{setting} --download{first_n}"]
    if claim.threat is not None:
        threat = f"--norm {claim.norm} --eps {claim.eps}"
        run.append(f"kwbench evaluate {model}{registry} --suite strong {threat} --download{strong_first_n}")
    return (*prepare, *run)


def _surrogates(claim: Claim, model: str) -> dict[str, str]:
    """The surrogates at full size of a suite that measures transfer, by attack label."""
    dataset = model.partition("/")[0]
    if claim.attack == "BB":
        return {"bb": f"{dataset}/vgg19"}
    if not claim.attack.startswith("transfer from"):
        return {}
    return {f"from-{network}": f"{dataset}/resnet18-{network}-copy" for network in ("relu", "kwta0.1", "relu-at", "kwta0.1-at")}


def network_differences(mapping: ClaimMapping, ours: ModelEntry) -> tuple[str, ...]:
    """Return how our network differs from the paper's: by its registry entry, and by what the mapping adds."""
    by_entry = differences(ours, full_size_entries()[mapping.full_size]) if mapping.full_size is not None else []
    return (*(["; ".join(by_entry)] if by_entry else []), *mapping.differs)


def differences(ours: ModelEntry, theirs: ModelEntry) -> list[str]:
    """Return how two registry entries differ in sizes, epochs, training images and kind of training."""
    texts = [
        f"{name} {value} for {theirs.architecture.parameters.get(name)}"
        for name, value in ours.architecture.parameters.items()
        if theirs.architecture.parameters.get(name) != value
    ]
    our_recipe, their_recipe = ours.recipe, theirs.recipe
    if our_recipe is None or their_recipe is None:
        return texts
    if _epochs(our_recipe) != _epochs(their_recipe):
        texts.append(f"{_epochs(our_recipe)} epochs for {_epochs(their_recipe)}")
    if our_recipe.dataset is not None:
        texts.append(f"trained on {our_recipe.dataset}")
    if (our_training := _training(our_recipe)) != (their_training := _training(their_recipe)):
        texts.append(f"{our_training} for {their_training}")
    return texts


def _epochs(recipe: Recipe) -> int:
    """The number of all epochs, those of incremental training included."""
    incremental = recipe.incremental
    if incremental is None:
        return recipe.epochs
    # Incremental training ends at gamma = 0.1, from whichever side.
    steps = round((incremental.start - Fraction(1, 10)) / incremental.step)
    return recipe.epochs + steps * incremental.epochs + incremental.final_epochs


def _training(recipe: Recipe) -> str:
    """The kind of training in a few words; without the adversary's step size, which the papers do not state."""
    steps = getattr(getattr(recipe, recipe.training, None), "steps", None)
    return _TRAININGS[recipe.training] + (f" ({steps} steps)" if steps is not None else "")
