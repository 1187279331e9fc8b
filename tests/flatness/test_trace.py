"""Traces against dense ones, and standard errors against the spread of many repetitions."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from legato.errors import LegatoValueError
from legato.flatness.surface import Surface
from legato.flatness.trace import TraceEstimate, hessian_trace, hutch_plus_plus, hutchinson, rademacher

METHODS = [hutchinson, hutch_plus_plus]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def matrix(n=60, outliers=(30.0, 20.0, 10.0)):
    values = torch.linspace(0.1, 2, n, dtype=torch.float64)
    values[-len(outliers) :] = torch.tensor(outliers)
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator())).Q
    return (q * values) @ q.T


def estimate(method, a, **options):
    return method(lambda v: a @ v, len(a), dtype=a.dtype, **options)


@pytest.mark.parametrize("method", METHODS)
def test_the_standard_error_is_the_spread_of_repetitions_and_the_mean_is_right(method):
    a = matrix()
    runs = [estimate(method, a, probes=20, generator=generator(seed)) for seed in range(200)]
    traces = [run.trace for run in runs]
    spread = statistics.stdev(traces)
    assert abs(statistics.fmean(traces) - float(a.trace())) < 4 * spread / math.sqrt(len(runs))
    assert math.sqrt(statistics.fmean(run.standard_error**2 for run in runs)) == pytest.approx(spread, rel=0.15)
    covered = [low <= float(a.trace()) <= high for low, high in (run.interval() for run in runs)]
    assert 0.9 < statistics.fmean(covered) <= 0.98


def test_the_variance_of_a_draw_is_twice_the_squares_off_the_diagonal():
    a = matrix()
    run = estimate(hutchinson, a, probes=4000)
    variance = 2 * float((a - a.diag().diag()).square().sum())
    assert run.standard_error**2 * 4000 == pytest.approx(variance, rel=0.1)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20))
def test_a_diagonal_has_no_variance(values):
    a = torch.tensor(values, dtype=torch.float64).diag()
    run = estimate(hutchinson, a)
    assert run.trace == pytest.approx(float(a.trace()), rel=1e-12, abs=1e-12)
    assert run.standard_error <= 1e-12 * (1 + float(a.abs().sum()))


@given(n=st.integers(1, 12), sketch=st.integers(1, 12), seed=st.integers(0, 50))
def test_a_sketch_that_spans_everything_has_no_error(n, sketch, seed):
    """A of rank r <= sketch has its image in Q."""
    half = torch.randn(n, min(sketch, 3), dtype=torch.float64, generator=generator(seed))
    a = half @ half.T
    run = estimate(hutch_plus_plus, a, sketch=max(3, sketch))
    assert run.trace == pytest.approx(float(a.trace()), rel=1e-9)
    assert run.standard_error <= 1e-9 * float(a.trace())


def test_outliers_cost_hutchinson_more_products_than_the_sketch():
    a = matrix(outliers=(300.0, 200.0))
    plain, sketched = (estimate(method, a, relative_error=0.04, max_products=2000) for method in METHODS)
    assert sketched.converged
    assert sketched.products < plain.products / 3


def test_it_goes_on_until_the_error_is_small_enough():
    a = matrix()
    run = estimate(hutchinson, a, relative_error=0.03, max_products=5000)
    assert run.converged
    assert run.standard_error <= 0.03 * run.trace
    assert run.products == run.probes
    before = estimate(hutchinson, a, probes=run.probes - 1)
    assert before.standard_error > 0.03 * before.trace


def test_a_mean_that_stands_still_is_no_reason_to_stop():
    """The first draws are equal to each other by chance, as a rule on the running mean would like them."""
    draws = iter([1.0] * 9 + [5.0, -7.0, 8.0] * 30)
    run = hutchinson(lambda z: z * next(draws), 1, relative_error=0.2, max_products=60)
    assert run.products == 60
    assert not run.converged


@pytest.mark.parametrize("method", METHODS)
def test_the_budget_is_kept_and_the_result_says_so(method):
    run = estimate(method, matrix(), relative_error=1e-6, max_products=30)
    assert run.products == 30
    assert not run.converged
    fixed = estimate(method, matrix(), probes=3)
    assert fixed.probes == 3


def test_the_standard_error_of_known_draws_is_theirs():
    draws = [1.0, 2.0, 6.0]
    left = iter(draws)
    run = hutchinson(lambda z: z * next(left), 1, probes=3)
    assert run.trace == pytest.approx(3.0)
    assert run.standard_error == pytest.approx(statistics.stdev(draws) / math.sqrt(3))


def test_the_interval_is_students():
    run = TraceEstimate(trace=10.0, standard_error=2.0, probes=5, products=5, converged=False)
    assert run.interval() == pytest.approx((10 - 2 * 2.7764451052, 10 + 2 * 2.7764451052))
    single = estimate(hutchinson, matrix(), probes=1)
    assert single.interval() == (-math.inf, math.inf)
    assert not single.converged


def network():
    numbers = generator()
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    for p in model.parameters():
        p.data = torch.randn(p.shape, dtype=torch.float64, generator=numbers)
    x = torch.randn(30, 6, dtype=torch.float64, generator=numbers)
    return Surface(model, F.cross_entropy, [(x, torch.arange(30) % 3)])


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_the_trace_of_a_network_is_that_of_its_dense_hessian(method):
    surface = network()
    want = sum(float(surface.product(e)[i]) for i, e in enumerate(torch.eye(surface.size, dtype=torch.float64)))
    run = hessian_trace(surface, method, max_products=150)
    assert run.standard_error < 0.3 * want
    assert abs(run.trace - want) < 3.5 * run.standard_error


def test_the_same_generator_gives_the_same_trace_and_the_global_one_is_left_alone():
    state = torch.get_rng_state()
    first, again, other = (estimate(hutchinson, matrix(), probes=5, generator=generator(seed)) for seed in (3, 3, 4))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_rademacher_is_plus_or_minus_one_with_equal_chance():
    z = rademacher(10_000, generator())
    assert set(z.tolist()) == {-1, 1}
    assert abs(float(z.double().mean())) < 0.04


def test_wrong_arguments_say_what_is_wrong():
    a = matrix()
    for method in METHODS:
        for wrong in ({"relative_error": 0.0}, {"max_products": 1}, {"probes": 0}):
            with pytest.raises(LegatoValueError, match=next(iter(wrong))):
                estimate(method, a, **wrong)
        with pytest.raises(LegatoValueError, match="NaN or infinity"):
            estimate(method, a * math.nan)
    with pytest.raises(LegatoValueError, match="max_products: expected a whole number >= 22"):
        estimate(hutch_plus_plus, a, max_products=21)
    with pytest.raises(LegatoValueError, match="sketch"):
        estimate(hutch_plus_plus, a, sketch=0)
    with pytest.raises(LegatoValueError, match="Did you mean 'hutchinson'"):
        hessian_trace(network(), "hutchinsons")
