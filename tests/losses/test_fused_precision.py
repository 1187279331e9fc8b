"""The fused last layer in short types, under autocast and at the extremes."""

import math

import pytest
import torch
from torch.nn import functional as F

from legato.losses import comp_sum_loss
from legato.losses.fused import fused_linear_comp_sum

TAUS = [0.0, 0.5, 1.0, 1.7, 2.0]


def batch(rows=13, width=3, classes=7, dtype=torch.float64, seed=0):
    """hidden, weight, bias, all of which want a gradient, and target, of which every fifth is ignored."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, width), (classes, width), (classes,))
    tensors = [0.6 * torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    target = torch.randint(classes, (rows,), generator=generator)
    target[::5] = -100
    return *(x.to(dtype).requires_grad_() for x in tensors), target


def plain(hidden, weight, target, tau=1.0, *, bias=None, temperature=1.0, z_loss=0.0, reduction="mean", ignored=-100):
    h = F.linear(hidden, weight, bias)
    kept = target != ignored
    loss = comp_sum_loss(h, target, tau, temperature=temperature, reduction=reduction, ignore_index=ignored)
    squares = (h / temperature).logsumexp(-1)[kept].square()
    return loss + z_loss * (squares.sum() if reduction == "sum" else squares.mean())


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs, retain_graph=True)


@pytest.mark.parametrize("tau", TAUS)
def test_float32_is_as_exact_as_the_plain_way(tau):
    """The largest error of loss and of each gradient against float64, in units of its largest value."""
    exact = batch(200, 32, 1000)
    short = batch(200, 32, 1000, torch.float32)
    wide = [x.detach().double().requires_grad_() for x in short[:3]]
    truth = plain(wide[0], wide[1], exact[3], tau, bias=wide[2])
    truth = [truth.detach(), *gradients(truth, *wide)]
    errors_of = {}
    for name, loss in (("ours", fused_linear_comp_sum), ("plain", plain)):
        value = loss(short[0], short[1], exact[3], tau, bias=short[2])
        assert value.dtype == torch.float32
        found = [value.detach(), *gradients(value, *short[:3])]
        errors_of[name] = [
            float((a.double() - t).abs().max() / t.abs().max()) for a, t in zip(found, truth, strict=True)
        ]
    assert all(a <= 1.5 * b + 5e-7 for a, b in zip(errors_of["ours"], errors_of["plain"], strict=True)), errors_of


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_are_summed_in_float32(dtype):
    h, w, b, y = batch(60, 16, 9000, dtype)  # more classes than a tile has
    wide = [x.detach().double().requires_grad_() for x in (h, w, b)]
    loss = fused_linear_comp_sum(h, w, y, 1.7, bias=b, chunk=25, z_loss=1e-3)
    want = plain(*wide[:2], y, 1.7, bias=wide[2], z_loss=1e-3)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), want, rtol=2e-3, atol=0)
    for a, t in zip(gradients(loss, h, w, b), gradients(want, *wide), strict=True):
        assert a.dtype == dtype
        if dtype == torch.bfloat16:  # small gradients underflow in float16
            assert torch.equal((a != 0).any(-1), (t != 0).any(-1))  # no class is left out between two tiles
        assert (a.double() - t).norm() <= 1e-2 * t.norm()


def test_a_thousand_equal_rows_add_up_in_a_short_type():
    """A sum kept in bfloat16 would stand still after 256 equal terms."""
    h = torch.ones(1024, 1, dtype=torch.bfloat16)
    w, b = (torch.zeros(2, *shape, dtype=torch.bfloat16, requires_grad=True) for shape in ((1,), ()))
    loss = fused_linear_comp_sum(h, w, torch.zeros(1024, dtype=torch.int64), bias=b, chunk=1, reduction="sum")
    for gradient in gradients(loss, w, b):
        assert gradient.flatten().tolist() == [-512.0, 512.0]


def test_a_sum_beyond_float16_still_has_its_mean():
    h = torch.full((2000, 1), 100.0, dtype=torch.float16)
    w = torch.zeros(2, 1, dtype=torch.float16, requires_grad=True)
    loss = fused_linear_comp_sum(h, w, torch.zeros(2000, dtype=torch.int64))
    torch.testing.assert_close(gradients(loss, w)[0].flatten().tolist(), [-50.0, 50.0])


def test_under_autocast_products_are_short_and_gradients_are_not():
    h, w, b, y = batch(40, 16, 50, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fused_linear_comp_sum(h, w, y, 1.7, bias=b, chunk=10)
        mixed = fused_linear_comp_sum(h.bfloat16(), w, y, 1.7, bias=b, chunk=10)
    found = gradients(loss, h, w, b)
    rounded = [x.detach().bfloat16() for x in (h, w)]
    torch.testing.assert_close(
        loss, fused_linear_comp_sum(*rounded, y, 1.7, bias=b.detach().bfloat16()), rtol=1e-3, atol=0
    )
    assert torch.equal(loss, mixed)
    assert loss != fused_linear_comp_sum(h, w, y, 1.7, bias=b)
    assert [x.dtype for x in (loss, *found)] == [torch.float32] * 4
    assert not torch.equal(found[1], found[1].bfloat16().float())
    for a, t in zip(found, gradients(plain(h, w, y, 1.7, bias=b), h, w, b), strict=True):
        assert (a - t).norm() <= 1e-2 * t.norm()


def test_under_autocast_float64_stays():
    h, w, b, y = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fused_linear_comp_sum(h, w, y, 1.7, bias=b)
    assert torch.equal(loss, fused_linear_comp_sum(h, w, y, 1.7, bias=b))


def test_extreme_logits():
    """+-1e9, a class that is shut off by a bias of -inf, and NaN."""
    one = torch.ones(2, 1, requires_grad=True)
    w = torch.tensor([[1e9], [-1e9], [0.0]], requires_grad=True)
    b = torch.tensor([0.0, 0.0, -math.inf], requires_grad=True)
    loss = fused_linear_comp_sum(one, w, torch.tensor([0, 1]), 1.7, bias=b)
    torch.testing.assert_close(loss, torch.tensor(0.5 / 0.7))
    assert all((x == 0).all() for x in gradients(loss, one, w, b))
    assert fused_linear_comp_sum(one * math.nan, w, torch.tensor([0, 1]), 1.7).isnan()
    assert fused_linear_comp_sum(one, w, torch.tensor([0, 1]), 0.5).isinf()
