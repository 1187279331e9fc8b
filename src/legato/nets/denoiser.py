"""A small network that takes noise away: a residual multi-layer perceptron that knows the time and the class."""

import math

import torch
from torch import Tensor, nn


class MLPDenoiser(nn.Module):
    """(x_t [B, *shape], t [B], class_labels) -> what it predicts [B, *shape], called as UNet2DModel of diffusers is.

    Each block adds to the state what two layers make of it and of the time and class: h + W2 silu(norm(W1 silu(h) + Wc c)).

    Args:
        input_shape: of one sample.
        num_classes: C; one more class, C, says nothing. 0 makes a network without classes.
        width: of all layers.
        blocks: >= 1.
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, *, width: int = 256, blocks: int = 3) -> None:
        super().__init__()
        self.width = width
        dims = math.prod(input_shape)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = nn.Embedding(num_classes + 1, width) if num_classes else None
        self.first, self.last = nn.Linear(dims, width), nn.Linear(width, dims)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """`class_labels`: int64 [B], or vectors [B, width] in the place of embeddings, which can be bent; None is the class without."""
        about = self.time(sinusoids(timestep, self.width).to(sample.dtype))
        if self.classes is not None:
            about = about + self._vectors(class_labels, len(sample), sample.device)
        h = self.first(sample.flatten(1))
        for block in self.blocks:
            h = block(h, about)
        out: Tensor = self.last(nn.functional.silu(h)).view_as(sample)
        return out

    def _vectors(self, labels: Tensor | None, rows: int, device: torch.device) -> Tensor:
        assert self.classes is not None
        if labels is None:
            labels = torch.full((rows,), self.classes.num_embeddings - 1, device=device)
        vectors: Tensor = labels if labels.is_floating_point() else self.classes(labels)
        return vectors


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down, self.told = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor, about: Tensor) -> Tensor:
        inside = self.up(nn.functional.silu(h)) + self.told(about)
        out: Tensor = h + self.down(nn.functional.silu(self.norm(inside)))
        return out


def sinusoids(t: Tensor, width: int) -> Tensor:
    """cos and sin of t times frequencies from 1 down to 1/10000, [B] -> [B, width], float32; width is even."""
    half = width // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
    angles = t[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], 1)
