"""Estimates of losses that were not seen, from those that were: importance weighting, and its forms for linear features."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from legato import errors
from legato.online.simplex import Array


def importance_weighted(arm: ArrayLike, loss: ArrayLike, probs: ArrayLike, exploration: float = 0.0) -> Array:
    """The loss of every arm, from that of one: loss [a = arm] / (p_a + exploration).

    With exploration 0 its mean over the arm, drawn from p, is the losses themselves. With exploration > 0 ("implicit
    exploration") it is at most 1/exploration times the loss, and its mean is p/(p + exploration) times the losses.

    Args:
        arm: [...] whole numbers in 0 .. A-1.
        loss: [...], what the arm cost.
        probs: [..., A], what the arm was drawn from; > 0 at the arm.
        exploration: >= 0, no unit.
    Returns: [..., A] float64, 0 for all arms but one.
    Raises: LegatoValueError for an arm out of range, a shape that does not fit, or an exploration that is negative or not finite.
    Source: implicit exploration is of Kocak, Neu, Valko, Munos 2014, and Neu 2015, arXiv 1506.03271.
    """
    p, chosen, cost = np.asarray(probs, np.float64), np.asarray(arm), np.asarray(loss, np.float64)
    if not 0 <= exploration < np.inf:
        raise errors.argument("exploration", expected="a finite number >= 0", got=exploration)
    for name, have in (("arm", chosen.shape), ("loss", cost.shape)):
        if have != p.shape[:-1]:
            raise errors.argument(name, expected=f"shape {list(p.shape[:-1])}", got=f"shape {list(have)}")
    if not (chosen.dtype.kind in "iu" and ((chosen >= 0) & (chosen < p.shape[-1])).all()):
        raise errors.argument("arm", expected=f"whole numbers in 0 .. {p.shape[-1] - 1}", got=chosen)
    estimate = np.zeros_like(p)
    place = chosen[..., None]
    np.put_along_axis(estimate, place, cost[..., None] / (np.take_along_axis(p, place, -1) + exploration), -1)
    return estimate


def plain_estimate(features: ArrayLike, inverse: ArrayLike, visited: ArrayLike, loss: ArrayLike) -> Array:
    """The linear estimate of a loss or return at N places, from one visit: phi(s, a)^T inverse phi(visited) loss.

    With inverse = (gamma I + Sigma)^-1, Sigma = E[phi phi^T] over the visits and a loss whose mean is phi^T theta, its mean is
    phi^T theta - gamma phi^T inverse theta. One-hot features make it `importance_weighted` with exploration = gamma.

    Args:
        features: [..., N, D], a row for each place where an estimate is wanted.
        inverse: [..., D, D], of the regularised covariance of the features; see `legato.online.covariance`.
        visited: [..., D], the features of the place that was visited.
        loss: [...], what was seen from there on.
    Returns: [..., N] float64.
    Raises: LegatoValueError for shapes that do not fit.
    """
    return alignment(features, inverse, visited) * np.asarray(loss, np.float64)[..., None]


def magnitude_reduced(
    features: ArrayLike, inverse: ArrayLike, visited: ArrayLike, loss: ArrayLike, horizon: float, offset: ArrayLike
) -> Array:
    r"""`plain_estimate` with its large negative values taken out and their mean put back: g loss - horizon min(g, 0) + offset.

    g = phi^T inverse phi(visited), offset = horizon E[min(g, 0)] over the visits. The mean is that of `plain_estimate`, and since
    g loss - horizon min(g, 0) >= 0 the estimate is never below the offset, which is at least -horizon ||phi||_inverse >=
    -horizon/sqrt(gamma); the plain one goes down to -horizon/gamma. Without negative g, as for one-hot features, it is the plain one.

    Args:
        features, inverse, visited, loss: as in `plain_estimate`; 0 <= loss <= horizon.
        horizon: > 0, the largest loss that can be seen from there on.
        offset: [..., N], from `exact_offset` or `sampled_offset`.
    Returns: [..., N] float64.
    Raises: LegatoValueError for shapes that do not fit, a horizon that is not > 0, or the first loss out of [0, horizon].
    Source: Dai, Luo, Wei, Zimmert 2023, arXiv 2301.12942; what is claimed here is derived in docs/derivations/online.md.
    """
    cost = np.asarray(loss, np.float64)
    _check_horizon(horizon)
    wrong = np.argwhere(~((cost >= 0) & (cost <= horizon)))
    if len(wrong):
        first = tuple(int(place) for place in wrong[0])
        where = f"loss{list(first)}" if first else "loss"
        raise errors.argument(
            where, expected=f"in [0, {horizon:g}]", got=float(cost[first]), fix="rescale the losses, or raise horizon"
        )
    g = alignment(features, inverse, visited)
    estimate: Array = g * cost[..., None] - horizon * np.minimum(g, 0) + np.asarray(offset, np.float64)
    return estimate


def exact_offset(features: ArrayLike, inverse: ArrayLike, occupancy: ArrayLike, horizon: float) -> Array:
    """horizon sum over N' of occupancy min(phi^T inverse phi', 0): the mean that `magnitude_reduced` puts back, with N^2 D work.

    Args:
        features: [..., N, D], every place that can be visited.
        inverse: [..., D, D].
        occupancy: [..., N], the probability of each visit.
        horizon: > 0.
    Returns: [..., N] float64, <= 0.
    Raises: LegatoValueError for shapes that do not fit or a horizon that is not > 0.
    """
    phi, weights = np.asarray(features, np.float64), np.asarray(occupancy, np.float64)
    if weights.shape[-1:] != phi.shape[-2:-1]:
        raise errors.argument("occupancy", expected=f"shape [..., {phi.shape[-2]}]", got=f"shape {list(weights.shape)}")
    return _offset(phi, inverse, phi, weights, horizon)


def sampled_offset(features: ArrayLike, inverse: ArrayLike, samples: ArrayLike, horizon: float) -> Array:
    """`exact_offset` from M visits instead of all probabilities; draw them apart from the visit that is estimated from.

    Args:
        features: [..., N, D].
        inverse: [..., D, D].
        samples: [..., M, D], features of fresh visits, M >= 1.
        horizon: > 0.
    Returns: [..., N] float64, <= 0; its mean over the samples is that of `exact_offset`.
    Raises: LegatoValueError for shapes that do not fit, no samples, or a horizon that is not > 0.
    """
    drawn = np.asarray(samples, np.float64)
    if drawn.ndim < 2 or drawn.shape[-2] == 0:
        raise errors.argument("samples", expected="shape [..., M, D] with M >= 1", got=f"shape {list(drawn.shape)}")
    return _offset(features, inverse, drawn, np.full(drawn.shape[:-1], 1 / drawn.shape[-2]), horizon)


def alignment(features: ArrayLike, inverse: ArrayLike, visited: ArrayLike) -> Array:
    """g = phi^T inverse phi(visited) for N places: features [..., N, D], inverse [..., D, D], visited [..., D] -> [..., N].

    Raises: LegatoValueError for shapes that do not fit.
    """
    phi, matrix, there = (np.asarray(part, np.float64) for part in (features, inverse, visited))
    _check_dimension(phi, matrix, there)
    return np.asarray((phi @ (matrix @ there[..., None]))[..., 0])


def _offset(features: ArrayLike, inverse: ArrayLike, others: Array, weights: Array, horizon: float) -> Array:
    phi, matrix = np.asarray(features, np.float64), np.asarray(inverse, np.float64)
    _check_horizon(horizon)
    _check_dimension(phi, matrix, others)
    negative = np.minimum(phi @ matrix @ others.swapaxes(-1, -2), 0)
    return np.asarray(horizon * (negative @ weights[..., None])[..., 0])


def _check_dimension(phi: NDArray[np.float64], matrix: Array, other: Array) -> None:
    size = phi.shape[-1] if phi.ndim >= 2 else 0
    if size == 0:
        raise errors.argument("features", expected="shape [..., N, D]", got=f"shape {list(phi.shape)}")
    if matrix.shape[-2:] != (size, size):
        raise errors.argument("inverse", expected=f"shape [..., {size}, {size}]", got=f"shape {list(matrix.shape)}")
    if other.shape[-1:] != (size,):
        raise errors.argument("visited features", expected=f"shape [..., {size}]", got=f"shape {list(other.shape)}")


def _check_horizon(horizon: float) -> None:
    if not 0 < horizon < np.inf:
        raise errors.argument("horizon", expected="a finite number > 0", got=horizon)
