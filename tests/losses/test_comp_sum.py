"""Oracles of the comp-sum family: its definition, its special cases, its gradient, its limits."""

import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from legato.losses import comp_sum_loss

TAUS = [0.0, 0.3, 0.5, 1.0, 1.2, 1.5, 1.7, 2.0, 2.5]


def sample(rows=7, classes=5, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, classes, dtype=torch.float64, generator=generator), torch.arange(rows) % classes


def definition(h, y, tau):
    """The paper's Phi_tau(u) at u = sum over j != y of exp(h_j - h_y), written without softmax and expm1; v = 1 + u."""
    v = (h - h.gather(1, y[:, None])).exp().sum(1)
    return v.log() if tau == 1 else (v ** (1 - tau) - 1) / (1 - tau)


def in_decimals(scores, tau):
    """Loss and p^(tau-1) of class 0, by the definition in 50 decimals."""
    with localcontext() as context:
        context.prec = 50
        h = [Decimal(float(value)) for value in scores]
        ce = sum((x - h[0]).exp() for x in h).ln()
        power = 1 - Decimal(tau)
        return (ce if tau == 1 else ((ce * power).exp() - 1) / power), (ce * power).exp()


@pytest.mark.parametrize("tau", TAUS)
def test_it_is_its_definition(tau):
    h, y = sample()
    got = comp_sum_loss(h, y, tau, reduction="none")
    torch.testing.assert_close(got, definition(h, y, tau), rtol=1e-12, atol=1e-14)


def test_special_cases():
    h, y = sample(scale=3)
    p = h.softmax(1).gather(1, y[:, None])[:, 0]
    expected = {0.0: 1 / p - 1, 1.0: F.cross_entropy(h, y, reduction="none"), 1.7: (1 - p**0.7) / 0.7, 2.0: 1 - p}
    for tau, want in expected.items():
        torch.testing.assert_close(comp_sum_loss(h, y, tau, reduction="none"), want, rtol=1e-12, atol=1e-14)


def test_two_classes_with_a_margin_of_log_three():
    """By hand: p = 3/4, so tau 0: 1/p - 1 = 1/3; tau 1: log(4/3); tau 1.5: 2 (1 - sqrt(3)/2); tau 2: 1/4; tau 3: (1 - 9/16)/2."""
    h = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    for tau, want in {0.0: 1 / 3, 1.0: math.log(4 / 3), 1.5: 2 - math.sqrt(3), 2.0: 0.25, 3.0: 7 / 32}.items():
        assert float(comp_sum_loss(h, torch.tensor([0]), tau)) == pytest.approx(want, rel=1e-14)


@pytest.mark.parametrize("tau", TAUS)
def test_gradient_is_that_of_cross_entropy_times_a_power_of_p(tau):
    h, y = sample()
    h.requires_grad_()
    (gradient,) = torch.autograd.grad(comp_sum_loss(h, y, tau, reduction="sum"), h)
    p = h.detach().softmax(1)
    want = p.gather(1, y[:, None]) ** (tau - 1) * (p - F.one_hot(y, 5))
    torch.testing.assert_close(gradient, want, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1 - 1e-9, 1.0, 1 + 1e-9, 1.3, 1.7, 2.0, 3.0])
@pytest.mark.parametrize("margin", [-80, -20, -1, 0, 1, 12, 80])
def test_error_against_fifty_decimals(tau, margin, dtype):
    """|error| <= 4 eps max|h| max(1, p^(tau-1)): what an error of 4 eps max|h| in the cross-entropy becomes."""
    scores = torch.tensor([float(margin), 0.0, 0.25], dtype=dtype)
    want, slope = in_decimals(scores, tau)
    got = Decimal(float(comp_sum_loss(scores, torch.tensor(0), tau)))
    assert abs(got - want) <= Decimal(4 * torch.finfo(dtype).eps * max(1, abs(margin))) * max(1, slope)


@given(st.floats(0, 2.5), st.floats(-50, 50), st.integers(0, 1000))
def test_shift_invariance_and_permutation_equivariance(tau, shift, seed):
    h, y = sample(seed=seed)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    base = comp_sum_loss(h, y, tau)
    torch.testing.assert_close(comp_sum_loss(h + shift, y, tau), base, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(comp_sum_loss(h[:, order], order.argsort()[y], tau), base, rtol=1e-11, atol=1e-12)


@given(st.integers(0, 1000))
def test_it_falls_with_tau_is_bounded_and_continuous_at_one(seed):
    h, y = sample(seed=seed, scale=4)
    losses = torch.stack([comp_sum_loss(h, y, tau, reduction="none") for tau in TAUS])
    assert (losses.diff(dim=0) <= 0).all()
    assert all((losses[i] <= 1 / (tau - 1)).all() for i, tau in enumerate(TAUS) if tau > 1)
    ce = comp_sum_loss(h, y, 1.0, reduction="none")
    for near in (1 - 1e-9, 1 + 1e-9):
        assert ((comp_sum_loss(h, y, near, reduction="none") - ce).abs() <= 1e-8 * ce**2 + 1e-15).all()


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 1.7])
def test_the_minimiser_is_the_distribution_to_a_power(tau):
    """softmax of the minimiser is proportional to q^(1/(2 - tau)), and the minimum is C*: found by real minimisation."""
    q = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    h = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [h], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = comp_sum_loss(h, q, tau)
        loss.backward()
        return loss

    optimizer.step(closure)
    powers = q ** (1 / (2 - tau))
    torch.testing.assert_close(h.detach().softmax(1), powers / powers.sum(), rtol=0, atol=1e-6)
    lowest = -(q * q.log()).sum() if tau == 1 else (powers.sum() ** (2 - tau) - 1) / (1 - tau)
    torch.testing.assert_close(comp_sum_loss(h.detach(), q, tau), lowest, rtol=0, atol=1e-8)


def test_options_mean_what_they_mean_in_torch():
    """At tau = 1: weight, ignore_index, label smoothing, probabilities, layouts, all reductions."""
    h, y = sample()
    ignored = y.clone()
    ignored[::3] = -100
    w = torch.tensor([0.5, 1.0, 2.0, 0.1, 3.0], dtype=torch.float64)
    q = torch.rand(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).softmax(1)
    image, labels = h.reshape(7, 5, 1).expand(7, 5, 3), ignored[:, None].expand(7, 3)
    both = {"weight": w, "label_smoothing": 0.2}
    cases = [
        (h, ignored, {}), (h, ignored, {"weight": w}), (h, y, {"label_smoothing": 1.0}), (h, ignored, both),
        (h, y.where(y > 0, 3), {"ignore_index": 3}), (h, q, {}), (h, q, both), (h[0], q[0], {}),
        (image, labels, {}), (image, labels, both), (image, image.softmax(1), both), (h[0], y[0], both),
    ]  # fmt: skip
    for scores, target, options in cases:
        for reduction in ("mean", "sum", "none"):
            want = F.cross_entropy(scores, target, reduction=reduction, **options)
            got = comp_sum_loss(scores, target, 1.0, reduction=reduction, **options)
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("tau", [0.5, 1.7])
def test_soft_targets_weigh_the_loss_of_each_class(tau):
    h, y = sample()
    each = torch.stack([definition(h, torch.full_like(y, k), tau) for k in range(5)], dim=1)
    w = torch.tensor([0.5, 1.0, 2.0, 0.1, 3.0], dtype=torch.float64)
    q = sample(seed=1)[0].softmax(1)
    torch.testing.assert_close(comp_sum_loss(h, q, tau, weight=w, reduction="none"), (q * w * each).sum(1))
    smooth = 0.9 * F.one_hot(y, 5) + 0.1 / 5
    got = comp_sum_loss(h, y, tau, weight=w, label_smoothing=0.1)
    torch.testing.assert_close(got, (smooth * w * each).sum() / w[y].sum())
    torch.testing.assert_close(comp_sum_loss(h, F.one_hot(y, 5).double(), tau), comp_sum_loss(h, y, tau))


def test_temperature_divides_the_logits():
    h, y = sample()
    torch.testing.assert_close(comp_sum_loss(h, y, 0.5, temperature=2.0), comp_sum_loss(h / 2, y, 0.5))


def test_a_class_of_weight_two_counts_like_repeated_samples():
    h, y = sample()
    twice = torch.tensor([2.0, 1, 1, 1, 1], dtype=torch.float64)
    again = torch.cat([torch.arange(7), (y == 0).nonzero().flatten()])
    torch.testing.assert_close(comp_sum_loss(h, y, 1.7, weight=twice), comp_sum_loss(h[again], y[again], 1.7))


def test_extreme_scores():
    """+-1e9 and -inf, in float32: the bound 1/(tau-1) on one side, 0 on the other, and a finite gradient."""
    h = torch.tensor([[1e9, -1e9], [1e9, -1e9], [0.0, -math.inf], [0.0, -math.inf]], requires_grad=True)
    y = torch.tensor([0, 1, 0, 1])
    loss = comp_sum_loss(h, y, 1.7, reduction="none")
    torch.testing.assert_close(loss, torch.tensor([0.0, 1 / 0.7, 0.0, 1 / 0.7]))
    loss.sum().backward()
    assert (h.grad == 0).all()
    assert comp_sum_loss(h, y, 0.5).isinf()


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.99])
def test_the_gradient_is_finite_where_the_loss_is(tau):
    margins = torch.cat([torch.linspace(0, 200, 401), torch.logspace(2, 8, 61)])
    h = torch.stack([-margins, torch.zeros_like(margins)], dim=1).requires_grad_()
    loss = comp_sum_loss(h, torch.zeros(len(h), dtype=torch.int64), tau, reduction="none")
    finite = loss.isfinite()
    assert not finite.all()
    loss.sum().backward()
    assert h.grad[finite].isfinite().all()


def test_what_counts_nothing_cannot_overflow():
    """A class of probability or weight 0 and an ignored row leave loss and gradient alone, though their own loss is infinite."""
    h = torch.tensor([[300.0, 0.0], [0.0, 0.5]], requires_grad=True)
    w = torch.tensor([1.0, 0.0])
    q = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    cases = [
        comp_sum_loss(h, q, 0.0), comp_sum_loss(h, torch.tensor([1, 0]), 0.0, weight=w),
        comp_sum_loss(h, torch.tensor([1, 0]), 0.0, weight=w, label_smoothing=0.1),
        comp_sum_loss(h, torch.tensor([-100, 0]), 0.0, label_smoothing=0.1),
    ]  # fmt: skip
    for loss in cases:
        (gradient,) = torch.autograd.grad(loss, h)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.slow
def test_inductor_compiles_it():
    h, y = sample()
    compiled = torch.compile(comp_sum_loss, fullgraph=True)
    torch.testing.assert_close(compiled(h, y, 1.7), comp_sum_loss(h, y, 1.7))
