"""The function of EnsLoss: its gradient, what it does not see, its types, and what it refuses."""

import math

import pytest
import torch
from torch import nn

from legato.errors import LegatoTypeError, LegatoValueError
from legato.losses.ens_derivatives import ens_derivatives, normal_profile
from legato.losses.ensloss import EnsLoss, ens_loss
from legato.losses.margin_losses import log_tail_loss
from legato.losses.margins import margins


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(rows=64, seed=0, dtype=torch.float64):
    generator = seeded(seed)
    f = 3 * torch.randn(rows, dtype=torch.float64, generator=generator)
    return f.to(dtype), torch.randint(2, (rows,), generator=generator)


def gradient(loss, f, y, **options):
    f = f.clone().requires_grad_()
    return torch.autograd.grad(loss(f, y, **options), f)[0]


# the function


def test_the_gradient_is_the_derivative_and_the_value_does_not_enter():
    """E9, and the same numbers as `ens_derivatives` on the draws of the generator."""
    for rows in (64, 50):
        f, y = batch(rows, dtype=torch.float32)
        g = ens_derivatives(margins(f, y), torch.randn(rows, generator=seeded(7)))
        signs = 2 * y - 1
        assert torch.equal(gradient(ens_loss, f, y, generator=seeded(7)), g * (1 / rows) * signs)
        assert torch.equal(gradient(ens_loss, f, y, generator=seeded(7), reduction="sum"), g * signs)
        per_row = ens_loss(f, y, generator=seeded(7), reduction="none")
        assert torch.equal(per_row, g * margins(f, y))
        torch.testing.assert_close(ens_loss(f, y, generator=seeded(7)), per_row.mean())


def test_rows_may_be_permuted():
    """E4: the derivatives belong to the margins, whatever the order of rows."""
    f, y = batch()
    order = torch.randperm(64, generator=seeded(5))
    got = gradient(ens_loss, f[order], y[order], generator=seeded(1))
    assert torch.equal(got, gradient(ens_loss, f, y, generator=seeded(1))[order])


def test_classes_may_be_exchanged():
    """E5: (f, y) -> (-f, 1 - y) negates the gradient and leaves the value."""
    f, y = batch()
    assert torch.equal(gradient(ens_loss, -f, 1 - y, generator=seeded()), -gradient(ens_loss, f, y, generator=seeded()))
    assert torch.equal(ens_loss(-f, 1 - y, generator=seeded()), ens_loss(f, y, generator=seeded()))


def test_draws_above_zero_give_the_linear_loss():
    """E6: all sizes are clipped to 1, so the value is -mean(z) below z = 1."""
    z = torch.linspace(-5, 1, 9, dtype=torch.float64)
    g = ens_derivatives(z, torch.linspace(0, 4, 9, dtype=torch.float64))
    assert (g == -1 - 1e-6).all()
    assert torch.equal(ens_derivatives(z + 2, torch.ones(9, dtype=torch.float64)), -1 / (z + 2).clamp_min(1) - 1e-6)


def test_a_generator_decides_and_the_global_one_is_left_alone():
    """E7."""
    f, y = batch()
    before = torch.get_rng_state()
    first, again, other = (gradient(ens_loss, f, y, generator=seeded(seed)) for seed in (1, 1, 2))
    made = EnsLoss(period=1)
    for epoch in range(3):
        made.begin_epoch(epoch)
        made(f, y)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_gradient_explodes():
    """E10: at most (1 + 1e-6) / B a sample, where the exponential loss has exp(-z)."""
    f, y = batch()
    got = gradient(ens_loss, 1e6 * f, y, generator=seeded())
    assert got.isfinite().all()
    assert (got.abs() <= (1 + 1.001e-6) / 64).all()


@pytest.mark.parametrize("lambda_", [0.0, 0.8, -0.8])
def test_training_on_two_points_finds_the_signs_of_both(lambda_):
    """E8: P(y=1|x) = .3 and .8; one parameter a point. Every draw is another loss, their mean is calibrated."""
    generator = seeded(11)
    for made in (EnsLoss(lambda_), EnsLoss(lambda_, random=False)):
        theta = torch.zeros(2, requires_grad=True)
        for _ in range(250):
            x = torch.randint(2, (64,), generator=generator)
            y = torch.rand(64, generator=generator) < torch.tensor([0.3, 0.8])[x]
            (slope,) = torch.autograd.grad(made(theta[x], y.long()), theta)
            theta = (theta - 0.2 * slope).detach().requires_grad_()
        assert theta[0] < -0.1
        assert theta[1] > 0.1


def test_without_randomness_it_needs_no_generator_and_repeats_itself():
    f, y = batch()
    got = gradient(ens_loss, f, y, random=False)
    assert torch.equal(got, gradient(ens_loss, f, y, random=False))
    g = ens_derivatives(margins(f, y), normal_profile(64, dtype=torch.float64))
    torch.testing.assert_close(got, g * (2 * y - 1) / 64, rtol=1e-15, atol=0)


def test_beyond_all_sizes_it_falls_as_the_log_tail_loss_does():
    """With all sizes 1 its slopes are those of the log-tail loss, but for the 1e-6."""
    z = torch.linspace(-3, 9, 13, dtype=torch.float64)
    want = gradient(log_tail_loss, z, torch.ones(13), reduction="sum")
    torch.testing.assert_close(ens_derivatives(z, torch.ones(13, dtype=torch.float64)) + 1e-6, want)


def test_two_scores_are_one_logit_with_their_difference():
    h, y = torch.randn(32, 2, generator=seeded()), torch.arange(32) % 2
    one = gradient(ens_loss, h[:, 1] - h[:, 0], y, generator=seeded())
    two = gradient(ens_loss, h, y, generator=seeded())
    assert torch.equal(two, torch.stack([-one, one], 1))


def test_several_scores_pull_the_label_up_and_the_runner_up_down():
    h, y = torch.randn(32, 5, dtype=torch.float64, generator=seeded()), torch.arange(32) % 5
    g = ens_derivatives(margins(h, y), torch.randn(32, dtype=torch.float64, generator=seeded(2)))
    runner_up = h.scatter(1, y[:, None], -math.inf).argmax(1)
    want = torch.zeros_like(h).scatter(1, y[:, None], g[:, None]).scatter(1, runner_up[:, None], -g[:, None]) / 32
    torch.testing.assert_close(gradient(ens_loss, h, y, generator=seeded(2)), want)


def test_class_weights_are_factors_that_ranks_do_not_see():
    f, y = batch()
    plain = gradient(ens_loss, f, y, generator=seeded())
    got = gradient(ens_loss, f, y, generator=seeded(), pos_weight=3.0)
    torch.testing.assert_close(got, torch.where(y == 1, 3 * plain, plain), rtol=1e-14, atol=0)
    h, w = torch.stack([torch.zeros_like(f), f], 1), torch.tensor([1.0, 3.0])
    weighted = gradient(ens_loss, h, y, generator=seeded(), weight=w)[:, 1]
    torch.testing.assert_close(weighted, got * 64 / w[y].sum(), rtol=1e-14, atol=0)
    assert ens_loss(h, torch.zeros_like(y), weight=torch.tensor([0.0, 1.0]), generator=seeded()) == 0


@pytest.mark.parametrize("options", [{"random": False}, {"generator": seeded()}])
def test_an_empty_batch_is_zero_with_a_graph_and_one_row_is_a_batch(options):
    f = torch.zeros(0, 1, requires_grad=True)
    value = ens_loss(f, torch.zeros(0), **options)
    value.backward()
    assert (value.item(), f.grad.shape) == (0, (0, 1))
    one = gradient(ens_loss, torch.tensor([0.5]), torch.tensor([1.0]), **options)
    assert -1 - 1.2e-6 <= one.item() <= -1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_short_types_are_computed_in_float32(dtype):
    f, y = batch(dtype=dtype)
    value = ens_loss(f, y, random=False)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(value.double(), ens_loss(f.double(), y, random=False), rtol=1e-5, atol=1e-6)


def test_a_nan_is_seen_in_the_value_and_in_its_gradient():
    f, y = batch(8)
    f[3] = math.nan
    assert ens_loss(f, y, random=False).isnan()
    rows = ens_loss(f, y, random=False, reduction="none")
    assert rows.isnan().tolist() == [row == 3 for row in range(8)]
    assert gradient(ens_loss, f, y, random=False)[3].isnan()


def test_infinite_logits_have_finite_slopes():
    f = torch.tensor([math.inf, -math.inf, 2.0])
    assert gradient(ens_loss, f, torch.tensor([1, 1, 0]), random=False).isfinite().all()


def test_vmap_over_models():
    f, y = batch()
    stack = torch.stack([f, -f, 2 * f])
    got = torch.func.vmap(torch.func.grad(lambda h: ens_loss(h, y, random=False)))(stack)
    want = torch.stack([gradient(ens_loss, h, y, random=False) for h in stack])
    torch.testing.assert_close(got, want)


def test_it_compiles_whole_but_for_the_draws():
    f, y = batch(dtype=torch.float32)
    z, draws = margins(f, y), torch.randn(64, generator=seeded())
    made, evaluated = EnsLoss(random=False), EnsLoss().eval()

    def every(f, y):
        return ens_loss(f, y, random=False), made(f, y), evaluated(f, y), ens_derivatives(z, draws)

    torch._dynamo.reset()
    got = torch.compile(every, backend="aot_eager", fullgraph=True)(f, y)
    for a, b in zip(got, every(f, y), strict=True):
        torch.testing.assert_close(a, b)
    split = torch.compile(EnsLoss(), backend="aot_eager")
    torch.testing.assert_close(split(f, y), EnsLoss()(f, y))


def test_under_autocast_it_is_computed_in_float32():
    layer = nn.Linear(4, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = layer(torch.randn(8, 4, generator=seeded()))
        value = EnsLoss()(scores, torch.arange(8) % 2)
    assert (scores.dtype, value.dtype) == (torch.bfloat16, torch.float32)
    value.backward()
    assert layer.weight.grad.isfinite().all()


REFUSED = [
    ({"logits": torch.zeros(7, 2), "target": torch.zeros(7)}, LegatoValueError, "int64 class indices of shape [7]"),
    ({"logits": torch.zeros(7, 2), "target": torch.zeros(7, 2)}, LegatoValueError, "add up one loss for each column"),
    ({"logits": torch.zeros(7).long()}, LegatoTypeError, "logits"),
    ({"logits": torch.tensor(0.0), "target": torch.tensor(1)}, LegatoValueError, "a batch, in which margins are ranked"),
    ({"lambda_": math.nan}, LegatoValueError, "lambda_"),
    ({"lambda_": torch.tensor(0.5)}, LegatoValueError, "a plain finite number"),
    ({"tail_power": -1.0}, LegatoValueError, "tail_power: expected a plain finite number >= 0; got -1.0"),
    ({"clip": 0.0}, LegatoValueError, "clip: expected a plain finite number > 0; got 0.0"),
    ({"pos_weight": -2.0}, LegatoValueError, "pos_weight"),
    ({"reduction": "avg"}, LegatoValueError, "reduction"),
    ({"random": True}, LegatoValueError, "generator: expected a torch.Generator"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "words"), REFUSED)
def test_bad_input(change, error, words):
    arguments = {"logits": torch.zeros(7), "target": torch.arange(7) % 2, "random": False} | change
    with pytest.raises(error) as caught:
        ens_loss(**arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize("draws", [torch.zeros(6), torch.zeros(7, 1), torch.zeros(7, dtype=torch.float64)])
def test_draws_that_do_not_fit(draws):
    with pytest.raises(
        LegatoValueError, match=r"draws: expected one number for each margin, torch.float32 of shape \[7\]"
    ):
        ens_derivatives(torch.zeros(7), draws)
