"""The ConvNet of the distillation papers, without running statistics."""

import math
from typing import Literal, TypeAlias

from torch import nn

from legato import errors
from legato.nets.shapes import picture

Norm: TypeAlias = Literal["instance", "layer"]


def blocks(
    input_shape: tuple[int, ...], num_classes: int, *, width: int = 16, depth: int | None = None, norm: Norm = "instance"
) -> nn.Module:  # fmt: skip
    """`depth` times [3 x 3 convolution, norm, ReLU, 2 x 2 average], then one linear layer: [B, C, H, W] -> logits [B, num_classes].

    A side that is odd is pooled to the next whole number, so any size will do.

    Args:
        input_shape: (C, H, W).
        num_classes: number of logits.
        width: channels; 128 in the papers.
        depth: None is `depth_of` the size.
        norm: instance, as in the papers, or layer: over all channels together; both with learned gains.
    Raises: LegatoValueError for inputs that are no pictures, and for a width or depth below 1.
    """
    channels, height, side = picture("blocks", input_shape)
    depth = depth_of(input_shape) if depth is None else depth
    if width < 1 or depth < 1:
        raise errors.argument("width, depth", expected="whole numbers >= 1", got=f"{width}, {depth}")
    groups = width if norm == "instance" else 1
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Conv2d(width if i else channels, width, 3, padding=1), nn.GroupNorm(groups, width), nn.ReLU()]
        layers += [nn.AvgPool2d(2, ceil_mode=True)]
    rows, columns = (math.ceil(n / 2**depth) for n in (height, side))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * rows * columns, num_classes))


def depth_of(input_shape: tuple[int, ...]) -> int:
    """By the shorter side: 2 blocks from 8 pixels, 3 from 16 and 4 from 64, as in the papers."""
    _, height, side = picture("blocks", input_shape)
    return 1 + sum(min(height, side) >= least for least in (8, 16, 64))
