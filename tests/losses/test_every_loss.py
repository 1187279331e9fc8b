"""What every loss of the room must do, driven by one table."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from legato.losses import CompSumLoss, FocalLoss, Warmup, comp_sum_loss, focal_loss, gce, mae, sum_exponential

FLOATS = [torch.float64, torch.float32, torch.bfloat16]
LOSSES = {
    "comp-sum 0": (partial(comp_sum_loss, tau=0.0), sum_exponential),
    "comp-sum 0.5": (partial(comp_sum_loss, tau=0.5), partial(CompSumLoss, 0.5)),
    "comp-sum 1": (comp_sum_loss, CompSumLoss),
    "comp-sum 1.7": (partial(comp_sum_loss, tau=1.7), partial(gce, 0.7)),
    "comp-sum 2": (partial(comp_sum_loss, tau=2.0), mae),
    "comp-sum 2.5": (partial(comp_sum_loss, tau=2.5), partial(CompSumLoss, 2.5)),
    "temperature": (partial(comp_sum_loss, tau=1.5, temperature=3.0), partial(CompSumLoss, 1.5, temperature=3.0)),
    "smoothing": (partial(comp_sum_loss, tau=1.5, label_smoothing=0.1), partial(CompSumLoss, 1.5, label_smoothing=0.1)),
    "warm-up": (comp_sum_loss, partial(CompSumLoss, Warmup(end=1.7, epochs=5))),
    "focal 0": (partial(focal_loss, gamma=0.0), partial(FocalLoss, 0.0)),
    "focal 0.5": (partial(focal_loss, gamma=0.5), partial(FocalLoss, 0.5)),
    "focal 2": (focal_loss, FocalLoss),
}


@pytest.fixture(params=LOSSES, ids=LOSSES)
def loss(request):
    return LOSSES[request.param][0]


@pytest.fixture(params=LOSSES, ids=LOSSES)
def pair(request):
    return LOSSES[request.param]


def sample(dtype=torch.float64, rows=8, classes=4):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(rows, classes, dtype=torch.float64, generator=generator).to(dtype)
    return logits, torch.randint(classes, (rows,), generator=generator)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_function_and_object_agree_bit_for_bit(pair, dtype, reduction):
    function, make = pair
    h, y = sample(dtype)
    weight = torch.tensor([0.5, 1.0, 2.0, 0.0])
    assert torch.equal(make(reduction=reduction)(h, y), function(h, y, reduction=reduction))
    got = make(weight=weight, ignore_index=1, reduction=reduction)(h, y)
    assert torch.equal(got, function(h, y, weight=weight, ignore_index=1, reduction=reduction))


@pytest.mark.parametrize("dtype", FLOATS)
def test_short_types_are_computed_in_float32(loss, dtype):
    h, y = sample(dtype)
    got = loss(h, y, reduction="none")
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got.double(), loss(h.double(), y, reduction="none"), rtol=1e-5, atol=1e-6)
    assert (got >= 0).all()


def test_the_result_can_be_repeated(loss):
    h, y = sample(torch.float32, rows=500, classes=50)
    assert torch.equal(loss(h, y), loss(h, y))


def test_gradients_of_first_and_second_order(loss):
    h, y = sample(rows=3)
    h.requires_grad_()
    assert torch.autograd.gradcheck(partial(loss, target=y, reduction="none"), h)
    assert torch.autograd.gradgradcheck(partial(loss, target=y), h)


def test_a_mean_over_nothing_is_zero_with_a_gradient_of_zero(loss):
    h, y = sample()
    h.requires_grad_()
    empty = loss(h[:0], y[:0])
    ignored = loss(h, torch.full_like(y, -100))
    weightless = loss(h, y, weight=torch.zeros(4))
    for value in (empty, ignored, weightless):
        assert value == 0
        (gradient,) = torch.autograd.grad(value, h)
        assert (gradient == 0).all()


def test_an_ignored_row_counts_nothing(loss):
    h, y = sample()
    keep = torch.arange(8) % 3 != 0
    torch.testing.assert_close(loss(h, y.where(keep, -100)), loss(h[keep], y[keep]))
    assert (loss(h, y.where(keep, -100), reduction="none")[~keep] == 0).all()


def test_equal_shards_average_to_the_whole(loss):
    """What two processes with half of the batch each compute is the loss of the batch: their gradients are averaged."""
    h, y = sample()
    torch.testing.assert_close((loss(h[:4], y[:4]) + loss(h[4:], y[4:])) / 2, loss(h, y))


def test_further_axes_are_further_rows(loss):
    h, y = sample()
    image = torch.stack([h, h.roll(1, 0), h.roll(2, 0)], dim=2)
    labels = torch.stack([y, y.roll(2), y.roll(4)], dim=1)
    flat = loss(image.movedim(1, 2).reshape(-1, 4), labels.flatten(), reduction="none")
    torch.testing.assert_close(loss(image, labels, reduction="none").flatten(), flat)
    torch.testing.assert_close(loss(h[0], y[0]), loss(h[:1], y[:1]))


def test_one_class_costs_nothing(loss):
    h = torch.randn(3, 1, requires_grad=True)
    value = loss(h, torch.zeros(3, dtype=torch.int64))
    value.backward()
    assert value == 0
    assert (h.grad == 0).all()


def test_certainty_has_a_finite_gradient(loss):
    h = torch.tensor([[1e9, 0.0, 0.0], [40.0, 0.0, 0.0]], requires_grad=True)
    value = loss(h, torch.tensor([0, 0]))
    value.backward()
    assert value.isfinite()
    assert h.grad.isfinite().all()


def test_nan_in_nan_out(loss):
    h, y = sample()
    h[2, 1] = math.nan
    got = loss(h, y, reduction="none")
    assert got.isnan().tolist() == [row == 2 for row in range(8)]


def test_vmap_over_samples_and_their_gradients(loss):
    h, y = sample()
    torch.testing.assert_close(torch.func.vmap(loss)(h, y), loss(h, y, reduction="none"))
    per_sample = torch.func.vmap(torch.func.grad(loss))(h, y)
    torch.testing.assert_close(per_sample.mean(0), torch.func.grad(loss)(h, y).sum(0))


def test_it_compiles_whole(pair):
    function, make = pair
    h, y = sample(torch.float32)
    torch._dynamo.reset()
    for made in (function, make()):
        compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(h, y), made(h, y))


def test_under_autocast_it_is_computed_in_float32(loss):
    h, y = sample(torch.float32)
    layer = nn.Linear(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = layer(h)
        value = loss(scores, y)
    assert (scores.dtype, value.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(value, loss(scores.float(), y), rtol=1e-5, atol=1e-6)
    value.backward()
    assert layer.weight.grad.isfinite().all()


def test_the_state_of_an_object_comes_back(pair):
    _, make = pair
    h, y = sample()
    first, second = make(weight=torch.arange(4.0)), make(weight=torch.ones(4))
    for made in (first, second):
        getattr(made, "begin_epoch", lambda epoch: None)(3)
    getattr(second, "begin_epoch", lambda epoch: None)(0)
    first(h, y)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(first(h, y), second(h, y))
    assert repr(copy.deepcopy(first)) == repr(second)
