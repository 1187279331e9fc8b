"""The selector: it finds what helps, notices when that changes, and can be stopped anywhere."""

import json
import math

import numpy as np
import pytest

from legato import errors
from legato.online.ftrl import FTRL
from legato.online.selector import Selector

NAMES = ("ce", "comp-sum:1.7", "label-smoothing:0.1")


def train(selector, signal, steps, seed=0):
    """The names chosen, one a step; signal(name, step, rng) is the progress."""
    rng, chosen = np.random.default_rng(seed), []
    for step in range(steps):
        chosen.append(selector.choose())
        selector.report(signal(chosen[-1], step, rng))
    return chosen


def switching(name, step, rng):
    """The good option changes half-way; progress shrinks as training goes on, and all of it is positive."""
    good = NAMES[0] if step < 400 else NAMES[2]
    return (2.0 + (name == good) + rng.normal()) / (1 + step / 100)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_it_finds_the_good_option_whatever_the_unit(unit):
    chosen = train(Selector(NAMES), lambda name, step, rng: unit * ((name == NAMES[1]) - 3 + rng.normal()), 400)
    assert chosen[200:].count(NAMES[1]) > 120


def test_it_notices_when_the_good_option_changes():
    """And without forgetting it does not: it locks in."""
    shares = {}
    for memory in (60, None):
        runs = [train(Selector(NAMES, memory=memory, seed=seed), switching, 800, seed) for seed in range(2)]
        shares[memory] = np.mean([run[500:].count(NAMES[2]) / 300 for run in runs])
    assert shares[60] > 0.6
    assert shares[None] < shares[60] - 0.15


def test_forgetting_is_the_default():
    assert Selector(NAMES).learner.discount == pytest.approx(1 - 1 / 300)
    assert Selector(NAMES, memory=None).learner.discount == 1


def test_it_is_the_learner_with_the_mean_taken_off():
    """Twin: FTRL by hand, on the fall of progress below the discounted mean of the reports before."""
    selector = Selector(NAMES, memory=20, seed=3)
    learner = FTRL("log-barrier", 3, discount=0.95, seed=3)
    past = []
    for t in range(50):
        arm = learner.sample()
        assert selector.choose() == NAMES[arm]
        progress = math.sin(t) + arm
        if past:
            weights = 0.95 ** np.arange(len(past), 0, -1)
            learner.update(arm, float(weights @ past / weights.sum()) - progress)
        past.append(progress)
        selector.report(progress)
        np.testing.assert_allclose(list(selector.probs().values()), learner.probs(), rtol=1e-8)


def test_the_level_of_progress_does_not_matter():
    def run(level):
        return train(Selector(NAMES, seed=4), lambda name, step, rng: level + (name == "ce") + rng.normal(), 100)

    assert run(0.0) == run(1024.0)


def test_a_choice_stands_until_it_is_reported_on():
    selector = Selector(NAMES)
    first = selector.choose()
    assert [selector.choose() for _ in range(20)] == [first] * 20
    for progress in (math.nan, math.inf, -math.inf):
        with pytest.raises(errors.LegatoValueError, match="progress"):
            selector.report(progress)
    assert selector.choose() == first
    selector.report(-1.0)
    assert selector.picks == {**dict.fromkeys(NAMES, 0), first: 1}
    with pytest.raises(errors.LegatoValueError, match="choose"):
        selector.report(1.0)


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("regulariser", ["log-barrier", "entropy", "tsallis"])
def test_the_state_comes_back_in_every_bit(regulariser, between):
    one, other = (Selector(NAMES, regulariser=regulariser, seed=seed) for seed in (5, 6))
    train(one, switching, 30)
    if between:
        one.choose()
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert train(one, switching, 50) == train(other, switching, 50)
    assert one.picks == other.picks
    assert one.probs() == other.probs()
    with pytest.raises(errors.LegatoValueError, match="names"):
        Selector(("x", "y"), regulariser=regulariser).load_state_dict(one.state_dict())


def test_one_option_and_options_of_any_kind():
    assert train(Selector(["ce"]), lambda *_: 1.0, 10) == ["ce"] * 10
    chosen = train(Selector([0.1, (1, 2), "x"]), lambda *_: 1.0, 60)
    assert set(chosen) == {0.1, (1, 2), "x"}
    assert sum(Selector(NAMES).probs().values()) == pytest.approx(1)


def test_it_says_what_it_does_not_promise():
    assert "locks" in Selector.__doc__
    assert "no guarantee covers policy regret" in " ".join(Selector.__doc__.split())


def test_bad_arguments_are_named():
    for arguments, word in [
        ({"names": []}, "names"), ({"names": ["a", "a"]}, "names"), ({"memory": 1}, "memory"), ({"memory": math.nan}, "memory"),
        ({"regulariser": "hedge"}, "regulariser"), ({"eta": -1.0}, "eta"), ({"boldness": 0}, "boldness"), ({"share": 1}, "share"),
    ]:  # fmt: skip
        with pytest.raises(errors.LegatoValueError, match=word):
            Selector(**{"names": NAMES, **arguments})
