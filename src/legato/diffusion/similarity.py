"""How like two batches of pictures are: mean squared error, PSNR and SSIM, a number a picture."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from legato import errors


@dataclass(frozen=True)
class Likeness:
    """Of each picture to its original, all [B]."""

    mse: Tensor
    psnr: Tensor
    """In dB; infinite for equal pictures."""
    ssim: Tensor

    def __str__(self) -> str:
        return f"MSE {float(self.mse.mean()):.4g}, PSNR {float(self.psnr.mean()):.2f} dB, SSIM {float(self.ssim.mean()):.4f}"


def likeness(
    pictures: Tensor, originals: Tensor, value_range: tuple[float, float] = (-1.0, 1.0), window: int = 7
) -> Likeness:
    """All three for pictures [B, C, H, W] against originals of the same shape.

    mse = mean (x - y)^2;  psnr = 10 log10(L^2 / mse);  ssim = mean over all windows and channels of
    (2 mx my + c1)(2 cov + c2) / ((mx^2 + my^2 + c1)(vx + vy + c2)), c1 = (0.01 L)^2, c2 = (0.03 L)^2, uniform windows, divisor n - 1.

    Args:
        pictures, originals: floating point; L is the length of `value_range`.
        window: side of the windows, odd; no larger than the pictures.
    Raises: LegatoValueError for shapes that differ and windows that do not fit.
    Source: Wang et al. 2004 with scikit-image's defaults.
    """
    if pictures.shape != originals.shape or pictures.dim() != 4:
        raise errors.argument(
            "pictures", expected=f"the originals' shape [B, C, H, W], {list(originals.shape)}", got=list(pictures.shape)
        )
    if window % 2 == 0 or not 3 <= window <= min(pictures.shape[2:]):
        raise errors.argument("window", expected=f"an odd number in 3 .. {min(pictures.shape[2:])}", got=window)
    x, y = pictures.double(), originals.double()
    length = value_range[1] - value_range[0]
    mse = (x - y).square().flatten(1).mean(1)
    return Likeness(mse, 10 * torch.log10(length**2 / mse), _ssim(x, y, length, window))


def _ssim(x: Tensor, y: Tensor, length: float, window: int) -> Tensor:
    def mean(of: Tensor) -> Tensor:
        return F.avg_pool2d(of, window, stride=1)

    unbiased = window**2 / (window**2 - 1)
    mx, my = mean(x), mean(y)
    vx, vy, cov = (
        unbiased * (mean(a * b) - ma * mb) for a, b, ma, mb in ((x, x, mx, mx), (y, y, my, my), (x, y, mx, my))
    )
    c1, c2 = (0.01 * length) ** 2, (0.03 * length) ** 2
    whole = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return whole.flatten(1).mean(1)
