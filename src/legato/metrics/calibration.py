"""How far probabilities can be believed: NLL, temperature, expected calibration error, reliability."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

LARGEST_LOG_TEMPERATURE = math.log(1000.0)


def nll(logits: Tensor, target: Tensor, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood in nats of target [N] under softmax(logits [N, C] / temperature)."""
    return float(F.cross_entropy(logits.double() / temperature, target))


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature that minimises the NLL (Guo et al. 2017), found on its logarithm; kept within [1/1000, 1000].

    The NLL is convex in 1/temperature, so there is one minimum; it lies at the bound when all rows are right by some margin.
    """
    from scipy.optimize import minimize_scalar

    scores = logits.double()
    bound = LARGEST_LOG_TEMPERATURE
    found = minimize_scalar(
        lambda x: nll(scores, target, math.exp(x)), bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6}
    )
    return 1.0 if nll(scores, target) <= found.fun else math.exp(found.x)


def expected_calibration_error(logits: Tensor, target: Tensor, temperature: float = 1.0, bins: int = 15) -> float:
    """Mean over rows of |accuracy - confidence| of the row's bin; confidence = the largest probability, bins of equal width on [0, 1]."""
    confidence, prediction = F.softmax(logits.double() / temperature, dim=1).max(dim=1)
    mean_confidence, accuracy, count = reliability(confidence.numpy(), (prediction == target).numpy(), bins)
    gaps = np.where(count > 0, np.abs(accuracy - mean_confidence), 0.0)
    return float((gaps * count).sum() / count.sum())


def reliability(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """For each of `bins` bins of equal width: mean confidence, accuracy (both NaN if the bin is empty) and number of rows.

    A confidence on an edge belongs to the lower bin, as in (a, b].
    """
    sure, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    which = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        return np.bincount(which, sure, bins) / count, np.bincount(which, right, bins) / count, count
