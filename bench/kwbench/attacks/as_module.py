"""Our Model as attack libraries want it: a torch module."""

from torch import Tensor, nn

from kwbench.model import Model


class AsModule(nn.Module):
    """Calls the model, which counts and tiles; its weights stay out of reach of the library."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (b, k) of x (b, c, h, w)."""
        return self.model(x)
