"""Oracles of the comp-sum family: its definition, its special cases, its gradient, its limits."""

import math
import warnings
from decimal import Decimal, getcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from legato.errors import LegatoTypeError, LegatoValueError, LegatoWarning
from legato.losses import CompSumLoss, Warmup, comp_sum_loss, focal_loss, gce, mae, sum_exponential

TAUS = [0.0, 0.3, 0.5, 1.0, 1.2, 1.5, 1.7, 2.0, 2.5]


def sample(rows=7, classes=5, dtype=torch.float64, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, classes, dtype=dtype, generator=generator)
    return logits, torch.arange(rows) % classes


def definition(h, y, tau):
    """The paper's Phi_tau(u) at u = sum over j != y of exp(h_j - h_y), written without softmax and expm1; v = 1 + u."""
    v = (h - h.gather(1, y[:, None])).exp().sum(1)
    return v.log() if tau == 1 else (v ** (1 - tau) - 1) / (1 - tau)


@pytest.mark.parametrize("tau", TAUS)
def test_it_is_its_definition_and_gradcheck_holds(tau):
    h, y = sample()
    torch.testing.assert_close(
        comp_sum_loss(h, y, tau, reduction="none"), definition(h, y, tau), rtol=1e-12, atol=1e-14
    )
    assert torch.autograd.gradcheck(lambda z: comp_sum_loss(z, y, tau, reduction="none"), h.requires_grad_())


def test_special_cases():
    h, y = sample(scale=3)
    p = h.softmax(1).gather(1, y[:, None])[:, 0]
    expected = {0.0: 1 / p - 1, 1.0: F.cross_entropy(h, y, reduction="none"), 1.7: (1 - p**0.7) / 0.7, 2.0: 1 - p}
    for tau, want in expected.items():
        torch.testing.assert_close(comp_sum_loss(h, y, tau, reduction="none"), want, rtol=1e-12, atol=1e-14)


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
@pytest.mark.parametrize("tau", [1.0, 1.3, 1.7, 2.0])
@pytest.mark.parametrize("margin", [-80, -20, -1, 0, 1, 12])
def test_absolute_error_against_fifty_digits(tau, margin, dtype):
    """|error| <= 4 eps max|h|: the reference is the definition in 50-digit decimals."""
    getcontext().prec = 50
    scores = torch.tensor([[float(margin), 0.0, 0.25]], dtype=dtype)
    h = [Decimal(float(v)) for v in scores[0]]
    v = sum((x - h[0]).exp() for x in h)
    want = v.ln() if tau == 1 else ((v.ln() * (1 - Decimal(tau))).exp() - 1) / (1 - Decimal(tau))
    got = comp_sum_loss(scores, torch.tensor([0]), tau, reduction="none")
    assert abs(Decimal(float(got)) - want) <= Decimal(4 * torch.finfo(dtype).eps * max(1, abs(margin)))


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


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.5, 1.7])
def test_the_minimiser_is_the_distribution_to_a_power(tau):
    """softmax of the minimiser is proportional to q^(1/(2 - tau)): found by real minimisation of the conditional risk."""
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
    want = q ** (1 / (2 - tau))
    torch.testing.assert_close(h.detach().softmax(1), want / want.sum(), rtol=0, atol=1e-6)


def test_torch_semantics_at_tau_one():
    """weight, ignore_index, label smoothing, probabilities, layouts: what F.cross_entropy does."""
    h, y = sample()
    ignored = y.clone()
    ignored[::3] = -100
    w = torch.tensor([0.5, 1.0, 2.0, 0.1, 3.0], dtype=torch.float64)
    q = torch.rand(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).softmax(1)
    image, labels = h.reshape(7, 5, 1).expand(7, 5, 3), y[:, None].expand(7, 3)
    cases = [
        (h, ignored, {}), (h, ignored, {"weight": w}), (h, y, {"label_smoothing": 0.2}), (h, ignored, {"label_smoothing": 0.2}), (h, q, {}),
        (h, q, {"label_smoothing": 0.1}), (image, labels, {}), (image, labels, {"weight": w}), (h[0], y[0], {}),
    ]  # fmt: skip
    for scores, target, options in cases:
        for reduction in ("mean", "sum", "none"):
            want = F.cross_entropy(scores, target, reduction=reduction, **options)
            torch.testing.assert_close(
                comp_sum_loss(scores, target, 1.0, reduction=reduction, **options), want, rtol=1e-12, atol=1e-13
            )


def test_weights_ignored_rows_temperature_at_other_taus():
    h, y = sample()
    keep = torch.arange(7) % 3 != 0
    ignored = y.where(keep, -100)
    torch.testing.assert_close(comp_sum_loss(h, ignored, 1.7), comp_sum_loss(h[keep], y[keep], 1.7))
    torch.testing.assert_close(comp_sum_loss(h, y, 0.5, temperature=2.0), comp_sum_loss(h / 2, y, 0.5))
    q = F.one_hot(y, 5).double()
    torch.testing.assert_close(comp_sum_loss(h, q, 1.7), comp_sum_loss(h, y, 1.7))
    twice = torch.tensor([2.0, 1, 1, 1, 1], dtype=torch.float64)
    again = torch.cat([torch.arange(7), (y == 0).nonzero().flatten()])
    torch.testing.assert_close(comp_sum_loss(h, y, 1.7, weight=twice), comp_sum_loss(h[again], y[again], 1.7))


def test_nothing_to_learn_from_is_zero_with_a_gradient():
    h, _ = sample()
    h.requires_grad_()
    for scores, target in ((h, torch.full((7,), -100)), (h[:0], torch.zeros(0, dtype=torch.int64))):
        loss = comp_sum_loss(scores, target, 1.7)
        assert loss == 0
        loss.backward()
        assert (h.grad == 0).all()


def test_extreme_scores():
    y = torch.tensor([0, 1])
    h = torch.tensor([[1e9, -1e9], [1e9, -1e9]], requires_grad=True)
    loss = comp_sum_loss(h, y, 1.7, reduction="none")
    torch.testing.assert_close(loss, torch.tensor([0.0, 1 / 0.7]))
    loss.sum().backward()
    assert h.grad.isfinite().all()
    assert comp_sum_loss(h, torch.tensor([1, 1]), 0.0).isinf()
    assert comp_sum_loss(torch.full((1, 3), math.nan), torch.tensor([0]), 1.7).isnan()


def test_half_precision_autocast_vmap_and_compile():
    h, y = sample(dtype=torch.float32)
    loss = comp_sum_loss(h.bfloat16(), y, 1.7)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, comp_sum_loss(h.bfloat16().float(), y, 1.7))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(comp_sum_loss(h, y, 1.7), comp_sum_loss(h, y, 1.7), rtol=1e-2, atol=1e-2)
    each = torch.func.vmap(lambda a, b: comp_sum_loss(a, b, 1.7))(h, y)
    torch.testing.assert_close(each, comp_sum_loss(h, y, 1.7, reduction="none"))
    compiled = torch.compile(comp_sum_loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(h, y, 1.7), comp_sum_loss(h, y, 1.7), rtol=0, atol=0)


def test_object_and_function_agree_bit_for_bit():
    h, y = sample(dtype=torch.float32)
    for loss, tau in ((CompSumLoss(1.7), 1.7), (gce(0.7), 1.7), (mae(), 2.0), (sum_exponential(), 0.0)):
        assert torch.equal(loss(h, y), comp_sum_loss(h, y, tau))
    assert repr(CompSumLoss(1.7, label_smoothing=0.1)) == "CompSumLoss(tau=1.7, label_smoothing=0.1)"


def test_warm_up_and_its_state():
    loss = CompSumLoss(Warmup(end=1.7, epochs=7))
    taus = []
    for epoch in range(9):
        loss.begin_epoch(epoch)
        taus.append(round(loss.tau, 10))
    assert taus == [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.7]
    loss.begin_epoch(3)
    other = CompSumLoss(Warmup(end=1.7, epochs=7))
    other.load_state_dict(loss.state_dict())
    assert other.tau == loss.tau != 1.0


def test_warnings_of_the_first_call_only():
    y = torch.zeros(4, dtype=torch.int64)
    wrong = torch.tensor([[-100.0, 0, 0]]).expand(4, 3)
    with pytest.warns(LegatoWarning, match="vanish"):
        loss = mae()
        loss(wrong, y)
    with pytest.warns(LegatoWarning, match="infinite"):
        sum_exponential()(wrong, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(wrong, y)
        CompSumLoss(1.7)(*sample(dtype=torch.float32))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"tau": -0.1}, LegatoValueError, "tau: expected a plain finite number >= 0; got -0.1"),
        ({"tau": math.nan}, LegatoValueError, "tau"),
        ({"tau": math.inf}, LegatoValueError, "tau"),
        ({"tau": torch.tensor(1.0)}, LegatoValueError, "plain"),
        ({"temperature": 0.0}, LegatoValueError, "temperature"),
        ({"label_smoothing": 1.0}, LegatoValueError, "label_smoothing"),
        ({"reduction": "men"}, LegatoValueError, "Did you mean 'mean'"),
        ({"logits": torch.zeros(7, 5, dtype=torch.int64)}, LegatoTypeError, "raw outputs"),
        ({"target": torch.zeros(7, 4)}, LegatoValueError, r"shape \[7, 5\]"),
        ({"target": torch.zeros(6, dtype=torch.int64)}, LegatoValueError, r"int64 class indices of shape \[7\]"),
        ({"target": torch.full((7,), 5)}, LegatoValueError, r"0 \.\. 4; got 5"),
        ({"target": torch.full((7,), -1)}, LegatoValueError, "got -1"),
    ],
)
def test_bad_input(change, error, words):
    h, y = sample()
    arguments = {"logits": h, "target": y, "tau": 1.7} | change
    with pytest.raises(error, match=words):
        comp_sum_loss(arguments.pop("logits"), arguments.pop("target"), **arguments)


def test_focal_loss_is_its_definition():
    h, y = sample()
    p = h.softmax(1).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(focal_loss(h, y, 2.0, reduction="none"), -((1 - p) ** 2) * p.log(), rtol=1e-12, atol=0)
    torch.testing.assert_close(focal_loss(h, y, 0.0), F.cross_entropy(h, y))
    with pytest.raises(LegatoValueError, match="gamma"):
        focal_loss(h, y, -1.0)
