"""Oracles of the learners: the algorithms spelled out with loops, the bandit that they are in the simplest case, and unbiasedness."""

import math
import warnings

import numpy as np
import pytest

from legato.errors import LegatoValueError, LegatoWarning
from legato.online.adversaries import constrained_switching
from legato.online.barrier import WarmBarrier
from legato.online.baselines import BestResponse, Doubling, Exp3, Hedge, Uniform
from legato.online.learners import DilatedFTRL, frequencies, log_barrier, luo, magnitude_reduced
from legato.online.mdp import LinearMDP, action_values, best_policy, deterministic, occupancies, random_linear_mdp
from legato.online.paths import Dice, Path, roll_out
from legato.online.simplex import entropy_step, log_barrier_step
from legato.online.spans import Dense, OneHot, drawn_pairs, negative_means, sampled_negative_means
from legato.online.tuning import log_barrier_rates, luo_rates, magnitude_reduced_rates

MDP = random_linear_mdp(4, 3, 3, 5, seed=2)
ALL = {
    "log-barrier": log_barrier(), "magnitude-reduced": magnitude_reduced(), "luo": luo(),
    "averaged": log_barrier(covariance="averaged", samples=50), "mgr": log_barrier(covariance="mgr", samples=50),
    "sampled reduction": magnitude_reduced(reduction_samples=20), "theory": log_barrier(preset="theory"),
    "hedge": Hedge(), "exp3": Exp3(), "uniform": Uniform(), "yesterday": BestResponse(1), "leader": BestResponse(None),
    "doubling": Doubling(magnitude_reduced(), first=4),
}  # fmt: skip


@pytest.fixture(params=ALL, ids=ALL)
def learner(request):
    return ALL[request.param]


def played(learner, mdp=MDP, episodes=12, seeds=(0, 1, 2), losses=None):
    play = learner.start(mdp, episodes, seeds)
    adversary, dice = constrained_switching(mdp, seed=1), Dice(seeds, 2 * mdp.horizon)
    for k in range(episodes):
        table = adversary.losses(k) if losses is None else losses
        path = roll_out(mdp, play.policies(), table, dice.roll())
        play.update(path, table if play.feedback == "full" else None)
    return play


def test_policies_are_probabilities(learner):
    policies = played(learner).policies()
    assert policies.shape == (3, *MDP.shape)
    assert (policies >= 0).all()
    np.testing.assert_allclose(policies.sum(-1), 1, rtol=1e-12)


def test_a_run_does_not_depend_on_those_beside_it(learner):
    together = played(learner, episodes=11, seeds=(5, 6, 7)).policies()
    for n, seed in enumerate((5, 6, 7)):
        np.testing.assert_allclose(played(learner, episodes=11, seeds=(seed,)).policies()[0], together[n], rtol=1e-7)
    if learner.name not in ("hedge", "uniform", "follow-yesterday", "follow-the-leader"):
        assert not np.allclose(together[0], together[1])


def test_occupancies_are_those_of_the_policies(learner):
    play = played(learner)
    np.testing.assert_allclose(play.occupancy(), occupancies(MDP, play.policies()), rtol=1e-13)


def test_one_action_is_always_taken(learner):
    mdp = random_linear_mdp(3, 1, 2, 2, seed=0)
    np.testing.assert_allclose(played(learner, mdp).policies(), 1, rtol=1e-12)


def test_more_features_than_pairs_and_states_that_are_never_reached(learner):
    mdp = random_linear_mdp(2, 2, 2, 11, seed=0)
    moves = np.zeros((2, 2, 2, 2))
    moves[..., 0] = 1  # state 1 is never reached
    assert np.isfinite(played(learner, LinearMDP(moves, np.eye(2)[0], mdp.features)).policies()).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5, 1.5])
def test_a_bad_loss_changes_nothing(learner, value):
    if learner.name == "uniform":
        pytest.skip("it does not look at losses")
    play = played(learner, episodes=6)
    before = np.array(play.policies())
    losses = np.full((3, 3), 0.5)
    losses[1, 2] = value
    table = np.full(MDP.shape, 0.5)
    table[1, 2, 0] = value
    path = Path(np.zeros((3, 3), dtype=int), np.zeros((3, 3), dtype=int), losses)
    where = r"\(h, s, a\) = \(1, 2, 0\)" if play.feedback == "full" else r"\(run, step\) = \(1, 2\)"
    with pytest.raises(LegatoValueError, match=where):
        play.update(path, table if play.feedback == "full" else None)
    np.testing.assert_array_equal(play.policies(), before)


def spelled_out(mdp, algorithm, tuning, path, policy, sums):
    """One update of one run as the paper's formulas say, state by state."""
    horizon, states, actions = mdp.shape
    q, to_go = occupancies(mdp, policy), path.losses[0, ::-1].cumsum()[::-1]
    phi, eye = mdp.features, np.eye(mdp.dimension)
    inverse = [
        np.linalg.inv(tuning.gamma * eye + sum(q[h, s, a] * np.outer(phi[h, s, a], phi[h, s, a]) for s, a in np.ndindex(states, actions)))
        for h in range(horizon)
    ]  # fmt: skip
    estimate, bonus = np.zeros(mdp.shape), np.zeros(mdp.shape)
    for h, s, a in np.ndindex(mdp.shape):
        left, played = phi[h, s, a] @ inverse[h], phi[h, path.states[0, h], path.actions[0, h]]
        estimate[h, s, a] = (left @ played) * to_go[h]
        if algorithm == "magnitude-reduced":
            mean = sum(q[h, t, b] * min(0, left @ phi[h, t, b]) for t, b in np.ndindex(states, actions))
            estimate[h, s, a] += (horizon - h) * (mean - min(0, left @ played))
        squares = [phi[h, s, b] @ inverse[h] @ phi[h, s, b] for b in range(actions)]
        bonus[h, s, a] = tuning.beta * (squares[a] + policy[h, s] @ squares)
    dilated = bonus.copy()
    for h in range(horizon - 2, -1, -1):
        for s, a in np.ndindex(states, actions):
            after = (policy[h + 1] * dilated[h + 1]).sum(1)
            dilated[h, s, a] += (1 + 1 / horizon) * mdp.transitions[h, s, a] @ after
    return sums + estimate - dilated


@pytest.mark.parametrize("make", [log_barrier, magnitude_reduced, luo])
def test_an_algorithm_is_what_its_formulas_say(make):
    play = make(beta=0.05).start(MDP, 30, [3])
    step = log_barrier_step if make is log_barrier else entropy_step
    rng, sums = np.random.default_rng(0), np.zeros(MDP.shape)
    for _ in range(6):
        policy = step(sums, play.tuning.eta)
        np.testing.assert_allclose(play.policies()[0], policy, rtol=1e-10)
        path = roll_out(MDP, play.policies(), rng.random(MDP.shape), rng.random((1, 6)))
        sums = spelled_out(MDP, play.learner.algorithm, play.tuning, path, policy, sums)
        play.update(path)


def test_it_is_the_log_barrier_bandit_with_implicit_exploration():
    """One state, one step, one-hot features and no bonus: cumulative loss 1{a} l / (pi(a) + gamma), and the barrier's step."""
    mdp = LinearMDP(np.ones((1, 1, 4, 1)), np.ones(1))
    play = log_barrier(rate=1.0, beta=0.0).start(mdp, 200, [0])  # larger rates amplify rounding
    rng, sums = np.random.default_rng(1), np.zeros(4)
    for _ in range(200):
        probs = log_barrier_step(sums, play.tuning.eta)
        np.testing.assert_allclose(play.policies()[0, 0, 0], probs, rtol=1e-9)
        path = roll_out(mdp, play.policies(), rng.random((1, 1, 4)), rng.random((1, 2)))
        arm = path.actions[0, 0]
        sums[arm] += path.losses[0, 0] / (probs[arm] + play.tuning.gamma)
        play.update(path)


def exact_mean(mdp, play, losses):
    """E of the estimate of one run over all of its paths (first step)."""
    policy, mean, second = play.policies()[0], 0.0, 0.0
    q = action_values(mdp, policy, losses)
    weight = occupancies(mdp, policy)[0]
    for s, a in np.ndindex(mdp.states, mdp.actions):
        # the return enters linearly, so its conditional mean does for the first moment
        path = Path(np.array([[s]]), np.array([[a]]), q[None, 0, s, a][None])
        estimate = play.estimate(path)[0][0, 0]
        mean, second = mean + weight[s, a] * estimate, second + weight[s, a] * estimate**2
    return mean, second


@pytest.mark.parametrize("make", [log_barrier, magnitude_reduced])
def test_the_estimates_have_the_bias_that_is_derived(make):
    """Q - E Qhat = gamma phi^T (gamma I + Sigma)^-1 theta for both; second moments at most 1 and 2 times H^2 ||phi||^2."""
    mdp = random_linear_mdp(5, 3, 1, 4, seed=4)
    theta = np.random.default_rng(0).random(4)
    losses = (mdp.features @ theta).reshape(mdp.shape)
    play = make(gamma=0.02).start(mdp, 100, [0])
    q = play.occupancy()[0].reshape(1, 1, -1)
    inverse = Dense(mdp).inverse(Dense(mdp).covariance(q), 0.02)
    mean, second = exact_mean(mdp, play, losses)
    np.testing.assert_allclose(losses[0] - mean, 0.02 * mdp.features[0] @ inverse[0, 0] @ theta, atol=1e-13)
    squares = Dense(mdp).squares(inverse).reshape(5, 3)
    assert (second <= (1 if make is log_barrier else 2) * squares + 1e-12).all()


def test_magnitude_reduction_reduces_magnitudes():
    """Never below -H / sqrt(gamma); plain estimates go far lower."""
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(1, 6, 3, 4))
    phi /= np.linalg.norm(phi, axis=-1, keepdims=True)
    mdp = LinearMDP(np.ones((1, 6, 3, 6)) / 6, rng.dirichlet(np.full(6, 0.2)), phi)
    low = {}
    for make in (log_barrier, magnitude_reduced):
        play = make(gamma=1e-4).start(mdp, 100, [0])
        paths = [Path(np.array([[s]]), np.array([[a]]), np.ones((1, 1))) for s, a in np.ndindex(6, 3)]
        low[make] = min(play.estimate(path)[0].min() for path in paths)
    assert low[magnitude_reduced] >= -100
    assert low[log_barrier] < 3 * low[magnitude_reduced] < 0


def test_one_hot_features_leave_nothing_to_reduce():
    """Plain, magnitude-reduced and written-out one-hot features all give the same estimates, in diagonal and in full form."""
    bare = LinearMDP(MDP.transitions, MDP.initial)
    full = LinearMDP(MDP.transitions, MDP.initial, np.broadcast_to(np.eye(12).reshape(4, 3, 12), (3, 4, 3, 12)))
    path = roll_out(
        MDP,
        np.full((2, *MDP.shape), 1 / 3),
        np.random.default_rng(0).random(MDP.shape),
        np.random.default_rng(1).random((2, 6)),
    )
    want = log_barrier(gamma=0.1).start(bare, 50, [0, 1]).estimate(path)
    for mdp, make in ((bare, magnitude_reduced), (full, log_barrier), (full, magnitude_reduced)):
        got = make(gamma=0.1).start(mdp, 50, [0, 1]).estimate(path)
        for one, other in zip(got, want, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def test_without_the_table_of_products_the_geometry_is_the_same(monkeypatch):
    q = np.random.default_rng(0).dirichlet(np.ones(12), size=(3, 2))
    tabled = Dense(MDP)
    monkeypatch.setattr("legato.online.spans.PACKED_LIMIT", 0)
    plain = Dense(MDP)
    assert plain._packed is None
    np.testing.assert_allclose(plain.covariance(q), tabled.covariance(q), rtol=1e-13)
    inverse = plain.inverse(plain.covariance(q), 0.1)
    np.testing.assert_allclose(plain.squares(inverse), tabled.squares(inverse), rtol=1e-12)


def test_without_a_regulariser_a_singular_covariance_is_refused():
    q = np.zeros((3, 1, 12))
    q[..., 0] = 1
    with pytest.raises(LegatoValueError, match=r"gamma: expected > 0, for Sigma has rank 1 < 5"):
        Dense(MDP).inverse(Dense(MDP).covariance(q), 0)
    with pytest.raises(LegatoValueError, match=r"gamma: expected > 0, for Sigma has rank 1 < 12"):
        OneHot(MDP).inverse(q, 0)


def test_drawn_pairs_follow_the_occupancies_and_means_over_them_the_exact_ones():
    play = played(magnitude_reduced(), seeds=(0, 1))
    q = play.occupancy().swapaxes(0, 1).reshape(3, 2, 12)
    pairs = drawn_pairs(q, np.random.default_rng(0).random((2, 3, 10_000)))
    np.testing.assert_allclose(frequencies(pairs, 12), q, atol=4 * 0.5 / 100)
    assert (frequencies(pairs, 12)[q == 0] == 0).all()
    inverse = Dense(MDP).inverse(Dense(MDP).covariance(q), 0.01)
    exact, sampled = negative_means(MDP, inverse, q), sampled_negative_means(MDP, inverse, pairs)
    np.testing.assert_allclose(sampled, exact, atol=0.06 * np.abs(exact).max())


def test_what_is_never_played_is_never_drawn():
    q = np.array([[[0.0, 0.5, 0.0, 0.5]], [[0.0, 0.0, 1.0, 0.0]]])
    pairs = drawn_pairs(q, np.array([[[0.0, 0.5], [0.0, 0.999]]]))
    np.testing.assert_array_equal(pairs, [[[1, 3]], [[2, 2]]])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4, 1e12])
def test_a_warm_start_ends_where_a_cold_one_does(scale):
    rng, warm = np.random.default_rng(0), WarmBarrier((7,), 9)
    for _ in range(8):
        losses = scale * rng.normal(size=(7, 9))
        got = warm(losses, 0.7)
        np.testing.assert_allclose(got, log_barrier_step(losses, 0.7), rtol=1e-12)
        assert (got > 0).all()


def test_hedge_is_softmax_of_summed_action_values():
    losses = np.random.default_rng(0).random((5, *MDP.shape))
    play = Hedge().start(MDP, 5, [0])
    sums, eta = np.zeros(MDP.shape), math.sqrt(8 * math.log(3) / 5)
    for table in losses:
        policy = entropy_step(sums, eta)
        np.testing.assert_allclose(play.policies()[0], policy, rtol=1e-12)
        sums += action_values(MDP, policy, table) / np.array([3, 2, 1])[:, None, None]
        play.update(None, table)
    with pytest.raises(LegatoValueError, match="losses: expected the table of all losses"):
        play.update(None)


@pytest.mark.parametrize("window", [1, 3, None])
def test_a_best_response_plans_on_the_mean_of_its_window(window):
    losses = np.random.default_rng(0).random((6, *MDP.shape))
    play = BestResponse(window).start(MDP, 6, [0])
    for k, table in enumerate(losses):
        if k:
            mean = losses[max(0, k - window) if window else 0 : k].mean(0)
            np.testing.assert_array_equal(play.policies()[0], deterministic(best_policy(MDP, mean)[1], 3))
        play.update(None, table)


def test_exp3_learns_in_the_states_of_the_path_alone():
    play = Exp3().start(MDP, 10, [0])
    path = Path(np.array([[0, 2, 1]]), np.array([[1, 0, 2]]), np.array([[0.2, 0.4, 0.6]]))
    eta = 10 * math.sqrt(2 * math.log(3) / 30)
    play.update(path)
    for h, (s, a, to_go) in enumerate([(0, 1, 1.2 / 3), (2, 0, 1.0 / 2), (1, 2, 0.6)]):
        sums = np.zeros(3)
        sums[a] = to_go / (1 / 3 + eta / 20)
        np.testing.assert_allclose(play.policies()[0, h, s], entropy_step(sums, eta), rtol=1e-12)
    changed = np.abs(play.policies()[0] - 1 / 3).max(-1) > 1e-12
    assert changed.sum() == 3


def test_doubling_starts_anew():
    play = Doubling(log_barrier(), first=2).start(MDP, 100, [0])
    fresh = []
    for _ in range(14):
        fresh.append(bool(np.allclose(play.policies(), 1 / 3)))
        play.update(roll_out(MDP, play.policies(), np.full(MDP.shape, 0.9), np.random.default_rng(0).random((1, 6))))
    assert [k for k, new in enumerate(fresh) if new] == [0, 2, 6]


def test_running_on_warns():
    with pytest.warns(LegatoWarning, match="more than the 3 episodes"):
        play = played(log_barrier(), episodes=3)
        play.update(Path(np.zeros((3, 3), int), np.zeros((3, 3), int), np.zeros((3, 3))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        played(log_barrier(), episodes=3)


def test_the_rates_of_theory_satisfy_each_inequality_of_the_derivation():
    """With the exact covariance; h, A, d, K as in the notes' example, whose bound is 9e5 against 3e4 episodes times steps."""
    h, a, d, k = 3, 4, 10, 10_000
    for rates, diameter, moment in ((log_barrier_rates, a * math.log(k), 1), (magnitude_reduced_rates, math.log(a), 2)):
        t = rates(h, a, d, k, preset="theory", rate=1.0)
        largest = 2 * math.e * h * t.beta / t.gamma
        assert 2 * moment * t.eta * h**2 + t.beta / 4 <= t.beta
        assert 2 * t.eta * largest <= 1 / h
        if moment == 2:
            assert t.eta * (h / math.sqrt(t.gamma) + largest) <= 1
        terms = h * diameter / t.eta + 2 * h * k * t.gamma * d * h**2 / t.beta + 6 * t.beta * d * h * k
        assert terms <= t.bound * (1 + 1e-12)
        assert t.vacuous
    assert log_barrier_rates(h, a, d, k, preset="theory", rate=1.0).bound == pytest.approx(8.8e5, rel=0.01)


def test_the_rates_of_luo_satisfy_theirs():
    for k, proved in ((100, False), (10**9, True)):
        h, a, d = 2, 4, 10
        t = luo_rates(h, a, d, k, preset="theory", rate=1.0)
        largest = 2 * math.e * h * t.beta / t.gamma
        conditions = [
            2 * t.eta * h**2 + t.beta / 4 <= t.beta, 2 * t.eta * largest <= 1 / h, t.eta * (h / t.gamma + largest) <= 1,
        ]  # fmt: skip
        assert all(conditions) == proved == (t.bound is not None)
        if proved:
            terms = h * math.log(a) / t.eta + 2 * h * k * t.gamma * d * h**2 / t.beta + 6 * t.beta * d * h * k
            assert terms <= t.bound * (1 + 1e-12)


def test_a_tuning_says_what_it_is_worth():
    text = str(log_barrier(preset="theory").tuning(MDP, 1000))
    assert "preset theory" in text
    assert "vacuous: no regret passes 3e+03" in text
    assert "no bound is proved for these rates" in str(log_barrier().tuning(MDP, 1000))
    own = log_barrier(eta=0.3).tuning(MDP, 1000)
    assert (own.eta, own.preset, own.bound) == (0.3, "own", None)
    assert log_barrier(preset="theory", covariance="averaged").tuning(MDP, 1000).bound is None
    assert not Hedge().start(MDP, 1000, [0]).tuning.vacuous


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: log_barrier(preset="practica").tuning(MDP, 9), "Did you mean 'practical'"),
        (lambda: log_barrier(covariance="exakt"), "covariance: expected one of"),
        (lambda: DilatedFTRL("log_barrier"), "Did you mean 'log-barrier'"),
        (lambda: log_barrier(samples=0), "samples"),
        (lambda: log_barrier(gamma=-1.0), "gamma: expected a finite number >= 0; got -1"),
        (lambda: log_barrier(rate=0).tuning(MDP, 9), "rate"),
        (lambda: log_barrier().tuning(MDP, 0), "for an unknown number, use Doubling"),
        (lambda: BestResponse(0), "window"),
        (lambda: Doubling(Uniform(), first=0), "first"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(LegatoValueError, match=message):
        make()
