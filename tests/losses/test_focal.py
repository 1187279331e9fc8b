"""The focal loss: its definition, and its limit."""

import math

import pytest
import torch
from torch.nn import functional as F

from legato.losses import focal_loss


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_loss_is_its_definition(gamma):
    h = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(7) % 5
    p = h.softmax(1).gather(1, y[:, None])[:, 0]
    got = focal_loss(h, y, gamma, reduction="none")
    torch.testing.assert_close(got, -((1 - p) ** gamma) * p.log(), rtol=1e-12, atol=0)


def test_gamma_zero_is_cross_entropy_with_torch_s_options():
    h, y = torch.randn(7, 5), torch.arange(7) % 5
    w = torch.tensor([0.5, 1.0, 2.0, 0.1, 3.0])
    for reduction in ("none", "mean", "sum"):
        want = F.cross_entropy(h, y, weight=w, ignore_index=2, reduction=reduction)
        torch.testing.assert_close(focal_loss(h, y, 0.0, weight=w, ignore_index=2, reduction=reduction), want)


def test_two_classes_with_a_margin_of_log_three():
    """By hand: p = 3/4, so (1/4)^2 log(4/3)."""
    h = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    assert float(focal_loss(h, torch.tensor([0]), 2.0)) == pytest.approx(math.log(4 / 3) / 16, rel=1e-14)


def test_a_nearly_certain_row_keeps_its_digits():
    """1 - p = 2 e^-12 and ce = 2 e^-12 up to a relative e^-12: 1 - p written as such would lose half of the digits in float32."""
    h = torch.tensor([[12.0, 0.0, 0.0]])
    got = float(focal_loss(h, torch.tensor([0]), 1.0))
    assert got == pytest.approx((2 * math.exp(-12)) ** 2, rel=0.02)
