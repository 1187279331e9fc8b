"""The derivatives of EnsLoss against the official code and a brute-force twin, and how they are drawn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from legato.losses.ens_derivatives import (
    ORDERED_ROWS,
    RADIX_ROWS,
    ens_derivatives,
    inverse_box_cox,
    normal_profile,
    sorted_normals,
)
from legato.losses.ensloss import ens_loss
from legato.losses.margins import margins

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
