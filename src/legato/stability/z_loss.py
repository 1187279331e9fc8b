"""z-loss: holds the log-normaliser of the output logits near 0."""

import math
from typing import Any, final

import torch
from torch import Tensor, nn

from legato import errors


def z_loss(logits: Tensor, target: Tensor, coefficient: float = 1e-4, *, ignore_index: int = -100) -> Tensor:
    """coefficient * mean over kept tokens of (log Z)^2, with log Z = logsumexp(logits).

    The gradient of a token's (log Z)^2 is 2 * log Z * softmax(logits). Tokens that the cross-entropy ignores count neither in the sum
    nor in what it is divided by, so the ratio of both losses does not depend on padding.

    Args:
        logits: [..., V], floating point.
        target: int64 [...]; read only for `ignore_index`.
        coefficient: >= 0, in nats; the paper's is 1e-4.
        ignore_index: the target of tokens that are left out.
    Returns: a scalar >= 0, in float64 for such logits, else float32; 0 where no token is kept.
    Raises: LegatoValueError for a coefficient out of range or shapes that do not fit; LegatoTypeError for no floating point logits.
    Source: Chowdhery et al. 2022, arXiv 2204.02311; Wortsman et al. 2024, arXiv 2309.14322.
    """
    _check_coefficient(coefficient)
    if not logits.is_floating_point():
        raise errors.argument_type("logits", expected="a floating point tensor", got=logits.dtype)
    if logits.dim() < 1 or target.shape != logits.shape[:-1]:
        raise errors.argument(
            "target", expected=f"shape {list(logits.shape[:-1])}, one target a row of logits", got=list(target.shape),
            fix="the vocabulary is the last axis of the logits",
        )  # fmt: skip
    wide = logits if logits.dtype == torch.float64 else logits.float()
    kept = target != ignore_index
    squares = wide.logsumexp(-1).square().where(kept, 0.0)
    return coefficient * squares.sum() / kept.sum().clamp_min(1)


@final
class ZLoss(nn.Module):
    """`z_loss` as an object: `loss = criterion(logits, target) + z(logits, target)`, or a term of `legato.training.Criterion`.

    Args:
        coefficient: >= 0.
        ignore_index: the target of tokens that are left out.
    Raises: LegatoValueError for a coefficient out of range.
    """

    def __init__(self, coefficient: float = 1e-4, *, ignore_index: int = -100) -> None:
        _check_coefficient(coefficient)
        super().__init__()
        self.coefficient, self.ignore_index = coefficient, ignore_index

    def extra_repr(self) -> str:
        """Its numbers."""
        return f"coefficient={self.coefficient:g}, ignore_index={self.ignore_index}"

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """As in `z_loss`."""
        return z_loss(logits, target, self.coefficient, ignore_index=self.ignore_index)

    def penalty(self, output: Tensor, batch: tuple[Any, Tensor, Any]) -> Tensor:
        """The term of a batch (inputs, targets, index)."""
        loss: Tensor = self(output, batch[1])
        return loss

    def begin_epoch(self, epoch: int) -> None:
        """Nothing changes from epoch to epoch."""

    def after_step(self, model: nn.Module) -> None:
        """Nothing is kept of a step."""


def _check_coefficient(coefficient: float) -> None:
    if not 0 <= coefficient < math.inf:
        raise errors.argument("coefficient", expected="a number >= 0", got=coefficient, fix="1e-4 is the paper's")
