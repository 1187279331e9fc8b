"""Differentiable Siamese augmentation (DSA): draws that can be made again, for all images of a batch at once."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from legato import errors


class Draw(NamedTuple):
    """What one batch is put through."""

    operation: str
    uniform: Tensor
    """[B, 3] in [0, 1): the random numbers of each image."""

    def rows(self, start: int, count: int) -> "Draw":
        """The draw of some images of the batch, for micro-batches."""
        return Draw(self.operation, self.uniform[start : start + count])


@final
@dataclass(frozen=True)
class DSA:
    """`dsa(images, draw)`: one operation for the batch, other numbers for each image; differentiable in the images [B, C, H, W].

    `draw(rows, generator)` picks among `operations` with equal chance: color (brightness, saturation, contrast), crop, cutout, flip, scale,
    rotate. The same draw gives the same result, and the same map for other images: that is what "Siamese" means.

    Raises, when it is made: LegatoValueError for an unknown operation, or none.
    Source: Zhao and Bilen 2021, arXiv 2102.08259; strengths as in its code.
    """

    operations: tuple[str, ...] = ("color", "crop", "cutout", "flip", "scale", "rotate")
    flip: float = 0.5
    """Chance of a mirror image."""
    scale: float = 1.2
    """Each axis is sampled at 1 / scale .. scale of its length."""
    rotate: float = 15.0
    """Degrees, to either side."""
    crop: float = 0.125
    """Shift to any side, a share of it; zeros come in."""
    cutout: float = 0.5
    """Side of the square of zeros, a share of the image's."""
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5

    def __post_init__(self) -> None:
        for word in self.operations:
            if word not in OPERATIONS:
                raise errors.choice("operations", word, OPERATIONS)
        if not self.operations:
            raise errors.argument("operations", expected=f"some of {', '.join(OPERATIONS)}", got="none")

    def draw(self, rows: int, generator: Generator) -> Draw:
        """The operation and the random numbers for a batch of so many rows, on the generator's device."""
        chosen = int(torch.randint(len(self.operations), (), generator=generator, device=generator.device))
        return Draw(self.operations[chosen], torch.rand(rows, 3, generator=generator, device=generator.device))

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        """The augmented images.

        Raises: LegatoValueError for what is no [B, C, H, W], or a draw for another number of rows.
        """
        if images.dim() != 4 or len(draw.uniform) != len(images):
            raise errors.argument(
                "images", expected=f"[{len(draw.uniform)}, C, H, W]", got=f"shape {list(images.shape)}",
                fix="leave augmentation out for inputs that are no images",
            )  # fmt: skip
        return OPERATIONS[draw.operation](self, images, draw.uniform.to(images))


def _color(dsa: DSA, x: Tensor, u: Tensor) -> Tensor:
    bright, saturate, contrast = (u[:, k, None, None, None] for k in range(3))
    x = x + (bright - 0.5) * dsa.brightness
    mean = x.mean(1, keepdim=True)
    x = (x - mean) * (saturate * dsa.saturation) + mean
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + dsa.contrast) + mean


def _crop(dsa: DSA, x: Tensor, u: Tensor) -> Tensor:
    """Moved by whole pixels, with zeros coming in."""
    lines, columns = (_moved(u[:, k], side, dsa.crop) for k, side in enumerate(x.shape[2:]))
    padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)  # what is out of the picture reads this frame of zeros
    picture = torch.arange(len(x), device=x.device)[:, None, None]
    return padded[picture, lines[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _moved(u: Tensor, side: int, share: float) -> Tensor:
    """[B, side] int64: which line of the padded picture comes to each place."""
    most = int(side * share + 0.5)
    shift = (u * (2 * most + 1)).long() - most
    return (torch.arange(1, side + 1, device=u.device) + shift[:, None]).clamp(0, side + 1)


def _cutout(dsa: DSA, x: Tensor, u: Tensor) -> Tensor:
    """A rectangle of zeros whose centre may lie anywhere."""
    hidden = []
    for k, side in enumerate(x.shape[2:]):
        size = int(side * dsa.cutout + 0.5)
        first = (u[:, k] * (side + 1 - size % 2)).long() - size // 2
        place = torch.arange(side, device=x.device)
        hidden.append((place >= first[:, None]) & (place < first[:, None] + size))
    return x.masked_fill((hidden[0][:, :, None] & hidden[1][:, None, :])[:, None], 0)


def _flip(dsa: DSA, x: Tensor, u: Tensor) -> Tensor:
    return torch.where((u[:, 0] < dsa.flip)[:, None, None, None], x.flip(3), x)


def _scale(dsa: DSA, x: Tensor, u: Tensor) -> Tensor:
    along = u[:, :2] * (dsa.scale - 1 / dsa.scale) + 1 / dsa.scale
    nothing = torch.zeros_like(along[:, 0])
    return _sampled(x, along[:, 0], nothing, nothing, along[:, 1])


def _rotate(dsa: DSA, x: Tensor, u: Tensor) -> Tensor:
    angle = (2 * u[:, 0] - 1) * math.radians(dsa.rotate)
    return _sampled(x, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def _sampled(x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Read at (a x + b y, c x + d y), each [B], linearly between pixels; zeros beyond the edge."""
    nothing = torch.zeros_like(a)
    matrix = torch.stack([torch.stack([a, b, nothing], 1), torch.stack([c, d, nothing], 1)], 1)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


OPERATIONS: Mapping[str, Callable[[DSA, Tensor, Tensor], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
