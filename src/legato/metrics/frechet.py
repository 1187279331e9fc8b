"""How far two sets of pictures are apart, as their features' means and covariances say."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from legato import errors


def frechet_distance(features: ArrayLike, reference: ArrayLike) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)): the squared Wasserstein-2 distance of two Gaussians of these means and covariances.

    It is biased upwards for few rows; compare with the distance of two real sets of the same sizes, never with that of other features.

    Args:
        features: [N, D], of generated pictures, N >= 2; covariances have divisor N - 1.
        reference: [M, D], of real ones.
    Returns: >= 0 in squared units of the features; computed in float64.
    Raises: LegatoValueError for shapes that do not fit, fewer than two rows, and values that are not finite.
    Source: Heusel et al. 2017, arXiv 1706.08500, there with Inception's features.
    """
    a, b = np.asarray(features, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise errors.argument(
            "features",
            expected="shapes [N, D] and [M, D], two rows at least",
            got=f"{list(a.shape)} and {list(b.shape)}",
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise errors.argument("features", expected="finite values", got="some that are not")
    ca, cb = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    root = _root(ca)
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cb @ root), 0, None)).sum()
    gap = a.mean(0) - b.mean(0)
    return max(0.0, float(gap @ gap + np.trace(ca) + np.trace(cb) - 2 * cross))


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(covariance)
    root: NDArray[np.float64] = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root
