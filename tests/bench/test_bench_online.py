"""The room online: the loops that it is measured against compute the same, and every case runs."""

import numpy as np
import pytest

from legato.bench import online
from legato.bench.memory import traced_peak_bytes
from legato.bench.online_peers import PlainLearner, newton, river_rounds, softmax
from legato.bench.row import Row
from legato.bench.timing import Interval, Timing
from legato.online import FTRL, random_linear_mdp
from legato.online.learners import log_barrier, magnitude_reduced
from legato.online.mdp import occupancies
from legato.online.paths import Path
from legato.online.simplex import entropy_step, log_barrier_step


def test_the_plain_steps_are_ours():
    losses = 5 * np.random.default_rng(0).normal(size=(40, 6))
    np.testing.assert_allclose(newton(losses, 0.7), log_barrier_step(losses, 0.7), rtol=1e-8)
    np.testing.assert_allclose(softmax(losses, 0.7), entropy_step(losses, 0.7), rtol=1e-12)


@pytest.mark.parametrize("draws", [0, 7])
def test_the_plain_loop_is_our_learner_on_the_same_paths_and_draws(draws, monkeypatch):
    mdp, rng = random_linear_mdp(5, 3, 4, 4, seed=2), np.random.default_rng(3)
    learner = magnitude_reduced(reduction_samples=draws) if draws else log_barrier()
    play = learner.start(mdp, 50, [0])
    plain = PlainLearner(mdp, learner.tuning(mdp, 50), 0, draws)
    for _ in range(20):
        losses = rng.random(mdp.shape)
        pairs = rng.integers(15, size=(4, 1, max(draws, 1)))
        states, actions = rng.integers(5, size=4), rng.integers(3, size=4)
        states[0] = 0
        monkeypatch.setattr(play, "_drawn", lambda q, dice, pairs=pairs: pairs)
        path = list(zip(states, actions, strict=True))
        monkeypatch.setattr(plain, "path", lambda policy, path=path: path)
        left = iter(pairs[:, 0])
        plain.rng = type("Draws", (), {"choice": lambda self, count, size, p, left=left: next(left)})()
        play.update(Path(states[None], actions[None], losses[range(4), states, actions][None]))
        plain.episode(losses)
        np.testing.assert_allclose(play._sums[:, 0], plain.sums, rtol=1e-7, atol=1e-9)


def test_the_plain_loop_plays_its_policy():
    """The mean of its paths is the occupancy."""
    mdp = random_linear_mdp(3, 2, 2, 3, seed=1)
    plain = PlainLearner(mdp, log_barrier().tuning(mdp, 10), 0)
    policy = np.random.default_rng(4).dirichlet(np.ones(2), size=(2, 3))
    count = np.zeros(mdp.shape)
    for _ in range(3000):
        for h, (s, a) in enumerate(plain.path(policy)):
            count[h, s, a] += 1 / 3000
    np.testing.assert_allclose(count, occupancies(mdp, policy), atol=0.04)


def test_a_small_benchmark_measures_every_case():
    small = (2, 3, 2, 3)
    cases = [*online.step_cases((30, 4)), *online.episode_cases(small, small), *online.bandit_cases(20)]
    rows = [case.measure(0.01) for case in cases]
    assert [(row.part, row.peer) for row in rows] == [(case.part, case.peer) for case in cases]
    assert all(row.timing.milliseconds > 0 and row.peak_mib > 0 for row in rows)
    assert [row.work for row in rows if row.rate_bar] == [64, 32, 32, 32]


def test_a_rate_is_a_bar_too():
    timing = Timing(*[Interval(1.0, 0.9, 1.1)] * 2, milliseconds=20.0, peer_milliseconds=20.0, pairs=6)
    row = Row("part", "peer", (1,), timing, 1.0, 1.0, work=16, rate_bar=800)
    assert row.per_second == pytest.approx(800)
    assert row.met
    assert not Row("part", "peer", (1,), timing, 1.0, 1.0, work=16, rate_bar=801).met
    assert not Row("part", "peer", (1,), timing, 1.0, 1.0, bar=0.5, work=16, rate_bar=800).met
    assert Row("part", "peer", (1,), timing, 1.0, 1.0).met is None


def test_memory_of_numpy_is_what_lives_at_once():
    assert traced_peak_bytes(lambda: [np.empty(2**17) for _ in range(3)] and None) == pytest.approx(3 * 2**20, rel=0.01)


def test_our_learner_outlives_rivers():
    """Rewards of 1 and 0 with gamma 1/2; ours with the same rate, ten times as long."""
    pytest.importorskip("river")
    learner = FTRL("entropy", 2, 0.25, names=["a", "b"])
    for _ in range(30_000):
        arm = learner.sample()
        learner.update(arm, float(arm == "b") - 1)
    assert np.isfinite(learner.probs()).all()
    assert river_rounds(100) == 100
    assert river_rounds(10_000) < 3000
