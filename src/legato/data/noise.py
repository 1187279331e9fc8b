"""Label noise: a documented, seeded corruption of real labels."""

import numpy as np
import torch
from numpy.typing import NDArray
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


def corrupt_by_input(inputs: Tensor, targets: Tensor, num_classes: int, rate: float, *, seed: int) -> Tensor:
    """Each label is replaced with a probability near `rate` by a class that its own input decides.

    Row i flips with probability q_i, drawn from a normal distribution with mean `rate` and deviation 0.1, cut to 0 .. 1; so the
    share that flips is near `rate` only where that is some tenths away from 0 and 1. The new class j != y is drawn from
    softmax over j of x_i . W[y, :, j], with W standard normal: similar inputs of a class flip to the same class.

    Args:
        inputs: [N, ...] numbers, best standardised; flattened.
        targets: int64 [N] in 0 .. num_classes - 1; left as it is, the result is a new tensor on the same device.
        num_classes: C, at least 2.
        rate: in [0, 1); at 0 nothing flips.
        seed: the same seed gives the same corruption, up to the rounding of the machine's matrix products.
    Raises: LegatoValueError for a rate or number of classes out of range.
    Source: Xia et al. 2020, arXiv 2006.07836, algorithm 2.
    """
    if rate == 0 or not 0 < rate < 1 or num_classes < 2:
        return corrupt_labels(targets, num_classes, rate, seed=seed)  # which also refuses what cannot be
    random = np.random.default_rng(seed)
    flips = random.random(len(targets)) < _cut_normal(random, rate, 0.1, len(targets))
    x, labels = inputs.flatten(1).double().cpu().numpy(), targets.cpu().numpy()
    new = labels.copy()
    for label in range(num_classes):
        towards = random.standard_normal((x.shape[1], num_classes))
        rows = np.flatnonzero(labels == label)
        # The largest score with Gumbel noise is a draw from the softmax.
        scores = x[rows] @ towards + random.gumbel(size=(len(rows), num_classes))
        scores[:, label] = -np.inf
        new[rows] = np.where(flips[rows], scores.argmax(1), label)
    return torch.from_numpy(new).to(targets.device)


def _cut_normal(random: np.random.Generator, mean: float, deviation: float, count: int) -> NDArray[np.float64]:
    """[count] draws from a normal distribution, cut to 0 .. 1."""
    from scipy.stats import truncnorm

    low, high = -mean / deviation, (1 - mean) / deviation
    drawn: NDArray[np.float64] = truncnorm.rvs(low, high, mean, deviation, size=count, random_state=random)
    return drawn
