"""The learner without dynamics: it sees none, each part against a twin or a limit, and it learns."""

from dataclasses import replace

import numpy as np
import pytest

from legato.errors import LegatoValueError
from legato.lab.statistics import t_interval
from legato.online.adversaries import Constant, constrained_switching, linear_losses
from legato.online.baselines import Uniform
from legato.online.experimental import SimulatorFree
from legato.online.learners import resampled_inverse
from legato.online.mdp import LinearMDP, action_values, random_linear_mdp
from legato.online.paths import Dice, Path, roll_out
from legato.online.regret import run

MDP = random_linear_mdp(states=3, actions=3, horizon=3, features=4, seed=2)
TABLE = linear_losses(MDP, count=1, seed=3)[0]


def paths(count, runs=2, seed=0, mdp=MDP):
    """Any paths: a learner may be taught by what it has not played."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        states, actions = (
            rng.integers(mdp.states, size=(runs, mdp.horizon)),
            rng.integers(mdp.actions, size=(runs, mdp.horizon)),
        )
        yield Path(states, actions, rng.random((runs, mdp.horizon)))


@pytest.mark.parametrize("options", [{}, {"regulariser": "entropy", "covariance": "mgr"}])
def test_it_makes_no_use_of_the_dynamics(options):
    """Two processes that share nothing but the features; the same paths must teach the same, bit for bit."""
    other = replace(MDP, transitions=np.roll(MDP.transitions, 1, axis=3)[::-1])
    plays = [SimulatorFree(epoch=6, cover=4, **options).start(m, 40, [0, 1]) for m in (MDP, other)]
    changed = False
    for path in paths(30):
        a, b = (play.policies().copy() for play in plays)
        np.testing.assert_array_equal(a, b)
        changed |= bool((np.abs(a - 1 / 3) > 1e-6).any())
        for play in plays:
            play.update(path)
    assert changed


@pytest.mark.parametrize("covariance", ["averaged", "mgr"])
def test_an_epoch_is_what_its_formulas_say(covariance):
    """Oracle: loops over runs, steps and episodes, with solves instead of inverses."""
    learner = SimulatorFree(epoch=12, cover=2, covariance=covariance, explore=0.7, gamma=0.05, bonus=3.0)
    play = learner.start(MDP, 40, [0, 1])
    steps, actions, d, s = MDP.horizon, MDP.actions, MDP.dimension, MDP.states
    phi = MDP.features
    gram, led = np.zeros((2, steps, d, d)), np.zeros((2, steps, d, s))
    epoch, begins = [], []
    for number, path in enumerate(paths(14)):
        if number >= 2:
            epoch.append(path)
            begins.append(play._from.copy())
        for n in range(2):
            for h in range(steps):
                x = phi[h, path.states[n, h], path.actions[n, h]]
                gram[n, h] += np.outer(x, x)
                if h + 1 < steps:
                    led[n, h, :, path.states[n, h + 1]] += x
        play.update(path)
    want = np.zeros((2, *MDP.shape))
    pi = np.full((steps, s, actions), 1 / actions)
    for n in range(2):
        dilated = np.zeros((steps, s, actions))
        for h in range(steps - 1, -1, -1):
            use = [w for w in range(12) if begins[w][n] <= h]
            rows = {w: phi[h, epoch[w].states[n, h], epoch[w].actions[n, h]] for w in use}
            first, second = ([w for w in use if w % 2 == half] for half in (0, 1))
            seen = np.array([rows[w] for w in first])
            inverse = np.linalg.inv(sum(np.outer(x, x) for x in seen) / len(seen) + 0.05 * np.eye(d))
            if covariance == "mgr":
                inverse = resampled_inverse(seen, 0.05)
            moment = sum(rows[w] * epoch[w].losses[n, h:].sum() for w in second) / len(second)
            squares = np.einsum("sad,de,sae->sa", phi[h], inverse, phi[h])
            bonus = play.tuning.beta * (squares + (pi[h] * squares).sum(1, keepdims=True))
            dilated[h] = bonus
            if h + 1 < steps:
                after = (pi[h + 1] * dilated[h + 1]).sum(1)
                w = np.linalg.solve(np.eye(d) + gram[n, h], led[n, h] @ after)
                dilated[h] += (1 + 1 / steps) * np.clip(phi[h] @ w, 0, after.max())
            want[n, h] = phi[h] @ inverse @ moment - dilated[h]
    np.testing.assert_allclose(play._sums, want, rtol=1e-9, atol=1e-9)


def test_returns_are_those_of_the_epochs_policy():
    """From the exploring step on every step is played with it; before, and at it, with a kept one; else with it throughout."""
    play = SimulatorFree(epoch=600, cover=5, explore=0.4).start(MDP, 700, range(8))
    rng = np.random.default_rng(0)
    for path in paths(5, runs=8):
        play.update(path)
    play._policy = rng.dirichlet(np.ones(3), size=play._policy.shape[:-1])
    explored = np.zeros(MDP.horizon)
    for path in paths(500, runs=8, seed=1):
        play.update(path)
        drawn = play.policies()
        for n in range(8):
            own = [(drawn[n, h] == play._policy[n, h]).all() for h in range(MDP.horizon)]
            start = play._from[n]
            assert all(own[start + 1 :])
            if not own[start]:
                assert not any(own[: start + 1])
                kept = drawn[n, : start + 1].argmax(-1)
                assert any((kept == play._kept[i, n, : start + 1]).all() for i in range(5))
                explored[start] += 1
    np.testing.assert_allclose(explored / 4000, 0.4 / 3, atol=4 * np.sqrt(0.13 * 0.87 / 4000))


def test_the_estimates_have_the_mean_that_is_meant():
    """Oracle: exact action values of the uniform policy, where the regulariser is nearly nothing."""
    play = SimulatorFree(epoch=400, cover=20, explore=0.3, gamma=1e-6, bonus=0.0).start(MDP, 1000, range(64))
    dice = Dice(range(64), 2 * MDP.horizon)
    for _ in range(420):
        play.update(roll_out(MDP, play.policies(), TABLE, dice.roll()))
    want = action_values(MDP, np.full(MDP.shape, 1 / 3), TABLE)
    error = play._sums.std(0) / np.sqrt(64)
    visited = np.ones(MDP.shape, bool)
    visited[0, 1:] = False  # no episode begins there, and the features of where it begins do not span the others
    assert (np.abs(play._sums.mean(0) - want) < 4.5 * error + 1e-3)[visited].all()
    assert error[visited].max() < 0.1


def test_next_values_are_learnt_from_transitions():
    play = SimulatorFree(epoch=10, cover=1500).start(MDP, 2000, range(4))
    dice = Dice(range(4), 2 * MDP.horizon)
    for _ in range(1500):
        play.update(roll_out(MDP, np.full((4, *MDP.shape), 1 / 3), TABLE, dice.roll()))
    values = np.random.default_rng(1).random(3)
    found = play._next_values(0, np.tile(values, (4, 1)))
    visited = found[:, 0]  # step 0 is always in state 0
    np.testing.assert_allclose(visited, np.broadcast_to(MDP.transitions[0, 0] @ values, (4, 3)), atol=0.05)


def test_the_cover_goes_where_blind_play_does_not():
    """A lock of 6 steps: one action of four opens each, the others lead back for good. Blind play is through once in 1,024 episodes."""
    steps, actions = 6, 4
    moves = np.zeros((2, actions, 2))
    moves[:, :, 1] = 1
    moves[0, 2] = [1, 0]
    lock = LinearMDP(np.broadcast_to(moves, (steps, 2, actions, 2)), np.array([1.0, 0]))
    play = SimulatorFree(epoch=10, cover=200).start(lock, 1000, range(3))
    dice, through = Dice(range(3), 2 * steps), np.zeros(3)
    for _ in range(199):
        path = roll_out(lock, play.policies(), np.zeros(lock.shape), dice.roll())
        through += path.states[:, -1] == 0
        play.update(path)
    assert (through > 8).all()


def test_its_regret_lies_below_that_of_uniform_play():
    mdp = random_linear_mdp(4, 4, 2, 6, seed=1)
    losses = constrained_switching(mdp, seed=1)
    found = run(mdp, losses, SimulatorFree(), 6000, range(6)).regret[:, -1]
    uniform = run(mdp, losses, Uniform(), 6000, [0]).regret[0, -1]
    assert t_interval(found).high < 0.9 * uniform


def test_a_bad_loss_changes_nothing():
    plays = [SimulatorFree(epoch=4, cover=2).start(MDP, 20, [0]) for _ in range(2)]
    for path in paths(10, runs=1):
        with pytest.raises(LegatoValueError, match=r"losses at \(run, step\) = \(0, 1\)"):
            plays[0].update(replace(path, losses=np.array([[0.5, np.nan, 0.1]])))
        for play in plays:
            play.update(path)
        np.testing.assert_array_equal(plays[0].policies(), plays[1].policies())


def test_a_run_does_not_depend_on_those_beside_it():
    alone, beside = (
        run(MDP, Constant(TABLE), SimulatorFree(epoch=20, cover=10), 120, seeds) for seeds in ([7], [3, 7])
    )
    np.testing.assert_allclose(beside.values[1], alone.values[0], rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regulariser": "entropi"}, "regulariser: .* Did you mean 'entropy'"),
        ({"covariance": "exact"}, "covariance: expected one of averaged, mgr"),
        ({"epoch": 1}, "epoch: expected a whole number >= 2; got 1"),
        ({"cover": 0}, "cover: expected"),
        ({"explore": 0}, r"explore: expected a share in \(0, 1\]"),
        ({"explore": 1.1}, "explore: expected"),
        ({"rate": 0}, "rate: expected a finite number > 0"),
        ({"gamma": np.inf}, "gamma: expected"),
        ({"bonus": -1}, "bonus: expected a finite number >= 0"),
        ({"bonus": np.nan}, "bonus: expected"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(LegatoValueError, match=message):
        SimulatorFree(**options)
