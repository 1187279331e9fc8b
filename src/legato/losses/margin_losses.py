"""Fixed convex losses of the margin: hinge, exponential, logistic and log-tail."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from legato import errors
from legato.losses.arguments import check_reduction
from legato.losses.margins import (
    check_factors,
    check_margin_shapes,
    check_margin_values,
    check_pos_weight,
    class_factors,
    margins,
    mean_divisor,
)


def _hinge(z: Tensor) -> Tensor:
    return F.relu(1 - z)


def _exponential(z: Tensor) -> Tensor:
    return torch.exp(-z)


def _logistic(z: Tensor) -> Tensor:
    return -F.logsigmoid(z)  # softplus(-z), which torch cuts to -z below -20: not clean in float64


def _log_tail(z: Tensor) -> Tensor:
    return torch.where(z > 1, -1 - z.clamp_min(1).log(), -z)


PHI: dict[str, Callable[[Tensor], Tensor]] = {
    "hinge": _hinge,
    "exponential": _exponential,
    "logistic": _logistic,
    "log-tail": _log_tail,
}
"""The losses as functions of the margin."""


def hinge_loss(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    pos_weight: float | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Hinge loss max(0, 1 - z) of the margin z; see `margins` for z. The slope at z = 1 is taken as 0.

    Args:
        logits: [B] or [B, 1], one logit a sample, or [B, C], C >= 2 scores.
        target: [B], 0 or 1 (int64 or floating point) for one logit, int64 class indices for C scores.
        weight: [C], a factor for each class, for C scores only; "mean" divides by the sum of the factors, as torch does.
        pos_weight: >= 0, a factor for y = 1, for one logit only; "mean" divides by B, as torch.nn.BCEWithLogitsLoss does.
        reduction: "none" -> [B], "mean" or "sum" -> []. The mean over nothing is 0 with a gradient of 0.
    Returns: loss >= 0, float32 or float64. NaN where a margin is NaN.
    Raises: as `margins`, and LegatoValueError for a weight that does not fit.
    Source: the form for several classes is that of Crammer and Singer 2001.
    """
    return _margin_loss(_hinge, logits, target, weight, pos_weight, reduction)


def exponential_loss(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    pos_weight: float | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Exponential loss exp(-z) of the margin z, the loss of AdaBoost.

    It overflows to inf where z < -88 (float32) or -709 (float64); nothing is checked here, so that no device is waited for, but
    `MarginLoss` looks. Arguments, returns and errors as in `hinge_loss`.
    """
    return _margin_loss(_exponential, logits, target, weight, pos_weight, reduction)


def logistic_loss(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    pos_weight: float | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Logistic loss log(1 + exp(-z)) of the margin z, in nats.

    With one logit it is binary cross-entropy; for C > 2 it is not the cross-entropy of a softmax, for it sees the runner-up only.
    Arguments, returns and errors as in `hinge_loss`.
    """
    return _margin_loss(_logistic, logits, target, weight, pos_weight, reduction)


def log_tail_loss(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    pos_weight: float | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Log-tail loss of the margin z: -z up to 1, then -1 - log z. Its slope is -min(1, 1/z).

    Convex, and calibrated since its slope at 0 is negative, but **not bounded below**: it falls for ever, like -log z, and its
    value says nothing by itself. It is the profile of EnsLoss without the randomness: no sample weighs more than another up to
    z = 1, and those beyond never stop to count.
    Arguments and errors as in `hinge_loss`. Returns: any real number.
    Source: the tail of the official EnsLoss code; its `Log_Hinge` is this plus 1.
    """
    return _margin_loss(_log_tail, logits, target, weight, pos_weight, reduction)


def _margin_loss(
    phi: Callable[[Tensor], Tensor],
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: float | None,
    reduction: str,
) -> Tensor:
    check_reduction(reduction)
    z = margins(logits, target)
    check_factors(logits, target, weight, pos_weight)
    factors = class_factors(target, weight, pos_weight, z.dtype)
    losses = phi(z) if factors is None else factors * phi(z.masked_fill(factors == 0, 0))  # masked, for 0 * inf is NaN
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / mean_divisor(losses, weight, factors)


class MarginLoss(nn.Module):
    """`hinge_loss`, `exponential_loss`, `logistic_loss` or `log_tail_loss` as an object.

    It reads values where the functions cannot afford to wait for the device: at its first call, that the targets are 0 or 1, or
    classes in range, and that no logit is NaN; for "exponential" at the calls 1, 2, 4, 8 ..., that the loss is finite, of which it
    warns once. Under torch.compile nothing is read; inside torch.vmap, where nothing can be read, use the functions.

    Args:
        phi: "hinge", "exponential", "logistic" or "log-tail".
        weight, pos_weight, reduction: as in `hinge_loss`.
    Raises: LegatoValueError for an unknown word, a number out of range, and at the first call for values that cannot be used.
    """

    weight: Tensor | None

    def __init__(
        self,
        phi: str,
        *,
        weight: Tensor | None = None,
        pos_weight: float | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if phi not in PHI:
            raise errors.choice("phi", str(phi), PHI)
        check_pos_weight(pos_weight)
        check_reduction(reduction)
        self.phi, self.pos_weight, self.reduction = phi, pos_weight, reduction
        self.register_buffer("weight", weight)
        self.calls, self.warned = 0, False

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch."""
        if torch.compiler.is_compiling():
            return self._loss(logits, target)
        self.calls += 1
        if self.calls == 1:
            check_margin_shapes(logits, target)
            check_margin_values(logits, target)
        loss = self._loss(logits, target)
        if self.phi == "exponential" and not self.warned and self.calls.bit_count() == 1:
            self._warn_of_overflow(loss.detach())
        return loss

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return _margin_loss(PHI[self.phi], logits, target, self.weight, self.pos_weight, self.reduction)

    def _warn_of_overflow(self, loss: Tensor) -> None:
        if not bool(loss.isfinite().all()):
            self.warned = True
            warnings.warn(
                "the loss is infinite or NaN: exp(-z) overflows for samples far on their wrong side. "
                "Fix: smaller logits, a lower learning rate, or the logistic loss",
                errors.LegatoWarning,
                stacklevel=5,  # the line that called this object
            )

    def get_extra_state(self) -> dict[str, Any]:
        """What has been looked at."""
        return {"calls": self.calls, "warned": self.warned}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take it up again."""
        self.calls, self.warned = state["calls"], state["warned"]

    def extra_repr(self) -> str:
        """`'hinge'`, and whatever differs from its default."""
        defaults = {"pos_weight": None, "reduction": "mean"}
        others = [f"{name}={getattr(self, name)!r}" for name, value in defaults.items() if getattr(self, name) != value]
        return ", ".join([repr(self.phi), *([] if self.weight is None else [f"weight=[{len(self.weight)}]"]), *others])
