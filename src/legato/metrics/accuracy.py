"""Right and wrong."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from legato import errors
from legato.metrics.rows import checked


def error_rate(logits: Tensor, target: Tensor) -> float:
    """Share in [0, 1] of rows whose largest logit is not the target's.

    Args:
        logits: [N, C]; on a tie the first of the largest is the prediction.
        target: [N] int64.
    Raises: LegatoValueError for shapes that do not fit, no row, or a class out of range.
    """
    scores, classes = checked(logits, target)
    wrong = (scores.argmax(1) != classes).double()
    return float(torch.where(scores.isnan().any(1), torch.nan, wrong).mean())


def confusion(prediction: ArrayLike, target: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """[C, C] counts: row = true class, column = predicted class.

    Args:
        prediction, target: [N] whole numbers in 0 .. num_classes - 1.
        num_classes: C.
    Raises: LegatoValueError for lengths that differ or a class out of range.
    """
    guessed, true = np.asarray(prediction, dtype=np.int64), np.asarray(target, dtype=np.int64)
    if guessed.ndim != 1 or guessed.shape != true.shape:
        raise errors.argument(
            "prediction", expected=f"shape {list(true.shape)} as target", got=f"shape {list(guessed.shape)}"
        )
    for name, classes in (("prediction", guessed), ("target", true)):
        if len(classes) and not 0 <= classes.min() <= classes.max() < num_classes:
            raise errors.argument(
                name, expected=f"classes in 0 .. {num_classes - 1}", got=f"{classes.min()} .. {classes.max()}"
            )
    return np.bincount(true * num_classes + guessed, minlength=num_classes**2).reshape(num_classes, num_classes)


def top_confused(counts: ArrayLike, class_names: Sequence[str], k: int = 5) -> list[tuple[str, str, int]]:
    """The `k` most frequent mistakes as (true class, predicted class, rows), the most frequent first; ties in the classes' order.

    Args:
        counts: [C, C] as `confusion` gives it. Pairs that never happened are left out, so there may be fewer than k.
        class_names: C names.
        k: >= 0.
    Raises: LegatoValueError when the number of names is not C.
    """
    table = np.asarray(counts)
    if table.shape != (len(class_names), len(class_names)):
        raise errors.argument("class_names", expected=f"{len(table)} names", got=f"{len(class_names)} names")
    mistakes = np.where(np.eye(len(table), dtype=bool), 0, table)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:k]
    pairs = [divmod(int(cell), len(table)) for cell in order if mistakes.flat[cell]]
    return [(class_names[true], class_names[guessed], int(mistakes[true, guessed])) for true, guessed in pairs]
