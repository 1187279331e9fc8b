"""Networks of the EnsLoss study: perceptrons with batch normalisation, and a depthwise-separable convnet."""

import math
from functools import partial
from itertools import pairwise

from torch import nn

from legato.nets.shapes import picture


def mlp_norm(input_shape: tuple[int, ...], num_classes: int, *, depth: int, width: int = 256) -> nn.Module:
    """`depth` hidden layers of Linear, ReLU, BatchNorm: [B, *input_shape] -> logits [B, num_classes].

    Source: the order of layers is that of Dai 2025, arXiv 2409.00908.
    """
    widths = [math.prod(input_shape), *[width] * depth]
    hidden = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU(), nn.BatchNorm1d(b))]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], num_classes))


mlp_1, mlp_3, mlp_5 = (partial(mlp_norm, depth=depth) for depth in (1, 3, 5))


def depthwise(input_shape: tuple[int, ...], num_classes: int, *, width: int = 32) -> nn.Module:
    """A stem and three depthwise-separable blocks, two of which halve the picture: [B, C, H, W] -> logits [B, num_classes].

    Source: the blocks are those of MobileNet, Howard et al. 2017, arXiv 1704.04861.
    Raises: LegatoValueError for inputs that are no pictures.
    """
    channels, _, _ = picture("depthwise", input_shape)

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs), nn.ReLU(),
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        ]  # fmt: skip

    return nn.Sequential(
        nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        *block(width, 2 * width, 1), *block(2 * width, 4 * width, 2), *block(4 * width, 4 * width, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, num_classes),
    )  # fmt: skip
