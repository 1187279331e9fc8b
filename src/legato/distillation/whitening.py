"""ZCA whitening of images, and the way back."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from legato import errors


@final
@dataclass(frozen=True)
class Zca:
    """Whitening that changes images as little as possible: white(x) = W (x - mean), W = U diag((s + eps)^-1/2) U^T, with U diag(s) U^T the
    covariance of the flattened training images.

    Source: Bell and Sejnowski 1997; eps = 0.1 is what trajectory matching takes.
    """

    mean: Tensor
    """[D], D = numbers in an image."""
    forward: Tensor
    """W, [D, D]."""
    backward: Tensor
    """Its inverse, [D, D]."""

    @staticmethod
    def fit(images: Tensor, eps: float = 0.1) -> "Zca":
        """Learn it from training images [N, ...], N >= 2; memory and time of a [D, D] matrix, in float64.

        Raises: LegatoValueError for an eps that is not a number > 0, or fewer than two images.
        """
        if not 0 < eps < math.inf:
            raise errors.argument("eps", expected="a number > 0", got=eps, fix="0.1 for standardised images")
        if len(images) < 2:
            raise errors.argument("images", expected="at least two", got=len(images))
        rows = images.flatten(1).double()
        mean = rows.mean(0)
        values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / (len(rows) - 1))
        scale = (values.clamp(min=0) + eps).sqrt()
        forward, backward = (vectors * factor @ vectors.T for factor in (1 / scale, scale))
        return Zca(*(part.to(images.dtype) for part in (mean, forward, backward)))

    def whiten(self, images: Tensor) -> Tensor:
        """White images of [N, ...], in the same shape."""
        return ((images.flatten(1) - self.mean) @ self.forward).view_as(images)

    def invert(self, white: Tensor) -> Tensor:
        """The images that `whiten` would turn into `white` [N, ...]."""
        return (white.flatten(1) @ self.backward + self.mean).view_as(white)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, forward and backward."""
        return self.mean, self.forward, self.backward
