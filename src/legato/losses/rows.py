"""What the losses on class indices share: the cross-entropy of each row, what a row counts, and the reduction over rows."""

import torch
from torch import Tensor
from torch.nn import functional as F

from legato.losses.arguments import check_range, num_classes


def widened(logits: Tensor) -> Tensor:
    """The logits in the type that losses are computed in: float64 stays, everything shorter becomes float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


def cross_entropy(scores: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Cross-entropy [B, ...] of each row, 0 where it is ignored; torch's own kernel.

    Raises: LegatoValueError that names a class out of range, on the CPU, where the kernel itself looks.
    """
    try:
        return F.cross_entropy(scores, target, ignore_index=ignore_index, reduction="none")
    except IndexError:
        check_range(target, num_classes(scores), ignore_index)
        raise


def shares(target: Tensor, ignore_index: int, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What each row [B, ...] counts in a mean: 0 if it is ignored, else the weight of its class, or 1."""
    kept = target != ignore_index
    if weight is None:
        return kept
    return weight.to(dtype)[target.where(kept, 0)] * kept


def reduce(losses: Tensor, shares: Tensor, reduction: str) -> Tensor:
    """`losses` have their share in them; their mean is the sum over the sum of shares, and 0 where nothing counts."""
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    return total / shares.sum(dtype=losses.dtype).clamp_min(torch.finfo(losses.dtype).tiny)
