"""Bounds of the learner: no sequence breaks them, they can be reached, and rates are tuned by them."""

import math
import warnings

import numpy as np
import pytest

from legato import errors
from legato.online.ftrl import FTRL, RegretBound, tuned_bound, tuned_rate
from legato.online.simplex import STEPS, log_barrier_step, stability


@pytest.fixture(params=STEPS, ids=STEPS)
def name(request):
    return request.param


def sequences(rng, kind, rounds, arms):
    """Losses that are unkind in different ways."""
    return {
        "cauchy": rng.standard_cauchy((rounds, arms)),
        "negative cauchy": -np.abs(rng.standard_cauchy((rounds, arms))),
        "uniform": rng.random((rounds, arms)),
        "spikes": -100 * rng.random((rounds, 1)) * np.eye(arms)[rng.integers(arms, size=rounds)],
    }[kind]


def play(learner, losses):
    """Full information: the regret with the learner's own discount, and the learner."""
    weights = learner.discount ** np.arange(len(losses) - 1, -1, -1)
    own = 0.0
    for weight, row in zip(weights, losses, strict=True):
        own += weight * float(learner.probs() @ row)
        learner.update(None, row)
    return own - float((weights @ losses).min()), learner


@pytest.mark.parametrize("kind", ["cauchy", "negative cauchy", "uniform", "spikes"])
@pytest.mark.parametrize("discount", [1.0, 0.93])
def test_no_sequence_breaks_the_bound(name, discount, kind):
    rng = np.random.default_rng(1)
    ratios = []
    for trial in range(6):
        arms = (2, 3, 7)[trial % 3]
        eta = None if trial < 3 else (0.02, 0.3, 5.0)[trial % 3]
        losses = sequences(rng, kind, int(rng.integers(1, 30)), arms)
        regret, learner = play(FTRL(name, arms, eta, discount=discount), losses)
        bound = learner.regret_bound()
        assert not bound.expected
        assert bound.rounds == len(losses)
        assert bound.value > 0
        assert bound.largest == pytest.approx(
            (losses.max() - losses.min()) * (discount ** np.arange(len(losses))).sum()
        )
        ratios.append(regret / bound.value)
    assert max(ratios) <= 1 + 1e-9


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_the_bound_is_its_sum(name, discount):
    """Twin: R(u)/eta + sum of discount^(T - t) stability, and for the log-barrier the mixed comparator, from scratch."""
    losses, eta = np.random.default_rng(12).normal(size=(15, 4)), 0.3
    _, learner = play(FTRL(name, 4, eta, discount=discount), losses)
    weights, before, cost = discount ** np.arange(14, -1, -1), np.zeros(4), 0.0
    for weight, row in zip(weights, losses, strict=True):
        cost += weight * float(stability(name, STEPS[name](before, eta), row, eta))
        before = discount * (before + row)
    total, mixed = weights @ losses, 1 / (1 + weights.sum())
    penalty = {
        "log-barrier": -(np.log(mixed / 4) * 3 + np.log(1 - mixed + mixed / 4)) - 4 * np.log(4),
        "entropy": np.log(4),
        "tsallis": 2 * (np.sqrt(4) - 1),
    }[name]
    smoothing = mixed * (total.mean() - total.min()) if name == "log-barrier" else 0
    assert learner.regret_bound().value == pytest.approx(penalty / eta + cost + smoothing, rel=1e-10)


def test_the_bound_is_reached():
    """One round, and a loss that is all on one arm: entropy without any slack."""
    regret, learner = play(FTRL("entropy", 2), np.array([[1.0, 0.0]]))
    assert regret == pytest.approx(0.5)
    assert learner.regret_bound().value == pytest.approx(0.5)
    regret, learner = play(FTRL("log-barrier", 5), np.array([[7.0, 0, 0, 0, 3]]))
    assert regret / learner.regret_bound().value > 0.5


@pytest.mark.parametrize("kind", ["cauchy", "negative cauchy", "uniform", "spikes"])
def test_the_lemma_summed_over_any_sequence(kind):
    """Regret <= ((A - 1) ln(1/e) - ln(A (1 - e) + e))/eta + eta sum of x c^2 + e gap, e = 1/T, for 300 sequences at once."""
    rng = np.random.default_rng(2)
    arms, rounds = 5, 120
    eta = 10 ** rng.uniform(-3, 1, size=300)
    losses = np.stack([sequences(rng, kind, rounds, arms) for _ in range(300)])
    total, own, cost = np.zeros((300, arms)), np.zeros(300), np.zeros(300)
    for t in range(rounds):
        x = log_barrier_step(total, eta)
        own += (x * losses[:, t]).sum(-1)
        cost += eta * (x * losses[:, t] ** 2).sum(-1)
        total += losses[:, t]
    penalty = (arms - 1) * math.log(rounds) - math.log(arms * (1 - 1 / rounds) + 1 / rounds)
    bound = penalty / eta + cost + (total.mean(-1) - total.min(-1)) / rounds
    assert (own - total.min(-1) <= bound).all()


@pytest.mark.parametrize("exploration", [0.0, 0.1])
def test_the_mean_regret_keeps_the_mean_bound(name, exploration):
    losses = np.where(np.arange(3) == 1, 0.3, 0.6) + 0.4 * (np.arange(40) % 5 == 0)[:, None] * np.array([1, -0.5, 0])
    regret, bound = [], []
    for seed in range(20):
        learner, own = FTRL(name, 3, exploration=exploration, seed=seed), 0.0
        for row in losses:
            own += float(learner.probs() @ row)
            arm = learner.sample()
            learner.update(arm, row[arm])
        regret.append(own - losses.sum(0).min())
        bound.append(learner.regret_bound().value)
        assert learner.regret_bound().expected
    assert 0 < np.mean(regret) <= np.mean(bound)


def test_tuned_rates_are_the_best_ones_and_give_their_bounds(name):
    for feedback in ("bandit", "full"):
        bound = tuned_bound(name, 4, 10_000, feedback=feedback)
        eta = tuned_rate(name, 4, 10_000, feedback=feedback)
        assert not bound.vacuous
        assert bound.expected == (feedback == "bandit")
        assert tuned_bound(name, 4, 10_000, feedback=feedback, size=7).value == pytest.approx(7 * bound.value)
        assert tuned_rate(name, 4, 10_000, feedback=feedback, size=7) == pytest.approx(eta / 7)
    assert tuned_bound(name, 4, 1).vacuous
    want = {
        "log-barrier": (math.sqrt(2 * 3 * math.log(10_000) / 10_000), math.sqrt(2 * 3 * 10_000 * math.log(10_000)) + 1),
        "entropy": (math.sqrt(2 * math.log(4) / 40_000), math.sqrt(2 * 40_000 * math.log(4))),
        "tsallis": (math.sqrt(2 / 20_000), 2 * math.sqrt(2 * 20_000)),
    }[name]
    assert (tuned_rate(name, 4, 10_000), tuned_bound(name, 4, 10_000).value) == pytest.approx(want)


def test_the_bound_known_before_holds_for_full_information(name):
    rng = np.random.default_rng(10)
    losses = np.repeat(rng.integers(0, 2, size=(300, 1)), 3, 1) ^ np.array([0, 1, 1])
    regret, learner = play(FTRL(name, 3, tuned_rate(name, 3, 300, feedback="full")), losses.astype(float))
    assert regret <= learner.regret_bound().value <= tuned_bound(name, 3, 300, feedback="full").value * (1 + 1e-9)


def test_a_horizon_tunes_the_rate_and_warns_once_beyond_it():
    learner = FTRL("log-barrier", 2, horizon=3)
    assert learner.eta == tuned_rate("log-barrier", 2, 3)
    assert FTRL("log-barrier", 2, horizon=1000, discount=0.9).eta == tuned_rate("log-barrier", 2, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            learner.update(0, 1.0)
        with pytest.raises(errors.LegatoWarning, match="horizon=3"):
            learner.update(0, 1.0)
        learner.update(0, 1.0)


def test_what_is_said_of_a_bound():
    assert (
        str(RegretBound(5.0, 10.0, 10, False))
        == "regret <= 5 after 10 rounds (the range of the losses alone gives 10; our derived constants)"
    )
    text = str(RegretBound(50.0, 10.0, 10, True, 0.9))
    assert text.startswith("discounted expected regret <= 50")
    assert "vacuous" in text
    assert RegretBound(math.nan, 1.0, 1, False).vacuous
    fresh = FTRL("log-barrier", 3).regret_bound()
    assert (fresh.value, fresh.largest, fresh.rounds) == (0, 0, 0)
