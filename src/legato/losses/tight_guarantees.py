r"""The tightest transform of a comp-sum loss: ours, not the paper's. For tau <= 1 it is the paper's; above 1 that one is loose.

The largest T with T(error excess) <= surrogate excess is the lower convex hull, over b, of the least surrogate excess at a point
with an error excess of b. There the scores tie on g classes, p is t + b and t on two of them, equal on the other g - 2, and zero
elsewhere; g runs over 2 .. n. docs/methods/guarantees.md has the steps, and which of them are proved:

    1 < tau <= 1.5:  g = 2 is the worst for every b: T is the paper's with 2 in place of n, in closed form
    1.5 < tau < 2:   the hull is drawn by its tangents, whose heights are found numerically
    tau >= 2:        a polygon with the corners (0, 0) and (1/(g-1), (1/(g-1) - g^(1-tau)) / (tau-1)) from the g of least slope down to 2
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from legato.losses.guarantees import Floats, Numbers, check, error_bound, like, not_negative, shares, transform

TOLERANCE = 1e-5
SMALLEST_SLOPE = 1e-4
NEWTON_STEPS = 60


def tight_transform(b: Numbers, tau: float, n: int) -> Numbers:
    """The largest surrogate excess that an error excess of b is sure to cost: ours, numerical for 1.5 < tau < 2.

    Args, Returns, Raises: as in `transform`, below which it never is; where it is numerical, up to 1e-5 of the value, or b/(10^4 n), is missing.
    """
    check(tau, n)
    values = shares("b", b)
    if _two_classes_suffice(tau, n):
        return transform(b, tau, 2)
    hull = _hull(tau, n)
    lines = np.maximum(np.interp(values, hull.b, hull.t), transform(values, tau, n))
    return like(b, np.where(values <= hull.start, transform(values, tau, 2), lines))


def tight_error_bound(excess: Numbers, tau: float, n: int) -> Numbers:
    """The least bound on the error excess that holds for every distribution: ours, numerical for 1.5 < tau < 2.

    Args, Returns, Raises: as in `error_bound`, above which it never is; where it is numerical, it is too large by up to what `tight_transform` lacks.
    """
    check(tau, n)
    t = not_negative("excess", excess)
    if _two_classes_suffice(tau, n):
        return error_bound(excess, tau, 2)
    hull = _hull(tau, n)
    lines = np.minimum(np.interp(t, hull.t, hull.b), error_bound(t, tau, n))
    return like(excess, np.where(t <= transform(hull.start, tau, 2), error_bound(t, tau, 2), lines))


@dataclass(frozen=True)
class _Hull:
    """A convex curve: the transform of two classes up to `start`, then straight lines through the corners (b, t)."""

    start: float
    b: Floats
    t: Floats


def _two_classes_suffice(tau: float, n: int) -> bool:
    return tau <= 1.5 or (tau < 2 and n == 2)


@lru_cache(maxsize=256)
def _hull(tau: float, n: int) -> _Hull:
    return _polygon(tau, n) if tau >= 2 else _by_tangents(tau, n)


def _polygon(tau: float, n: int) -> _Hull:
    """For tau >= 2 the scores tie on g classes or not at all, so that the least excess is linear between corners.

    t = b - (b/(1+b))^(tau-1) runs through the corners; it is concave up to b = (tau-2)/2 and convex after, so the hull is a
    straight line from 0 to the corner of least slope t/b, and from there goes through every corner.
    """
    g = np.arange(n, 1, -1, dtype=np.float64)
    b = 1 / (g - 1)
    t = b - g ** (1 - tau)
    touch = int(np.argmin(t / b))
    return _Hull(0.0, np.concatenate([[0.0], b[touch:]]), np.concatenate([[0.0], t[touch:]]) / (tau - 1))


def _by_tangents(tau: float, n: int) -> _Hull:
    """Tangents from below and the points where they touch from above, until the two are within TOLERANCE of each other.

    Below the first slope for which more than two classes are worse, the curve of two classes is the hull.
    """
    slopes = np.geomspace(SMALLEST_SLOPE / n, 1, 100)
    height, classes = _conjugate(slopes, tau, n)
    more = np.flatnonzero(classes > 2)
    if len(more) == 0:
        return _Hull(1.0, np.ones(1), np.array([transform(1.0, tau, 2)]))
    known = np.stack([slopes, height, _touch(slopes, height, classes, tau)])[:, max(int(more[0]) - 1, 0) :]
    for _ in range(30):
        slopes, height, touch = known
        top = slopes * touch - height
        meet = np.clip(np.diff(height) / np.diff(slopes), touch[:-1], touch[1:])
        bottom = slopes[1:] * meet - height[1:]
        chord = np.diff(top) / np.maximum(np.diff(touch), 1e-300)
        wide = top[:-1] + chord * (meet - touch[:-1]) - bottom > TOLERANCE * bottom
        fresh = chord[wide & (chord > slopes[:-1]) & (chord < slopes[1:])]
        if len(fresh) == 0:
            break
        found, classes = _conjugate(fresh, tau, n)
        known = np.concatenate([known, np.stack([fresh, found, _touch(fresh, found, classes, tau)])], axis=1)
        known = known[:, np.argsort(known[0])]
    exact = more[0] > 0
    left = [touch[0]] if exact else [0.0, height[0] / slopes[0]]
    below = [top[0]] if exact else [0.0, 0.0]
    corners = np.concatenate([left, meet, [1.0]]), np.concatenate([below, bottom, [slopes[-1] - height[-1]]])
    b, t = (np.maximum.accumulate(corner) for corner in corners)  # rising, but for the last digit
    return _Hull(float(touch[0]) if exact else 0.0, np.minimum(b, 1.0), t / (tau - 1))


def _conjugate(slopes: Floats, tau: float, n: int) -> tuple[Floats, NDArray[np.int64]]:
    """For each slope s the largest height k over g, such that (tau-1) T(b) >= s b - k, and the g that has it.

    As g grows, the height falls at first and then has at most one peak, so that a geometric grid of g, made finer around the best,
    finds the largest.
    """
    grid = np.unique(np.rint(np.concatenate([np.arange(2, min(n, 32) + 1), np.geomspace(2, n, 120)])).astype(np.int64))
    table = _height(slopes[:, None], grid[None, :], tau)
    place = table.argmax(axis=1)
    left, right = grid[np.maximum(place - 1, 0)], grid[np.minimum(place + 1, len(grid) - 1)]
    rows = np.arange(len(slopes))
    best, classes = table[rows, place], grid[place]
    while np.any(right - left > 2):
        finer = np.rint(np.linspace(left, right, 17, axis=1)).astype(np.int64)
        table = _height(slopes[:, None], finer, tau)
        place = table.argmax(axis=1)
        better = table[rows, place] > best
        best, classes = np.where(better, table[rows, place], best), np.where(better, finer[rows, place], classes)
        left, right = finer[rows, np.maximum(place - 1, 0)], finer[rows, np.minimum(place + 1, 16)]
    return best, classes


def _height(slope: Floats, g: NDArray[np.int64], tau: float) -> Floats:
    """K of g tied classes: with w = g^(1-tau), q = 1/(tau-1) and x = slope/w, k/w is the root, in k, of

    (1+x-k)_+^q + (1-x-k)_+^q + (g-2) (1-k)_+^q = g.

    The left side falls and is convex in k, so that Newton's method from k = 0 rises to the root. One is subtracted from every power,
    so that nothing cancels where x is small.
    """
    q, w = 1 / (tau - 1), g ** (1 - tau)
    x = slope / w
    k = np.zeros(np.broadcast(x, g).shape)
    for _ in range(NEWTON_STEPS):
        value, fall = np.zeros(k.shape), np.zeros(k.shape)
        for count, base in ((1, x - k), (1, -x - k), (g - 2, -k)):
            with np.errstate(divide="ignore"):
                log = np.log1p(np.maximum(base, -1.0))
            value = value + count * np.expm1(q * log)
            fall = fall + count * q * np.exp((q - 1) * log)
        step = value / fall
        k = k + step
        if np.all(np.abs(step) <= 1e-14 * k):
            break
    return k * w


def _touch(slopes: Floats, height: Floats, g: NDArray[np.int64], tau: float) -> Floats:
    """The b where a tangent touches: p is proportional to (w + slope - k)_+^r, (w - slope - k)_+^r and (w - k)_+^r, r = 1/(tau-1) - 1."""
    w, power = g ** (1 - tau), 1 / (tau - 1) - 1
    first, second, others = (np.maximum(w + s - height, 0.0) ** power for s in (slopes, -slopes, 0.0))
    return np.asarray((first - second) / (first + second + (g - 2) * others))
