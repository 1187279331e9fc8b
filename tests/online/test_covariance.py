"""Oracles of the three inverses: closed forms, exact means, the rate of the error, and the limits that are derived."""

import itertools
import math

import numpy as np
import pytest

from legato import errors
from legato.online.covariance import (
    averaged_inverse,
    averaging_samples,
    feature_covariance,
    matrix_geometric_resampling,
    regularised_inverse,
    resampling_length,
)


def features(seed=0, places=15, size=4):
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(places, size))
    return phi / np.maximum(1, np.linalg.norm(phi, axis=-1, keepdims=True)), rng.dirichlet(np.ones(places))


def test_the_covariance_is_its_sum():
    phi, mu = features()
    want = sum(weight * np.outer(row, row) for weight, row in zip(mu, phi, strict=True))
    got = feature_covariance(np.stack([phi, 2 * phi]), np.stack([mu, mu]))
    np.testing.assert_allclose(got, np.stack([want, 4 * want]), rtol=1e-13)
    assert (got == got.swapaxes(-1, -2)).all()


@pytest.mark.parametrize("gamma", [0.0, 1e-8, 1e-2, 3.0])
def test_the_inverse_inverts_and_its_trace_is_the_effective_dimension(gamma):
    """tr(inverse Sigma) = sum ev/(ev + gamma) <= D."""
    phi, mu = features(1)
    sigma = feature_covariance(phi, mu)
    inverse = regularised_inverse(sigma, gamma)
    np.testing.assert_allclose(inverse @ (sigma + gamma * np.eye(4)), np.eye(4), atol=1e-10)
    values = np.linalg.eigvalsh(sigma)
    trace = np.trace(inverse @ sigma)
    assert trace == pytest.approx((values / (values + gamma)).sum(), rel=1e-9)
    assert trace <= 4 + 1e-9
    assert trace == pytest.approx(mu @ np.vecdot(phi @ inverse, phi), rel=1e-9)  # the mean squared length of a visit
    assert (inverse == inverse.swapaxes(-1, -2)).all()


def test_a_singular_covariance_needs_a_regulariser():
    sigma = feature_covariance(np.array([[1.0, 0, 0], [0, 1.0, 0]]), np.array([0.5, 0.5]))
    with pytest.raises(errors.LegatoValueError, match="rank 2 < 3"):
        regularised_inverse(sigma, 0.0)
    np.testing.assert_allclose(regularised_inverse(sigma, 0.1), np.diag([1 / 0.6, 1 / 0.6, 10]), rtol=1e-13)


def spread_of(inverse, sigma, gamma):
    """The largest relative error of T-hat in any direction: eigenvalues of T^-1/2 T-hat T^-1/2, less 1."""
    root = np.linalg.cholesky(sigma + gamma * np.eye(len(sigma)))
    relative = np.linalg.solve(root, np.linalg.solve(root, np.linalg.inv(inverse)).swapaxes(-1, -2))
    return np.abs(np.linalg.eigvalsh(relative) - 1).max(-1)


def test_the_error_of_averaging_falls_with_the_square_root():
    phi, mu = features(2, size=5)
    sigma, gamma, rng = feature_covariance(phi, mu), 0.02, np.random.default_rng(3)
    sizes = np.array([100, 1600, 25_600])
    error = [
        np.mean([spread_of(averaged_inverse(phi[rng.choice(15, size, p=mu)], gamma), sigma, gamma) for _ in range(20)])
        for size in sizes
    ]
    slope = np.polyfit(np.log(sizes), np.log(error), 1)[0]
    assert -0.6 < slope < -0.4
    exact = averaged_inverse(np.repeat(phi, 4, axis=0), gamma)  # every place four times: the mean itself
    np.testing.assert_allclose(
        exact, regularised_inverse(feature_covariance(phi, np.full(15, 1 / 15)), gamma), rtol=1e-10
    )


def test_so_many_samples_are_enough():
    phi, mu = features(4, size=5)
    sigma, rng = feature_covariance(phi, mu), np.random.default_rng(5)
    for gamma in (0.1, 0.01):
        size = averaging_samples(gamma, 5, error=0.5, failure=0.05)
        drawn = phi[rng.choice(15, (40, size), p=mu)]
        assert (spread_of(averaged_inverse(drawn, gamma), sigma, gamma) <= 0.5).mean() >= 0.95
    assert averaging_samples(0.1, 20) == math.ceil(2 * (7 / 6) * math.log(800) / (0.1 * 0.25))


def test_resampling_is_a_geometric_series_where_nothing_is_random():
    gamma, phi, length = 0.3, 0.8, 6
    got = matrix_geometric_resampling(np.full((2, length, 1), phi), gamma)
    rest = 1 - 0.5 * (gamma + phi**2)
    np.testing.assert_allclose(got, [[(1 - rest ** (length + 1)) / (gamma + phi**2)]], rtol=1e-13)


def test_the_mean_of_resampling_over_all_draws():
    """Oracle: T^-1 (I - (I - c T)^(N+1)), by enumeration of every sequence of N = 3 visits."""
    phi, mu = features(6, places=3, size=2)
    gamma, constant = 0.2, 0.4
    mean = np.zeros((2, 2))
    for path in itertools.product(range(3), repeat=3):
        one = matrix_geometric_resampling(phi[list(path)][None], gamma, constant=constant)
        assert (one == one.T).all()
        mean += np.prod(mu[list(path)]) * one
    t = feature_covariance(phi, mu) + gamma * np.eye(2)
    rest = np.linalg.matrix_power(np.eye(2) - constant * t, 4)
    np.testing.assert_allclose(mean, np.linalg.inv(t) @ (np.eye(2) - rest), rtol=1e-12)


def test_the_length_is_the_smallest_that_reaches_the_error():
    for gamma, error in [(0.1, 0.5), (0.01, 0.1), (0.5, 1e-6)]:
        length = resampling_length(gamma, error)
        assert (1 - gamma / 2) ** (length + 1) / gamma <= error * (1 + 1e-12)
        assert (1 - gamma / 2) ** length / gamma > error
        assert length <= 2 / gamma * math.log(1 / (error * gamma))
    assert resampling_length(0.5, 100.0) == 0


def test_averaging_beats_resampling_at_equal_samples():
    phi, mu = features(7, size=5)
    sigma, gamma, rng = feature_covariance(phi, mu), 0.1, np.random.default_rng(8)
    exact = regularised_inverse(sigma, gamma)
    length = resampling_length(gamma, 0.1)
    drawn = phi[rng.choice(15, (40, length), p=mu)]
    resampled = np.linalg.norm(matrix_geometric_resampling(drawn, gamma) - exact, 2)
    assert np.linalg.norm(averaged_inverse(drawn.reshape(-1, 5), gamma) - exact, 2) < resampled
    assert resampled < np.linalg.norm(exact, 2)  # yet it does estimate it


def test_resampling_keeps_its_constant():
    """Long features are refused, not tamed by a constant that depends on them."""
    phi = np.array([[[1.0, 0.0], [1.2, 1.2]]])
    with pytest.raises(errors.LegatoValueError, match=r"\|\|phi\|\|\^2 = 2.88"):
        matrix_geometric_resampling(phi, 0.1)
    got = matrix_geometric_resampling(phi, 0.1, constant=0.2)
    first = np.diag([1 - 0.2 * 1.1, 1 - 0.2 * 0.1])
    second = first @ (0.98 * np.eye(2) - 0.2 * 1.44 * np.ones((2, 2)))
    want = 0.2 * (np.eye(2) + first + second)
    np.testing.assert_allclose(got, (want + want.T) / 2, rtol=1e-13)


def test_batches_are_rows():
    rng = np.random.default_rng(9)
    drawn = rng.uniform(-0.5, 0.5, size=(3, 4, 6, 2))
    got = matrix_geometric_resampling(drawn, 0.1)
    averaged = averaged_inverse(drawn[:, 0], 0.1)
    for i in range(3):
        np.testing.assert_allclose(got[i], matrix_geometric_resampling(drawn[i], 0.1), rtol=1e-12)
        np.testing.assert_allclose(averaged[i], averaged_inverse(drawn[i, 0], 0.1), rtol=1e-12)


def test_bad_input_is_named():
    for gamma in (-1.0, np.nan, np.inf):
        with pytest.raises(errors.LegatoValueError, match="gamma"):
            regularised_inverse(np.eye(2), gamma)
    with pytest.raises(errors.LegatoValueError, match="gamma"):
        matrix_geometric_resampling(np.zeros((1, 1, 2)), 0.0)
    with pytest.raises(errors.LegatoValueError, match="smallest eigenvalue -1"):
        regularised_inverse(-np.eye(2), 0.1)
    with pytest.raises(errors.LegatoValueError, match="sigma"):
        regularised_inverse(np.zeros((2, 3)), 0.1)
    for samples in (np.zeros((0, 2)), np.zeros(3)):
        with pytest.raises(errors.LegatoValueError, match="samples"):
            averaged_inverse(samples, 0.1)
    with pytest.raises(errors.LegatoValueError, match="occupancy"):
        feature_covariance(np.zeros((3, 2)), np.zeros(2))
    with pytest.raises(errors.LegatoValueError, match="constant"):
        matrix_geometric_resampling(np.zeros((1, 1, 2)), 0.1, constant=0.0)
    for bad in ({"error": 0.0}, {"failure": 1.0}, {"dimension": 0}):
        with pytest.raises(errors.LegatoValueError, match=next(iter(bad))):
            averaging_samples(**{"gamma": 0.1, "dimension": 3, **bad})
    with pytest.raises(errors.LegatoValueError, match="error"):
        resampling_length(0.1, 0.0)
    with pytest.raises(errors.LegatoValueError, match="constant"):
        resampling_length(3.0, 0.1)
