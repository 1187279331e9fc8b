"""Oracle of the recalibration: the minimiser of the risk, found numerically, gives the class probabilities back."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from legato.errors import LegatoTypeError, LegatoValueError
from legato.losses import comp_sum_loss
from legato.losses.calibration import recalibrate


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.3, 1.7])
def test_the_minimiser_gives_the_probabilities_back(tau):
    q = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)

    def risk(h):
        scores = torch.tensor(h, requires_grad=True)
        value = comp_sum_loss(scores, q, tau)
        return value.item(), torch.autograd.grad(value, scores)[0].numpy()

    h = torch.tensor(minimize(risk, np.zeros(4), jac=True, options={"gtol": 1e-10}).x)
    torch.testing.assert_close(recalibrate(h, tau).softmax(0), q, rtol=1e-5, atol=0)
    if tau != 1:
        assert (h.softmax(0) - q).abs().max() > 0.02


def test_it_is_the_power_of_the_softmax():
    h = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for tau in (0.0, 0.4, 1.7):
        power = h.softmax(1) ** (2 - tau)
        torch.testing.assert_close(recalibrate(h, tau).softmax(1), power / power.sum(1, keepdim=True))
    assert torch.equal(recalibrate(h, 1.0), h)


def test_dtype_shape_and_gradient_stay():
    h = torch.randn(2, 3, 4, dtype=torch.bfloat16, requires_grad=True)
    got = recalibrate(h, 1.5)
    assert (got.dtype, got.shape) == (h.dtype, h.shape)
    got.sum().backward()
    assert (h.grad == 0.5).all()


@pytest.mark.parametrize(
    ("tau", "words"),
    [
        (2.0, r"tau: expected a plain number in \[0, 2\); got 2.0. Fix: .* holds no probabilities"),
        (3, "holds no probabilities"),
        (-0.1, "tau: expected"),
        (math.nan, "tau: expected"),
        (torch.tensor(1.5), "tau: expected"),
    ],
)
def test_a_tau_without_probabilities_is_named(tau, words):
    with pytest.raises(LegatoValueError, match=words):
        recalibrate(torch.zeros(2, 3), tau)


def test_scores_must_be_floating_point():
    with pytest.raises(LegatoTypeError, match="logits: expected"):
        recalibrate(torch.zeros(2, 3, dtype=torch.int64), 1.5)
