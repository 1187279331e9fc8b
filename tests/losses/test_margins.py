"""Margins and the fixed losses of the margin: definitions, oracles, generic behaviour, and what they refuse."""

import copy
import math
import warnings
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from legato.errors import LegatoTypeError, LegatoValueError, LegatoWarning
from legato.losses.margin_losses import MarginLoss, exponential_loss, hinge_loss, log_tail_loss, logistic_loss
from legato.losses.margins import margins

FLOATS = [torch.float64, torch.float32, torch.bfloat16]
LOSSES = {"hinge": hinge_loss, "exponential": exponential_loss, "logistic": logistic_loss, "log-tail": log_tail_loss}
BY_HAND = {  # phi and its slope, in plain Python
    "hinge": (lambda z: max(0.0, 1 - z), lambda z: -1.0 if z < 1 else 0.0),
    "exponential": (lambda z: math.exp(-z), lambda z: -math.exp(-z)),
    "logistic": (lambda z: math.log1p(math.exp(-z)), lambda z: -1 / (1 + math.exp(z))),
    "log-tail": (lambda z: -z if z <= 1 else -1 - math.log(z), lambda z: -min(1.0, 1 / z) if z > 0 else -1.0),
}
BINARY, SCORES = "one logit", "four scores"


@pytest.fixture(params=LOSSES, ids=LOSSES)
def name(request):
    return request.param


@pytest.fixture(params=[BINARY, SCORES])
def batch(request):
    return sample(request.param)


def sample(form, dtype=torch.float64, rows=8):
    generator = torch.Generator().manual_seed(3)
    shape = (rows,) if form == BINARY else (rows, 4)
    h = (2 * torch.randn(shape, dtype=torch.float64, generator=generator)).to(dtype)
    return h, torch.randint(2 if form == BINARY else 4, (rows,), generator=generator)


# margins


def test_margins_of_one_logit():
    f = torch.tensor([0.5, -2.0, 3.0, -0.25])
    want = torch.tensor([0.5, 2.0, -3.0, -0.25])
    for y in (torch.tensor([1, 0, 0, 1]), torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([1.0, 0, 0, 1]).double()):
        for column, labels in ((f, y), (f[:, None], y), (f[:, None], y[:, None])):
            assert torch.equal(margins(column, labels), want)


def test_margins_of_several_scores():
    h = torch.tensor([[1.0, 4.0, 2.5], [1.0, 4.0, 2.5], [0.0, 0.0, 0.0], [-9.0, -8.0, -10.0]])
    assert margins(h, torch.tensor([1, 2, 0, 0])).tolist() == [1.5, -1.5, 0.0, -1.0]


@given(st.integers(0, 10_000))
def test_margins_against_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(6, 5, dtype=torch.float64, generator=generator)
    y = torch.randint(5, (6,), generator=generator)
    want = [h[i, y[i]] - max(h[i, j] for j in range(5) if j != y[i]) for i in range(6)]
    assert margins(h, y).tolist() == [float(z) for z in want]


def test_two_scores_are_one_logit_with_their_difference_gradients_included():
    h, y = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)).requires_grad_(), torch.arange(9) % 2
    two = margins(h, y)
    one = margins(h[:, 1] - h[:, 0], y)
    assert torch.equal(two, one)
    for a, b in zip(torch.autograd.grad(two.sum(), h), torch.autograd.grad(one.sum(), h), strict=True):
        assert torch.equal(a, b)


def test_equal_runners_up_share_the_gradient():
    h = torch.tensor([[5.0, 2.0, 2.0, 0.0]], requires_grad=True)
    margins(h, torch.tensor([0])).sum().backward()
    assert h.grad.tolist() == [[1.0, -0.5, -0.5, 0.0]]


# the losses


@pytest.mark.parametrize("z", [-700.0, -40.0, -21.0, -1.5, 0.0, 0.5, 1.0, 1.5, 3.0, 40.0, 700.0])
def test_a_loss_and_its_slope_are_their_definitions(name, z):
    f = torch.tensor([z], dtype=torch.float64, requires_grad=True)
    value = LOSSES[name](f, torch.tensor([1]))
    (slope,) = torch.autograd.grad(value, f)
    phi, derivative = BY_HAND[name]
    want = -z if (name == "logistic" and z <= -700) else phi(z)
    assert float(value.detach()) == pytest.approx(want, rel=1e-14, abs=1e-300)
    assert float(slope) == pytest.approx(derivative(z), rel=1e-14, abs=1e-300)


def test_the_log_tail_never_ends_and_bends_at_one_without_a_step():
    assert float(log_tail_loss(torch.tensor([1e30], dtype=torch.float64), torch.tensor([1]))) < -70
    f = torch.tensor([1 - 1e-9, 1.0, 1 + 1e-9], dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(log_tail_loss(f, torch.ones(3), reduction="sum"), f)
    torch.testing.assert_close(slopes, -torch.ones(3, dtype=torch.float64), rtol=0, atol=2e-9)


def test_the_logistic_loss_of_one_logit_is_binary_cross_entropy():
    f, y = sample(BINARY)
    for reduction in ("none", "mean", "sum"):
        for weight in (None, 3.0, 0.0):
            want = F.binary_cross_entropy_with_logits(
                f, y.double(), pos_weight=None if weight is None else torch.tensor(weight), reduction=reduction
            )
            torch.testing.assert_close(logistic_loss(f, y, pos_weight=weight, reduction=reduction), want)


def test_two_scores_give_what_their_difference_gives(name):
    h, y = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 2
    loss = LOSSES[name]
    assert torch.equal(loss(h, y), loss(h[:, 1] - h[:, 0], y))
    weighted = loss(h, y, weight=torch.tensor([1.0, 3.0]), reduction="sum")
    torch.testing.assert_close(weighted, loss(h[:, 1] - h[:, 0], y, pos_weight=3.0, reduction="sum"))


@pytest.mark.parametrize("weight", [[0.5, 1.0, 2.0, 3.0], [1.0, 0.0, 0.0, 2.0]])
def test_class_weights_are_factors_and_the_mean_divides_by_their_sum(name, weight):
    h, y = sample(SCORES)
    plain, w = LOSSES[name](h, y, reduction="none"), torch.tensor(weight)
    shares = w.double()[y]
    torch.testing.assert_close(LOSSES[name](h, y, weight=w, reduction="none"), shares * plain)
    torch.testing.assert_close(LOSSES[name](h, y, weight=w), (shares * plain).sum() / shares.sum())
    torch.testing.assert_close(LOSSES[name](h, y, weight=w, reduction="sum"), (shares * plain).sum())


def test_a_weight_of_zero_silences_an_infinite_loss():
    f = torch.tensor([-1e4, 0.0], requires_grad=True)
    value = exponential_loss(f, torch.tensor([1, 0]), pos_weight=0.0)
    value.backward()
    assert (value.item(), f.grad.tolist()) == (0.5, [0.0, 0.5])


@pytest.mark.parametrize("form", [BINARY, SCORES])
@pytest.mark.parametrize("dtype", FLOATS)
def test_short_types_are_computed_in_float32(name, dtype, form):
    h, y = sample(form, dtype)
    got = LOSSES[name](h, y, reduction="none")
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got.double(), LOSSES[name](h.double(), y, reduction="none"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_function_and_object_agree_bit_for_bit(name, batch, reduction):
    h, y = batch
    made, function = MarginLoss(name, reduction=reduction), LOSSES[name]
    assert torch.equal(made(h, y), function(h, y, reduction=reduction))
    options = {"pos_weight": 2.5} if h.dim() == 1 else {"weight": torch.tensor([0.5, 1.0, 2.0, 0.0])}
    weighted = MarginLoss(name, reduction=reduction, **options)
    assert torch.equal(weighted(h, y), function(h, y, reduction=reduction, **options))


def test_gradients_of_first_and_second_order(name, batch):
    h, y = batch
    h.requires_grad_()
    assert torch.autograd.gradcheck(partial(LOSSES[name], target=y, reduction="none"), h)
    assert torch.autograd.gradgradcheck(partial(LOSSES[name], target=y), h)


def test_a_mean_over_nothing_is_zero_with_a_gradient_of_zero(name, batch):
    h, y = batch
    h.requires_grad_()
    silent = {"pos_weight": 0.0} if h.dim() == 1 else {"weight": torch.zeros(4)}
    for value in (LOSSES[name](h[:0], y[:0]), LOSSES[name](h, torch.ones_like(y), **silent)):
        assert value == 0
        (gradient,) = torch.autograd.grad(value, h)
        assert (gradient == 0).all()


def test_equal_shards_average_to_the_whole(name, batch):
    h, y = batch
    halves = (LOSSES[name](h[:4], y[:4]) + LOSSES[name](h[4:], y[4:])) / 2
    torch.testing.assert_close(halves, LOSSES[name](h, y))


def test_nan_in_nan_out(name, batch):
    h, y = batch
    h[2] = math.nan
    assert LOSSES[name](h, y, reduction="none").isnan().tolist() == [row == 2 for row in range(8)]


def test_certainty_has_a_finite_gradient(name):
    f = torch.tensor([1e9, 40.0, math.inf], requires_grad=True)
    LOSSES[name](f, torch.ones(3), reduction="sum").backward()
    assert f.grad.isfinite().all()


def test_vmap_over_samples_and_their_gradients(name, batch):
    h, y = batch
    loss = LOSSES[name]
    torch.testing.assert_close(torch.func.vmap(loss)(h, y), loss(h, y, reduction="none"))
    if h.dim() == 1:
        torch.testing.assert_close(torch.func.vmap(loss)(h[:, None], y), loss(h, y, reduction="none"))
    per_sample = torch.func.vmap(torch.func.grad(loss))(h, y)
    torch.testing.assert_close(per_sample.mean(0), torch.func.grad(loss)(h, y).sum(0))


@pytest.mark.parametrize("form", [BINARY, SCORES])
def test_they_compile_whole(form):
    h, y = sample(form, torch.float32)
    made = [*LOSSES.values(), *(MarginLoss(name) for name in LOSSES)]

    def every(h, y):
        return torch.stack([loss(h, y) for loss in made])

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(every, backend="aot_eager", fullgraph=True)(h, y), every(h, y))


def test_under_autocast_it_is_computed_in_float32(name, batch):
    h, y = batch
    layer = nn.Linear(4, 1 if h.dim() == 1 else 4)
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = layer(inputs)
        value = LOSSES[name](scores, y)
    assert (scores.dtype, value.dtype) == (torch.bfloat16, torch.float32)
    value.backward()
    assert layer.weight.grad.isfinite().all()


# the object


def test_the_state_of_an_object_comes_back(name):
    h, y = sample(SCORES)
    first, second = MarginLoss(name, weight=torch.arange(4.0)), MarginLoss(name, weight=torch.ones(4))
    first(h, y)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(first(h, y), second(h, y))
    assert second.calls == 2
    assert repr(copy.deepcopy(first)) == repr(second) == f"MarginLoss({name!r}, weight=[4])"


def test_it_says_what_differs_from_the_defaults():
    assert (
        repr(MarginLoss("hinge", pos_weight=2.0, reduction="sum"))
        == "MarginLoss('hinge', pos_weight=2.0, reduction='sum')"
    )


def test_the_exponential_loss_warns_once_of_its_overflow():
    made, f, y = MarginLoss("exponential"), torch.tensor([-100.0]), torch.tensor([1])
    made(torch.zeros(1), y)
    with pytest.warns(LegatoWarning, match=r"exp\(-z\) overflows") as caught:
        made(f, y)
    assert [w.filename for w in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(f, y)
        made(f, y)
        MarginLoss("logistic")(f, y)


VALUES = [
    (torch.zeros(3), torch.tensor([0, 2, 1]), "target: expected 0 or 1 beside one logit a sample; got 2"),
    (torch.zeros(3), torch.tensor([0.0, 0.5, 1.0]), "got 0.5. Fix: round soft labels"),
    (torch.zeros(3), torch.tensor([-1, 1, 1]), "got -1. Fix: pass (target + 1) / 2"),
    (torch.zeros(3), torch.tensor([0.0, 1.0, math.nan]), "target: expected 0 or 1 beside one logit a sample; got nan"),
    (torch.tensor([0.0, math.nan, math.nan]), torch.tensor([0, 1, 1]), "logits: expected numbers; got 2 NaN of 3"),
    (torch.full((3, 4), math.nan), torch.tensor([0, 1, 1]), "logits: expected numbers; got 12 NaN of 12"),
]


@pytest.mark.parametrize(("logits", "target", "words"), VALUES)
def test_values_are_looked_at_once(logits, target, words):
    made = MarginLoss("hinge")
    with pytest.raises(LegatoValueError) as caught:
        made(logits, target)
    assert words in str(caught.value)
    made(logits, target)


BAD = [
    ({"reduction": "men"}, LegatoValueError, "Did you mean 'mean'"),
    ({"logits": [0.0]}, LegatoTypeError, "got list"),
    ({"logits": torch.zeros(7, dtype=torch.int64)}, LegatoTypeError, "got torch.int64. Fix: pass the model's raw scores"),
    ({"target": torch.zeros(7, dtype=torch.bool)}, LegatoValueError, "got torch.bool. Fix: pass target.long()"),
    ({"target": torch.zeros(6)}, LegatoValueError, "target"),
    ({"target": torch.zeros(7, 1)}, LegatoValueError, "pass one class index, or 0 or 1, for each row of the logits"),
    ({"logits": torch.zeros(7, 2), "target": torch.zeros(7)}, LegatoValueError, "go with one logit a sample; pass target.long()"),
    ({"logits": torch.zeros(7, 3), "target": torch.zeros(7, 3)}, LegatoValueError, "add up one loss for each column"),
    ({"logits": torch.zeros(7, 3), "target": torch.full((7,), 3)}, LegatoValueError, "classes in 0 .. 2, for 3 logits a row; got class 3"),
    ({"logits": torch.zeros(7, 3), "target": torch.full((7,), -1)}, LegatoValueError, "got class -1"),
    ({"logits": torch.zeros(7, 3), "target": torch.full((7,), -100)}, LegatoValueError, "got class -100"),
    ({"logits": torch.zeros(7, 3, 2), "target": torch.zeros(7, 3, dtype=torch.int64)}, LegatoValueError, "target"),
    ({"weight": torch.ones(2)}, LegatoValueError, "Fix: use pos_weight"),
    ({"pos_weight": -1.0}, LegatoValueError, "pos_weight: expected a plain finite number >= 0; got -1.0"),
    ({"pos_weight": math.nan}, LegatoValueError, "pos_weight"),
    ({"pos_weight": torch.tensor([2.0])}, LegatoValueError, "Fix: pass pos_weight.item()"),
    ({"logits": torch.zeros(7, 2), "target": torch.arange(7) % 2, "pos_weight": 2.0}, LegatoValueError, "weight=torch.tensor([1.0, pos_weight])"),
    ({"logits": torch.zeros(7, 2), "target": torch.arange(7) % 2, "weight": torch.ones(3)}, LegatoValueError, "weight: expected shape [2]"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "words"), BAD)
def test_bad_input(change, error, words):
    arguments = {"logits": torch.zeros(7), "target": torch.arange(7) % 2} | change
    with pytest.raises(error) as caught:
        hinge_loss(**arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("hing",), "phi: expected one of exponential, hinge, log-tail, logistic; got 'hing'. Did you mean 'hinge'?"),
        ((None,), "phi"),
    ],
)
def test_an_object_names_its_losses(arguments, words):
    with pytest.raises(LegatoValueError) as caught:
        MarginLoss(*arguments)
    assert words in str(caught.value)
