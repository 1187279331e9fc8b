"""Oracles of the steps: root finders, closed forms, invariances, optimality, the lemma and its constant."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import brentq, minimize

from legato import errors
from legato.online import simplex
from legato.online.simplex import STEPS, divergence, log_barrier_step, losses_of, stability

POWERS = {"log-barrier": 1, "tsallis": 2}


@pytest.fixture(params=STEPS, ids=STEPS)
def name(request):
    return request.param


def regulariser(name, p):
    return {"log-barrier": -np.log(p), "entropy": p * np.log(p), "tsallis": -2 * np.sqrt(p)}[name].sum(-1)


def random_simplex(rng, rows, arms, sharp=1.0):
    p = rng.gamma(sharp, size=(rows, arms)) + 1e-12
    return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize("name", POWERS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e8])
def test_a_step_is_the_root_that_brentq_finds(name, scale):
    rng = np.random.default_rng(0)
    for arms in (1, 2, 3, 10, 37, 100):
        losses = rng.normal(size=(6, arms)) * scale
        losses[1] = scale * rng.standard_cauchy(arms)
        losses[2] = 0
        for row, got in zip(losses, STEPS[name](losses, 0.7), strict=True):
            x = 0.7 * (row - row.min())
            lam = brentq(
                lambda lam, x=x: ((x + lam) ** -POWERS[name]).sum() - 1, 1 - 1e-9, arms + 1e-9, xtol=1e-15, rtol=1e-15
            )
            np.testing.assert_allclose(got, (x + lam) ** -POWERS[name], rtol=1e-13)
            assert abs(got.sum() - 1) < 1e-14 * arms


def test_a_step_minimises_what_it_says(name):
    """Twin: a general minimiser over the simplex."""
    rng = np.random.default_rng(1)
    for arms, eta in [(2, 0.5), (4, 1.0), (7, 3.0)]:
        losses = rng.normal(size=arms)

        def objective(p, losses=losses, eta=eta):
            return p @ losses + regulariser(name, p) / eta

        found = minimize(
            objective, np.full(arms, 1 / arms), method="SLSQP", bounds=[(1e-9, 1)] * arms, tol=1e-14,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
        )  # fmt: skip
        got = STEPS[name](losses, eta)
        assert objective(got) <= found.fun + 1e-12
        np.testing.assert_allclose(got, found.x, atol=2e-5)


def test_no_point_of_the_simplex_is_better(name):
    rng = np.random.default_rng(2)
    losses, eta = rng.normal(size=(200, 5)) * 3, 0.8
    p = STEPS[name](losses, eta)
    value = (p * losses).sum(-1) + regulariser(name, p) / eta
    for y in (random_simplex(rng, 200, 5), 0.99 * p + 0.01 * random_simplex(rng, 200, 5)):
        above = (y * losses).sum(-1) + regulariser(name, y) / eta - value
        np.testing.assert_allclose(above, divergence(name, y, p) / eta, rtol=1e-6, atol=1e-12)  # and by how much
        assert (above >= 0).all()


def test_two_arms_have_a_closed_form():
    gap = np.array([0, 1e-9, 0.1, 1, 7, 1e4])
    lam = (2 - gap + np.sqrt(gap**2 + 4)) / 2
    got = log_barrier_step(np.stack([np.zeros(6), gap / 0.3], -1), 0.3)
    np.testing.assert_allclose(got, np.stack([1 / lam, 1 / (gap + lam)], -1), rtol=1e-9)
    np.testing.assert_allclose(got[:5], np.stack([1 / lam, 1 / (gap + lam)], -1)[:5], rtol=1e-13)


losses_of_arms = hnp.arrays(np.float64, st.integers(1, 8), elements=st.floats(-1e6, 1e6, width=32))


@given(losses_of_arms, st.floats(1e-4, 1e3), st.integers(-(2**20), 2**20), st.randoms(use_true_random=False))
def test_shift_permutation_and_scale(losses, eta, shift, random):
    order = list(range(len(losses)))
    random.shuffle(order)
    for step in STEPS.values():
        p = step(losses, eta)
        assert p.dtype == np.float64
        assert (p >= 0).all()
        np.testing.assert_allclose(p.sum(), 1, rtol=1e-13)
        np.testing.assert_allclose(step(losses[order], eta), p[order], rtol=1e-12)
        np.testing.assert_allclose(step(losses * 8, eta / 8), p, rtol=1e-13)  # a power of two, so nothing is rounded
        rounded = np.round(losses)
        np.testing.assert_allclose(step(rounded + shift, eta), step(rounded, eta), rtol=1e-13)
        assert (np.diff(p[np.argsort(losses)]) <= 0).all()


@given(losses_of_arms, st.floats(1e-4, 1e3))
def test_the_normaliser_and_the_smallest_probability(losses, eta):
    p = log_barrier_step(losses, eta)
    x = eta * (losses - losses.min())
    lam = 1 / p.max()
    assert 1 - 1e-13 <= lam <= len(losses) * (1 + 1e-13)
    assert p.min() * (x.max() + len(losses)) >= 1 - 1e-13


def test_eta_zero_is_uniform_and_eta_large_the_best_arm(name):
    losses = np.array([3.0, 1.0, 2.0, 7.0])
    assert STEPS[name](losses, 0.0).tolist() == [0.25] * 4
    np.testing.assert_allclose(STEPS[name](losses, 1e-9), 0.25, atol=1e-8)
    np.testing.assert_allclose(STEPS[name](losses, 1e12), [0, 1, 0, 0], atol=1e-11)


def test_nothing_overflows_or_underflows(name):
    rng = np.random.default_rng(3)
    for losses in (
        rng.standard_cauchy((50, 6)) * 1e250,
        np.array([[1e308, -1e308, 0.0]]),
        np.array([[np.inf, 0.0, 5.0]]),
    ):
        with np.errstate(all="raise", under="ignore"):
            p = STEPS[name](losses, 1e9)
        assert np.isfinite(p).all()
        np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-12)
        assert name == "entropy" or (p > 0).all()
    assert log_barrier_step([0.0, 1e12], 1.0)[1] == pytest.approx(1e-12, rel=1e-10)


def test_batches_are_rows_and_eta_is_theirs(name):
    rng = np.random.default_rng(4)
    losses, eta = rng.normal(size=(3, 700, 9)) * 5, rng.uniform(0.1, 3, size=(3, 700))
    got = STEPS[name](losses, eta)
    for i, j in [(0, 0), (1, 350), (2, 699)]:
        np.testing.assert_allclose(got[i, j], STEPS[name](losses[i, j], eta[i, j]), rtol=1e-13)
    np.testing.assert_allclose(STEPS[name](losses, eta[:, :1])[2], STEPS[name](losses[2], eta[2, 0]), rtol=1e-13)
    assert STEPS[name](np.zeros((0, 4)), 1.0).shape == (0, 4)
    before = losses.copy()
    STEPS[name](losses, 1.0)
    assert (losses == before).all()


def test_a_nan_stays_in_its_row(name):
    losses = np.random.default_rng(5).normal(size=(40, 4)) * 100
    want = STEPS[name](losses, 1.0)
    losses[7, 2] = np.nan
    got = STEPS[name](losses, 1.0)
    assert np.isnan(got[7]).all()
    keep = np.arange(40) != 7
    np.testing.assert_allclose(got[keep], want[keep], rtol=1e-13)


def test_the_plain_loop_gives_the_same_numbers():
    rng = np.random.default_rng(6)
    for scale in (1e-3, 1, 1e6):
        gaps = rng.exponential(size=(30, 7)) * scale
        gaps -= gaps.min(-1, keepdims=True)
        want, probs = log_barrier_step(gaps, 1.0), np.empty_like(gaps)
        simplex.barrier_rows(gaps, probs)
        np.testing.assert_allclose(probs, want, rtol=1e-14)


def test_compiled_gives_the_same_numbers_or_names_the_extra():
    losses = np.random.default_rng(7).normal(size=(20, 5))
    if importlib.util.find_spec("numba") is None:
        with pytest.raises(errors.MissingExtraError, match="fast"):
            log_barrier_step(losses, 1.0, compiled=True)
    else:
        np.testing.assert_allclose(
            log_barrier_step(losses, 1.0, compiled=True), log_barrier_step(losses, 1.0), rtol=1e-14
        )


def test_losses_of_is_the_inverse(name):
    p = random_simplex(np.random.default_rng(8), 50, 6, sharp=0.3)
    eta = np.linspace(0.1, 4, 50)
    got = losses_of(name, p, eta)
    assert (got.min(-1) == 0).all()
    np.testing.assert_allclose(STEPS[name](got, eta), p, rtol=1e-10)


def test_divergence_is_the_gap_of_the_tangent(name):
    """Twin: R(y) - R(x) - <grad R(x), y - x>, the gradient by hand."""
    rng = np.random.default_rng(9)
    x, y = random_simplex(rng, 30, 4), random_simplex(rng, 30, 4)
    slope = {"log-barrier": -1 / x, "entropy": np.log(x) + 1, "tsallis": -1 / np.sqrt(x)}[name]
    want = regulariser(name, y) - regulariser(name, x) - (slope * (y - x)).sum(-1)
    np.testing.assert_allclose(divergence(name, y, x), want, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(divergence(name, x, x), 0, atol=1e-15)
    assert divergence("entropy", [0.0, 1.0], [0.5, 0.5]) == pytest.approx(np.log(2))


def exact_stability(name, x, c, eta):
    """The maximum itself: it is taken at the next step with the same rate."""
    y = STEPS[name](losses_of(name, x, eta) + c, eta)
    with np.errstate(all="ignore"):
        return ((x - y) * c).sum(-1) - divergence(name, y, x) / eta, y


def hard_cases(rng, rows, arms):
    """Probabilities near corners; losses of any size, half of the rows all negative, some importance-weighted."""
    x = random_simplex(rng, rows, arms, sharp=rng.choice([0.1, 1, 10]))
    x = np.maximum(x, 1e-6)
    x /= x.sum(-1, keepdims=True)
    c = rng.normal(size=(rows, arms)) * 10 ** rng.uniform(-4, 4, size=(rows, 1))
    c[::2] = -np.abs(c[::2])
    one = np.eye(arms)[rng.integers(arms, size=rows)]
    c[::3] = (c * one / x)[::3]
    return x, c


def test_the_ratio_of_the_lemma_is_never_above_a_quarter():
    """<x - y, c> - D(y, x)/eta <= eta sum x c^2 is proved; a quarter of it is what is seen, and it is reached."""
    rng = np.random.default_rng(10)
    worst, cases = 0.0, 0
    for arms in range(2, 12):
        x, c = hard_cases(rng, 1000, arms)
        exact, _ = exact_stability("log-barrier", x, c, 1.0)
        size = (x * c**2).sum(-1)
        keep = size > 1e-6  # below, the divergence is all rounding
        worst, cases = max(worst, float((exact[keep] / size[keep]).max())), cases + len(x)
    assert cases == 10_000
    assert 0.2 < worst <= 0.25
    near, _ = exact_stability("log-barrier", np.array([0.5, 0.5]), np.array([1e-3, -1e-3]), 1.0)
    assert near / 1e-6 == pytest.approx(0.25, rel=1e-3)


def test_entropy_does_not_keep_the_lemma():
    x, c = np.array([0.999, 0.001]), np.array([0.0, -50.0])
    assert exact_stability("entropy", x, c, 1.0)[0] > 10 * (x * c**2).sum()
    assert exact_stability("log-barrier", x, c, 1.0)[0] <= 0.25 * (x * c**2).sum()


@pytest.mark.parametrize("eta", [0.01, 1.0, 30.0])
def test_stability_is_an_upper_bound_of_any_move(name, eta):
    rng = np.random.default_rng(11)
    for arms in (1, 2, 5, 9):
        x, c = hard_cases(rng, 600, arms)
        exact, y = exact_stability(name, x, c, eta)
        got = stability(name, x, c, eta)
        slack = 1e-9 * (np.abs(c).max(-1) + divergence(name, y, x) / eta)
        assert (got >= exact - slack).all()
        assert (got <= ((x * c).sum(-1) - c.min(-1)) * (1 + 1e-12) + 1e-300).all()
        if name == "entropy":
            np.testing.assert_allclose(got, exact, atol=1e-7 * np.abs(c).max(), rtol=1e-6)
        if name == "log-barrier":
            assert (got <= eta * (x * c**2).sum(-1) * (1 + 1e-12)).all()


def test_stability_is_sharp_for_small_losses(name):
    """Its leading term is eta/2 times the variance in the metric of the regulariser, within a factor of two."""
    rng = np.random.default_rng(12)
    x, c = random_simplex(rng, 50, 4, sharp=5), rng.normal(size=(50, 4)) * 1e-3
    exact, _ = exact_stability(name, x, c, 1.0)
    ratio = stability(name, x, c, 1.0) / exact
    assert ratio.min() >= 1 - 1e-6
    assert np.median(ratio) < 10


def test_stability_of_a_learner_that_has_seen_nothing(name):
    assert stability(name, [0.5, 0.5], [3.0, 1.0], np.inf) == 1.0
    assert stability(name, [0.5, 0.5], [3.0, 3.0], np.inf) == 0.0
    assert stability(name, [1.0], [-7.0], 2.0) == pytest.approx(0, abs=1e-12)


def test_bad_input_is_named():
    with pytest.raises(errors.LegatoValueError, match="losses"):
        log_barrier_step(3.0, 1.0)
    with pytest.raises(errors.LegatoValueError, match="losses"):
        log_barrier_step(np.zeros((3, 0)), 1.0)
    for eta in (-1.0, np.nan, np.inf):
        with pytest.raises(errors.LegatoValueError, match="eta"):
            log_barrier_step([1.0, 2.0], eta)
    with pytest.raises(errors.LegatoValueError, match="eta"):
        log_barrier_step(np.zeros((3, 2)), np.ones(2))
    with pytest.raises(errors.LegatoValueError, match="log-barrier"):
        stability("logbarrier", [1.0], [1.0], 1.0)
