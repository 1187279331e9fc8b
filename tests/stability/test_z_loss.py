"""z-loss: its definition, its gradient, and that padding does not weaken it."""

import math

import pytest
import torch
from torch.nn import functional as F

from legato.errors import LegatoTypeError, LegatoValueError
from legato.stability.z_loss import ZLoss, z_loss


def logits(shape=(3, 4, 5), dtype=torch.float64):
    return 3 * torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


TARGET = torch.arange(12).reshape(3, 4) % 5


def test_it_is_the_mean_square_of_the_log_normaliser():
    want = 0.01 * logits().exp().sum(-1).log().square().mean()
    torch.testing.assert_close(z_loss(logits(), TARGET, 0.01), want, rtol=1e-12, atol=0)


def test_its_gradient_is_2_c_log_z_softmax():
    h = logits((6, 5)).requires_grad_()
    (6 * z_loss(h, TARGET.flatten()[:6], 0.25)).backward()
    want = 2 * 0.25 * h.logsumexp(-1, keepdim=True) * h.softmax(-1)
    torch.testing.assert_close(h.grad, want.detach(), rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda z: z_loss(z, TARGET.flatten()[:6]), h)


def test_padding_weakens_neither_loss():
    h, half = logits(), TARGET.clone()
    half[:, 2:] = -100
    torch.testing.assert_close(z_loss(h, half), z_loss(h[:, :2], TARGET[:, :2]))
    doubled = torch.cat([h[:, :2], h[:, :2]], 1)
    torch.testing.assert_close(z_loss(h, half), z_loss(doubled, TARGET))
    none = h.clone().requires_grad_()
    z_loss(none, torch.full_like(TARGET, -100)).backward()
    assert not none.grad.any()


def test_it_does_not_see_a_shift_of_the_target_but_of_the_logits():
    h = logits()
    assert z_loss(h, TARGET) == z_loss(h, (TARGET + 1) % 5)
    shifted = h - h.logsumexp(-1, keepdim=True)
    assert float(z_loss(shifted, TARGET)) < 1e-25
    assert F.cross_entropy(shifted.flatten(0, 1), TARGET.flatten()) == pytest.approx(
        float(F.cross_entropy(h.flatten(0, 1), TARGET.flatten()))
    )


def test_large_and_half_precision_logits():
    assert float(z_loss(torch.full((2, 5), 1e9), torch.zeros(2, dtype=torch.int64), 1.0)) == pytest.approx(1e18)
    half = logits(dtype=torch.bfloat16)
    assert z_loss(half, TARGET).dtype == torch.float32
    torch.testing.assert_close(z_loss(half, TARGET), z_loss(half.float(), TARGET), rtol=0, atol=0)


def test_function_and_object_agree_bit_for_bit():
    z = ZLoss(0.02, ignore_index=3)
    want = z_loss(logits(), TARGET, 0.02, ignore_index=3)
    assert torch.equal(z(logits(), TARGET), want)
    assert torch.equal(z.penalty(logits(), (None, TARGET, None)), want)
    assert "0.02" in repr(z)


@pytest.mark.parametrize("coefficient", [-1e-4, math.nan, math.inf])
def test_a_coefficient_out_of_range(coefficient):
    for make in (lambda: z_loss(logits(), TARGET, coefficient), lambda: ZLoss(coefficient)):
        with pytest.raises(LegatoValueError, match="coefficient: expected a number >= 0"):
            make()


def test_shapes_that_do_not_fit():
    with pytest.raises(LegatoValueError, match=r"target: expected shape \[3, 4\]"):
        z_loss(logits(), TARGET[:2])
    with pytest.raises(LegatoTypeError, match="floating point"):
        z_loss(TARGET, TARGET)
