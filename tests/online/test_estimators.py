"""Oracles of the estimates: exact means over all draws, bounds, and the special cases in which they are one another."""

import numpy as np
import pytest

from legato import errors
from legato.online.covariance import feature_covariance, regularised_inverse
from legato.online.estimators import (
    alignment,
    exact_offset,
    importance_weighted,
    magnitude_reduced,
    plain_estimate,
    sampled_offset,
)

HORIZON = 3.0


def process(seed=0, places=12, size=4, gamma=0.05):
    """Features of both signs in the unit ball, probabilities of the visits, true returns in [0, HORIZON], and the inverse."""
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(places, size))
    phi /= np.maximum(1, np.linalg.norm(phi, axis=-1, keepdims=True))
    mu = rng.dirichlet(np.ones(places))
    return phi, mu, rng.uniform(0, HORIZON, places), regularised_inverse(feature_covariance(phi, mu), gamma)


def mean_over_visits(estimate, mu, losses):
    return sum(weight * estimate(place, losses[place]) for place, weight in enumerate(mu))


def test_importance_weights_are_right_on_average():
    rng = np.random.default_rng(1)
    p, losses = rng.dirichlet(np.ones(5)), rng.normal(size=5)
    for exploration in (0.0, 0.2):
        mean = sum(p[a] * importance_weighted(a, losses[a], p, exploration) for a in range(5))
        np.testing.assert_allclose(mean, losses * p / (p + exploration), rtol=1e-13)
    batch = importance_weighted([[0, 4], [2, 2]], [[1.0, 2.0], [3.0, -4.0]], np.broadcast_to(p, (2, 2, 5)))
    np.testing.assert_allclose(batch[1, 1], [0, 0, -4 / p[2], 0, 0])
    np.testing.assert_allclose(batch[0, 1], [0, 0, 0, 0, 2 / p[4]])


def test_the_plain_estimate_has_the_bias_of_its_regulariser():
    """Sharp for linear losses: phi^T theta - gamma phi^T inverse theta, and the bound of the second moment."""
    gamma = 0.05
    phi, mu, _, inverse = process(gamma=gamma)
    theta = np.random.default_rng(2).normal(size=4)
    losses = phi @ theta
    mean = mean_over_visits(lambda i, loss: plain_estimate(phi, inverse, phi[i], loss), mu, losses)
    np.testing.assert_allclose(mean, losses - gamma * phi @ inverse @ theta, rtol=1e-12)
    width = np.sqrt(np.vecdot(phi @ inverse, phi))
    assert (np.abs(mean - losses) <= np.sqrt(gamma) * np.linalg.norm(theta) * width).all()
    second = mean_over_visits(lambda i, loss: plain_estimate(phi, inverse, phi[i], loss) ** 2, mu, np.full(12, HORIZON))
    assert (second <= HORIZON**2 * width**2).all()


@pytest.mark.parametrize("seed", range(5))
def test_magnitude_reduced_has_the_mean_of_the_plain_one(seed):
    phi, mu, losses, inverse = process(seed)
    offset = exact_offset(phi, inverse, mu, HORIZON)
    reduced = mean_over_visits(
        lambda i, loss: magnitude_reduced(phi, inverse, phi[i], loss, HORIZON, offset), mu, losses
    )
    plain = mean_over_visits(lambda i, loss: plain_estimate(phi, inverse, phi[i], loss), mu, losses)
    np.testing.assert_allclose(reduced, plain, rtol=1e-12, atol=1e-13)
    assert (offset < 0).any()


def test_magnitude_reduced_is_bounded_below_by_the_square_root():
    gamma = 1e-5
    phi, mu, losses, inverse = process(3, places=4, gamma=gamma)
    mu = np.array([1 - 3e-4, 1e-4, 1e-4, 1e-4])
    inverse = regularised_inverse(feature_covariance(phi, mu), gamma)
    offset = exact_offset(phi, inverse, mu, HORIZON)
    width = np.sqrt(np.vecdot(phi @ inverse, phi))
    assert (offset >= -HORIZON * width).all()
    assert (width <= 1 / np.sqrt(gamma)).all()
    lowest, second = np.inf, 0
    for i in range(4):
        for loss in (0.0, losses[i], HORIZON):
            reduced = magnitude_reduced(phi, inverse, phi[i], loss, HORIZON, offset)
            assert (reduced >= offset - 1e-9).all()
            lowest = min(lowest, (plain_estimate(phi, inverse, phi[i], loss) - offset).min())
        second = second + mu[i] * magnitude_reduced(phi, inverse, phi[i], losses[i], HORIZON, offset) ** 2
    assert lowest < -100  # the plain estimate goes far below
    assert (second <= 2 * HORIZON**2 * width**2).all()


def test_one_hot_features_make_all_three_the_same():
    rng = np.random.default_rng(4)
    gamma, mu = 0.1, rng.dirichlet(np.ones(6))
    phi = np.eye(6)
    inverse = regularised_inverse(feature_covariance(phi, mu), gamma)
    offset = exact_offset(phi, inverse, mu, HORIZON)
    assert (offset == 0).all()
    for arm in range(6):
        plain = plain_estimate(phi, inverse, phi[arm], 2.0)
        np.testing.assert_allclose(plain, importance_weighted(arm, 2.0, mu, gamma), rtol=1e-13)
        np.testing.assert_array_equal(magnitude_reduced(phi, inverse, phi[arm], 2.0, HORIZON, offset), plain)


def test_the_sampled_offset_is_the_exact_one_on_average():
    phi, mu, _, inverse = process(5)
    exact = exact_offset(phi, inverse, mu, HORIZON)
    singles = sampled_offset(phi, inverse, phi[:, None], HORIZON)  # [12, 12]: from one visit each
    np.testing.assert_allclose(mu @ singles, exact, rtol=1e-12)
    drawn = phi[np.random.default_rng(6).choice(12, size=20_000, p=mu)]
    np.testing.assert_allclose(sampled_offset(phi, inverse, drawn, HORIZON), exact, atol=0.05 * HORIZON)


def test_batches_are_rows():
    parts = [process(seed) for seed in range(3)]
    phi, mu, losses, inverse = (np.stack(part) for part in zip(*parts, strict=True))
    offset = exact_offset(phi, inverse, mu, HORIZON)
    got = magnitude_reduced(phi, inverse, phi[:, 2], losses[:, 2], HORIZON, offset)
    for i in range(3):
        want = magnitude_reduced(phi[i], inverse[i], phi[i, 2], losses[i, 2], HORIZON, offset[i])
        np.testing.assert_allclose(got[i], want, rtol=1e-12)
        np.testing.assert_allclose(alignment(phi, inverse, phi[:, 2])[i], phi[i] @ inverse[i] @ phi[i, 2], rtol=1e-12)


def test_bad_input_is_named():
    phi, mu, _, inverse = process()
    with pytest.raises(errors.LegatoValueError, match=r"loss\[1\]: expected in \[0, 3\]; got 3.5"):
        magnitude_reduced(np.stack([phi] * 2), inverse, phi[:2], [1.0, 3.5], HORIZON, 0.0)
    with pytest.raises(errors.LegatoValueError, match="got nan"):
        magnitude_reduced(phi, inverse, phi[0], np.nan, HORIZON, 0.0)
    with pytest.raises(errors.LegatoValueError, match="horizon"):
        exact_offset(phi, inverse, mu, 0.0)
    with pytest.raises(errors.LegatoValueError, match="occupancy"):
        exact_offset(phi, inverse, mu[:3], HORIZON)
    with pytest.raises(errors.LegatoValueError, match="samples"):
        sampled_offset(phi, inverse, phi[:0], HORIZON)
    with pytest.raises(errors.LegatoValueError, match="inverse"):
        plain_estimate(phi, inverse[:2], phi[0], 1.0)
    with pytest.raises(errors.LegatoValueError, match="visited"):
        plain_estimate(phi, inverse, phi[0, :2], 1.0)
    with pytest.raises(errors.LegatoValueError, match="features"):
        plain_estimate(phi[0], inverse, phi[0], 1.0)
    for arm in (5, -1, 0.5):
        with pytest.raises(errors.LegatoValueError, match="arm"):
            importance_weighted(arm, 1.0, np.full(5, 0.2))
    with pytest.raises(errors.LegatoValueError, match="loss"):
        importance_weighted(0, [1.0], np.full(5, 0.2))
    with pytest.raises(errors.LegatoValueError, match="exploration"):
        importance_weighted(0, 1.0, np.full(5, 0.2), -1.0)
