"""What a user would take instead of ours, written as users write it. Each is our reimplementation, not a package's code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from legato import errors

DEVICE_LINE = '.to("cuda")'


def softmax_gather_gce(logits: Tensor, target: Tensor, q: float = 0.7) -> Tensor:
    """Generalised cross-entropy as most repositories have it: softmax, gather, power. Our reimplementation.

    logits [B, C], target int64 [B] -> mean of (1 - p^q)/q. It loses all digits where p is close to 1, and its gradient is
    NaN where p underflows to 0.
    """
    p = F.softmax(logits, dim=1).gather(1, target[:, None])[:, 0]
    return ((1 - p**q) / q).mean()


def keras_style_gce(logits: Tensor, target: Tensor, q: float = 0.7) -> Tensor:
    """Generalised cross-entropy on one-hot targets and probabilities, as Keras takes them. Our reimplementation.

    logits [B, C], target int64 [B] -> mean of (1 - p^q)/q.
    """
    one_hot = F.one_hot(target, logits.shape[1]).to(logits.dtype)
    p = (one_hot * F.softmax(logits, dim=1)).sum(1)
    return ((1 - p**q) / q).mean()


def softplus_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy as softplus of the negated margin. Our reimplementation. logits, target in {0, 1}: [B]."""
    return F.softplus(-(2 * target - 1) * logits).mean()


def official_ensloss(path: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """The authors' EnsLoss from a copy of their `losses.py` that the user has; its hard-wired device is taken out in memory.

    Raises: DataNotFoundError when there is no such file.
    """
    if not path.is_file():
        raise errors.DataNotFoundError(errors.message("official", expected="a copy of losses.py", got=path))
    names: dict[str, Any] = {"__name__": "official_ensloss"}
    exec(compile(path.read_text().replace(DEVICE_LINE, ""), path.name, "exec"), names)
    loss: Callable[[Tensor, Tensor], Tensor] = names["ensLoss"]()
    torch.manual_seed(0)
    return loss
