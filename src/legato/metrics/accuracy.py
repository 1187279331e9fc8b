"""Right and wrong."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


def error_rate(logits: Tensor, target: Tensor) -> float:
    """Share in [0, 1] of rows whose largest logit is not the target's. logits [N, C], target [N]."""
    return float((logits.argmax(1) != target).double().mean())


def confusion(prediction: ArrayLike, target: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """[C, C] counts: row = true class, column = predicted class."""
    cells = np.asarray(target, dtype=np.int64) * num_classes + np.asarray(prediction, dtype=np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
