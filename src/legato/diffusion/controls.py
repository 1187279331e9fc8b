"""Pictures -> controls, differentiable and without any weights: edges, line art, silhouettes. Any other callable is a detector too."""

import torch
from torch import Tensor
from torch.nn import functional as F

from legato import errors

LUMA = (0.299, 0.587, 0.114)
TINY = 1e-6
"""Under the root of a magnitude, so that flat pictures have a gradient."""


def luminance(pictures: Tensor) -> Tensor:
    """Grey pictures [B, 1, H, W] of grey or red-green-blue ones in [0, 1].

    Raises: LegatoValueError for another shape, type, or number of channels.
    """
    if pictures.dim() != 4 or pictures.shape[1] not in (1, 3) or not pictures.is_floating_point():
        raise errors.argument(
            "pictures", expected="floating point pictures [B, 1 or 3, H, W] in [0, 1]",
            got=f"{pictures.dtype} of shape {list(pictures.shape)}", fix="bytes / 255",
        )  # fmt: skip
    if pictures.shape[1] == 1:
        return pictures
    return (pictures * pictures.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)


def gradients(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel's derivatives along x and y of [B, 1, H, W], in change a pixel (weights / 8); the border is continued."""
    smooth, change = grey.new_tensor([1, 2, 1]) / 4, grey.new_tensor([-1, 0, 1]) / 2
    kernels = torch.stack([torch.outer(smooth, change), torch.outer(change, smooth)])[:, None]
    both = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels)
    return both[:, :1], both[:, 1:]


def blurred(grey: Tensor, sigma: float) -> Tensor:
    """[B, 1, H, W] under a Gaussian of this standard deviation in pixels, cut off at 2 sigma; the border is mirrored.

    Raises: LegatoValueError for a sigma that is not > 0, and for pictures smaller than the window.
    """
    reach = round(2 * sigma) if sigma > 0 else 0
    if not 1 <= reach < min(grey.shape[2:]):
        raise errors.argument("sigma", expected=f"2 sigma in 1 .. {min(grey.shape[2:]) - 1} pixels", got=sigma)
    away = torch.arange(-reach, reach + 1, dtype=grey.dtype, device=grey.device)
    weights = torch.exp(-(away**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    wide = F.pad(grey, (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(wide, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))


def soft_edges(pictures: Tensor, scale: float = 0.12) -> Tensor:
    """Edges in [0, 1]: 1 - exp(-|Sobel|^2 / scale^2), [B, 1, H, W]; a step of height h has |Sobel| = h / 2 beside it.

    Args:
        pictures: [B, 1 or 3, H, W] in [0, 1].
        scale: > 0, in change a pixel.
    """
    _check_positive("scale", scale)
    dx, dy = gradients(luminance(pictures))
    return -torch.expm1(-(dx**2 + dy**2) / scale**2)


def canny_magnitude(pictures: Tensor, sigma: float = 1.0) -> Tensor:
    """What Canny's detector thresholds: |Sobel| of the blurred picture, [B, 1, H, W] >= 0.001; the reward for edges of ControlNet++."""
    dx, dy = gradients(blurred(luminance(pictures), sigma))
    return torch.sqrt(dx**2 + dy**2 + TINY)


def soft_canny(pictures: Tensor, low: float = 0.0125, high: float = 0.025, sigma: float = 1.0) -> Tensor:
    """Thin edges in [0, 1]: the ridges of `canny_magnitude`, from 0 at `low` rising to 1 at `high`, [B, 1, H, W].

    The ramp takes the place of hysteresis, which has no gradient; which pixels are ridges has none either. A ridge is at least as high
    as its neighbour on one side and higher than that on the other, along the nearest of four directions of the gradient.

    Args:
        pictures: [B, 1 or 3, H, W] in [0, 1].
        low, high: 0 <= low < high, in change a pixel; the usual 0.1 and 0.2 on Sobel's plain weights are 8 times these units.
        sigma: of the blur.
    """
    if not 0 <= low < high:
        raise errors.argument("low, high", expected="0 <= low < high", got=(low, high))
    dx, dy = gradients(blurred(luminance(pictures), sigma))
    magnitude = torch.sqrt(dx**2 + dy**2 + TINY)
    ridge = _ridges(magnitude.detach(), dx.detach(), dy.detach())
    return ((magnitude - low) / (high - low)).clamp(0, 1) * ridge


def line_art(pictures: Tensor, sigma: float = 1.0, scale: float = 0.06) -> Tensor:
    """Dark strokes in [0, 1]: 1 - exp(-(d / scale)^2), d = max(0, wide blur - narrow blur), [B, 1, H, W].

    A difference of Gaussians of 2 sigma and sigma; no learned drawing, which needs weights.
    """
    _check_positive("scale", scale)
    grey = luminance(pictures)
    darker = F.relu(blurred(grey, 2 * sigma) - blurred(grey, sigma))
    return -torch.expm1(-(darker**2) / scale**2)


def silhouette(pictures: Tensor, threshold: float = 0.5, width: float = 0.05) -> Tensor:
    """What is brighter than the threshold, softly: sigmoid((grey - threshold) / width), [B, 1, H, W]."""
    _check_positive("width", width)
    return torch.sigmoid((luminance(pictures) - threshold) / width)


def usable(controls: Tensor) -> Tensor:
    """bool [B]: which of the controls [B, ...] are finite and not empty; a detector that found nothing gives pairs to drop, and to count."""
    flat = controls.flatten(1)
    return flat.isfinite().all(1) & (flat != 0).any(1)


def _ridges(magnitude: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """1.0 where no neighbour along the gradient is higher, else 0.0; beyond the border there is nothing."""
    octant = (
        torch.round(torch.atan2(dy, dx) / (torch.pi / 4)).long() % 4
    )  # 0: along x, 1: x and y, 2: along y, 3: x and -y
    wide = F.pad(magnitude, (1, 1, 1, 1))
    height, width = magnitude.shape[2:]
    kept = torch.zeros_like(magnitude, dtype=torch.bool)
    for k, (x, y) in enumerate(((1, 0), (1, 1), (0, 1), (1, -1))):
        ahead = wide[:, :, 1 + y : 1 + y + height, 1 + x : 1 + x + width]
        behind = wide[:, :, 1 - y : 1 - y + height, 1 - x : 1 - x + width]
        kept |= (octant == k) & (magnitude >= ahead) & (magnitude > behind)
    return kept.to(magnitude)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise errors.argument(name, expected="a number > 0", got=value)
