"""The spectral density against dense spectra."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from legato.errors import LegatoValueError
from legato.flatness.density import quadrature, spectral_density
from legato.flatness.surface import Surface


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def matrix(values, seed=0):
    values = torch.as_tensor(values, dtype=torch.float64)
    basis = torch.randn(len(values), len(values), dtype=torch.float64, generator=generator(seed))
    q = torch.linalg.qr(basis).Q
    return (q * values) @ q.T


def of(a, *arguments, **options):
    return quadrature(lambda v: a @ v, len(a), *arguments, dtype=a.dtype, **options)


@given(
    values=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20),
    steps=st.integers(1, 25),
    probes=st.integers(1, 4),
    seed=st.integers(0, 20),
)
def test_it_integrates_to_one_inside_the_spectrum(values, steps, probes, seed):
    found = of(matrix(values, seed), steps, probes)
    slack = 1e-12 * (1 + max(map(abs, values)))
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(found.weights.sum(1), torch.ones(probes).double())
    inside = found.nodes[found.weights > 0]
    assert min(values) - slack <= inside.min()
    assert inside.max() <= max(values) + slack
    assert found.share() == pytest.approx(1)
    assert (found.density >= 0).all()
    assert found.products <= probes * min(steps, len(values))


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_the_quadrature_of_a_probe_is_exact_up_to_twice_its_steps(steps):
    """z' A^k z / P for k up to 2 * steps - 1, and not beyond."""
    a = matrix(torch.linspace(-1, 2, 30))
    seen = []

    def product(v):
        seen.append(v.clone())
        return a @ v

    found = quadrature(product, 30, steps, 1)
    start = image = seen[0]
    for power in range(1, 2 * steps + 1):
        image = a @ image
        close = found.moment(power) == pytest.approx(float(start @ image), rel=1e-9)
        assert close == (power < 2 * steps)


def test_the_curve_is_the_smoothed_dense_spectrum():
    values = torch.cat(
        [torch.linspace(-1, 1, 380, dtype=torch.float64) ** 3, torch.linspace(3, 5, 20, dtype=torch.float64)]
    )
    found = of(matrix(values), 40, 15, width=0.15)
    want = torch.exp(-0.5 * ((found.grid[:, None] - values) / 0.15) ** 2).mean(1) / (0.15 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(found.density, want, rtol=0, atol=0.03 * float(want.max()))
    far = (found.density - want).abs() > 4 * found.standard_error + 1e-3
    assert float(far.double().mean()) < 0.02
    assert found.share(low=2) == pytest.approx(20 / 400, rel=0.1)
    assert found.share(high=-0.3) == pytest.approx(float((values < -0.3).double().mean()), rel=0.1)
    assert found.products == 600


def test_a_diagonal_with_two_values_is_exact():
    """Rademacher probes give each entry of a diagonal the same weight."""
    a = torch.tensor([0.0] * 6 + [2.0] * 2, dtype=torch.float64).diag()
    found = of(a, 10, 3)
    assert found.products == 6
    torch.testing.assert_close(found.nodes[:, :2], torch.tensor([[0.0, 2.0]] * 3).double())
    torch.testing.assert_close(found.weights[:, :2], torch.tensor([[0.75, 0.25]] * 3).double())
    assert found.moment(1) == pytest.approx(0.5)
    assert (found.standard_error < 1e-12).all()


def test_the_grid_resolves_the_width_and_reaches_beyond_the_nodes():
    a = matrix(torch.linspace(0, 1, 20))
    found = of(a, width=1e-3, points=2)
    assert float(found.grid[1] - found.grid[0]) <= 0.5e-3
    assert found.grid[0] < found.nodes.min() - 4e-3
    default = of(a)
    assert len(default.grid) == 1000
    nodes = default.nodes[default.weights > 0]
    assert default.width == pytest.approx(0.01 * float(nodes.max() - nodes.min()))
    assert of(a, probes=1).standard_error.isnan().all()


def test_the_standard_error_is_that_of_a_mean_over_probes():
    a = matrix(torch.linspace(-1, 2, 30))
    found = of(a, 5, 6, width=0.3)
    curves = (
        torch.distributions.Normal(found.nodes, 0.3).log_prob(found.grid[:, None, None]).exp().mul(found.weights).sum(2)
    )
    torch.testing.assert_close(found.density, curves.mean(1))
    torch.testing.assert_close(found.standard_error, curves.std(1) / math.sqrt(6))


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_a_single_eigenvalue_still_has_a_curve(value):
    found = of(value * torch.eye(4, dtype=torch.float64))
    assert found.width > 0
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1, abs=1e-6)
    assert float(found.grid[found.density.argmax()]) == pytest.approx(value, abs=found.width)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_density_of_a_network_has_the_moments_of_its_dense_hessian(dtype):
    numbers = generator()
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    for p in model.parameters():
        p.data = torch.randn(p.shape, dtype=dtype, generator=numbers)
    surface = Surface(
        model, F.cross_entropy, [(torch.randn(30, 6, dtype=dtype, generator=numbers), torch.arange(30) % 3)]
    )
    true = torch.linalg.eigvalsh(
        torch.stack([surface.product(e) for e in torch.eye(surface.size, dtype=dtype)]).double()
    )
    state = torch.get_rng_state()
    found = spectral_density(surface, 12, 40, generator=generator(1))
    assert torch.equal(torch.get_rng_state(), state)
    per_probe = (found.weights * found.nodes).sum(1)
    assert abs(found.moment(1) - float(true.mean())) < 4 * float(per_probe.std()) / math.sqrt(40)
    assert found.moment(2) == pytest.approx(float(true.square().mean()), rel=0.25)
    assert float(found.nodes.max()) == pytest.approx(float(true[-1]), rel=1e-3)


def test_wrong_arguments_say_what_is_wrong():
    a = matrix([1.0, 2.0])
    for wrong in ({"steps": 0}, {"probes": 0}, {"points": 1}, {"width": 0.0}, {"width": math.inf}):
        with pytest.raises(LegatoValueError, match=next(iter(wrong))):
            of(a, **wrong)
    with pytest.raises(LegatoValueError, match="NaN or infinity"):
        of(a * math.nan)
