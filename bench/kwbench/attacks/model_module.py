"""A torch module around a Model, for attack libraries."""

from torch import Tensor, nn

from kwbench.model import Model


class ModelModule(nn.Module):
    """Calls a Model, which counts passes and pads tiles; hides its weights from the library."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (b, k) of x (b, c, h, w)."""
        return self.model(x)
