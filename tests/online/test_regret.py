"""Oracles of playing and counting: regret spelled out episode by episode, constant losses, known slopes, phases."""

import itertools

import numpy as np
import pytest

from legato.errors import LegatoValueError
from legato.online.adversaries import Constant, Sinusoid, Switching, Tables, constrained_switching, linear_losses
from legato.online.baselines import BestResponse, Exp3, Hedge, Uniform
from legato.online.learners import log_barrier, magnitude_reduced
from legato.online.mdp import best_policy, deterministic, occupancies, policy_values, random_linear_mdp
from legato.online.paths import Dice, roll_out
from legato.online.regret import band, best_each_episode, last_slope, report, run, slope

MDP = random_linear_mdp(3, 2, 2, 4, seed=1)
ADVERSARY = constrained_switching(MDP, seed=2)


def test_regret_is_what_it_is_called():
    """Values, losses and the comparator of each moment, by playing along and trying all 2^6 policies."""
    got = run(MDP, ADVERSARY, log_barrier(), 25, [0, 1], points=range(1, 26))
    play, dice, total, value, loss = log_barrier().start(MDP, 25, [0, 1]), Dice([0, 1], 4), 0.0, 0.0, 0.0
    every = [deterministic(np.reshape(c, (2, 3)), 2) for c in itertools.product(range(2), repeat=6)]
    for k in range(25):
        table = ADVERSARY.losses(k)
        path = roll_out(MDP, play.policies(), table, dice.roll())
        total, value, loss = (
            total + table,
            value + policy_values(MDP, play.policies(), table),
            loss + path.losses.sum(1),
        )
        play.update(path)
        best = policy_values(MDP, np.stack(every), total).min()
        np.testing.assert_allclose(got.values[:, k], value, rtol=1e-12)
        np.testing.assert_allclose(got.losses[:, k], loss, rtol=1e-12)
        assert got.best[k] == pytest.approx(best, rel=1e-12)
        np.testing.assert_allclose(got.regret[:, k], value - best, atol=1e-10)
    np.testing.assert_allclose(got.policies, play.policies())


def test_the_regret_of_uniform_play_is_linear_when_losses_are_constant():
    losses = linear_losses(MDP, count=1)[0]
    got = run(MDP, Constant(losses), Uniform(), 100, points=[10, 50])
    gap = float(policy_values(MDP, np.full(MDP.shape, 0.5), losses)) - best_policy(MDP, losses)[0]
    np.testing.assert_allclose(got.regret[0], gap * np.array([10, 50, 100]), rtol=1e-11)
    assert slope(got.at, got.regret).value == pytest.approx(1)


def test_the_losses_on_the_paths_average_to_the_values():
    got = run(MDP, Constant(linear_losses(MDP, count=1)[0]), Uniform(), 1000, range(8))
    assert got.losses[:, -1].mean() == pytest.approx(got.values[:, -1].mean(), rel=0.02)


def test_paths_follow_the_dynamics():
    policies = np.random.default_rng(0).dirichlet([1, 1], size=(1, 2, 3)).repeat(30_000, 0)
    path = roll_out(MDP, policies, np.zeros(MDP.shape), np.random.default_rng(1).random((30_000, 4)))
    q = np.zeros(MDP.shape)
    np.add.at(q, (np.arange(2), path.states, path.actions), 1 / 30_000)
    np.testing.assert_allclose(q, occupancies(MDP, policies[0]), atol=4 * 0.5 / 173)


def test_phases_add_up_and_their_own_best_policy_is_no_worse():
    got = run(MDP, ADVERSARY, magnitude_reduced(), 120, [0, 1, 2])
    assert [p.start for p in got.phases] == [0, *ADVERSARY.phases(120)]
    assert got.phases[-1].stop == 120
    np.testing.assert_allclose(sum(p.static for p in got.phases), got.regret[:, -1], atol=1e-10)
    paid = np.diff(got.values[:, np.isin(got.at, [p.stop for p in got.phases])], prepend=0)
    for number, phase in enumerate(got.phases):
        losses = sum(ADVERSARY.losses(k) for k in range(phase.start, phase.stop))
        np.testing.assert_allclose(phase.regret, paid[:, number] - best_policy(MDP, losses)[0], atol=1e-10)
        assert (phase.regret >= phase.static - 1e-10).all()


def test_without_phases_there_are_ten_parts():
    low, high = linear_losses(MDP)
    got = run(MDP, Sinusoid(low, high, period=20), Uniform(), 55)
    assert len(got.phases) == 10
    assert (got.phases[0].start, got.phases[-1].stop) == (0, 55)
    assert len(run(MDP, Switching([low, high], growth=1, length=1), Uniform(), 200).phases) == 10
    assert len(run(MDP, Sinusoid(low, high, period=20), Uniform(), 1).phases) == 1


def test_hedge_stays_below_its_bound():
    rng = np.random.default_rng(0)
    tables = rng.integers(0, 2, size=(400, *MDP.shape)).astype(float)
    got = run(MDP, Tables(tables), Hedge(), 400)
    assert 0 < got.regret[0, -1] <= got.tuning.bound


def test_a_perfect_forecast_is_no_worse_than_any_fixed_policy():
    each = best_each_episode(MDP, ADVERSARY, 60)
    got = run(MDP, ADVERSARY, BestResponse(1), 60)
    assert each.sum() <= got.best[-1] + 1e-12
    assert each[7] == pytest.approx(best_policy(MDP, ADVERSARY.losses(7))[0])


def test_learning_pays():
    """At 1,000 episodes every learner is well below uniform play, full information lowest."""
    mdp = random_linear_mdp(4, 4, 1, 6, seed=1)
    adversary = constrained_switching(mdp, seed=2)
    final = {
        type(learner).__name__ + getattr(learner, "algorithm", ""): run(mdp, adversary, learner, 1000, range(2)).regret[
            :, -1
        ]
        for learner in (Uniform(), Hedge(), log_barrier(), magnitude_reduced(), Exp3())
    }
    uniform, hedge = final.pop("Uniform").mean(), final.pop("Hedge").mean()
    for regret in final.values():
        assert hedge < regret.mean() < 0.85 * uniform


def test_memory_does_not_grow_with_the_episodes():
    short, long = (run(MDP, ADVERSARY, Uniform(), k) for k in (200, 1500))
    assert len(long.at) <= len(short.at) + 30
    assert all(getattr(long, name).shape[1] == len(long.at) for name in ("losses", "values"))


def test_slopes_of_powers():
    at = np.geomspace(10, 1e5, 20)
    found = slope(at, np.stack([3 * at**0.5, 5 * at**0.5]))
    for value in (found.value, found.low, found.high):
        assert value == pytest.approx(0.5)
    mixed = slope(at, np.stack([at**0.5, at]))
    assert mixed.low == pytest.approx(0.5)
    assert mixed.high == pytest.approx(1)
    assert f"{mixed:.1f}".endswith("[0.5, 1.0]")


def test_a_band_is_a_bootstrap_over_the_runs():
    """Of two runs at 0 and 1 the mean is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4; of many, the band is that of the normal law."""
    mean, low, high = band(np.array([[0.0], [1.0]]))
    assert (mean[0], low[0], high[0]) == (0.5, 0, 1)
    many = np.random.default_rng(0).normal(size=(400, 1))
    mean, low, high = band(many)
    half = 1.96 * many.std() / 20
    assert (high[0] - mean[0]) == pytest.approx(half, rel=0.1)
    assert (mean[0] - low[0]) == pytest.approx(half, rel=0.1)


def test_the_report_says_what_happened():
    lines = []
    got = run(MDP, ADVERSARY, log_barrier(preset="theory"), 60, [0, 1], log=lines.append)
    assert "log-barrier, 60 episodes: preset theory" in lines[0]
    text = report(got)
    assert text == str(got)
    assert "60 episodes, 2 runs" in text
    assert "vacuous: no regret passes 120" in text
    assert "episodes 16 to 41: regret" in text
    assert last_slope(run(MDP, Constant(np.full(MDP.shape, 0.5)), Uniform(), 50)) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: run(MDP, ADVERSARY, Uniform(), 0), "episodes: expected a whole number >= 1; got 0"),
        (lambda: run(MDP, ADVERSARY, Uniform(), 5, []), "seeds: expected at least one"),
        (lambda: run(MDP, ADVERSARY, Uniform(), 5, points=[6]), r"points: expected numbers of episodes in 1 \.\. 5"),
        (lambda: run(MDP, Constant(np.full(MDP.shape, 2.0)), Uniform(), 5), r"losses of episode 0 at \(h, s, a\) = \(0, 0, 0\)"),
        (lambda: slope([1, 2], np.array([[1.0, -1.0]])), "curves: expected a mean regret > 0"),
        (lambda: slope([1, 1], np.array([[1.0, 1.0]])), "at: expected 2 numbers"),
        (lambda: band(np.zeros(3)), r"curves: expected shape \[N, C\]"),
    ],
)  # fmt: skip
def test_bad_calls(make, message):
    with pytest.raises(LegatoValueError, match=message):
        make()
