"""The inverse of a regularised feature covariance: exact, by averaging samples, or by Matrix Geometric Resampling."""

import math

import numpy as np
from numpy.typing import ArrayLike

from legato import errors
from legato.online.simplex import Array

SLACK = 1e-9  # what a squared length may exceed its limit by, for rounding


def feature_covariance(features: ArrayLike, occupancy: ArrayLike) -> Array:
    """Sigma = sum over N of occupancy phi phi^T.

    Args:
        features: [..., N, D].
        occupancy: [..., N], >= 0, the probability of each row.
    Returns: [..., D, D] float64, symmetric.
    Raises: LegatoValueError for shapes that do not fit.
    """
    phi, weights = np.asarray(features, np.float64), np.asarray(occupancy, np.float64)
    if phi.ndim < 2 or weights.shape[-1:] != phi.shape[-2:-1]:
        got = f"features of shape {list(phi.shape)}, occupancy of shape {list(weights.shape)}"
        raise errors.argument("occupancy", expected="features [..., N, D] and occupancy [..., N]", got=got)
    return _symmetric(phi.swapaxes(-1, -2) @ (weights[..., None] * phi))


def regularised_inverse(sigma: ArrayLike, gamma: float) -> Array:
    """(gamma I + Sigma)^-1, the exact one.

    Args:
        sigma: [..., D, D], symmetric, no eigenvalue below 0.
        gamma: >= 0, in the unit of Sigma; 0 only where Sigma has full rank.
    Returns: [..., D, D] float64, symmetric; its product with Sigma has a trace of at most D.
    Raises: LegatoValueError for a gamma that is negative or not finite, a Sigma that is singular at gamma = 0, not square, or that
        has a clearly negative eigenvalue.
    """
    matrix = np.asarray(sigma, np.float64)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise errors.argument("sigma", expected="shape [..., D, D]", got=f"shape {list(matrix.shape)}")
    _check_gamma(gamma, zero=True)
    size = matrix.shape[-1]
    if gamma == 0 and (rank := int(np.min(np.linalg.matrix_rank(matrix, hermitian=True)))) < size:
        raise errors.argument("gamma", expected=f"> 0, for Sigma has rank {rank} < {size}", got=gamma, fix="gamma=1e-3")
    try:
        root = np.linalg.inv(
            np.linalg.cholesky(matrix + gamma * np.eye(size))
        )  # its square is symmetric and has no eigenvalue below 0
    except np.linalg.LinAlgError as problem:
        lowest = float(np.linalg.eigvalsh(matrix).min())
        raise errors.argument(
            "sigma", expected="no eigenvalue below 0", got=f"smallest eigenvalue {lowest:g}", fix="a larger gamma"
        ) from problem
    return np.asarray(root.swapaxes(-1, -2) @ root)


def averaged_inverse(samples: ArrayLike, gamma: float) -> Array:
    """(gamma I + mean of phi phi^T)^-1 from M samples: the default where Sigma is not known.

    Its error is a factor: with `averaging_samples(gamma, D, error)` samples, gamma I + the mean lies within 1 +- error of
    gamma I + Sigma in every direction. The samples must not be those that the estimate is made from.

    Args:
        samples: [..., M, D], features drawn from the distribution of Sigma, M >= 1.
        gamma: > 0, or 0 where the samples span everything.
    Returns: [..., D, D] float64, symmetric.
    Raises: LegatoValueError as `regularised_inverse`, or for no samples.
    """
    drawn = _checked_samples(samples, axes=2, form="[..., M, D]")
    return regularised_inverse(_symmetric(drawn.swapaxes(-1, -2) @ drawn / drawn.shape[-2]), gamma)


def matrix_geometric_resampling(samples: ArrayLike, gamma: float, *, constant: float = 0.5) -> Array:
    r"""An estimate of (gamma I + Sigma)^-1 without any inversion: a baseline, which needs far more samples than averaging.

    c I + c sum_{n=1}^{N} Z_n, Z_n = prod_{j<=n} (I - c (gamma I + phi_j phi_j^T)), averaged over M copies and made symmetric. Its mean is
    T^-1 (I - (I - c T)^(N+1)), T = gamma I + Sigma. The constant c is fixed; one that depends on the features that it meets breaks this.

    Args:
        samples: [..., M, N, D], M copies of N independent features, with constant (gamma + ||phi||^2) <= 1.
        gamma: > 0.
        constant: c, > 0; 0.5 suits gamma <= 1 and features of length at most 1.
    Returns: [..., D, D] float64, symmetric, of norm at most (N + 1) c; it may have eigenvalues below 0.
    Raises: LegatoValueError for a gamma or constant out of range, no samples, or features that are too long for the constant.
    Source: Neu and Olkhovskaya 2020, arXiv 2002.00287.
    """
    drawn = _checked_samples(samples, axes=3, form="[..., M, N, D]")
    _check_gamma(gamma, zero=False)
    if not 0 < constant < math.inf:
        raise errors.argument("constant", expected="a finite number > 0", got=constant)
    longest = float(np.vecdot(drawn, drawn).max())
    if constant * (gamma + longest) > 1 + SLACK:
        limit = f"features with constant (gamma + ||phi||^2) <= 1, here ||phi||^2 <= {1 / constant - gamma:g}"
        raise errors.argument(
            "samples",
            expected=limit,
            got=f"||phi||^2 = {longest:g}",
            fix="rescale the features, or take a smaller constant",
        )
    size = drawn.shape[-1]
    product = np.broadcast_to(np.eye(size), (*drawn.shape[:-2], size, size))
    total = product.copy()
    for n in range(drawn.shape[-2]):
        phi = drawn[..., n, :]
        product = (1 - constant * gamma) * product - constant * (product @ phi[..., None]) * phi[..., None, :]
        total += product
    return _symmetric(constant * total.mean(-3))


def averaging_samples(gamma: float, dimension: int, error: float = 0.5, failure: float = 0.05) -> int:
    """How many samples `averaged_inverse` needs for (1 - error) T <= gamma I + mean <= (1 + error) T, T = gamma I + Sigma.

    ceil( 2 (1 + error/3) ln(2 dimension / failure) / (gamma error^2) ), our derived constant: docs/derivations/online.md. It is an upper
    limit for any Sigma; where Sigma is well spread, far fewer do.

    Args:
        gamma: > 0.
        dimension: D >= 1.
        error: in (0, 1].
        failure: in (0, 1), the probability that it does not hold.
    Raises: LegatoValueError for a number out of range.
    """
    _check_gamma(gamma, zero=False)
    if dimension < 1:
        raise errors.argument("dimension", expected="a whole number >= 1", got=dimension)
    if not 0 < error <= 1:
        raise errors.argument("error", expected="a number in (0, 1]", got=error)
    if not 0 < failure < 1:
        raise errors.argument("failure", expected="a number in (0, 1)", got=failure)
    return math.ceil(2 * (1 + error / 3) * math.log(2 * dimension / failure) / (gamma * error**2))


def resampling_length(gamma: float, error: float, *, constant: float = 0.5) -> int:
    """The N for which the mean of `matrix_geometric_resampling` lies within `error` of the inverse, in operator norm.

    The smallest N >= 0 with (1 - constant gamma)^(N+1) / gamma <= error: docs/derivations/online.md.

    Args:
        gamma: > 0, with constant gamma < 1.
        error: > 0, absolute, in the unit of the inverse.
        constant: as in `matrix_geometric_resampling`.
    Raises: LegatoValueError for a number out of range.
    """
    _check_gamma(gamma, zero=False)
    if not 0 < constant * gamma < 1:
        raise errors.argument("constant", expected="constant gamma in (0, 1)", got=constant)
    if not 0 < error < math.inf:
        raise errors.argument("error", expected="a finite number > 0", got=error)
    return max(0, math.ceil(math.log(error * gamma) / math.log1p(-constant * gamma)) - 1)


def _symmetric(matrix: Array) -> Array:
    return np.asarray((matrix + matrix.swapaxes(-1, -2)) / 2)


def _checked_samples(samples: ArrayLike, *, axes: int, form: str) -> Array:
    drawn = np.asarray(samples, np.float64)
    if drawn.ndim < axes or 0 in drawn.shape[-axes:]:
        raise errors.argument("samples", expected=f"shape {form}, none of them 0", got=f"shape {list(drawn.shape)}")
    return drawn


def _check_gamma(gamma: float, *, zero: bool) -> None:
    if not (0 <= gamma < math.inf and (zero or gamma > 0)):
        raise errors.argument("gamma", expected=f"a finite number {'>=' if zero else '>'} 0", got=gamma)
