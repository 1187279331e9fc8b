"""A multi-layer perceptron."""

import math
from itertools import pairwise

from torch import nn


def mlp(input_shape: tuple[int, ...], num_classes: int, *, width: int = 256, depth: int = 1) -> nn.Module:
    """Inputs of any shape, flattened, through `depth` hidden layers of `width` ReLU units, to [B, num_classes] logits."""
    widths = [math.prod(input_shape), *[width] * depth]
    hidden = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], num_classes))
