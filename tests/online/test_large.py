"""Oracles of the lazy policies: with every state looked at they are the enumerated algorithm, and sampling tends there."""

import numpy as np
import pytest

from legato.errors import LegatoValueError
from legato.online.large import LazyLogBarrier, Waves, best_in_hindsight, value_of
from legato.online.learners import log_barrier
from legato.online.mdp import best_policy, occupancies, policy_values
from legato.online.paths import Path


def theta_of(mdp, seed=0):
    return np.random.default_rng(seed).random((mdp.horizon, mdp.dimension))


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_with_all_states_it_is_the_enumerated_algorithm(horizon):
    """Policies of every state, episode after episode, though only vectors and matrices of size d are kept."""
    waves = Waves(states=23, actions=3, horizon=horizon, dimension=4)
    mdp, rng, theta = waves.enumerated(), np.random.default_rng(1), theta_of(waves)
    lazy, play = LazyLogBarrier(waves, 50, samples=None), log_barrier().start(waves.enumerated(), 50, [0])
    for _ in range(8):
        policies = np.stack([lazy.policy(h, np.arange(23)) for h in range(horizon)])
        np.testing.assert_allclose(policies, play.policies()[0], rtol=1e-8)
        losses, states, actions = lazy.play(lambda h, phi: phi @ theta[h], rng.random(3 * horizon))
        play.update(Path(states[None], actions[None], losses[None]))
    assert np.abs(policies - 1 / 3).max() > 0.05
    np.testing.assert_allclose(losses, np.einsum("hd,hd->h", mdp.features[np.arange(horizon), states, actions], theta))


def test_simulated_covariances_tend_to_the_exact_ones():
    waves = Waves(states=50, actions=3, horizon=2, dimension=4)
    lazy, exact = LazyLogBarrier(waves, 50, samples=20_000), LazyLogBarrier(waves, 50, samples=None)
    mdp = waves.enumerated()
    q = occupancies(mdp, np.full(mdp.shape, 1 / 3))
    for h, (sampled, whole) in enumerate(zip(lazy.covariances(), exact.covariances(), strict=True)):
        want = np.einsum("sa,sai,saj->ij", q[h], mdp.features[h], mdp.features[h])
        np.testing.assert_allclose(whole, want, rtol=1e-12)
        np.testing.assert_allclose(sampled, want, atol=0.01)
    means = [player._dilated_means(1, np.eye(4), np.ones(4)) for player in (lazy, exact)]
    np.testing.assert_allclose(means[0], means[1], rtol=0.02)


def test_values_are_those_of_the_enumerated_process(monkeypatch):
    monkeypatch.setattr("legato.online.large.CHUNK", 7)
    waves = Waves(states=40, actions=3, horizon=3, dimension=5)
    mdp, theta = waves.enumerated(), theta_of(waves)
    losses = np.einsum("hsad,hd->hsa", mdp.features, theta)
    assert best_in_hindsight(waves, theta) == pytest.approx(best_policy(mdp, losses)[0], rel=1e-12)
    table = np.random.default_rng(0).dirichlet(np.ones(3), size=(3, 40))
    value = value_of(waves, lambda step, states: table[step, states], theta)
    assert value == pytest.approx(float(policy_values(mdp, table, losses)), rel=1e-12)


def test_a_cause_leads_where_it_says():
    waves = Waves(states=23, dimension=4)
    for cause in range(4):
        drawn = waves.after(0, np.full(5000, cause), np.random.default_rng(0).random(5000))
        chances = waves.cause_chances(0, np.arange(23))[cause]
        np.testing.assert_allclose(np.bincount(drawn, minlength=23) / 5000, chances, atol=0.03)
        assert chances.sum() == pytest.approx(1)


@pytest.mark.parametrize("horizon", [1, 2])
def test_a_million_states_are_no_trouble(horizon):
    """What is kept has the size of d alone, and play gets better."""
    waves = Waves(states=1_000_000, horizon=horizon)
    lazy, theta, rng = LazyLogBarrier(waves, 150, samples=48), theta_of(waves), np.random.default_rng(0)
    losses = [lazy.play(lambda h, phi: phi @ theta[h], rng.random(3 * horizon))[0].sum() for _ in range(150)]
    assert np.mean(losses[-50:]) < np.mean(losses[:50])
    assert sum(a.size for a in (lazy.theta, lazy.ahead, lazy.matrix)) == horizon * (6 + 6 + 36)


@pytest.mark.parametrize("value", [np.nan, 1.5, -0.1])
def test_a_bad_loss_changes_nothing(value):
    lazy = LazyLogBarrier(Waves(states=30), 10, samples=8)
    with pytest.raises(LegatoValueError, match=r"loss at \(h, s, a\) = \(0, 15, "):
        lazy.play(lambda h, phi: np.array([value]), np.full(6, 0.5))
    assert not lazy.theta.any()
    assert not lazy.matrix.any()


def test_bad_numbers():
    with pytest.raises(LegatoValueError, match="samples: expected a whole number >= 1, or None"):
        LazyLogBarrier(Waves(), 10, samples=0)
    with pytest.raises(LegatoValueError, match="states: expected at least as many states as features"):
        Waves(states=3, dimension=6)
