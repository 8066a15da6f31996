"""What a fitted estimator is as a PyTorch module: raw inputs to predictions in the user's units."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from isthmus.models import LeakyResNet


class TableModule(nn.Module):
    """Scaled inputs, a Leaky ResNet, and outputs in the user's units: `y = y_scale · f((x − x_mean)/x_scale) + y_mean`.

    Classes have no units: their outputs are logits.

    Args:
        network: the network.
        x_mean: `(features,)`.
        x_scale: `(features,)`; that of a constant column is infinite, which maps it to 0.
        y_mean: `(outputs,)`.
        y_scale: `(outputs,)`.
    """

    x_mean: Tensor
    x_scale: Tensor
    y_mean: Tensor
    y_scale: Tensor

    def __init__(self, network: LeakyResNet, x_mean: Tensor, x_scale: Tensor, y_mean: Tensor, y_scale: Tensor) -> None:
        super().__init__()
        self.network = network
        for name, value in (("x_mean", x_mean), ("x_scale", x_scale), ("y_mean", y_mean), ("y_scale", y_scale)):
            self.register_buffer(name, value.to(network.weight))

    def scaled(self, x: Float[Tensor, "n features"]) -> Float[Tensor, "n features"]:
        """Inputs as the network is given them."""
        return (x.to(self.x_mean) - self.x_mean) / self.x_scale

    def forward(self, x: Float[Tensor, "n features"]) -> Float[Tensor, "n outputs"]:
        """Predictions, or logits."""
        return self.network(self.scaled(x)) * self.y_scale + self.y_mean
