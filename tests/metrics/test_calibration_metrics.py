"""NLL, temperature, calibration error, reliability."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from legato.errors import LegatoValueError
from legato.metrics import expected_calibration_error, fit_temperature, nll, reliability


def drawn(temperature=1.0, rows=4000, classes=4, seed=0):
    """Logits that are `temperature` times too sharp for their labels, which are drawn from the true probabilities."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(rows, classes, dtype=torch.float64, generator=generator)
    target = torch.multinomial(true.softmax(1), 1, generator=generator)[:, 0]
    return temperature * true, target


def test_nll_is_that_of_sklearn():
    logits, target = drawn()
    want = log_loss(target.numpy(), (logits / 1.5).softmax(1).numpy(), labels=range(4))
    assert nll(logits, target, 1.5) == pytest.approx(want, rel=1e-12)


def test_float32_logits_are_summed_in_float64():
    logits, target = torch.zeros(10_000, 3), torch.zeros(10_000, dtype=torch.int64)
    assert nll(logits.requires_grad_(), target) == pytest.approx(math.log(3), rel=1e-14)


@pytest.mark.parametrize("temperature", [0.01, 0.3, 1.0, 4.0, 100.0])
def test_the_temperature_that_made_the_logits_is_found_again(temperature):
    logits, target = drawn(temperature)
    assert fit_temperature(logits, target) == pytest.approx(temperature, rel=0.06)


@given(st.integers(0, 10_000), st.floats(0.1, 10))
def test_no_other_temperature_is_better(seed, scale):
    logits, target = drawn(scale, rows=60, seed=seed)
    found = fit_temperature(logits, target)
    best = nll(logits, target, found)
    assert best <= nll(logits, target) + 1e-12
    assert all(best <= nll(logits, target, found * factor) + 1e-12 for factor in (0.99, 1.01))


def test_temperature_where_there_is_no_minimum():
    target = torch.tensor([0, 1, 1])
    right = torch.tensor([[5.0, 0.0], [0.0, 5.0], [1.0, 2.0]])
    assert fit_temperature(right, target) == pytest.approx(1 / 1000, rel=1e-12)
    assert fit_temperature(100 * right, target) == pytest.approx(1 / 1000, rel=1e-12)
    assert fit_temperature(-right, target) == pytest.approx(1000, rel=1e-12)
    assert fit_temperature(torch.full((3, 2), 0.1), target) == 1.0
    assert math.isnan(fit_temperature(torch.full((3, 2), math.nan), target))


def test_a_class_that_is_ruled_out_does_not_disturb_the_temperature():
    logits, target = drawn(3.0)
    ruled_out = torch.cat([logits, torch.full((len(logits), 1), -math.inf, dtype=torch.float64)], dim=1)
    assert fit_temperature(ruled_out, target) == pytest.approx(fit_temperature(logits, target), rel=1e-9)


def brute_force_ece(logits, target, temperature, bins):
    confidence, prediction = (logits / temperature).softmax(1).max(1)
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            gap = (prediction == target)[inside].double().mean() - confidence[inside].mean()
            total += float(inside.double().mean() * gap.abs())
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_ece_by_brute_force(temperature, bins):
    logits, target = drawn(seed=3, rows=500)
    got = expected_calibration_error(logits, target, temperature, bins)
    assert got == pytest.approx(brute_force_ece(logits, target, temperature, bins), rel=1e-12)


def test_ece_by_hand():
    """Confidences 3/4 (right), 3/4 (wrong), 1/2 (right), each pair of equals in a bin of its own: (2 |1/2 - 3/4| + |1 - 1/2|)/3."""
    sure = math.log(3.0)
    logits = torch.tensor([[sure, 0.0], [0.0, sure], [0.0, 0.0]], dtype=torch.float64)
    assert expected_calibration_error(logits, torch.tensor([0, 0, 0])) == pytest.approx(1 / 3, rel=1e-12)


def test_the_right_temperature_calibrates():
    logits, target = drawn(4.0)
    raw = expected_calibration_error(logits, target)
    assert expected_calibration_error(logits, target, fit_temperature(logits, target)) < 0.2 * raw


def test_reliability_is_sklearn_s_curve():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.25, 1.0, 300)
    right = rng.random(300) < sure
    confidence, accuracy, count = reliability(sure, right, 10)
    curve_accuracy, curve_confidence = calibration_curve(right, sure, n_bins=10)
    np.testing.assert_allclose(confidence[count > 0], curve_confidence, rtol=1e-12)
    np.testing.assert_allclose(accuracy[count > 0], curve_accuracy, rtol=1e-12)
    assert count.sum() == 300
    assert count[:2].tolist() == [0, 0]
    assert np.isnan(accuracy[:2]).all()


def test_a_confidence_on_an_edge_belongs_to_the_lower_bin():
    assert reliability([0.0, 0.5, 1.0], [0, 1, 1], 2)[2].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: nll(*drawn(rows=3), temperature=0.0), "temperature"),
        (lambda: expected_calibration_error(*drawn(rows=3), temperature=-1.0), "temperature"),
        (lambda: expected_calibration_error(*drawn(rows=3), bins=0), "bins"),
        (lambda: fit_temperature(torch.zeros(2, 3), torch.tensor([0, 3])), "target"),
        (lambda: reliability([0.5], [1, 0]), "correct"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(LegatoValueError, match=words):
        call()
