"""Standardisation as a layer, for models whose inputs must stay in their own units, such as those that are attacked."""

from torch import Tensor, nn


class Standardise(nn.Module):
    """(x - mean) / deviation for each channel of [B, C, H, W] or each column of [B, D].

    Args:
        mean, deviation: [C] or [D]; a deviation of 0 makes its channel 0.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        constant = deviation < 1e-8
        self.register_buffer("mean", mean.clone())
        self.register_buffer("scale", (1 / deviation.masked_fill(constant, 1)).masked_fill(constant, 0))

    def forward(self, x: Tensor) -> Tensor:
        """The standardised inputs."""
        shape = [1, -1, *[1] * (x.dim() - 2)]
        return (x - self.mean.view(shape)) * self.scale.view(shape)
