"""Label noise: a documented, seeded corruption of real labels."""

import numpy as np
import torch
from torch import Tensor

from legato import errors


def corrupt_labels(targets: Tensor, num_classes: int, rate: float, *, kind: str = "symmetric", seed: int) -> Tensor:
    """Each label is replaced with probability `rate`.

    Args:
        targets: int64 [N] in 0 .. num_classes - 1; left as it is, the result is a new tensor on the same device.
        num_classes: C, at least 2.
        rate: in [0, 1).
        kind: "symmetric": by one of the other classes, each as likely; "pair": by (label + 1) mod C.
        seed: the same seed gives the same corruption, on every machine.
    Raises: LegatoValueError for a rate, kind or number of classes out of range.
    """
    if not 0 <= rate < 1:
        raise errors.argument("label_noise", expected="a share >= 0 and < 1", got=rate)
    if num_classes < 2:
        raise errors.argument("num_classes", expected="at least 2", got=num_classes)
    if kind not in ("symmetric", "pair"):
        raise errors.choice("noise_kind", kind, ("symmetric", "pair"))
    random = np.random.default_rng(seed)
    flips = random.random(len(targets)) < rate
    steps = (
        random.integers(1, num_classes, len(targets)) if kind == "symmetric" else np.ones(len(targets), dtype=np.int64)
    )
    labels = targets.cpu().numpy()
    return torch.from_numpy(np.where(flips, (labels + steps) % num_classes, labels)).to(targets.device)
