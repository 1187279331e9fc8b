"""The focal loss for several classes, as a peer to compare with."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from legato import errors


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0, *, reduction: str = "mean") -> Tensor:
    """(1 - p)^gamma * ce with p = softmax(logits)[target] and ce = -log p.

    Args:
        logits: [B, C] floating point, before any softmax.
        target: [B] int64 class indices.
        gamma: >= 0; 0 is cross-entropy.
        reduction: "none" -> [B], "mean" or "sum" -> [].
    Raises: LegatoValueError for a negative or non-finite gamma or an unknown reduction.
    Source: Lin et al. 2017, arXiv 1708.02002, equation 4, with the softmax in place of the sigmoid.
    """
    if not 0 <= gamma < math.inf:
        raise errors.argument("gamma", expected="a finite number >= 0", got=gamma, fix="gamma=0 is cross-entropy")
    if reduction not in ("none", "mean", "sum"):
        raise errors.choice("reduction", str(reduction), ("none", "mean", "sum"))
    ce = F.cross_entropy(logits, target, reduction="none")
    losses = (-torch.expm1(-ce)) ** gamma * ce if gamma else ce
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


class FocalLoss(nn.Module):
    """`focal_loss` as an object."""

    def __init__(self, gamma: float = 2.0, *, reduction: str = "mean") -> None:
        super().__init__()
        focal_loss(
            torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), gamma, reduction=reduction
        )  # checks the numbers
        self.gamma, self.reduction = gamma, reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch."""
        return focal_loss(logits, target, self.gamma, reduction=self.reduction)

    def extra_repr(self) -> str:
        """The focusing parameter."""
        return f"gamma={self.gamma:g}"
