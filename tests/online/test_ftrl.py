"""Oracles of the learner: its definition, other people's forms of it, no overflow, its state, and what is refused."""

import json
import math
import warnings

import numpy as np
import pytest

from legato import errors
from legato.online.covariance import feature_covariance, regularised_inverse
from legato.online.estimators import plain_estimate
from legato.online.ftrl import FTRL, tuned_rate
from legato.online.simplex import STEPS, log_barrier_step


@pytest.fixture(params=STEPS, ids=STEPS)
def name(request):
    return request.param


def play(learner, losses):
    """Full information: the regret with the learner's own discount, and the learner."""
    weights = learner.discount ** np.arange(len(losses) - 1, -1, -1)
    own = 0.0
    for weight, row in zip(weights, losses, strict=True):
        own += weight * float(learner.probs() @ row)
        learner.update(None, row)
    return own - float((weights @ losses).min()), learner


def test_its_definition(name):
    """Twin: the step of the discounted sum of all losses."""
    losses = np.random.default_rng(0).normal(size=(12, 4))
    _, learner = play(FTRL(name, 4, 0.8, discount=0.9), losses)
    total = sum(0.9 ** (12 - t) * row for t, row in enumerate(losses))
    np.testing.assert_allclose(learner.probs(), STEPS[name](total, 0.8), rtol=1e-12)


@pytest.mark.parametrize("batch", [1, 400])
def test_it_survives_what_others_do_not(name, batch):
    """A good and a bad arm; multiplicative weights that are never normalised are infinite after 2,840 pulls of this kind."""
    learner = FTRL(name, 2, 0.5, names="ab")
    pulls = 3_000 if batch == 1 else 200_000
    with warnings.catch_warnings(), np.errstate(over="raise", invalid="raise", divide="raise"):
        warnings.simplefilter("error")
        for _ in range(pulls // batch):
            arms = learner.sample(batch)
            learner.update(arms, [0.0 if arm == "a" else 1.0 for arm in arms])
    assert learner.rounds == pulls
    assert learner.probs()[0] > 0.99
    assert np.isfinite(learner.probs()).all()
    assert not learner.regret_bound().vacuous


def test_losses_beyond_all_measure(name):
    learner = FTRL(name, 3, discount=0.99)
    rng = np.random.default_rng(3)
    for exponent in rng.uniform(-300, 300, size=300):
        arm = learner.sample()
        learner.update(arm, float(rng.normal() * 10**exponent))
        p = learner.probs()
        assert np.isfinite(p).all()
        assert p.sum() == pytest.approx(1)
    assert np.isfinite(learner.eta)


def test_losses_times_a_thousand_give_the_same_play(name):
    losses = np.random.default_rng(4).normal(size=(40, 3))
    learners = [FTRL(name, 3, discount=0.97, seed=5) for _ in range(2)]
    for row in losses:
        arms = [learner.sample() for learner in learners]
        assert arms[0] == arms[1]
        learners[0].update(arms[0], row[arms[0]])
        learners[1].update(arms[1], 1000 * row[arms[1]])
    np.testing.assert_allclose(learners[0].probs(), learners[1].probs(), rtol=1e-9)
    assert learners[1].eta == pytest.approx(learners[0].eta / 1000)


def test_the_falling_rate_only_falls(name):
    """Times discount^t, which is what the proof asks for."""
    for discount in (1.0, 0.9):
        learner, rates = FTRL(name, 3, discount=discount), []
        for t, row in enumerate(np.random.default_rng(6).standard_cauchy((60, 3))):
            learner.update(None, row)
            rates.append(learner.eta * discount**t)
        assert (np.diff(rates) <= 1e-12 * np.array(rates[1:])).all()
        assert rates[0] < math.inf
    assert FTRL(name, 3).eta == math.inf
    assert FTRL(name, 4).probs().tolist() == [1 / 4] * 4


def test_one_arm_seen_is_right_on_average(name):
    """The mean over the arm drawn of what is added is the losses of all."""
    losses, mean = np.array([0.3, -2.0, 5.0]), np.zeros(3)
    for arm in range(3):
        learner = FTRL(name, 3, 0.5)
        learner.update(None, [1.0, 0.0, 2.0])
        p, before = learner.probs(), np.array(learner.state_dict()["total"])
        learner.update(arm, losses[arm])
        mean += p[arm] * (np.array(learner.state_dict()["total"]) - before)
    np.testing.assert_allclose(mean, losses, rtol=1e-12)


def test_several_rounds_at_once_add_up():
    one, other = FTRL("log-barrier", 3, 0.1, names="xyz"), FTRL("log-barrier", 3, 0.1, names="xyz")
    one.update(["x", "z", "x"], [1.0, -2.0, 0.5])
    other.update(None, [4.5, 0.0, -6.0])  # weighted by 1/3
    np.testing.assert_allclose(one.probs(), other.probs(), rtol=1e-13)
    assert (one.rounds, other.rounds) == (3, 1)
    one.update([], [])
    assert one.rounds == 3


def test_a_probability_of_ones_own():
    one, other = FTRL("entropy", 2, 0.1), FTRL("entropy", 2, 0.1)
    one.update(0, 3.0, prob=0.25)
    other.update(None, [12.0, 0.0])
    np.testing.assert_allclose(one.probs(), other.probs(), rtol=1e-13)


def test_with_implicit_exploration_it_is_the_linear_estimate_for_one_hot_features():
    """One state, one step, no bonus: the learner for processes is this bandit."""
    rng, gamma, eta, total = np.random.default_rng(7), 0.07, 0.4, np.zeros(4)
    learner = FTRL("log-barrier", 4, eta, exploration=gamma)
    for _ in range(30):
        p = log_barrier_step(total, eta)
        np.testing.assert_allclose(learner.probs(), p, rtol=1e-10)
        arm, loss = learner.sample(), float(rng.random())
        inverse = regularised_inverse(feature_covariance(np.eye(4), p), gamma)
        total = total + plain_estimate(np.eye(4), inverse, np.eye(4)[arm], loss)
        learner.update(arm, loss)


def test_fixed_share_is_that_of_herbster_and_warmuth():
    eta, share, w = 0.6, 0.05, np.full(4, 0.25)
    learner = FTRL("entropy", 4, eta, share=share)
    for row in np.random.default_rng(8).normal(size=(30, 4)):
        np.testing.assert_allclose(learner.probs(), w, rtol=1e-10)
        learner.update(None, row)
        w = w * np.exp(-eta * row)
        w = (1 - share) * w / w.sum() + share / 4


def test_fixed_share_follows_a_best_arm_that_switches():
    """The best sequence of arms with so many switches, by dynamic programming, never beats it by more than its bound."""
    rng = np.random.default_rng(9)
    losses = rng.random((80, 3)) + (np.arange(80)[:, None] // 20 % 3 == np.arange(3)) * -0.8
    learner, own = FTRL("entropy", 3, 0.8, share=0.03), 0.0
    for row in losses:
        own += float(learner.probs() @ row)
        learner.update(None, row)
    best = np.zeros((5, 3))  # [switches so far, arm]
    for t, row in enumerate(losses):
        moved = np.full_like(best, np.inf)
        moved[1:] = best[:-1].min(-1, keepdims=True) if t else np.inf
        best = np.minimum(best, moved) + row
    for switches in range(5):
        assert own - best[switches].min() <= learner.regret_bound(switches).value
    assert own - best[3].min() > 0
    assert learner.regret_bound(3).value == pytest.approx(
        (math.log(3) + 3 * math.log(3 / 0.03) - 76 * math.log(0.97)) / 0.8 + learner.state_dict()["cost"]
    )
    assert learner.regret_bound(80).value == math.inf
    assert FTRL("log-barrier", 3, 0.5, share=0.1).share == 0.1


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_share_leaves_every_arm_its_part(name, share):
    learner = FTRL(name, 4, 2.0, share=share)
    for _ in range(50):
        learner.update(None, [0.0, 1.0, 1.0, 1.0])
    assert (learner.probs().min() >= share / 4 * (1 - 1e-9)) == bool(share) or not share
    if share and name != "entropy":
        bound = learner.regret_bound()
        assert bound.value == math.inf
        assert bound.vacuous


def test_without_a_discount_it_locks_in(name):
    """The best arm changes for good after 200 rounds: 60 more are enough with a discount, and not without."""
    after = {}
    for discount in (1.0, 0.95):
        learner = FTRL(name, 2, 0.3, discount=discount)
        for t in range(260):
            learner.update(None, [0.0, 1.0] if t < 200 else [1.0, 0.0])
        after[discount] = learner.probs()[1]
    assert after[1.0] < 0.05
    assert after[0.95] > 0.7


def test_arms_have_any_names_and_are_drawn_as_often_as_they_should():
    names = [("a", 1), "b", 3.5, frozenset()]
    learner = FTRL("tsallis", 4, 1.0, names=names, seed=np.random.default_rng(11))
    learner.update(None, [0.0, 1.0, 2.0, 3.0])
    learner.update(("a", 1), 1.0)
    drawn = learner.sample(20_000)
    for name, p in zip(names, learner.probs(), strict=True):
        assert drawn.count(name) / 20_000 == pytest.approx(p, abs=4 * math.sqrt(p / 20_000))
    assert learner.sample() in names


def test_one_arm(name):
    learner = FTRL(name, 1)
    for loss in (3.0, -5.0):
        learner.update(0, loss)
    assert learner.probs().tolist() == [1.0]
    assert learner.regret_bound().value == pytest.approx(0, abs=1e-9)


def test_the_state_comes_back_in_every_bit(name):
    options = {"discount": 0.98, "share": 0.01, "names": ["a", "b", "c"]}
    learner = FTRL(name, 3, seed=1, **options)
    for _ in range(20):
        learner.update(arm := learner.sample(), ord(arm) / 100)
    state = json.loads(json.dumps(learner.state_dict()))
    other = FTRL(name, 3, seed=2, **options)
    other.load_state_dict(state)
    for _ in range(20):
        assert other.probs().tolist() == learner.probs().tolist()
        arm = learner.sample()
        assert other.sample() == arm
        learner.update(arm, ord(arm) / 100)
        other.update(arm, ord(arm) / 100)
    assert str(other.regret_bound()) == str(learner.regret_bound())
    with pytest.raises(errors.LegatoValueError, match="names"):
        FTRL(name, 3).load_state_dict(state)
    with pytest.raises(errors.LegatoValueError, match="regulariser"):
        FTRL("entropy" if name != "entropy" else "tsallis", 3, names="abc").load_state_dict(state)


BAD_UPDATES = [
    ((0, math.nan), "loss"), ((0, math.inf), "loss"), ((None, [1.0, math.nan, 0.0]), "loss"), ((None, [1.0, 2.0]), "loss"),
    ((None, 1.0), "loss"), ((None, [1.0, 2.0, 3.0], 0.5), "loss"), ((5, 1.0), "arm"), (([0, 1], [1.0]), "loss"), (([0], 1.0), "arm"),
    ((0, [1.0]), "arm"), ((0, 1.0, 0.0), "prob"), ((0, 1.0, 1.5), "prob"), ((0, 1.0, math.nan), "prob"), ((0, -1.0), "exploration"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "word"), BAD_UPDATES, ids=str)
def test_a_bad_update_is_refused_and_changes_nothing(arguments, word):
    learner = FTRL("log-barrier", 3, exploration=0.1)
    learner.update(1, 0.5)
    before = learner.state_dict()
    with pytest.raises(errors.LegatoValueError, match=word):
        learner.update(*arguments)
    assert learner.state_dict() == before


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"n": 0}, "n:"), ({"n": 2.5}, "n:"), ({"eta": 0.0}, "eta"), ({"eta": math.inf}, "eta"), ({"discount": 0.0}, "discount"),
        ({"discount": 1.1}, "discount"), ({"share": 1.0}, "share"), ({"horizon": 0}, "horizon"), ({"exploration": -0.1}, "exploration"),
        ({"boldness": 0.0}, "boldness"), ({"names": ["a", "a", "b"]}, "names"), ({"names": ["a"]}, "names"),
        ({"regulariser": "barrier"}, "did you mean|Did you mean"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_arguments_are_named(arguments, word):
    with pytest.raises(errors.LegatoValueError, match=word):
        FTRL(**{"regulariser": "log-barrier", "n": 3, **arguments})
    if "boldness" in arguments:
        with pytest.raises(errors.LegatoValueError, match="size"):
            tuned_rate("entropy", 2, 10, size=0.0)
        with pytest.raises(errors.LegatoValueError, match="feedback"):
            tuned_rate("entropy", 2, 10, feedback="none")
        with pytest.raises(errors.LegatoValueError, match="switches"):
            FTRL("entropy", 2).regret_bound(-1)
