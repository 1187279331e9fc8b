"""Processes from arrays, from an environment's table, and from files: values by hand, and what each complaint says."""

from types import SimpleNamespace

import numpy as np
import pytest

from legato.errors import DataError, DataNotFoundError, LegatoValueError
from legato.online.mdp import best_policy, policy_values
from legato.online.readers import cost_problem, from_arrays, from_gymnasium, read_costs, read_model, read_problem

BATTERY = """
name = "battery"
states = ["empty", "half", "full"]
actions = ["discharge", "hold", "charge"]
start = "empty"
[transitions]
discharge = ["empty", "empty", "half"]
hold = ["empty", "half", "full"]
charge = ["half", "full", [0.0, 0.0, 1.0]]
[amount]
discharge = [0, -1, -1]
hold = 0
charge = [1, 1, 0]
[base]
charge = 0.5
"""


def files(tmp_path, costs="one,two\n1,3\n2,5\n", model=BATTERY):
    (tmp_path / "prices.csv").write_text(costs)
    (tmp_path / "battery.toml").write_text(model)
    return tmp_path / "prices.csv", tmp_path / "battery.toml"


def test_a_battery_by_hand(tmp_path):
    """Two steps a day from empty. Day one: buy at 1 + 0.5, sell at 3: -1.5. Day two: 2 + 0.5 - 5 = -2.5. Costs span -5 to 5.5."""
    problem = read_problem(*files(tmp_path))
    assert (problem.low, problem.high) == (-5, 5.5)
    assert problem.mdp.shape == (2, 3, 3)
    assert problem.mdp.name == "battery"
    for k, want in enumerate((-1.5, -2.5)):
        value, actions = best_policy(problem.mdp, problem.adversary.losses(k))
        assert float(problem.money(value, 1)) == pytest.approx(want)
        assert problem.actions[actions[0, 0]] == "charge"
        assert problem.actions[actions[1, 1]] == "discharge"
    hold = np.zeros(problem.mdp.shape)
    hold[..., 1] = 1
    assert float(problem.money(policy_values(problem.mdp, hold, problem.adversary.losses(0)), 1)) == pytest.approx(0)


def test_a_given_range_is_kept(tmp_path):
    problem = read_problem(
        *files(tmp_path, model=BATTERY.replace('start = "empty"', "start = [0.5, 0.5, 0]\nrange = [-10, 10]"))
    )
    assert (problem.low, problem.high) == (-10, 10)
    np.testing.assert_array_equal(problem.mdp.initial, [0.5, 0.5, 0])
    same = cost_problem(np.zeros((1, 2)), {**_plain(), "amount": {"a": 0}})
    assert (same.low, same.high) == (0, 1)


def _plain():
    return {"states": 1, "actions": ["a"], "transitions": {"a": [0]}, "amount": {"a": 1}}


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ("", "prices.csv: expected rows of numbers"),
        ("1,2\n3,4,5\n", "prices.csv, row 2: expected 2 columns; got 3"),
        ("a,b\n1,2\n3,x\n", "prices.csv, row 3, column 2: expected a finite number; got 'x'"),
        ("1,2\n3,nan\n", "row 2, column 2: expected a finite number; got 'nan'"),
    ],
)
def test_a_bad_cell_is_named(tmp_path, costs, message):
    with pytest.raises(DataError, match=message):
        read_costs(files(tmp_path, costs)[0])


def test_costs_with_and_without_a_header(tmp_path):
    for text in ("1,2\n\n3,4\n", "morning,evening\n1,2\n3,4\n", "\ufeff1,2\n3,4"):
        np.testing.assert_array_equal(read_costs(files(tmp_path, text)[0]), [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[base]", "[bass]", "battery.toml, key: .* Did you mean 'base'"),
        ("hold = 0", "", "battery.toml, amount: expected a key 'hold'; got discharge, charge"),
        (
            '"empty", "empty", "half"]',
            '"empty", "empti", "half"]',
            "transitions, discharge, half: expected one of empty, half, full",
        ),
        ('"empty", "empty", "half"]', '"empty"]', "transitions, discharge: expected 3 entries"),
        ("[0.0, 0.0, 1.0]", "[0.0, 0.5, 1.0]", "transitions, charge, full: .* 3 chances that sum to 1"),
        ("[0, -1, -1]", "[0, -1]", "amount, discharge: expected a number, or 3 of them"),
        ('start = "empty"', "start = 7", "start: expected one of empty, half, full"),
        ('start = "empty"', "range = [0, 1]", r"range: expected \[low, high\] with all costs, -5 to 5.5, between them"),
        (
            '["empty", "half", "full"]\nactions',
            '["empty", "empty", "full"]\nactions',
            "states: expected different names",
        ),
        ("[base]", "[base", "battery.toml: not TOML"),
        ("[amount]", "[amount]\nhodl = 1", "amount, action: .* got 'hodl'. Did you mean 'hold'"),
        ("charge = 0.5", "chargee = 0.5", "base, action: .* Did you mean 'charge'"),
        ("charge = 0.5", "charge = true", "base, charge: expected a number, or 3 of them, one a state; got True"),
        ("charge = 0.5", f"charge = 1{'0' * 400}", "base, charge: expected a number"),
        ("charge = 0.5", "charge = nan", "base, charge: expected a number"),
        ('start = "empty"', 'start = "empty"\ncost = "prize * amount"', "cost, name: .* Did you mean 'price'"),
        ('start = "empty"', "cost = 3", "cost: expected a formula in quotes; got 3"),
        ('start = "empty"', "level = [1, 2]", "level: expected a number, or 3 of them"),
        ('start = "empty"', 'range = ["a", 9]', "range: expected"),
        ('start = "empty"', "start = true", "start: expected one of"),
        ('["empty", "half", "full"]\nactions', "true\nactions", "states: expected different names"),
        (
            '["empty", "half", "full"]\nactions',
            '"abc"\nactions',
            "states: expected different names, or a number >= 1; got 'abc'",
        ),
        ('["empty", "half", "full"]\nactions', "10000\nactions", "at most 67,108,864 transitions, .* got 600,000,000"),
        ('["empty", "half", "full"]\nactions', "1000000000000\nactions", "states: expected at most"),
        (
            'start = "empty"',
            'cost = "price * amount * 1e300 * 1e9"',
            "cost: expected a finite cost",
        ),
    ],
)
def test_a_bad_machine_is_named(tmp_path, old, new, message):
    assert old in BATTERY
    with pytest.raises(DataError, match=message):
        read_problem(*files(tmp_path, model=BATTERY.replace(old, new, 1)))


def test_a_formula_over_levels_is_the_mean_over_where_a_step_leads():
    """Two states at levels 0 and 10; charging works three times of four. |change| costs 0.1 each, on top of the price of what is gained."""
    model = {
        "states": ["low", "high"], "actions": ["charge", "rest"], "level": [0, 10], "start": 0,
        "transitions": {"charge": [[0.25, 0.75], "high"], "rest": ["low", "high"]},
        "base": {"rest": 2}, "cost": "price * max(change, 0) + 0.1 * abs(change) + base - level / 5",
    }  # fmt: skip
    problem = cost_problem(np.array([[3.0]]), model)
    np.testing.assert_allclose(problem.amount[0], [[7.5, 0], [0, 0]])
    np.testing.assert_allclose(problem.base[0], [[0.75, 2], [-2, 0]])
    loss = problem.adversary.losses(0)[0, 0, 0]
    assert float(problem.money(loss, 1)) == pytest.approx(3 * 7.5 + 0.75)


def test_a_number_is_no_table():
    with pytest.raises(DataError, match="model, amount: expected a table with a; got 3"):
        cost_problem(np.zeros((1, 1)), {**_plain(), "amount": 3})


def test_without_a_level_the_place_of_a_state_is_its_level():
    model = {**_plain(), "states": 3, "transitions": {"a": [1, 2, 2]}, "cost": "change + 10 * level"}
    np.testing.assert_array_equal(cost_problem(np.zeros((1, 1)), model).base[0, :, 0], [1, 11, 20])


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"file: expected one that exists; got .*no.csv"):
        read_costs(tmp_path / "no.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_model(tmp_path)
    (tmp_path / "latin.csv").write_bytes(b"1,2\n\xff,3\n")
    with pytest.raises(DataError, match=r"latin\.csv: expected text in UTF-8; got byte 4"):
        read_costs(tmp_path / "latin.csv")
    (tmp_path / "long.csv").write_text("1" * 200_000)
    with pytest.raises(DataError, match=r"long\.csv: not a CSV file"):
        read_costs(tmp_path / "long.csv")


def environment():
    """Two states; action 1 in state 1 ends with a reward of 2, everything else costs 1. Slips half of the time in state 0."""
    table = {
        0: {0: [(1.0, 0, -1.0, False)], 1: [(0.5, 1, -1.0, False), (0.5, 0, -1.0, False)]},
        1: {0: [(1.0, 0, -1.0, False)], 1: [(1.0, 1, 2.0, True)]},
    }
    return SimpleNamespace(unwrapped=SimpleNamespace(P=table, initial_state_distrib=np.array([1.0, 0.0])), spec=None)


def test_a_table_of_an_environment_by_hand():
    """Best of 3 steps from state 0: try at 1; half then wins 2 and rests at 0. Losses (2 - r)/3: 1, 0 and 2/3 at rest."""
    mdp, losses = from_gymnasium(environment(), 3, name="two")
    assert mdp.shape == (3, 3, 2)
    np.testing.assert_allclose(losses[0], [[1, 1], [1, 0], [2 / 3, 2 / 3]])
    np.testing.assert_allclose(mdp.transitions[0, 1, 1], [0, 0, 1])
    value, actions = best_policy(mdp, losses)
    # step 0 costs 1; with chance 1/2 then 0 + 2/3, else 1 and then with 1/2: 0, with 1/2: 1
    assert value == pytest.approx(1 + 0.5 * (2 / 3) + 0.5 * (1 + 0.5))
    assert actions[0, 0] == actions[1, 1] == 1


def test_what_has_no_table_is_refused():
    with pytest.raises(LegatoValueError, match=r"env: expected an environment with a table env\.unwrapped\.P"):
        from_gymnasium(SimpleNamespace(unwrapped=SimpleNamespace()), 3)


def test_arrays_for_one_step_are_for_all():
    moves = np.full((2, 3, 2), 0.5)
    mdp = from_arrays(moves, horizon=4, initial=1, features=np.full((2, 3, 5), 2.0), rescale=True)
    assert mdp.shape == (4, 2, 3)
    np.testing.assert_array_equal(mdp.initial, [0, 1])
    np.testing.assert_allclose(np.linalg.norm(mdp.features, axis=-1), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "horizon: expected a whole number >= 1, for transitions"),
        ({"horizon": 2, "initial": 2}, r"initial: expected a state in 0 \.\. 1; got 2"),
        ({"horizon": 2, "features": np.full((2, 3, 5), 2.0)}, "rescale=True"),
        (
            {"horizon": 2, "features": np.full((2, 3, 5), np.nan), "rescale": True},
            r"features at \(h, s, a\) = \(0, 0, 0\)",
        ),
    ],
)
def test_bad_arrays(options, message):
    with pytest.raises(LegatoValueError, match=message):
        from_arrays(np.full((2, 3, 2), 0.5), **options)
    with pytest.raises(LegatoValueError, match="horizon: expected 2, the steps of the transitions; got 3"):
        from_arrays(np.full((2, 2, 3, 2), 0.5), horizon=3)
