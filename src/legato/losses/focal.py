"""The focal loss for several classes, as a peer to compare with."""

import torch
from torch import Tensor, nn

from legato import errors
from legato.losses.arguments import check_indices, check_logits, check_reduction, check_weight, is_number
from legato.losses.rows import cross_entropy, reduce, shares, widened


def focal_loss(
    logits: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Focal loss of each sample: (1 - p)^gamma * ce, with p = softmax(logits)[target] and ce = -log p.

    Args:
        logits: [B, C], [B, C, ...] or [C], floating point, before any softmax. Types shorter than float32 are computed in float32.
        target: class indices, int64 [B, ...].
        gamma: >= 0, no unit; 0 is cross-entropy.
        weight: [C], a factor for each class (the paper's alpha); "mean" divides by the sum of the factors.
        ignore_index: rows with this class index count nothing; a mean over nothing is 0.
        reduction: "none" -> [B, ...], "mean" or "sum" -> [].
    Returns: loss >= 0, float32 or float64, in nats.
    Raises: LegatoValueError for a gamma out of range, a shape that does not fit, and on the CPU a class out of range;
        LegatoTypeError for logits that are not floating point.
    Source: Lin et al. 2017, arXiv 1708.02002, equation 4, with the softmax in place of the sigmoid.
    """
    check_gamma(gamma)
    check_reduction(reduction)
    check_logits(logits)
    check_indices(logits, target)
    check_weight(logits, weight)
    ce = cross_entropy(widened(logits), target, ignore_index)
    losses = ce
    if gamma:
        miss = -torch.expm1(-ce)  # 1 - p, without its cancellation
        losses = (
            miss.clamp_min(torch.finfo(ce.dtype).tiny) ** gamma * ce
        )  # the slope of 0^gamma is infinite for gamma < 1
    counts = shares(target, ignore_index, weight, ce.dtype)
    return reduce(losses if weight is None else counts * losses, counts, reduction)


def check_gamma(gamma: float) -> None:
    """Raises LegatoValueError unless gamma is a plain finite number >= 0."""
    if not (is_number(gamma) and gamma >= 0):
        raise errors.argument("gamma", expected="a plain finite number >= 0", got=gamma, fix="gamma=0 is cross-entropy")


class FocalLoss(nn.Module):
    """`focal_loss` as an object; the arguments are the same."""

    weight: Tensor | None

    def __init__(
        self,
        gamma: float = 2.0,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_gamma(gamma)
        check_reduction(reduction)
        self.gamma, self.ignore_index, self.reduction = gamma, ignore_index, reduction
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch."""
        return focal_loss(
            logits, target, self.gamma, weight=self.weight, ignore_index=self.ignore_index, reduction=self.reduction
        )

    def extra_repr(self) -> str:
        """The focusing parameter."""
        return f"gamma={self.gamma:g}"
