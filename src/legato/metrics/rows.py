"""What all metrics of logits take: [N, C] scores and [N] classes, N >= 1."""

import torch
from torch import Tensor

from legato import errors


def checked(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in float64 and target, both on the CPU and without a graph.

    Raises: LegatoValueError unless logits are [N, C] and target is [N] with classes in 0 .. C-1 and N >= 1.
    """
    if logits.dim() != 2 or len(logits) == 0:
        raise errors.argument("logits", expected="shape [N, C] with N >= 1", got=f"shape {list(logits.shape)}")
    if target.shape != logits.shape[:1] or target.dtype != torch.int64:
        raise errors.argument(
            "target", expected=f"int64 class indices of shape [{len(logits)}]",
            got=f"{target.dtype} of shape {list(target.shape)}",
        )  # fmt: skip
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= logits.shape[1]:
        raise errors.argument(
            "target", expected=f"classes in 0 .. {logits.shape[1] - 1}", got=f"classes in {low} .. {high}"
        )
    return logits.detach().double().cpu(), target.detach().cpu()
