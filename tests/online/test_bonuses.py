"""Oracles of the bonuses: the trace identity, the horizon of one step, the factor of 1, a recursion by hand."""

import numpy as np
import pytest

from legato.online.bonuses import bonuses, dilate
from legato.online.mdp import action_values, occupancies, policy_values, random_linear_mdp
from legato.online.spans import Dense


def sample(horizon=3, gamma=0.05, runs=4, features=5):
    mdp = random_linear_mdp(4, 3, horizon, features, seed=1)
    policies = np.random.default_rng(0).dirichlet(np.ones(3), size=(runs, horizon, 4))
    q = occupancies(mdp, policies)
    span = Dense(mdp)
    sigma = span.covariance(q.swapaxes(0, 1).reshape(horizon, runs, -1))
    inverse = span.inverse(sigma, gamma)
    squares = span.squares(inverse).reshape(horizon, runs, 4, 3).swapaxes(0, 1)
    return mdp, policies, sigma, inverse, squares


def test_a_bonus_is_its_definition():
    _, policies, _, _, squares = sample()
    got = bonuses(squares, policies, 0.7)
    for n, h, s, a in np.ndindex(got.shape):
        want = 0.7 * (squares[n, h, s, a] + sum(policies[n, h, s, b] * squares[n, h, s, b] for b in range(3)))
        assert got[n, h, s, a] == pytest.approx(want, rel=1e-13)


def test_the_mean_bonus_is_a_trace():
    """E sum_h b = 2 beta sum_h tr((gamma I + Sigma)^-1 Sigma) = 2 beta sum ev/(ev + gamma) <= 2 beta d H."""
    mdp, policies, sigma, inverse, squares = sample()
    got = policy_values(mdp, policies, bonuses(squares, policies, 0.3)[0])[0]
    trace = np.trace(inverse[:, 0] @ sigma[:, 0], axis1=-2, axis2=-1).sum()
    eigenvalues = np.linalg.eigvalsh(sigma[:, 0])
    assert got == pytest.approx(0.6 * trace, rel=1e-12)
    assert trace == pytest.approx((eigenvalues / (eigenvalues + 0.05)).sum(), rel=1e-10)
    assert trace <= mdp.dimension * mdp.horizon


def test_one_step_is_not_dilated():
    mdp, policies, _, _, squares = sample(horizon=1)
    b = bonuses(squares, policies, 1.0)
    np.testing.assert_array_equal(dilate(mdp, b, policies), b)


def test_without_dilation_it_is_the_value_of_the_bonus():
    mdp, policies, _, _, squares = sample()
    b = bonuses(squares, policies, 1.0)
    plain = dilate(mdp, b, policies, factor=1.0)
    want = np.stack([action_values(mdp, policy, table) for policy, table in zip(policies, b, strict=True)])
    np.testing.assert_allclose(plain, want, rtol=1e-13)


def test_each_step_ahead_weighs_a_factor_more():
    """By loops; and a bonus of 1 everywhere gives 1 + f + f^2 with f = 1 + 1/3, which is below e H."""
    mdp, policies, _, _, squares = sample(runs=1)
    b = bonuses(squares, policies, 1.0)
    want = b.copy()
    for h in (1, 0):
        for s, a in np.ndindex(4, 3):
            after = sum(
                mdp.transitions[h, s, a, t] * policies[0, h + 1, t, c] * want[0, h + 1, t, c]
                for t, c in np.ndindex(4, 3)
            )
            want[0, h, s, a] += (1 + 1 / 3) * after
    np.testing.assert_allclose(dilate(mdp, b, policies), want, rtol=1e-13)
    ones = dilate(mdp, np.ones_like(b), policies)
    np.testing.assert_allclose(ones[0, 0], 1 + 4 / 3 + 16 / 9, rtol=1e-14)
    assert ones.max() <= np.e * 3
