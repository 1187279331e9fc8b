"""Oracles of the error bounds: decimals, closed forms, limits, inverses, and losses that are minimised or drawn at random."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from legato.errors import LegatoValueError
from legato.losses import comp_sum_loss
from legato.losses.guarantees import (
    best_risk_symmetric_noise,
    bounded_infimum,
    conditional_infimum,
    error_bound,
    explicit_error_bound,
    gap_bounded,
    gap_complete,
    phi,
    transform,
)

TAUS = [
    0.0,
    0.3,
    0.7,
    0.75,
    1 - 1e-7,
    1 - 1e-12,
    1.0,
    1 + 1e-12,
    1 + 1e-7,
    1.25,
    1.26,
    1.5,
    1.9,
    2 - 1e-9,
    2.0,
    2.5,
    4.0,
]
SHARES = np.array([0.0, 1e-12, 1e-6, 1e-3, 0.1, 0.5, 0.76, 0.77, 0.999, 1 - 1e-9, 1.0])


def in_decimals(b, tau, n):
    """T(b) as it is stated, in 50 decimals."""
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 50, 10**15, -(10**15)
        b, tau, n = Decimal(float(b)), Decimal(tau), Decimal(n)
        if tau == 1:
            return (1 + b) / 2 * (1 + b).ln() + ((1 - b) / 2 * (1 - b).ln() if b < 1 else 0)
        if tau >= 2:
            return b / ((tau - 1) * n ** (tau - 1))
        power = 1 / (2 - tau)
        a = (((1 + b) ** power + (1 - b) ** power) / 2) ** (2 - tau)
        return 2 ** (1 - tau) / (1 - tau) * (1 - a) if tau < 1 else (a - 1) / ((tau - 1) * n ** (tau - 1))


def excesses(h, p, tau):
    """[K]: error excess and surrogate excess of scores h [K, n] where the classes have the probabilities p, by the loss itself."""
    scores = torch.tensor(h)
    losses = [comp_sum_loss(scores, torch.full((len(h),), y), tau, reduction="none") for y in range(h.shape[1])]
    risk = (torch.stack(losses, 1).numpy() * p).sum(1)
    return p.max(1) - p[np.arange(len(p)), h.argmax(1)], risk - conditional_infimum(p, tau)


@pytest.mark.parametrize("tau", TAUS)
def test_the_transform_against_fifty_decimals(tau):
    want = np.array([float(in_decimals(b, tau, 2)) for b in SHARES])
    np.testing.assert_allclose(transform(SHARES, tau, 2), want, rtol=2e-13, atol=0)
    for n in (3, 100_000):
        np.testing.assert_allclose(transform(SHARES, tau, n), want * (2 / n) ** max(tau - 1, 0), rtol=3e-13, atol=0)


def test_transforms_that_are_known():
    b = np.linspace(0, 1, 21)
    np.testing.assert_allclose(transform(b, 0.0, 7), 1 - np.sqrt(1 - b**2), rtol=1e-13, atol=1e-16)
    np.testing.assert_allclose(
        transform(b, 1.5, 7), (2 * np.sqrt((1 + b**2) / 1) - 2) / math.sqrt(7), rtol=1e-12, atol=1e-16
    )
    np.testing.assert_allclose(transform(b, 2 - 1e-12, 7), b / 7, rtol=1e-10)
    assert transform(1.0, 1.0, 7) == pytest.approx(math.log(2), rel=1e-15)
    for tau in TAUS:
        assert transform(0.0, tau, 3) == 0


@pytest.mark.parametrize("tau", [1 - 1e-9, 1 + 1e-9])
def test_it_is_continuous_at_one(tau):
    np.testing.assert_allclose(transform(SHARES, tau, 10), transform(SHARES, 1.0, 10), rtol=1e-8, atol=0)


@pytest.mark.parametrize("tau", TAUS)
def test_it_rises_and_is_convex(tau):
    steps = np.diff(transform(np.linspace(0, 1, 2001), tau, 10))
    assert (steps > 0).all()
    assert (np.diff(steps) > -1e-15).all()


@settings(max_examples=20)
@given(st.floats(0, 1), st.floats(0, 3), st.integers(2, 100_000))
def test_the_bound_undoes_the_transform(b, tau, n):
    t = transform(b, tau, n)
    assert error_bound(t, tau, n) == pytest.approx(b, rel=1e-9, abs=1e-150)
    assert transform(error_bound(t, tau, n), tau, n) == pytest.approx(t, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("tau", TAUS)
def test_from_the_transform_of_one_on_the_bound_is_one(tau):
    most = transform(1.0, tau, 10)
    np.testing.assert_array_equal(error_bound(np.array([0.0, most, 1.01 * most, math.inf]), tau, 10), [0, 1, 1, 1])


@pytest.mark.parametrize("tau", TAUS)
def test_the_explicit_form_is_an_upper_bound(tau):
    for n in (2, 100_000):
        t = transform(1.0, tau, n) * np.geomspace(1e-12, 1, 60)
        bound = error_bound(t, tau, n)
        explicit = explicit_error_bound(t, tau, n)
        assert (explicit >= bound * (1 - 1e-12)).all()
        too_large = (2 - tau) ** -0.5 if 1 < tau < 2 else 1  # by the series of T at 0, if it is not cut to 1
        assert explicit[0] == pytest.approx(min(1, bound[0] * too_large), rel=1e-3)


def test_a_factor_of_two_minus_tau_in_the_root_is_false():
    """One input, class 0 is sure, two equal scores, and the tie is read as class 1: an error excess of 1."""
    tau, n = 1.9, 2
    excess = float(comp_sum_loss(torch.zeros(1, 2), torch.tensor([0]), tau)) - float(
        conditional_infimum([1.0, 0.0], tau)
    )
    assert math.sqrt(2 * n ** (tau - 1) * (2 - tau) * excess) < 0.45
    assert error_bound(excess, tau, n) == explicit_error_bound(excess, tau, n) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.3, 1.9, 2.0, 3.0])
def test_random_scores_never_beat_the_bound(tau):
    generator = np.random.default_rng(1)
    for n in (2, 3, 5):
        p = generator.dirichlet(np.full(n, 0.7), 3000)
        h = np.log(p + 1e-9) / max(2 - tau, 0.5) + generator.normal(size=p.shape) * 10 ** generator.uniform(
            -2, 1, (3000, 1)
        )
        error, surrogate = excesses(h, p, tau)
        assert (surrogate > -1e-12).all()
        assert (transform(error, tau, n) <= surrogate + 1e-12).all()


@pytest.mark.parametrize("tau", [0.0, 0.4, 0.99, 1.0, 1.01, 1.4, 1.9])
def test_the_infimum_is_the_minimum_of_the_risk(tau):
    p = np.array([0.5, 0.3, 0.15, 0.05])
    q = torch.tensor(p)

    def risk(h):
        scores = torch.tensor(h, requires_grad=True)
        value = comp_sum_loss(scores, q, tau)
        value.backward()
        return value.item(), scores.grad.numpy()

    found = minimize(risk, np.zeros(4), jac=True, options={"gtol": 1e-11})
    assert conditional_infimum(p, tau) == pytest.approx(found.fun, abs=1e-10)
    best = p ** (1 / (2 - tau))
    np.testing.assert_allclose(torch.tensor(found.x).softmax(0), best / best.sum(), atol=1e-5)


def test_the_infimum_in_decimals_with_zeros_and_batches():
    p = np.array([[0.5, 0.5, 0.0], [0.875, 0.125, 0.0], [1.0, 0.0, 0.0]])
    for tau in (0.0, 0.75, 1 - 1e-9, 1 + 1e-9, 1.25, 1.5, 1.99):
        with localcontext() as context:
            context.prec = 50
            exact = Decimal(tau)
            for row, got in zip(p, conditional_infimum(p, tau), strict=True):
                total = sum(Decimal(float(x)) ** (1 / (2 - exact)) for x in row if x)
                assert float(got) == pytest.approx(
                    float((total ** (2 - exact) - 1) / (1 - exact)), rel=1e-13, abs=1e-16
                )
    np.testing.assert_allclose(
        conditional_infimum(p, 1.0), [math.log(2), -0.875 * math.log(0.875) - 0.125 * math.log(0.125), 0]
    )
    np.testing.assert_allclose(conditional_infimum(p, 3.0), [0.25, 0.0625, 0])
    assert conditional_infimum(np.full((2, 5, 3), 1 / 3), 1.7).shape == (2, 5)


def test_phi_is_the_loss():
    u = np.array([0.0, 1e-12, 0.5, 3.0, 1e6])
    for tau in (0.0, 0.5, 1.0, 1.7, 2.0, 3.0):
        scores = torch.stack([torch.zeros(5, dtype=torch.float64), torch.tensor(u).log()], 1)
        want = comp_sum_loss(scores, torch.zeros(5, dtype=torch.int64), tau, reduction="none")
        np.testing.assert_allclose(phi(u, tau), want, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0, 1.7, 2.0, 3.0])
def test_symmetric_noise_has_this_best_risk(tau):
    rate, n = 0.4, 5
    flips = (1 - rate) * np.eye(n) + rate / (n - 1) * (1 - np.eye(n))
    assert best_risk_symmetric_noise(tau, n, rate) == pytest.approx(conditional_infimum(flips[2], tau))
    clean = np.random.default_rng(0).dirichlet(np.full(n, 0.5), 200)
    assert (conditional_infimum(clean @ flips, tau) >= best_risk_symmetric_noise(tau, n, rate) - 1e-15).all()


def test_symmetric_noise_by_hand():
    assert best_risk_symmetric_noise(2.0, 10, 0.4) == pytest.approx(0.4)
    assert best_risk_symmetric_noise(0.0, 2, 0.5) == pytest.approx(1.0)
    assert best_risk_symmetric_noise(1.0, 3, 0.5) == pytest.approx(1.5 * math.log(2))
    assert best_risk_symmetric_noise(1.5, 3, 0.0) == 0


def test_the_least_loss_of_bounded_scores():
    """The pilot's constrained minimisation with 4 classes and scores in [-1.3, 1.3]; and no score in the box is better."""
    taus = (0.0, 0.5, 1.0, 1.5, 2.0)
    got = [bounded_infimum(tau, 4, 1.3) for tau in taus]
    np.testing.assert_allclose(got, [0.222821, 0.211625, 0.201160, 0.191375, 0.182219], atol=5e-7)
    box = (
        torch.empty(2000, 4, dtype=torch.float64)
        .uniform_(-1.3, 1.3, generator=torch.Generator().manual_seed(0))
        .round(decimals=0)
    )
    box = torch.cat([box.clamp(-1.3, 1.3), torch.tensor([[1.3, -1.3, -1.3, -1.3]], dtype=torch.float64)])
    for tau, infimum in zip(taus, got, strict=True):
        least = float(comp_sum_loss(box, torch.zeros(len(box), dtype=torch.int64), tau, reduction="none").min())
        assert least == pytest.approx(infimum, rel=1e-12)
    assert bounded_infimum(1.0, 4, math.inf) == 0


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.7, 2.0, 3.0])
def test_the_gap_of_a_finite_set_is_below_its_bound(tau):
    """M = min over models of the mean loss - mean infimum, where the infimum of a complete set is 0."""
    u = np.random.default_rng(0).exponential(2, (50, 6, 8))  # set, model, input
    gap = phi(u, tau).mean(2).min(1)
    bound = np.array([gap_complete(best, 0.0, tau) for best in u.mean(2).min(1)])
    assert (gap <= bound + 1e-12).all()
    assert gap_complete(0.8, 0.1, tau) == pytest.approx(phi(0.8, tau) - 0.1)


def test_the_gap_of_bounded_scores_falls_with_tau():
    gaps = [gap_bounded(1.2138, tau, 4, 1.5) for tau in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] == pytest.approx(1.2138 - 3 * math.exp(-3))
    assert gap_bounded(3 * math.exp(-3), 1.3, 4, 1.5) == pytest.approx(0, abs=1e-12)


def test_numbers_give_numbers_and_arrays_arrays():
    assert (
        type(transform(0.3, 1.2, 5))
        is type(error_bound(0.3, 1.2, 5))
        is type(explicit_error_bound(0.3, 1.2, 5))
        is float
    )
    square = np.full((2, 3), 0.3)
    for function in (transform, error_bound, explicit_error_bound):
        for tau in (0.5, 1.0, 1.2, 1.7, 2.5):
            got = function(square, tau, 5)
            assert got.shape == (2, 3)
            assert (got == function(0.3, tau, 5)).all()


def test_a_bound_that_is_beyond_all_numbers_is_one():
    np.testing.assert_array_equal(error_bound(np.array([0.0, 1e-30, 1.0]), 300.0, 100_000), [0, 1, 1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: transform(0.1, -0.1, 3), r"tau: expected a plain finite number >= 0; got -0.1"),
        (lambda: transform(0.1, math.nan, 3), "tau: expected .*; got nan"),
        (lambda: transform(0.1, torch.tensor(1.0), 3), "tau: expected"),
        (lambda: transform(0.1, 1.0, 1), "n: expected a whole number of classes >= 2; got 1"),
        (lambda: transform(0.1, 1.0, 2.5), "n: expected"),
        (lambda: transform(1.1, 1.0, 3), r"b: expected numbers in \[0, 1\]; got 1.1"),
        (lambda: transform(np.array([0.1, math.nan]), 1.0, 3), "b: expected .*; got nan"),
        (
            lambda: error_bound(np.array([0.1, -0.2]), 1.0, 3),
            "excess: expected numbers >= 0; got -0.2. Fix: .*lower bound",
        ),
        (lambda: error_bound(math.nan, 1.0, 3), "excess: expected .*; got nan"),
        (lambda: explicit_error_bound(-1.0, 1.0, 3), "excess: expected"),
        (lambda: explicit_error_bound(0.1, 1.0, 0), "n: expected"),
        (lambda: conditional_infimum([0.5, 0.6], 1.0), "p: expected rows of probabilities"),
        (lambda: conditional_infimum([1.5, -0.5], 1.0), "p: expected"),
        (lambda: best_risk_symmetric_noise(1.0, 3, 1.2), "rate: expected"),
        (lambda: bounded_infimum(1.0, 3, -1.0), "bound: expected"),
        (lambda: gap_complete(0.1, 0.5, 1.0), "best_sum_exponential: expected .* no model is that good"),
        (lambda: phi(-1.0, 1.0), "u: expected"),
    ],
)
def test_what_cannot_be_used_is_named(call, words):
    with pytest.raises(LegatoValueError, match=words):
        call()
