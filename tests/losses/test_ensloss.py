"""EnsLoss: its derivatives against the official code and a brute-force twin, its gradient, its random numbers, its states."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm
from torch import nn

from legato.errors import LegatoTypeError, LegatoValueError, LegatoWarning
from legato.losses.ens_derivatives import (
    ORDERED_ROWS,
    RADIX_ROWS,
    ens_derivatives,
    inverse_box_cox,
    normal_profile,
    sorted_normals,
)
from legato.losses.ens_stream import BATCHES
from legato.losses.ensloss import EnsLoss, ens_loss
from legato.losses.margin_losses import log_tail_loss, logistic_loss
from legato.losses.margins import margins
from legato.training.plain import flatten, unflatten

# Gradients d loss / d logits of the official code, github.com/statmlben/ensLoss at fd37682, losses.py, class ensLoss, run on a CPU
# in float32 (its g_batch.to("cuda") turned into .to(output.device)) with torch.randn replaced by DRAWS, for several of its `lam`.
LOGITS = [0.25, -1.5, 3.0, 0.5, -0.75, -2.75, 1.25, -4.0, 0.0, 1.0]
TARGET = [1, 1, 1, 1, 0, 0, 0, 0, 1, 1]
DRAWS = [0.625, -0.375, -1.75, 0.125, -0.875, 1.5, -0.0625, -2.5, -1.25, -0.5]
OFFICIAL = {
    0.0: [-0.09394141286611557, -0.10000009834766388, -0.005792565178126097, -0.06872903555631638, 0.060653168708086014,
          0.010418456979095936, 0.10000009834766388, 0.00205222493968904, -0.10000009834766388, -0.04168630391359329],
    0.5: [-0.09384775906801224, -0.10000009834766388, -0.0005209333612583578, -0.06601572781801224, 0.05625010281801224,
          0.005113736726343632, 0.10000009834766388, 1.0000000116860974e-07, -0.10000009834766388, -0.03164072707295418],
    1.0: [-0.09375010430812836, -0.10000009834766388, -1.0000000116860974e-07, -0.06250010430812836, 0.05000010132789612,
          1.0000000116860974e-07, 0.10000009834766388, 1.0000000116860974e-07, -0.10000009834766388, -0.012500099837779999],
    0.3: [-0.09388568252325058, -0.10000009834766388, -0.0027874447405338287, -0.06717821955680847, 0.058174218982458115,
          0.007590547204017639, 0.10000009834766388, 0.0002461783296894282, -0.10000009834766388, -0.036241643130779266],
    -0.5: [-0.09403132647275925, -0.10000009834766388, -0.0094815818592906, -0.07091423124074936, 0.06400009989738464,
           0.013770945370197296, 0.10000009834766388, 0.004938371479511261, -0.10000009834766388, -0.04839329794049263],
    -1.0: [-0.09411775320768356, -0.10000009834766388, -0.012121312320232391, -0.07272737473249435, 0.06666677445173264,
           0.016161715611815453, 0.10000009834766388, 0.007142957299947739, -0.10000009834766388, -0.05333343893289566],
}  # fmt: skip
LAMBDAS = [-1.0, -0.37, -0.001, 0.0, 0.001, 0.5, 1.0]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(rows=64, seed=0, dtype=torch.float64):
    generator = seeded(seed)
    f = 3 * torch.randn(rows, dtype=torch.float64, generator=generator)
    return f.to(dtype), torch.randint(2, (rows,), generator=generator)


def twin(z, draws, lambda_, tail_power=1.0, clip=1.0):
    """The algorithm of the paper with lists and plain numbers."""

    def size(draw):
        if 1 + lambda_ * draw <= 0:
            return 0.0 if lambda_ > 0 else clip
        return min(math.exp(math.log1p(lambda_ * draw) / lambda_ if abs(lambda_) > 1e-200 else draw), clip)

    sizes = sorted((size(float(draw)) for draw in draws), reverse=True)
    g = [0.0] * len(z)
    for rank, row in enumerate(sorted(range(len(z)), key=lambda row: float(z[row]))):
        g[row] = -sizes[rank] / max(float(z[row]), 1.0) ** tail_power - 1e-6
    return g


def gradient(loss, f, y, **options):
    f = f.clone().requires_grad_()
    return torch.autograd.grad(loss(f, y, **options), f)[0]


# the derivatives


@pytest.mark.parametrize("lambda_", OFFICIAL)
def test_the_gradients_are_those_of_the_official_code_in_every_bit(lambda_):
    f, y = torch.tensor(LOGITS), torch.tensor(TARGET)
    g = ens_derivatives(margins(f, y), torch.tensor(DRAWS), lambda_)
    assert (g * (1 / 10) * (2 * y - 1)).tolist() == OFFICIAL[lambda_]


@given(
    st.integers(0, 10_000), st.floats(-1, 1), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.sampled_from([0.3, 1.0, 2.5])
)
def test_derivatives_against_a_loop(seed, lambda_, tail_power, clip):
    f, y = batch(17, seed)
    z, draws = margins(f, y), torch.randn(17, dtype=torch.float64, generator=seeded(seed + 1))
    got = ens_derivatives(z, draws, lambda_, tail_power=tail_power, clip=clip)
    want = torch.tensor(twin(z, draws, lambda_, tail_power, clip), dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)


@given(st.integers(0, 10_000), st.floats(-1, 1), st.sampled_from([torch.float32, torch.float64]), st.booleans())
def test_derivatives_rise_with_the_margin_and_are_negative(seed, lambda_, dtype, ties):
    """E2: convex, also in batches with duplicates, and calibrated."""
    f, y = batch(128, seed, dtype)
    z = margins(f.round() / 2 if ties else f, y)
    g = ens_derivatives(z, torch.randn(128, dtype=dtype, generator=seeded(seed)), lambda_)
    by_margin = g[z.argsort(stable=True)]
    assert (by_margin.diff() >= 0).all()
    assert (g <= -9.999e-7).all()
    assert (g >= -1 - 1.2e-6).all()


@pytest.mark.parametrize("lambda_", LAMBDAS)
@pytest.mark.parametrize("rows", [1, 2, 127, ORDERED_ROWS - 1, ORDERED_ROWS, ORDERED_ROWS + 5])
def test_all_ways_to_draw_are_convex(rows, lambda_):
    f, y = batch(rows, dtype=torch.float32)
    z = margins(f, y)
    for options in ({"generator": seeded()}, {"random": False}):
        g = gradient(ens_loss, f, y, lambda_=lambda_, reduction="sum", **options) * (2 * y - 1)
        assert (g[z.argsort()].diff() >= 0).all()
        assert (g < 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_batch_is_ranked_as_a_small_one(dtype):
    """Sorted by their bits as integers: zeros of both signs tie, infinities are the ends."""
    z = torch.randn(RADIX_ROWS, dtype=dtype, generator=seeded()).mul(3).round()
    z[:6] = torch.tensor([math.inf, -math.inf, 0.0, -0.0, 1e-45, -1e-45])
    draws = torch.randn(RADIX_ROWS, dtype=dtype, generator=seeded(1))
    sizes = draws.exp().clamp_max(1).sort(descending=True).values
    want = torch.empty_like(z).index_copy_(0, z.argsort(stable=True), -sizes) / z.clamp_min(1) - 1e-6
    torch.testing.assert_close(ens_derivatives(z, draws), want)


@pytest.mark.parametrize("lambda_", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_the_mean_size_of_a_derivative(lambda_):
    """E3: by numerical integration of the definition; 1/2 + exp(1/2) Phi(-1) = 0.761578 at lambda 0. Draws and profile have it."""

    def size(z):
        return min(1.0, math.exp(z) if lambda_ == 0 else max(1 + lambda_ * z, 0.0) ** (1 / lambda_))

    want = 0.5 + quad(lambda z: size(z) * norm.pdf(z), -9, 0, points=[-1 / lambda_] if lambda_ > 0 else None)[0]
    if lambda_ == 0:
        assert want == pytest.approx(0.5 + math.exp(0.5) * norm.cdf(-1), abs=1e-9)
    low = torch.zeros(100_000, dtype=torch.float64)
    random = -ens_derivatives(low, torch.randn(100_000, dtype=torch.float64, generator=seeded()), lambda_).mean() - 1e-6
    assert float(random) == pytest.approx(want, abs=0.004)  # 4 standard errors
    fixed = -ens_derivatives(low[:1000], normal_profile(1000, dtype=torch.float64), lambda_).mean() - 1e-6
    assert float(fixed) == pytest.approx(want, abs=1e-4)


def test_the_profile_is_the_normal_quantiles_of_midpoints():
    got = normal_profile(7, dtype=torch.float64)
    torch.testing.assert_close(got, torch.from_numpy(norm.ppf((np.arange(7) + 0.5) / 7)), rtol=1e-13, atol=1e-15)


def test_half_of_the_derivatives_are_the_clip_at_every_lambda():
    draws = torch.randn(10_000, generator=seeded())
    for lambda_ in LAMBDAS:
        assert ((inverse_box_cox(draws, lambda_) >= 1) == (draws >= 0)).all()


@given(st.floats(-0.0099, 0.0099), st.floats(-6, 6))
def test_a_small_lambda_keeps_its_digits_in_float32(lambda_, draw):
    got = inverse_box_cox(torch.tensor([draw]), lambda_)
    z = float(torch.tensor(draw))
    want = math.exp(z if abs(lambda_) < 1e-200 else math.log1p(lambda_ * z) / lambda_)
    assert float(got) == pytest.approx(want, rel=5e-6)


@pytest.mark.parametrize("lambda_", LAMBDAS)
def test_draws_without_bound_have_sizes_within_bounds(lambda_):
    sizes = inverse_box_cox(torch.tensor([-math.inf, -200.0, 200.0, math.inf]), lambda_).clamp_max(1)
    assert sizes.tolist() == pytest.approx([0.0, 0.0 if lambda_ >= 0 else float(sizes[1]), 1.0, 1.0])
    assert (sizes >= 0).all()


def test_draws_in_order_have_the_moments_of_order_statistics():
    """Phi of the k-th of B is the k-th of B uniform numbers: mean k/(B+1), covariance j (B+1-k) / ((B+1)^2 (B+2)) for j <= k."""
    rows, batches = 4, 200_000
    u = torch.special.ndtr(sorted_normals(batches, rows, generator=seeded(), dtype=torch.float64))
    assert (u.diff() >= 0).all()
    k = torch.arange(1, rows + 1, dtype=torch.float64)
    torch.testing.assert_close(u.mean(0), k / 5, rtol=0, atol=0.002)
    want = torch.minimum(k, k[:, None]) * (5 - torch.maximum(k, k[:, None])) / (25 * 6)
    torch.testing.assert_close(torch.cov(u.T), want, rtol=0, atol=0.0005)


def test_a_whole_batch_of_draws_in_order_is_normal():
    draws = sorted_normals(1, 20_000, generator=seeded())[0]
    distance = (torch.special.ndtr(draws) - (torch.arange(20_000) + 0.5) / 20_000).abs().max()
    assert float(distance) < 1.63 / math.sqrt(20_000)  # Kolmogorov-Smirnov at 1%


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


# the object


@pytest.mark.parametrize("rows", [16, 128, ORDERED_ROWS])
@pytest.mark.parametrize("lambda_", [0.0, 0.5])
def test_object_and_function_agree_bit_for_bit(rows, lambda_):
    """Drawing for many batches at once changes no number, for multiples of 16 rows."""
    f, y = batch(rows, dtype=torch.float32)
    made, generator = EnsLoss(lambda_, seed=3), seeded(3)
    for _ in range(3):
        assert torch.equal(made(f, y), ens_loss(f, y, lambda_, generator=generator))
    assert torch.equal(EnsLoss(random=False)(f, y), ens_loss(f, y, random=False))


def test_options_reach_the_function():
    f, y = batch(32, dtype=torch.float32)
    options = {"tail_power": 2.0, "clip": 0.5, "pos_weight": 2.0, "reduction": "none"}
    assert torch.equal(EnsLoss(0.3, **options)(f, y), ens_loss(f, y, 0.3, generator=seeded(), **options))
    h, w = torch.stack([f, -f], 1), torch.tensor([1.0, 2.0])
    assert torch.equal(EnsLoss(weight=w)(h, y), ens_loss(h, y, weight=w, generator=seeded()))


def test_draws_are_independent_of_type_and_other_batch_sizes():
    """Two sizes of batch take from two blocks; each call still is another draw."""
    f, y = batch(48, dtype=torch.float32)
    made = EnsLoss(reduction="none")
    got = [made(f[:rows], y[:rows]) for rows in [48, 32] * (BATCHES + 1)]
    assert len({tuple(row.tolist()) for row in got}) == 2 * (BATCHES + 1)


def test_eval_mode_is_binary_cross_entropy_and_draws_nothing():
    f, y = batch(dtype=torch.float32)
    made = EnsLoss(pos_weight=2.0)
    made(f, y)
    state = copy.deepcopy(made.state_dict())
    made.eval()
    want = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0))(f, y.float())
    torch.testing.assert_close(made(f, y), want)
    h = torch.randn(64, 3, generator=seeded())
    assert torch.equal(EnsLoss().eval()(h, y), logistic_loss(h, y))
    assert torch.equal(
        made.state_dict()["_extra_state"]["stream"]["generator"], state["_extra_state"]["stream"]["generator"]
    )


@pytest.mark.parametrize("calls", [0, 1, BATCHES, BATCHES + 3])
@pytest.mark.parametrize("period", [None, 2])
@pytest.mark.parametrize("epochs", [(3, 3, 4, 5), (5, 6)], ids=["in the middle", "at the end of an epoch"])
def test_a_resumed_object_draws_what_it_would_have_drawn(calls, period, epochs):
    f, y = batch(48, dtype=torch.float32)
    first, second = EnsLoss(0.2, period=period, seed=5), EnsLoss(0.2, period=period)
    second.begin_epoch(7)
    for _ in range(9):
        second(f, y)  # what it did before is forgotten
    first.begin_epoch(3)
    for _ in range(calls):
        first(f, y)
        first(f[:20], y[:20])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    third = EnsLoss(0.2, period=period)
    third.load_state_dict(copy.deepcopy(second.state_dict()))  # before it was called
    for made in (second, third, copy.deepcopy(first)):
        going_on = copy.deepcopy(first)
        for epoch in epochs:
            made.begin_epoch(epoch)
            going_on.begin_epoch(epoch)
            assert made.lambda_ == going_on.lambda_
            for rows in (48, 20):
                assert torch.equal(made(f[:rows], y[:rows]), going_on(f[:rows], y[:rows]))


def test_a_state_fits_into_a_checkpoint():
    """Of `legato.fit`, which keeps plain data and tensors."""
    f, y = batch()
    first, second, tensors = EnsLoss(), EnsLoss(), {}
    first(f, y)
    second.load_state_dict(unflatten(flatten(first.state_dict(), "objective", tensors), tensors))
    assert torch.equal(first(f, y), second(f, y))


def test_a_state_fits_into_a_file(tmp_path):
    f, y = batch()
    first, second = EnsLoss(), EnsLoss()
    first(f, y)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(first(f, y), second(f, y))


def test_a_state_of_another_device_begins_anew_with_a_warning():
    f, y = batch()
    first, second = EnsLoss(), EnsLoss()
    first(f, y)
    state = first.state_dict()
    state["_extra_state"]["stream"]["device"] = "cuda"
    second.load_state_dict(state)
    with pytest.warns(LegatoWarning, match="of a run on cuda cannot go on on cpu") as caught:
        value = second(f, y)
    assert [w.filename for w in caught] == [__file__]
    assert torch.equal(value, EnsLoss()(f, y))


def test_lambda_follows_the_epoch_and_the_seed_as_in_the_official_schedule():
    """The official loop counts epochs from 1 and draws lambda when epoch % period == 0."""
    made = EnsLoss(0.25, period=3)
    lambdas = []
    for epoch in range(9):
        made.begin_epoch(epoch)
        lambdas.append(made.lambda_)
    assert lambdas[:2] == [0.25, 0.25]
    assert lambdas[2] == lambdas[3] == lambdas[4] != lambdas[5]
    assert lambdas[8] != lambdas[5]
    made.begin_epoch(4)
    assert made.lambda_ == lambdas[4]
    every = EnsLoss(period=1, seed=1)
    drawn = [(every.begin_epoch(epoch), every.lambda_)[1] for epoch in range(400)]
    assert np.abs(drawn).max() <= 1
    assert np.mean(drawn) == pytest.approx(0, abs=0.1)
    assert np.var(drawn) == pytest.approx(1 / 3, abs=0.05)


def test_it_says_what_differs_from_the_defaults():
    assert repr(EnsLoss()) == "EnsLoss(lambda_=0.0)"
    made = EnsLoss(0.5, period=10, clip=2.0, pos_weight=3.0, random=False, seed=4, tail_power=2.0, reduction="sum")
    assert repr(made) == (
        "EnsLoss(lambda_=0.5, period=10, tail_power=2.0, clip=2.0, pos_weight=3.0, random=False, seed=4, reduction='sum')"
    )


def test_in_inference_mode_it_draws_for_later_training_too():
    f, y = batch(32, dtype=torch.float32)
    made = EnsLoss()
    with torch.inference_mode():
        made(f, y)
    assert gradient(made, f, y).isfinite().all()


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


@pytest.mark.parametrize(
    ("logits", "target", "words"),
    [
        (torch.zeros(7), torch.full((7,), 0.5), "got 0.5. Fix: round soft labels"),
        (torch.zeros(7), torch.full((7,), 2), "got 2. Fix: for more than two classes"),
        (torch.full((7,), math.nan), torch.zeros(7), "got 7 NaN of 7. Fix: look for NaN in the inputs"),
    ],
)
def test_the_object_looks_at_the_values_of_its_first_call_only(logits, target, words):
    made = EnsLoss()
    with pytest.raises(LegatoValueError) as caught:
        made(logits, target)
    assert words in str(caught.value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(logits, target)


@pytest.mark.parametrize(
    "options", [{"period": 0}, {"period": 1.5}, {"seed": -1}, {"seed": 0.5}, {"clip": -1.0}, {"lambda_": math.inf}]
)
def test_an_object_refuses_numbers_out_of_range(options):
    with pytest.raises(LegatoValueError, match=next(iter(options))):
        EnsLoss(**options)


@pytest.mark.parametrize("draws", [torch.zeros(6), torch.zeros(7, 1), torch.zeros(7, dtype=torch.float64)])
def test_draws_that_do_not_fit(draws):
    with pytest.raises(
        LegatoValueError, match=r"draws: expected one number for each margin, torch.float32 of shape \[7\]"
    ):
        ens_derivatives(torch.zeros(7), draws)
