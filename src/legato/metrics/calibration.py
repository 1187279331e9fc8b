"""How far probabilities can be believed: NLL, temperature, expected calibration error, reliability."""

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from legato import errors
from legato.metrics.rows import checked

LARGEST_TEMPERATURE = 1000.0


def nll(logits: Tensor, target: Tensor, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood, in nats, of target [N] under softmax(logits [N, C] / temperature).

    Raises: LegatoValueError for a temperature <= 0 and for rows that do not fit.
    """
    scores, classes = checked(logits, target)
    return float(F.cross_entropy(scores / _positive(temperature), classes))


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature in [1/1000, 1000] that minimises the NLL of target [N] under softmax(logits [N, C] / temperature).

    The NLL is convex in b = 1/temperature, so its slope in b, mean of sum_k softmax(b h)_k (h_k - h_y), rises, and the minimum is
    where it passes 0: found by Brent's method on log b. Rows that are all right make it fall for ever: 1/1000. Logits that are
    worse than a guess make it rise from the start: 1000. Logits that are equal in each row do not depend on it: 1.

    Raises: LegatoValueError for rows that do not fit.
    Source: Guo, Pleiss, Sun, Weinberger 2017, arXiv 1706.04599, section 4.2.
    """
    from scipy.optimize import brentq

    scores, classes = checked(logits, target)
    margins = scores - scores.gather(1, classes[:, None])
    bound = math.log(LARGEST_TEMPERATURE)

    def slope(log_b: float) -> float:
        p = F.softmax(math.exp(log_b) * margins, dim=1)
        return float(torch.where(p == 0, 0, p * margins).sum(1).mean())

    flattest, sharpest = slope(-bound), slope(bound)
    if math.isnan(flattest) or math.isnan(sharpest):
        return math.nan
    if flattest == sharpest == 0:
        return 1.0
    if sharpest <= 0:
        return 1 / LARGEST_TEMPERATURE
    if flattest >= 0:
        return LARGEST_TEMPERATURE
    return math.exp(-brentq(slope, -bound, bound, xtol=1e-9))


def expected_calibration_error(logits: Tensor, target: Tensor, temperature: float = 1.0, bins: int = 15) -> float:
    """Mean over rows of |accuracy - mean confidence| of the row's bin, in [0, 1].

    Confidence is the largest of softmax(logits [N, C] / temperature); the bins are those of `reliability`.

    Raises: LegatoValueError for a temperature <= 0, fewer than 1 bin, and rows that do not fit.
    Source: Guo et al. 2017, arXiv 1706.04599, equation 3, with their 15 bins.
    """
    scores, classes = checked(logits, target)
    confidence, prediction = F.softmax(scores / _positive(temperature), dim=1).max(dim=1)
    if bool(confidence.isnan().any()):
        return math.nan
    return ece_of_bins(*reliability(confidence.numpy(), (prediction == classes).numpy(), bins))


def ece_of_bins(confidence: ArrayLike, accuracy: ArrayLike, count: ArrayLike) -> float:
    """Expected calibration error from what `reliability` gives: sum of count * |accuracy - confidence| / sum of count."""
    rows = np.asarray(count, dtype=np.float64)
    gaps = np.abs(np.asarray(accuracy, dtype=np.float64) - np.asarray(confidence, dtype=np.float64))
    return float((np.where(rows > 0, gaps, 0.0) * rows).sum() / rows.sum())


def reliability(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Mean confidence, accuracy (both NaN where a bin is empty) and number of rows of `bins` bins of equal width on [0, 1].

    A confidence on an edge belongs to the lower bin, as in (a, b].

    Args:
        confidence: [N] in [0, 1], the probability of the predicted class.
        correct: [N], whether that class is the true one.
        bins: >= 1.
    Raises: LegatoValueError for fewer than 1 bin and lengths that differ.
    """
    sure, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if bins < 1:
        raise errors.argument("bins", expected="a whole number >= 1", got=bins)
    if sure.shape != right.shape:
        raise errors.argument("correct", expected=f"{len(sure)} values as confidence", got=f"{len(right)} values")
    which = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        return np.bincount(which, sure, bins) / count, np.bincount(which, right, bins) / count, count


def _positive(temperature: float) -> float:
    if not 0 < temperature < math.inf:
        raise errors.argument("temperature", expected="a finite number > 0", got=temperature)
    return temperature
