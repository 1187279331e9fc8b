"""Oracles of the process: loops that spell out the definitions, and all policies of a tiny process one by one."""

import itertools

import numpy as np
import pytest

from legato.errors import LegatoValueError
from legato.online.adversaries import linear_losses
from legato.online.mdp import (
    LinearMDP,
    action_values,
    best_policy,
    check_losses,
    deterministic,
    linearity,
    occupancies,
    policy_values,
    random_linear_mdp,
)


def sample(states=3, actions=2, horizon=3, runs=(), seed=0):
    rng = np.random.default_rng(seed)
    mdp = random_linear_mdp(states, actions, horizon, 4, seed=seed)
    policies = rng.dirichlet(np.ones(actions), size=(*runs, horizon, states))
    return mdp, policies, rng.random((horizon, states, actions))


def by_paths(mdp, policy, losses):
    """Occupancies and value, by adding up every path of the process with its probability."""
    q, value = np.zeros(mdp.shape), 0.0
    for path in itertools.product(range(mdp.states), range(mdp.actions), repeat=mdp.horizon):
        states, actions = path[::2], path[1::2]
        chance = mdp.initial[states[0]]
        for h in range(mdp.horizon):
            chance *= policy[h, states[h], actions[h]]
            if h + 1 < mdp.horizon:
                chance *= mdp.transitions[h, states[h], actions[h], states[h + 1]]
        for h in range(mdp.horizon):
            q[h, states[h], actions[h]] += chance
            value += chance * losses[h, states[h], actions[h]]
    return q, value


def test_occupancies_and_values_are_sums_over_all_paths():
    mdp, policy, losses = sample()
    q, value = by_paths(mdp, policy, losses)
    np.testing.assert_allclose(occupancies(mdp, policy), q, rtol=0, atol=1e-15)
    assert float(policy_values(mdp, policy, losses)) == pytest.approx(value, rel=1e-13)
    first = (policy[0] * action_values(mdp, policy, losses)[0]).sum(1)
    assert float(mdp.initial @ first) == pytest.approx(value, rel=1e-13)


def test_runs_side_by_side_are_runs_one_by_one():
    mdp, policies, losses = sample(runs=(5,))
    turned = np.ascontiguousarray(policies.swapaxes(0, 1)).swapaxes(0, 1)  # the step first in memory
    for function in (occupancies, lambda m, p: action_values(m, p, losses), lambda m, p: policy_values(m, p, losses)):
        one_by_one = np.stack([function(mdp, policy) for policy in policies])
        np.testing.assert_allclose(function(mdp, policies), one_by_one, rtol=1e-14)
        np.testing.assert_allclose(function(mdp, turned), one_by_one, rtol=1e-14)


def test_each_step_of_the_occupancies_sums_to_one():
    mdp, policies, _ = sample(states=7, actions=5, horizon=6, runs=(4,))
    np.testing.assert_allclose(occupancies(mdp, policies).sum((-1, -2)), 1, rtol=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_policy_is_the_best_of_all(seed):
    mdp, _, losses = sample(states=2, actions=2, horizon=3, seed=seed)
    choices = itertools.product(range(2), repeat=mdp.horizon * mdp.states)
    every = np.stack([deterministic(np.reshape(c, (mdp.horizon, mdp.states)), 2) for c in choices])
    value, actions = best_policy(mdp, losses)
    assert value == pytest.approx(policy_values(mdp, every, losses).min(), rel=1e-13)
    assert float(policy_values(mdp, deterministic(actions, 2), losses)) == pytest.approx(value, rel=1e-13)


def test_the_value_is_linear_in_the_losses():
    """So that the best policy for the sum of the losses is the best fixed one in hindsight."""
    mdp, policy, losses = sample()
    other = np.random.default_rng(9).random(mdp.shape)
    both = policy_values(mdp, policy, 3 * losses + other)
    assert both == pytest.approx(3 * policy_values(mdp, policy, losses) + policy_values(mdp, policy, other))


def test_linear_losses_have_linear_action_values():
    mdp = random_linear_mdp(12, 3, 4, 5, seed=3)
    found = linearity(mdp, linear_losses(mdp, seed=1))
    assert found.linear
    assert found.largest < 1e-12
    assert "linear in the features" in str(found)


def test_one_hot_features_are_always_linear():
    mdp, _, losses = sample()
    assert linearity(LinearMDP(mdp.transitions, mdp.initial), losses).linear


def test_what_is_not_linear_is_located():
    """One loss is off by 1 in a step where the features have rank 1: the residual of a mean over six is 5/6, there."""
    phi = np.full((2, 3, 2, 1), 1.0)
    moves = np.full((2, 3, 2, 3), 1 / 3)
    losses = np.zeros((2, 3, 2))
    losses[1, 2, 0] = 1
    found = linearity(LinearMDP(moves, np.eye(3)[0], phi), losses)
    assert found.where == (1, 2, 0)
    assert found.largest == pytest.approx(5 / 6)
    assert found.share == pytest.approx(1)
    assert "NOT linear" in str(found)


def spoiled(name, spot, value):
    mdp, _, _ = sample()
    arrays = {"transitions": mdp.transitions.copy(), "initial": mdp.initial.copy(), "features": mdp.features.copy()}
    arrays[name][spot] = value
    return arrays


@pytest.mark.parametrize(
    ("name", "spot", "value", "message"),
    [
        ("transitions", (1, 2, 0, 1), 3.0, r"transitions at \(h, s, a\) = \(1, 2, 0\): expected .* got a sum of 3\."),
        ("transitions", (2, 0, 1, 1), np.nan, r"transitions at \(h, s, a\) = \(2, 0, 1\): .* nan"),
        ("transitions", (0, 1, 1), [1.5, -0.5, 0.0], r"\(0, 1, 1\): expected probabilities >= 0; got -0\.5"),
        ("initial", 0, 0.25, r"initial: .* a sum of 0\.25"),
        (
            "features",
            (2, 1, 1),
            [2, 0, 0, 0],
            r"features at \(h, s, a\) = \(2, 1, 1\): .* length 2\. Fix: rescale=True",
        ),
        ("features", (0, 0, 1, 0), np.inf, r"features at \(h, s, a\) = \(0, 0, 1\)"),
    ],
)
def test_the_first_bad_row_is_named(name, spot, value, message):
    with pytest.raises(LegatoValueError, match=message):
        LinearMDP(**spoiled(name, spot, value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transitions": np.ones((3, 2, 3))}, r"transitions: expected shape \[H, S, A, S\]; got shape \[3, 2, 3\]"),
        ({"initial": np.ones(4) / 4}, r"initial: expected shape \[3\]"),
        ({"features": np.zeros((3, 3, 4, 2))}, r"features: expected shape \[3, 3, 2, 'd'\]"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    mdp, _, _ = sample()
    with pytest.raises(LegatoValueError, match=message):
        LinearMDP(**{"transitions": mdp.transitions, "initial": mdp.initial, **change})


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan, np.inf])
def test_a_bad_loss_is_named(value):
    mdp, _, losses = sample()
    losses[1, 2, 1] = value
    with pytest.raises(LegatoValueError, match=r"losses at \(h, s, a\) = \(1, 2, 1\)"):
        check_losses(mdp, losses)


def test_a_random_process_needs_sizes():
    with pytest.raises(LegatoValueError, match="features: expected a whole number >= 1; got 0"):
        random_linear_mdp(features=0)
    with pytest.raises(LegatoValueError, match="concentration"):
        random_linear_mdp(concentration=0)
    with pytest.raises(LegatoValueError, match=r"losses: expected shape \[3, 4, 4\]"):
        best_policy(random_linear_mdp(), np.zeros((2, 4, 4)))
