"""The trajectory loss against its definition, its limits and its closed-form gradient; its weight and its statistics."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from legato.errors import LegatoTypeError, LegatoValueError
from legato.flatness.trajectory import COMPARE_EVERY, FEW_CLASSES, Ramp, Tally, trajectory_loss

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def sample(rows=7, classes=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(2 * torch.randn(rows, classes, dtype=torch.float64, generator=generator).to(dtype) for _ in range(2))


@pytest.mark.parametrize("classes", [2, FEW_CLASSES - 1, FEW_CLASSES, 40])
@pytest.mark.parametrize("tau", [0.5, 1.0, 5.0])
def test_it_is_its_definition(tau, classes):
    """Oracle: tau^2 sum_c p (log p - log q), with exp and log written out."""
    z, y = sample(classes=classes)
    p, q = ((h / tau).exp() / (h / tau).exp().sum(1, keepdim=True) for h in (y, z))
    want = tau**2 * (p * (p / q).log()).sum(1)
    torch.testing.assert_close(trajectory_loss(z, y, tau, reduction="none"), want, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(trajectory_loss(z, y, tau, reduction="sum"), want.sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(trajectory_loss(z, y, tau), want.mean(), rtol=1e-12, atol=0)
    assert (want > 0).all()


@pytest.mark.parametrize("classes", [2, FEW_CLASSES - 1, FEW_CLASSES, 40])
@pytest.mark.parametrize("tau", [0.5, 1.0, 5.0])
def test_its_gradient_has_a_closed_form(tau, classes):
    """Oracle: tau / B (q - p)."""
    z, y = sample(classes=classes)
    z.requires_grad_()
    (got,) = torch.autograd.grad(trajectory_loss(z, y, tau), z)
    torch.testing.assert_close(
        got, tau / 7 * ((z / tau).softmax(1) - (y / tau).softmax(1)).detach(), rtol=0, atol=1e-15
    )


def test_its_gradient_is_that_of_cross_entropy_with_soft_targets():
    z, y = sample()
    z.requires_grad_()
    (got,) = torch.autograd.grad(trajectory_loss(z, y, 3.0), z)
    (want,) = torch.autograd.grad(9 * F.cross_entropy(z / 3, (y / 3).softmax(1)), z)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-15)


def test_for_large_tau_it_is_half_the_variance_of_the_difference():
    z, y = sample()
    want = (z - y).var(1, unbiased=False) / 2
    gaps = [float((trajectory_loss(z, y, tau, reduction="none") - want).abs().max()) for tau in (1e2, 1e3)]
    assert gaps[0] < 0.1
    assert gaps[1] == pytest.approx(gaps[0] / 10, rel=0.1), "the next term of the series falls as 1 / tau"


@given(st.integers(0, 1000), st.sampled_from([0.7, 1.0, 5.0]), st.floats(-20, 20))
def test_what_changes_nothing(seed, tau, shift):
    z, y = sample(seed=seed)
    rows = trajectory_loss(z, y, tau, reduction="none")
    assert (rows >= -1e-14).all()
    torch.testing.assert_close(trajectory_loss(z + shift, y, tau, reduction="none"), rows, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(trajectory_loss(z, y - shift, tau, reduction="none"), rows, rtol=1e-9, atol=1e-11)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(trajectory_loss(z[order], y[order], tau, reduction="none"), rows[order])
    classes = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(trajectory_loss(z[:, classes], y[:, classes], tau, reduction="none"), rows)
    assert (trajectory_loss(z, z + shift, tau, reduction="none").abs() < 1e-13).all()


@pytest.mark.parametrize("classes", [5, 20])
@pytest.mark.parametrize("dtype", FLOATS)
def test_it_is_exactly_zero_where_nothing_has_moved(dtype, classes):
    z, _ = sample(dtype=dtype, classes=classes)
    assert (trajectory_loss(z, z.clone(), reduction="none") == 0).all()
    assert trajectory_loss(z, z.clone()) == 0


def test_derivatives_of_first_and_second_order():
    z, y = sample(rows=3)
    z.requires_grad_()
    valid = torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(lambda h: trajectory_loss(h, y, 2.0, valid=valid, reduction="none"), z)
    assert torch.autograd.gradgradcheck(lambda h: trajectory_loss(h, y, 2.0, valid=valid), z)


def test_no_gradient_goes_to_the_past():
    z, y = (h.requires_grad_() for h in sample())
    trajectory_loss(z, y).backward()
    assert y.grad is None
    assert z.grad.abs().sum() > 0


@pytest.mark.parametrize("classes", [5, 20])
def test_rows_without_a_record_are_zero_and_the_mean_divides_by_all(classes):
    z, y = sample(classes=classes)
    z.requires_grad_()
    valid = torch.arange(7) % 3 != 0
    y[~valid] = math.nan
    rows = trajectory_loss(z, y, valid=valid, reduction="none")
    assert torch.equal(rows[valid], trajectory_loss(z, y, reduction="none")[valid])
    assert (rows[~valid] == 0).all()
    mean = trajectory_loss(z, y, valid=valid)
    torch.testing.assert_close(mean, rows.sum() / 7)
    (gradient,) = torch.autograd.grad(mean, z)
    assert (gradient[~valid] == 0).all()
    assert (gradient[valid] != 0).all()


def test_certainty_has_a_finite_value_and_gradient():
    """A gap of 1e4 between logits, where the logarithm of a softmax is infinite; oracle: tau times the gap."""
    z = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    y = torch.tensor([[0.0, 1e4], [0.0, 1e4]])
    rows = trajectory_loss(z, y, 5.0, reduction="none")
    torch.testing.assert_close(rows, torch.tensor([5e4, 0.0]))
    rows.sum().backward()
    torch.testing.assert_close(z.grad, torch.tensor([[5.0, -5.0], [0.0, 0.0]]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_short_types_are_computed_in_float32(dtype):
    z, y = sample(dtype=dtype)
    got = trajectory_loss(z, y, reduction="none")
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        got.double(), trajectory_loss(z.double(), y.double(), reduction="none"), rtol=2e-5, atol=2e-6
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(trajectory_loss(z, y, reduction="none"), got)


def test_an_empty_batch_has_the_mean_zero():
    z = torch.zeros(0, 5, requires_grad=True)
    value = trajectory_loss(z, torch.zeros(0, 5), valid=torch.zeros(0, dtype=torch.bool))
    value.backward()
    assert value == 0
    assert z.grad.shape == (0, 5)


def test_further_axes_are_further_rows():
    z, y = (torch.stack([h, h.roll(1, 0), h.roll(2, 1)], 2) for h in sample())
    rows = trajectory_loss(z, y, reduction="none")
    assert rows.shape == (7, 3)
    flat = trajectory_loss(z.movedim(1, 2).reshape(-1, 5), y.movedim(1, 2).reshape(-1, 5), reduction="none")
    torch.testing.assert_close(rows.flatten(), flat)
    torch.testing.assert_close(trajectory_loss(z, y), flat.mean())
    half = torch.arange(21).reshape(7, 3) % 2 == 0
    torch.testing.assert_close(trajectory_loss(z, y, valid=half), (flat * half.flatten()).mean())


def test_it_compiles_whole():
    z, y = sample(dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(trajectory_loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(z, y), trajectory_loss(z, y))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"tau": 0.0}, LegatoValueError, "tau: expected a plain finite number > 0; got 0.0"),
        ({"tau": math.nan}, LegatoValueError, "tau"),
        ({"tau": torch.tensor(1.0)}, LegatoValueError, "tau"),
        ({"past": torch.zeros(7, 4)}, LegatoValueError, r"past: expected shape \[7, 5\], as logits; got shape \[7, 4\]"),
        ({"logits": torch.zeros(7, 5, dtype=torch.int64)}, LegatoTypeError, "logits: expected a floating point tensor"),
        ({"past": None}, LegatoTypeError, "past: expected a floating point tensor; got NoneType"),
        ({"logits": torch.zeros(5)}, LegatoValueError, "logits: expected shape"),
        ({"valid": torch.ones(7)}, LegatoValueError, r"valid: expected bool of shape \[7\]; got torch.float32"),
        ({"valid": torch.ones(6, dtype=torch.bool)}, LegatoValueError, "valid"),
        ({"reduction": "men"}, LegatoValueError, "Did you mean 'mean'"),
    ],
)  # fmt: skip
def test_what_is_refused(change, error, text):
    with pytest.raises(error, match=text):
        trajectory_loss(**{"logits": torch.zeros(7, 5), "past": torch.zeros(7, 5)} | change)


def test_the_weight_rises_after_the_start():
    assert [Ramp(0.6, 2)(epoch) for epoch in range(5)] == [0, 0, 0, 0.6, 0.6]
    assert [Ramp(0.6, 1, 2)(epoch) for epoch in range(6)] == pytest.approx([0, 0, 0.2, 0.4, 0.6, 0.6])
    assert Ramp(0.6, -1)(0) == 0.6


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((-0.1, 5), "lam"), ((math.inf, 5), "lam"), ((0.3, -2), "start"), ((0.3, 2.5), "start"), ((0.3, 5, -1), "warmup"), ((True, 5), "lam")],
)  # fmt: skip
def test_weights_that_are_refused(arguments, name):
    with pytest.raises(LegatoValueError, match=f"{name}: expected"):
        Ramp(*arguments)


def test_a_tally_is_means_over_rows():
    tally = Tally()
    tally.add(4, torch.tensor(3), torch.tensor(0.5), 0.25)
    tally.add(2, 2, torch.tensor(2.0), 0.25)
    assert tally.read() == {"rows": 6, "valid_share": 5 / 6, "mean_divergence": pytest.approx((4 * 2 + 2 * 8) / 6)}
    assert tally.fault(3, 0.25) is None
    tally.add(2, 2, torch.tensor(math.nan), 0.25)
    assert "infinite or NaN in epoch 3" in tally.fault(3, 0.25)


@pytest.mark.parametrize("soft", [False, True])
def test_the_penalty_is_put_beside_the_cross_entropy(soft):
    """Cross-entropy of equal logits over 5 classes: log 5."""
    tally, targets = Tally(), torch.zeros(4, dtype=torch.int64)
    if soft:
        targets = F.one_hot(targets, 5).double()
    for call in range(2 * COMPARE_EVERY):
        penalty = torch.tensor(3.01 * math.log(5) if call % COMPARE_EVERY == 0 else math.log(2))
        tally.add(4, 4, penalty, 1.0)
        tally.compare(penalty, torch.zeros(4, 5), targets)
    assert tally.compared == 2
    assert f"the penalty, {3.01 * math.log(5):.3g}, outweighed the cross-entropy, {math.log(5):.3g}" in tally.fault(
        7, 1.0
    )
    assert Tally().fault(0, 1.0) is None
    tally.compare(torch.tensor(1.0), torch.zeros(4, 5), torch.zeros(4, 2))
    assert tally.compared == 2, "targets of another kind are left alone"
