"""The ends of Hessians of small networks against the dense spectrum."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from legato.errors import LegatoValueError
from legato.flatness.spectrum import block_eigenvalues, extreme_eigenvalues, top_eigenvalues
from legato.flatness.surface import Surface


def network(dtype=torch.float64):
    """A surface of 171 weights with curvature of both signs, in two micro-batches."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.BatchNorm1d(12), nn.Linear(12, 3)).to(dtype)
    for p in model.parameters():
        p.data = torch.randn(p.shape, dtype=torch.float64, generator=generator).to(dtype)
    x = torch.randn(40, 8, dtype=torch.float64, generator=generator).to(dtype)
    y = torch.randint(3, (40,), generator=generator)
    return Surface(model, F.cross_entropy, [(x[:25], y[:25]), (x[25:], y[25:])])


def dense(surface):
    with surface.held() as product:
        return torch.stack([product(e) for e in torch.eye(surface.size, dtype=surface.dtype)])


@pytest.fixture(scope="module")
def surface():
    return network()


@pytest.fixture(scope="module")
def hessian(surface):
    return dense(surface)


def test_the_top_is_that_of_the_dense_hessian(surface, hessian):
    true = torch.linalg.eigvalsh(hessian)
    found = top_eigenvalues(surface, 4, vectors=True)
    torch.testing.assert_close(found.values, true[-4:].flip(0), rtol=1e-6, atol=0)
    miss = (found.vectors @ hessian - found.values[:, None] * found.vectors).norm(dim=1)
    assert (miss <= found.residuals).all()
    assert (found.residuals <= 1.01e-6 * found.values.abs()).all()


def test_both_ends_come_from_the_same_products(surface, hessian):
    true = torch.linalg.eigvalsh(hessian)
    assert true[0] < -0.01
    found = extreme_eigenvalues(surface, 2, 2)
    torch.testing.assert_close(found.values, true[[-1, -2, 1, 0]], rtol=1e-6, atol=0)
    assert found.products < top_eigenvalues(surface, 2).products + extreme_eigenvalues(surface, 0, 2).products


def test_a_hill_has_a_negative_top(surface, hessian):
    """-L has the spectrum of L mirrored, so its top is minus the bottom of L, whatever is larger in size."""
    hill = Surface(surface.model, lambda output, y: -F.cross_entropy(output, y), surface.batches)
    true = torch.linalg.eigvalsh(hessian)
    torch.testing.assert_close(top_eigenvalues(hill).values[0], -true[0], rtol=1e-6, atol=0)
    pit = Surface(
        nn.Linear(2, 1, bias=False), lambda output, _: -output.square().mean(), [(torch.eye(2), torch.ones(2))]
    )
    torch.testing.assert_close(top_eigenvalues(pit).values, torch.tensor([-1.0]).double(), rtol=1e-6, atol=0)


def test_float32_is_as_good_as_its_rounding(hessian):
    found = top_eigenvalues(network(torch.float32), vectors=True)
    assert found.vectors.dtype == torch.float32
    torch.testing.assert_close(found.values[0], torch.linalg.eigvalsh(hessian)[-1], rtol=1e-6, atol=0)
    v = found.vectors[0].double()
    assert (hessian @ v - found.values[0] * v).norm() <= found.residuals[0]


@pytest.mark.parametrize("by", ["layer", "tensor"])
def test_blocks_are_the_diagonal_blocks_of_the_dense_hessian(surface, hessian, by):
    found = block_eigenvalues(surface, by=by, bottom=1)
    assert list(found) == (["0", "2", "3"] if by == "layer" else list(surface.blocks))
    for name, pairs in found.items():
        inside = torch.cat(
            [
                torch.arange(surface.size)[part]
                for block, part in surface.blocks.items()
                if f"{block}.".startswith(f"{name}.")
            ]
        )
        true = torch.linalg.eigvalsh(hessian[inside][:, inside])
        torch.testing.assert_close(pairs.values, true[[-1, 0]], rtol=1e-6, atol=1e-12)


def test_a_block_with_fewer_weights_than_asked_for_gives_all():
    surface = Surface(
        nn.Linear(1, 1), lambda output, _: output.square().mean(), [(torch.tensor([[3.0]]), torch.ones(1))]
    )
    found = block_eigenvalues(surface, by="tensor", top=2, bottom=2)
    assert {name: pairs.values.tolist() for name, pairs in found.items()} == {"weight": [18.0], "bias": [2.0]}
    assert list(block_eigenvalues(surface)) == [""]


def test_options_reach_lanczos_and_nothing_is_drawn_from_the_global_generator(surface):
    state = torch.get_rng_state()
    one, two = (
        top_eigenvalues(surface, tol=1e-2, generator=torch.Generator().manual_seed(s), vectors=True) for s in (1, 2)
    )
    assert not torch.equal(one.vectors, two.vectors)
    assert top_eigenvalues(surface, rule="value").products < top_eigenvalues(surface).products
    assert torch.equal(torch.get_rng_state(), state)


def test_wrong_arguments_say_what_is_wrong(surface):
    with pytest.raises(LegatoValueError, match="Did you mean 'layer'"):
        block_eigenvalues(surface, by="layers")
    with pytest.raises(LegatoValueError, match=r"1 \.\. 171 eigenvalues"):
        top_eigenvalues(surface, 0)
    broken = network()
    broken.parameters[0].data[0, 0] = torch.nan
    with pytest.raises(LegatoValueError, match="weights, data and loss are finite"):
        top_eigenvalues(broken)
