"""Losses that change: each is the same whenever it is asked, stays in [0, 1], and says where its phases are."""

import numpy as np
import pytest

from legato.errors import LegatoValueError
from legato.online.adversaries import (
    BaitAndSwitch,
    Constant,
    Drift,
    Replay,
    Sinusoid,
    Switching,
    Tables,
    constrained_switching,
    linear_losses,
)
from legato.online.mdp import best_policy, check_losses, linearity, random_linear_mdp

MDP = random_linear_mdp(seed=2)
ONE, TWO = linear_losses(MDP, seed=1)
ALL = {
    "constant": Constant(ONE),
    "switching": Switching([ONE, TWO]),
    "equal phases": Switching([ONE, TWO], growth=1, length=7),
    "constrained": constrained_switching(MDP),
    "sinusoid": Sinusoid(ONE, TWO, period=37),
    "drift": Drift(ONE, TWO, episodes=50),
    "bait": BaitAndSwitch(ONE, TWO, at=40),
    "replay": Replay(np.random.default_rng(0).random((9, 3)), 0.5 * ONE, 0.5 * TWO),
    "tables": Tables(np.stack([ONE, TWO, ONE])),
}


@pytest.fixture(params=ALL, ids=ALL)
def adversary(request):
    return ALL[request.param]


def test_it_does_not_remember_what_it_was_asked(adversary):
    forward = [np.array(adversary.losses(k)) for k in range(100)]
    for k in reversed(range(100)):
        np.testing.assert_array_equal(adversary.losses(k), forward[k])


def test_mixtures_of_linear_losses_are_linear_losses(adversary):
    tables = np.stack([adversary.losses(k) for k in (0, 17, 45, 80)])
    check_losses(MDP, tables)
    if adversary.name != "replay":
        assert linearity(MDP, tables).linear


def test_losses_jump_where_phases_begin(adversary):
    phases = adversary.phases(100)
    assert phases == sorted(set(phases))
    if isinstance(adversary, Switching | BaitAndSwitch):
        jumps = [k for k in range(1, 100) if not np.array_equal(adversary.losses(k), adversary.losses(k - 1))]
        assert jumps == phases


def test_phases_grow():
    """Lengths 16, 26, 41, 66: 16 times 1.6^i, rounded."""
    assert Switching([ONE, TWO], growth=1.6, length=16).phases(160) == [16, 42, 83, 149]
    assert Switching([ONE, TWO], growth=1, length=30).phases(100) == [30, 60, 90]


def test_values_by_hand():
    swing = Sinusoid(np.zeros(1), np.ones(1), period=4)
    assert [float(swing.losses(k)[0]) for k in range(4)] == pytest.approx([0.5, 1, 0.5, 0])
    way = Drift(np.zeros(1), np.ones(1), episodes=4)
    assert [float(way.losses(k)[0]) for k in (0, 1, 4, 9)] == [0, 0.25, 1, 1]
    play = Replay(np.array([[1.0, 2.0], [3.0, 4.0]]), np.full((2, 1, 1), 0.1), 0.5)
    np.testing.assert_allclose(play.losses(3).ravel(), [0.8, 0.9])
    assert play.phases(5) == [2, 4]


def test_a_constrained_adversary_keeps_its_best_policy():
    one, two = (ALL["constrained"].losses(k) for k in (0, 20))
    assert np.ptp(two - one) < 1e-15
    assert (two - one).min() == pytest.approx(0.5)
    np.testing.assert_array_equal(best_policy(MDP, one)[1], best_policy(MDP, two)[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Switching([ONE], growth=0.9), "growth: expected a number >= 1; got 0.9"),
        (lambda: Switching([ONE], length=0), "length"),
        (lambda: Sinusoid(ONE, TWO, period=0), "period"),
        (lambda: Drift(ONE, TWO, episodes=0), "episodes"),
        (lambda: Replay(np.ones((5, 2)), ONE), r"costs: expected shape \[K, 3\]; got shape \[5, 2\]"),
        (lambda: constrained_switching(MDP, spread=2), r"spread: expected a number in \(0, 1\]"),
    ],
)
def test_bad_numbers(make, message):
    with pytest.raises(LegatoValueError, match=message):
        make()
