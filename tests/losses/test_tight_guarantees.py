"""Oracles of the tighter transform: it is attained, nothing that was tried lies below it, and its three pieces fit together."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legato.errors import LegatoValueError
from legato.losses import tight_guarantees
from legato.losses.guarantees import conditional_infimum, error_bound, transform
from legato.losses.tight_guarantees import tight_error_bound, tight_transform

TAUS = [0.5, 1.0, 1.3, 1.5, 1.55, 1.7, 1.8, 1.95, 2.0, 2.3, 3.0]


def tied_excess(p, tau):
    """Surrogate excess of scores that are equal on all classes of p [..., g] and minus infinity on every other class."""
    uniform = np.full(p.shape[-1], 1 / p.shape[-1])
    loss = conditional_infimum(uniform, 1.0) if tau == 1 else math.expm1((1 - tau) * math.log(p.shape[-1])) / (1 - tau)
    return float(loss) - conditional_infimum(p, tau)


def worst_family(g, tau, count=4000):
    """(b, excess) of p proportional to 1 + s, (1 - s)_+ and g - 2 times 1, to the power 1/(tau-1) - 1, for all s >= 0."""
    s = np.concatenate([np.linspace(0, 1, count), np.geomspace(1, 1e9, count) ** (tau - 1)])
    p = np.stack([1 + s, np.maximum(1 - s, 0), *(np.ones(len(s)),) * (g - 2)], axis=1) ** (1 / (tau - 1) - 1)
    p /= p.sum(1, keepdims=True)
    return p[:, 0] - p[:, 1], tied_excess(p, tau)


def lower_hull(points):
    """The lower convex hull of points (b, t), by Andrew's chain."""
    hull = []
    for b, t in sorted(points):
        while len(hull) > 1 and (hull[-1][0] - hull[-2][0]) * (t - hull[-2][1]) <= (hull[-1][1] - hull[-2][1]) * (
            b - hull[-2][0]
        ):
            hull.pop()
        hull.append((b, t))
    return np.array(hull).T


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
def test_up_to_one_it_is_the_stated_transform(tau):
    b = np.linspace(0, 1, 30)
    np.testing.assert_array_equal(tight_transform(b, tau, 10), transform(b, tau, 10))


@pytest.mark.parametrize("tau", [1.1, 1.5])
def test_up_to_one_and_a_half_two_classes_are_the_worst(tau):
    b = np.linspace(0, 1, 30)
    np.testing.assert_array_equal(tight_transform(b, tau, 10), transform(b, tau, 2))
    assert tight_error_bound(0.01, tau, 10**5) == error_bound(0.01, tau, 2)


@pytest.mark.parametrize("n", [3, 6])
@pytest.mark.parametrize("tau", [1.6, 1.7, 1.8, 1.95])
def test_between_one_and_a_half_and_two_it_is_the_hull_of_what_is_attained(tau, n):
    points = [point for g in range(2, n + 1) for point in zip(*worst_family(g, tau), strict=True)]
    corners, heights = lower_hull([(0.0, 0.0), *points])
    b = np.linspace(0.02, 1, 200)
    np.testing.assert_allclose(tight_transform(b, tau, n), np.interp(b, corners, heights), rtol=3e-5)


@pytest.mark.parametrize("n", [2, 3, 12, 300])
@pytest.mark.parametrize("tau", [2.0, 2.2, 2.7, 4.0])
def test_from_two_on_it_is_the_hull_of_its_corners(tau, n):
    """The corners: 1/(g-1) on each of g - 1 of g tied classes and nothing on the predicted one."""
    points = [
        (1 / (g - 1), float(tied_excess(np.array([*[1 / (g - 1)] * (g - 1), 0.0]), tau))) for g in range(2, n + 1)
    ]
    corners, heights = lower_hull([(0.0, 0.0), *points])
    b = np.linspace(0, 1, 200)
    np.testing.assert_allclose(tight_transform(b, tau, n), np.interp(b, corners, heights), rtol=1e-12, atol=1e-16)


def test_cubes_by_hand():
    """tau = 3: min over g of 1 - (g-1)/g^2 is 3/4, at g = 2: T = 3b/8 for every n."""
    b = np.linspace(0, 1, 9)
    np.testing.assert_allclose(tight_transform(b, 3.0, 50), 3 * b / 8, rtol=1e-14)


@pytest.mark.parametrize("tau", [1.6, 1.8, 1.95])
def test_a_class_that_ties_only_in_part_is_never_worse(tau):
    """The height k of a tangent of slope s, with g - 1 classes of share w^q each and one of share r w^q, r in [0, 1]."""
    q = 1 / (tau - 1)
    r = np.linspace(0, 1, 41)
    for slope in np.geomspace(0.02, 1, 15):
        for g in range(3, 8):
            w = (1 / (g - 1 + r)) ** (1 / q)
            low, high = np.zeros_like(w), np.full_like(w, slope)
            for _ in range(60):
                k = (low + high) / 2
                parts = [(w + slope - k, 1), (w - slope - k, 1), (w - k, g - 3), (w * r ** (1 / q) - k, 1)]
                above = sum(count * np.maximum(x, 0) ** q for x, count in parts) >= 1
                low, high = np.where(above, k, low), np.where(above, high, k)
            assert low.max() <= max(low[0], low[-1]) * (1 + 1e-9)


def test_no_number_of_tied_classes_is_passed_over():
    """Oracle: all of 2 .. 700, where the search looks at about 120 of them and then closer at the best."""
    slopes = np.geomspace(1e-3, 1, 25)
    for tau in (1.85, 1.95):
        every = tight_guarantees._height(slopes[:, None], np.arange(2, 701)[None], tau)
        height, classes = tight_guarantees._conjugate(slopes, tau, 700)
        np.testing.assert_allclose(height, every.max(1), rtol=1e-12)
        np.testing.assert_array_equal(classes, every.argmax(1) + 2)
        assert len(set(classes)) > 3


@pytest.mark.parametrize("n", [3, 10])
def test_its_pieces_meet(n):
    b = np.linspace(0, 1, 50)
    np.testing.assert_allclose(tight_transform(b, 1.5 + 1e-9, n), tight_transform(b, 1.5, n), rtol=1e-7)
    np.testing.assert_allclose(tight_transform(b, 2 - 1e-7, n), tight_transform(b, 2.0, n), rtol=3e-5)
    np.testing.assert_allclose(tight_transform(b, 2 + 1e-9, n), tight_transform(b, 2.0, n), rtol=1e-5)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("n", [2, 10, 500])
def test_it_is_never_below_the_stated_one_and_convex(tau, n):
    b = np.linspace(0, 1, 1001)
    t = tight_transform(b, tau, n)
    assert (t >= transform(b, tau, n) * (1 - 1e-12)).all()
    assert t[0] == 0
    assert (np.diff(t) > 0).all()
    assert (np.diff(t, 2) > -1e-9 * t[2:]).all()


def test_a_hundred_thousand_classes():
    b = np.geomspace(1e-6, 1, 30)
    t = tight_transform(b, 1.7, 100_000)
    np.testing.assert_allclose(tight_error_bound(t, 1.7, 100_000), b, rtol=1e-9)
    np.testing.assert_allclose(t, tight_transform(b, 1.7, 50), rtol=2e-5)  # the worst ties are of few classes
    assert (t > 1800 * transform(b, 1.7, 100_000)).all()


@settings(max_examples=20)
@given(st.floats(1e-6, 1), st.sampled_from(TAUS), st.sampled_from([2, 10, 500]))
def test_its_bound_undoes_it(b, tau, n):
    t = tight_transform(b, tau, n)
    assert tight_error_bound(t, tau, n) == pytest.approx(b, rel=1e-9)
    assert tight_error_bound(t, tau, n) <= error_bound(t, tau, n) * (1 + 1e-12)


def test_numbers_arrays_ends_and_errors():
    assert type(tight_transform(0.3, 1.7, 5)) is type(tight_error_bound(0.3, 1.7, 5)) is float
    square = np.full((2, 3), 0.3)
    for tau in (1.2, 1.7, 2.0):
        assert (tight_error_bound(square, tau, 5) == tight_error_bound(0.3, tau, 5)).all()
        ends = tight_error_bound(np.array([0.0, tight_transform(1.0, tau, 5), 9.0, math.inf]), tau, 5)
        np.testing.assert_array_equal(ends, [0, 1, 1, 1])
    for call, name in (
        (lambda: tight_transform(1.5, 1.7, 5), "b"), (lambda: tight_error_bound(-0.1, 1.7, 5), "excess"),
        (lambda: tight_error_bound(0.1, math.nan, 5), "tau"), (lambda: tight_transform(0.1, 1.7, 1), "n"),
    ):  # fmt: skip
        with pytest.raises(LegatoValueError, match=f"{name}: expected"):
            call()
