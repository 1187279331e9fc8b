"""Sensitivity against its definition written out, its invariances, and small curves whose answer is seen."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from legato.errors import LegatoValueError
from legato.stability.sensitivity import (
    first_unstable,
    lr_sensitivity,
    sensitivity_over_seeds,
    shifted_sensitivities,
    upper_sensitivity,
    width_within,
)

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
CURVE = (3.4, 2.8, 2.4, 2.2, 2.3, 2.9, math.nan)
"""Starts at 4: the best is 2.2 at 1e-2, the last run diverged."""


def by_hand(rates, losses, initial, from_best=False):
    pairs = sorted((r, min(v, initial) if math.isfinite(v) else initial) for r, v in zip(rates, losses, strict=True))
    best = min(v for _, v in pairs)
    start = next(i for i, (_, v) in enumerate(pairs) if v == best) if from_best else 0
    return sum(v - best for _, v in pairs[start:]) / len(pairs[start:])


curves = st.lists(st.one_of(st.floats(0, 9), st.just(math.nan), st.just(math.inf)), min_size=2, max_size=7)


@given(curves, st.floats(1, 6), st.integers(0, 100))
def test_it_is_the_definition_written_out_and_knows_no_order(losses, initial, seed):
    assume(any(math.isfinite(v) for v in losses))
    order = np.random.default_rng(seed).permutation(len(losses))
    rates, values = np.array(RATES[: len(losses)])[order], np.array(losses)[order]
    assert lr_sensitivity(rates, values, initial) == pytest.approx(by_hand(rates, values, initial), abs=1e-12)
    assert upper_sensitivity(rates, values, initial) == pytest.approx(by_hand(rates, values, initial, True), abs=1e-12)


@given(curves, st.floats(1, 6), st.floats(-3, 3))
def test_a_constant_on_all_losses_changes_nothing_and_it_is_never_negative(losses, initial, constant):
    assume(any(math.isfinite(v) for v in losses))
    rates = RATES[: len(losses)]
    value = lr_sensitivity(rates, losses, initial)
    assert value >= 0
    clipped = [min(v, initial) if math.isfinite(v) else initial for v in losses]
    assert (value == 0) == (len(set(clipped)) == 1)
    moved = lr_sensitivity(rates, np.array(losses) + constant, initial + constant)
    assert moved == pytest.approx(value, abs=1e-12)


def test_a_known_curve():
    clipped = [3.4, 2.8, 2.4, 2.2, 2.3, 2.9, 4.0]
    assert lr_sensitivity(RATES, CURVE, 4.0) == pytest.approx(sum(clipped) / 7 - 2.2)
    assert upper_sensitivity(RATES, CURVE, 4.0) == pytest.approx((0 + 0.1 + 0.7 + 1.8) / 4)


def test_no_run_below_the_initial_loss_gives_zero_and_not_a_negative_number():
    """With the minimum over unclipped losses it would be 4 - 5 = -1."""
    assert lr_sensitivity(RATES[:2], [5.0, 6.0], 4.0) == 0
    found = sensitivity_over_seeds(RATES[:2], [[5.0, 6.0], [5.0, 3.0]], 4.0)
    assert any(note.startswith("1 of 2 seeds: no run ends below the initial loss") for note in found.notes)


def test_rows_are_independent():
    table = np.array([[CURVE, CURVE[::-1]], [CURVE[::-1], CURVE]])
    initial = np.array([[4.0, 3.0], [5.0, 6.0]])
    found = lr_sensitivity(RATES, table, initial)
    assert found.shape == (2, 2)
    for i, j in itertools.product(range(2), repeat=2):
        assert found[i, j] == lr_sensitivity(RATES, table[i, j], initial[i, j])


def test_shifted_grids_are_the_sensitivities_of_their_windows():
    losses, initial = [[3.4, 2.8, 2.4, 2.2, 2.3, 2.9, 3.1]] * 2, [4.0, 2.9]
    found = shifted_sensitivities(RATES, losses, initial, 4)
    assert found.shape == (2, 4)
    for start in range(4):
        window = slice(start, start + 4)
        want = lr_sensitivity(RATES[window], np.array(losses)[:, window], initial)
        np.testing.assert_allclose(found[:, start], want, rtol=1e-12)
    assert shifted_sensitivities(RATES, losses, initial, 7)[0, 0] == lr_sensitivity(RATES, losses, initial)[0]


def test_the_width_is_that_of_the_unbroken_stretch():
    losses = [2.25, 2.8, 2.25, 2.2, 2.29, 2.31, 2.2]
    assert width_within(RATES, losses, 4.0, 0.1) == pytest.approx(math.log10(3e-2 / 3e-3))
    assert width_within(RATES, losses, 4.0, 1.0) == pytest.approx(3.0)
    assert width_within(RATES, losses, 4.0, 0.0) == 0
    assert width_within(RATES, CURVE, 4.0, 9.0) == pytest.approx(3.0)  # a diverged run counts as the initial loss


def test_the_first_unstable_rate_lies_above_the_best_one():
    assert first_unstable(RATES, CURVE, 4.0, 0.5) == 1e-1
    assert first_unstable(RATES, CURVE, 4.0, 2.0) == 3e-1  # diverged, however small the excess
    assert math.isnan(first_unstable(RATES[:5], CURVE[:5], 4.0, 0.5))  # 3.4 at 3e-4 is no instability
    order = [6, 0, 5, 1, 4, 2, 3]
    assert first_unstable(np.array(RATES)[order], np.array(CURVE)[order], 4.0, 0.5) == 1e-1


def test_over_seeds_the_mean_is_that_of_the_seeds_and_the_bootstrap_is_that_of_the_mean():
    numbers = np.random.default_rng(1)
    table = 2 + numbers.random((40, 7))
    found = sensitivity_over_seeds(RATES, table, 4.0)
    values = lr_sensitivity(RATES, table, 4.0)
    assert found.whole.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / math.sqrt(40)  # what the bootstrap of a mean tends to
    assert found.whole.low == pytest.approx(values.mean() - half, abs=0.25 * half)
    assert found.whole.high == pytest.approx(values.mean() + half, abs=0.25 * half)
    assert found.upper.mean == pytest.approx(upper_sensitivity(RATES, table, 4.0).mean())
    same = sensitivity_over_seeds(RATES, table, 4.0, generator=np.random.default_rng(0))
    other = sensitivity_over_seeds(RATES, table, 4.0, generator=np.random.default_rng(2))
    assert found == same != other
    narrow = sensitivity_over_seeds(RATES, table, 4.0, level=0.5)
    assert narrow.whole.high - narrow.whole.low < 0.5 * (found.whole.high - found.whole.low)


def test_the_best_rate_the_diverged_runs_and_an_edge_are_told():
    found = sensitivity_over_seeds(RATES, [CURVE, CURVE], 4.0)
    assert (found.best, found.diverged, found.notes) == (1e-2, 2, ())
    edge = sensitivity_over_seeds(RATES[:4], [CURVE[:4]], 4.0)
    assert edge.notes == ("the best rate, 0.01, is at the edge of the grid: widen it, S may change",)


@pytest.mark.parametrize(
    ("rates", "losses", "initial", "words"),
    [
        ([], [], 1.0, "learning_rates: expected two or more"),
        ([1e-3], [2.0], 3.0, "learning_rates: expected two or more"),
        ([1e-3, 0.0], [2.0, 2.0], 3.0, "learning_rates: expected finite numbers > 0"),
        ([1e-3, -1.0], [2.0, 2.0], 3.0, "learning_rates: expected finite numbers > 0"),
        ([1e-3, math.nan], [2.0, 2.0], 3.0, "learning_rates: expected finite numbers > 0"),
        ([1e-3, 1e-3], [2.0, 2.0], 3.0, "learning_rates: expected different numbers"),
        ([1e-3, 1e-2], [2.0, 2.0, 2.0], 3.0, "losses: expected one for each of the 2 rates"),
        ([1e-3, 1e-2], [2.0, -math.inf], 3.0, "losses: expected finite numbers, or NaN"),
        ([1e-3, 1e-2], [math.nan, math.inf], 3.0, "no run learned"),
        ([1e-3, 1e-2], [[2.0, 1.0], [math.nan, math.nan]], 3.0, "no run learned"),
        ([1e-3, 1e-2], [2.0, 1.0], math.nan, "initial_loss: expected finite numbers"),
        ([1e-3, 1e-2], [2.0, 1.0], [3.0, 3.0], "initial_loss: expected one number, or shape"),
    ],
)
def test_what_cannot_be_used_is_named(rates, losses, initial, words):
    with pytest.raises(LegatoValueError, match=words):
        lr_sensitivity(rates, losses, initial)
    with pytest.raises(LegatoValueError, match=words):
        first_unstable(rates, losses, initial, 0.1)


def test_other_arguments_out_of_range_are_named():
    with pytest.raises(LegatoValueError, match="width: expected a whole number from 2 to 7"):
        shifted_sensitivities(RATES, CURVE, 4.0, 8)
    with pytest.raises(LegatoValueError, match="margin: expected a number >= 0"):
        width_within(RATES, CURVE, 4.0, -1.0)
    with pytest.raises(LegatoValueError, match="margin: expected a number > 0"):
        first_unstable(RATES, CURVE, 4.0, 0.0)
    with pytest.raises(LegatoValueError, match=r"losses: expected one row a seed, \[S, R\]"):
        sensitivity_over_seeds(RATES, CURVE, 4.0)
