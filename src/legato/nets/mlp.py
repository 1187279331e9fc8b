"""A multi-layer perceptron."""

import math
from itertools import pairwise

from torch import nn


def mlp(input_shape: tuple[int, ...], num_classes: int, *, width: int = 256, depth: int = 1) -> nn.Module:
    """Inputs of any shape, flattened, through `depth` hidden layers of `width` ReLU units: [B, *input_shape] -> logits [B, num_classes].

    Args:
        input_shape: shape of one input.
        num_classes: number of logits.
        width: units of a hidden layer.
        depth: number of hidden layers; 0 is a linear classifier.
    """
    widths = [math.prod(input_shape), *[width] * depth]
    hidden = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], num_classes))
