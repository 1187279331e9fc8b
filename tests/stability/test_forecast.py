"""Forecasts against curves that are known, ordinary least squares of another library, and the coverage of many repetitions."""

import math

import numpy as np
import pytest

from legato.errors import LegatoValueError
from legato.stability.forecast import fit_power, forecast

SIZES = np.array([1e4, 3e4, 1e5, 3e5, 1e6])


def law(sizes, slope=0.5, bend=0.0, noise=0.0, seed=0):
    x = np.log10(sizes)
    wiggle = np.random.default_rng(seed).standard_normal(len(x))
    return 10 ** (1 + slope * (x - 4) + bend * (x - 4) ** 2 + noise * wiggle)


@pytest.mark.parametrize(("shape", "bend"), [("line", 0.0), ("quadratic", 0.2)])
def test_an_exact_law_is_found_and_has_no_band(shape, bend):
    fit = fit_power(SIZES, law(SIZES, bend=bend), shape)
    band, want = fit.at(1e7), float(law(np.array([1e7]), bend=bend)[0])
    assert band.value == pytest.approx(want, rel=1e-9)
    assert (band.low, band.high) == (pytest.approx(want, rel=1e-6), pytest.approx(want, rel=1e-6))
    assert fit.probability_above(want * 1.01, 1e7) == pytest.approx(0, abs=1e-6)
    assert fit.probability_above(want / 1.01, 1e7) == pytest.approx(1, abs=1e-6)


def test_the_band_of_a_line_is_the_textbook_one():
    """Prediction interval of simple regression: s sqrt(1 + 1/n + (x - mean)^2 / Sxx) times a t quantile."""
    from scipy.stats import linregress, t

    sizes = np.tile(SIZES, 2)
    values = law(sizes, noise=0.1)
    x, y = np.log10(sizes), np.log10(values)
    line = linregress(x, y)
    residual = y - line.intercept - line.slope * x
    s = math.sqrt((residual**2).sum() / (len(x) - 2))
    half = s * math.sqrt(1 + 1 / len(x) + (7 - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()) * t.ppf(0.9, len(x) - 2)
    band = fit_power(sizes, values, "line").at(1e7, 0.8)
    assert math.log10(band.value) == pytest.approx(line.intercept + 7 * line.slope)
    assert math.log10(band.high / band.value) == pytest.approx(half)
    assert math.log10(band.value / band.low) == pytest.approx(half)


@pytest.mark.parametrize("shape", ["line", "quadratic"])
def test_eighty_percent_bands_hold_eighty_percent_of_new_runs(shape):
    sizes, held, steep = np.tile(SIZES, 2), 0, {"slope": 2.0, "noise": 0.1}  # so steep that no fit turns over
    for seed in range(500):
        band = fit_power(sizes, law(sizes, seed=seed, **steep), shape).at(1e7, 0.8)
        held += band.low <= law(np.array([1e7]), seed=10_000 + seed, **steep)[0] <= band.high
    assert 0.75 < held / 500 < 0.85


def test_the_probability_agrees_with_the_band():
    fit = fit_power(SIZES, law(SIZES, noise=0.1), "line")
    band = fit.at(1e7, 0.8)
    for threshold, want in ((band.low, 0.9), (band.value, 0.5), (band.high, 0.1)):
        assert fit.probability_above(threshold, 1e7) == pytest.approx(want)
    assert forecast(SIZES, law(SIZES, noise=0.1), 1e7, shape="line").probability_above(band.high) == pytest.approx(0.1)


def test_the_shape_that_foresees_the_largest_size_is_chosen():
    bent = forecast(SIZES, law(SIZES, bend=0.3, noise=0.01), 3e6)
    straight = forecast(SIZES, law(SIZES, noise=0.05, seed=2), 3e6)
    assert (bent.fit.shape, straight.fit.shape) == ("quadratic", "line")
    assert bent.misses["quadratic"] < bent.misses["line"]
    x, y = np.log10(SIZES), np.log10(law(SIZES, bend=0.3, noise=0.01))
    for degree, name in ((1, "line"), (2, "quadratic")):
        want = abs(np.polyval(np.polyfit(x[:-1], y[:-1], degree), x[-1]) - y[-1])
        assert bent.misses[name] == pytest.approx(want)


def test_all_seeds_of_the_largest_size_are_left_out_together():
    sizes = np.tile(SIZES, 2)
    found = forecast(sizes, law(sizes, noise=0.1), 3e6, shape="line")
    x, y = np.log10(sizes), np.log10(law(sizes, noise=0.1))
    last = sizes == 1e6
    want = np.abs(np.polyval(np.polyfit(x[~last], y[~last], 1), x[last]) - y[last]).mean()
    assert found.misses["line"] == pytest.approx(want)
    assert found.used == 10
    assert found.fit.freedom == 8


def test_three_sizes_give_a_line():
    assert forecast(SIZES[:3], law(SIZES[:3], noise=0.1), 3e5).misses.keys() == {"line"}


def test_runs_that_diverged_are_left_out_with_a_note():
    values = law(np.tile(SIZES, 2), noise=0.05)
    values[[2, 4, 9]] = math.nan, math.inf, 0.0
    found = forecast(np.tile(SIZES, 2), values, 3e6)
    assert found.used == 7
    assert (
        found.notes[0]
        == "3 of 10 runs are left out, diverged, saturated or without a reading; their sizes: 1e+05, 1e+06"
    )
    kept = np.isfinite(values) & (values > 0)
    again = forecast(np.tile(SIZES, 2)[kept], values[kept], 3e6)
    assert again.band == found.band


@pytest.mark.parametrize(("slope", "bend"), [(1.0, -0.2), (-1.0, 0.2)])
def test_a_parabola_that_turns_over_is_refused(slope, bend):
    """It turns at log10 N = 4 + 2.5, above the sizes measured and below the one asked for."""
    values = law(SIZES, slope=slope, bend=bend)
    found = forecast(SIZES, values, 1e8)
    assert found.fit.shape == "line"
    assert any("the quadratic is left out: it turns over at 3.16e+06" in note for note in found.notes)
    assert forecast(SIZES, values, 3e6).fit.shape == "quadratic"
    with pytest.raises(LegatoValueError, match=r"a parabola that turns over at 3.16e\+06"):
        forecast(SIZES, values, 1e8, shape="quadratic")
    with pytest.raises(LegatoValueError, match="turns over"):
        fit_power(SIZES, values, "quadratic").probability_above(10, 1e8)


def test_a_far_size_is_called_a_guess():
    values = law(SIZES, noise=0.1)
    assert forecast(SIZES, values, 1e7).notes == ()
    assert "100 times away" in forecast(SIZES, values, 1e8, shape="line").notes[0]
    assert "20 times away" in forecast(SIZES, values, 500, shape="line").notes[0]


def test_settings_must_not_be_mixed():
    values = law(SIZES)
    forecast(SIZES, values, 1e7, same={"step": [20] * 5, "block": [0] * 5})
    with pytest.raises(
        LegatoValueError, match="step: expected the same for all runs of a forecast; got 2 different ones"
    ):
        forecast(SIZES, values, 1e7, same={"block": [0] * 5, "step": [20, 20, 20, 20, 40]})


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("sizes: expected 3 or more different ones for a line", lambda: forecast([1, 2, 2], [1, 2, 3], 4)),
        ("sizes: expected 4 or more different ones for a quadratic", lambda: fit_power([1, 2, 3], [1, 2, 3], "quadratic")),
        ("sizes: expected 3 or more", lambda: forecast([1, 2, 3], [1, 2, math.nan], 4)),
        ("sizes: expected finite numbers > 0", lambda: forecast([1, 2, 0], [1, 2, 3], 4)),
        ("values: expected one for each size", lambda: forecast([1, 2, 3], [1, 2], 4)),
        ("values: expected finite numbers > 0", lambda: fit_power([1, 2, 3], [1, 2, -3])),
        ("Did you mean 'quadratic'", lambda: forecast(SIZES, law(SIZES), 1e7, shape="quadratics")),
        ("Did you mean 'line'", lambda: fit_power(SIZES, law(SIZES), "lines")),
        ("size: expected a finite number > 0", lambda: forecast(SIZES, law(SIZES), 0)),
        ("level: expected a number above 0 and below 1", lambda: forecast(SIZES, law(SIZES), 1e7, level=1.0)),
        ("threshold: expected a finite number > 0", lambda: forecast(SIZES, law(SIZES), 1e7).probability_above(0)),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(words, call):
    with pytest.raises(LegatoValueError, match=words):
        call()
