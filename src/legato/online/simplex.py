"""Steps on the simplex: from cumulative losses to probabilities, for many states at once, without overflow."""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from legato import errors

Array = NDArray[np.float64]
Regulariser = Literal["log-barrier", "entropy", "tsallis"]

FARTHEST = 1e100
"""A loss beyond the smallest by more than this, in units of 1/eta, counts as this: no probability of the barriers underflows."""
BLOCK = 16384
"""Numbers that one pass of the Newton iteration works on: they stay in the cache."""
ITERATIONS = 100
TOLERANCE = 1e-8  # of a step; convergence is quadratic, so what is left after it is below the rounding


def log_barrier_step(losses: ArrayLike, eta: ArrayLike, *, compiled: bool = False) -> Array:
    r"""The p in the simplex that minimises <p, losses> + (1/eta) sum_a ln(1/p_a), for each state.

    p_a = 1/(x_a + lam) with x = eta (losses - min losses); lam in [1, A] is the root of S(lam) = sum_a 1/(x_a + lam) = 1.
    1/S is concave and increases, so Newton on it, lam += S (S - 1) / sum_a 1/(x_a + lam)^2, climbs from lam = 1 to the
    root and never passes it.

    Args:
        losses: [..., A], cumulative losses of any sign and size. Infinity is an arm that is never worth it.
        eta: >= 0, a number or of the shape [...] of the states; 1 over the unit of the losses. 0 gives the uniform distribution.
        compiled: run the plain loop `barrier_rows` through numba. It gives the same numbers, to rounding, somewhat faster for
            many arms; its first call in a process takes seconds.
    Returns: [..., A] float64, > 0; relative error within 1e-13. p_a >= 1/(x_a + A). A row with a NaN is NaN.
    Raises: LegatoValueError for losses without an axis of arms, or an eta that is negative, not finite or of another shape;
        MissingExtraError for compiled=True without numba.
    Source: Dai, Luo, Wei, Zimmert 2023, arXiv 2301.12942; this form is derived in docs/derivations/online.md.
    """
    gaps = _gaps(losses, eta)
    if compiled:
        rows = gaps.reshape(-1, gaps.shape[-1])
        _compiled()(rows, rows)
        return gaps
    return _in_blocks(gaps, _barrier_block)


def tsallis_step(losses: ArrayLike, eta: ArrayLike) -> Array:
    r"""The p in the simplex that minimises <p, losses> - (2/eta) sum_a sqrt(p_a), for each state (Tsallis entropy of order 1/2).

    p_a = 1/(x_a + lam)^2 with x = eta (losses - min losses), lam in [1, sqrt(A)] the root of S(lam) = sum_a 1/(x_a + lam)^2 = 1.
    Newton on S^(-1/2), which is concave and increases: lam += S (sqrt(S) - 1) / sum_a 1/(x_a + lam)^3.

    Args:
        losses, eta: as in `log_barrier_step`.
    Returns: [..., A] float64, > 0.
    Raises: as `log_barrier_step`.
    Source: Zimmert and Seldin 2021, arXiv 1807.07623, whose learning rate is twice this eta.
    """
    return _in_blocks(_gaps(losses, eta), _tsallis_block)


def entropy_step(losses: ArrayLike, eta: ArrayLike) -> Array:
    r"""The p in the simplex that minimises <p, losses> + (1/eta) sum_a p_a ln(p_a), for each state: softmax(-eta losses).

    Args:
        losses, eta: as in `log_barrier_step`.
    Returns: [..., A] float64, >= 0; an arm that is behind by more than 745 / eta has probability 0.
    Raises: as `log_barrier_step`.
    """
    shares = _gaps(losses, eta)
    np.exp(np.negative(shares, out=shares), out=shares)
    shares /= shares.sum(-1, keepdims=True)
    return shares


STEPS: dict[str, Callable[[ArrayLike, ArrayLike], Array]] = {
    "log-barrier": log_barrier_step, "entropy": entropy_step, "tsallis": tsallis_step,
}  # fmt: skip
"""The step of each regulariser, by its name."""


def losses_of(regulariser: Regulariser, probs: ArrayLike, eta: ArrayLike) -> Array:
    """The inverse of a step: cumulative losses, the smallest of them 0, whose step is `probs`.

    Args:
        regulariser: "log-barrier", "entropy" or "tsallis".
        probs: [..., A], > 0, sums to 1.
        eta: > 0, a number or [...].
    Returns: [..., A] float64, >= 0.
    Raises: LegatoValueError for an unknown regulariser.
    """
    p, name = np.asarray(probs, np.float64), checked_regulariser(regulariser)
    slopes = 1 / p if name == "log-barrier" else -np.log(p) if name == "entropy" else p**-0.5
    losses = slopes / np.asarray(eta, np.float64)[..., None]
    return np.asarray(losses - losses.min(-1, keepdims=True))


def divergence(regulariser: Regulariser, y: ArrayLike, x: ArrayLike) -> Array:
    """The Bregman divergence D(y, x) of a regulariser, without the factor 1/eta.

    log-barrier: sum_a y/x - 1 - ln(y/x).  entropy: sum_a y ln(y/x).  tsallis: sum_a (sqrt(y) - sqrt(x))^2 / sqrt(x).

    Args:
        regulariser: "log-barrier", "entropy" or "tsallis".
        y, x: [..., A] in the simplex; x > 0, and for the log-barrier y > 0.
    Returns: [...] float64, >= 0.
    Raises: LegatoValueError for an unknown regulariser.
    """
    y, x = np.asarray(y, np.float64), np.asarray(x, np.float64)
    name = checked_regulariser(regulariser)
    if name == "log-barrier":
        total = y / x - 1 - np.log(y / x)
    elif name == "entropy":
        total = np.where(y > 0, y * np.log(np.where(y > 0, y, 1) / x), 0)
    else:
        total = (np.sqrt(y) - np.sqrt(x)) ** 2 / np.sqrt(x)
    return np.asarray(total.sum(-1))


def stability(regulariser: Regulariser, probs: ArrayLike, losses: ArrayLike, eta: ArrayLike) -> Array:
    r"""What one round can cost: an upper bound of max over y in the simplex of <x - y, c> - D(y, x)/eta, for any losses c.

    The smallest of what docs/derivations/online.md proves; m is the mean <x, c>, and u = eta x |c|, or eta sqrt(x) c for tsallis:
    all: <x, c> - min c.  entropy: m + ln(sum_a x exp(-eta c))/eta, which is exact.
    log-barrier: eta sum_a x (c - m)^2; also the sum of (u - ln(1 + u))/eta where c >= 0 and of (-u - ln(1 - u))/eta, or
    eta x c^2, where c < 0. No condition on eta c anywhere, which is the lemma of the paper.
    tsallis: sum_a sqrt(x)/eta u^2/(1 + u), of c - min c and, where every u > -1, of c itself.

    Args:
        regulariser: "log-barrier", "entropy" or "tsallis".
        probs: x, [..., A], in the simplex.
        losses: c, [..., A], of any sign and size.
        eta: > 0, a number or [...]; infinity is a learner that has not seen a loss yet.
    Returns: [...] float64, >= 0, in the unit of the losses.
    Raises: LegatoValueError for an unknown regulariser.
    """
    name = checked_regulariser(regulariser)
    x, c = np.asarray(probs, np.float64), np.asarray(losses, np.float64)
    rate = np.asarray(eta, np.float64)[..., None]
    lowest, mean = c.min(-1, keepdims=True), (x * c).sum(-1, keepdims=True)
    largest = (mean - lowest)[..., 0]
    bounds = {"log-barrier": _barrier_stability, "entropy": _entropy_stability, "tsallis": _tsallis_stability}
    with np.errstate(all="ignore"):  # what overflows or is undefined here is larger than `largest`
        bound = bounds[name](x, c, rate, mean, lowest)
    return np.asarray(np.maximum(np.fmin(bound, largest), 0))


def checked_regulariser(name: str) -> str:
    """The name, if it is one of the three.

    Raises: LegatoValueError for another word.
    """
    if name not in STEPS:
        raise errors.choice("regulariser", str(name), STEPS)
    return name


def _barrier_stability(x: Array, c: Array, eta: Array, mean: Array, lowest: Array) -> Array:
    u = eta * x * np.abs(c)
    any_size = eta * x * c**2
    positive, negative = (u - np.log1p(u)) / eta, np.fmin((-u - np.log1p(-u)) / eta, any_size)
    bound: Array = np.fmin(np.where(c >= 0, positive, negative).sum(-1), (eta * x * (c - mean) ** 2).sum(-1))
    return bound


def _entropy_stability(x: Array, c: Array, eta: Array, mean: Array, lowest: Array) -> Array:
    """With the smallest loss taken out, so that no exponential is above 1."""
    bound: Array = (mean - lowest)[..., 0] + np.log((x * np.exp(-eta * (c - lowest))).sum(-1)) / eta[..., 0]
    return bound


def _tsallis_stability(x: Array, c: Array, eta: Array, mean: Array, lowest: Array) -> Array:
    def of(losses: Array) -> Array:
        u = eta * np.sqrt(x) * losses
        bound: Array = np.where(u > -1, np.sqrt(x) / eta * u**2 / (1 + u), np.inf).sum(-1)
        return bound

    return np.fmin(of(c), of(c - lowest))


def _gaps(losses: ArrayLike, eta: ArrayLike) -> Array:
    """x = eta (losses - min losses), in an array of its own."""
    total, rate = np.asarray(losses, np.float64), np.asarray(eta, np.float64)
    if total.ndim == 0 or total.shape[-1] == 0:
        raise errors.argument(
            "losses", expected="shape [..., A] with at least one arm", got=f"shape {list(total.shape)}"
        )
    if rate.ndim > total.ndim - 1 or any(
        have not in (1, want) for have, want in zip(rate.shape[::-1], total.shape[-2::-1], strict=False)
    ):
        raise errors.argument(
            "eta", expected=f"a number or shape {list(total.shape[:-1])}", got=f"shape {list(rate.shape)}"
        )
    if not (np.isfinite(rate) & (rate >= 0)).all():
        raise errors.argument("eta", expected="finite and >= 0", got=eta, fix="eta = 0 is the uniform distribution")
    with np.errstate(over="ignore", invalid="ignore"):
        gaps: Array = total - total.min(-1, keepdims=True)
        gaps *= rate[..., None]
    return np.minimum(gaps, FARTHEST, out=gaps)


def _in_blocks(gaps: Array, solve: Callable[[Array], Array]) -> Array:
    """Let `solve` overwrite blocks of states; arms first, because sums over a long last axis are fast and over a short one are not."""
    if gaps.ndim == 1:
        return solve(gaps[:, None])[:, 0]
    rows = gaps.reshape(-1, gaps.shape[-1])
    length = max(1, BLOCK // rows.shape[1])
    for first in range(0, len(rows), length):
        block = rows[first : first + length]
        block[:] = solve(np.ascontiguousarray(block.T)).T
    return gaps


def _barrier_block(x: Array) -> Array:
    """[A, n] -> [A, n]."""
    lam, q = np.ones(x.shape[1]), np.empty_like(x)
    for _ in range(ITERATIONS):
        np.reciprocal(np.add(x, lam, out=q), out=q)
        total = q.sum(0)
        step = total * (total - 1) / np.einsum("an,an->n", q, q)
        lam += step
        if not (step > TOLERANCE * lam).any():
            break
    return np.reciprocal(np.add(x, lam, out=q), out=q)


def _tsallis_block(x: Array) -> Array:
    """[A, n] -> [A, n]."""
    lam, q = np.ones(x.shape[1]), np.empty_like(x)
    for _ in range(ITERATIONS):
        np.reciprocal(np.add(x, lam, out=q), out=q)
        square = q * q
        total = square.sum(0)
        step = total * (np.sqrt(total) - 1) / np.einsum("an,an->n", square, q)
        lam += step
        if not (step > TOLERANCE * lam).any():
            break
    np.reciprocal(np.add(x, lam, out=q), out=q)
    return np.multiply(q, q, out=q)


def barrier_rows(gaps: Array, probs: Array) -> None:
    """The log-barrier step as plain loops, which numba compiles: gaps x [N, A] -> probs [N, A], which may be the same array."""
    for row in range(gaps.shape[0]):
        lam = 1.0
        for _ in range(100):
            total, square = 0.0, 0.0
            for arm in range(gaps.shape[1]):
                q = 1.0 / (gaps[row, arm] + lam)
                total += q
                square += q * q
            step = total * (total - 1.0) / square
            lam += step
            if not step > 1e-8 * lam:
                break
        for arm in range(gaps.shape[1]):
            probs[row, arm] = 1.0 / (gaps[row, arm] + lam)


@cache
def _compiled() -> Any:
    """`barrier_rows` through numba."""
    return errors.require("numba", extra="fast").njit(barrier_rows)
