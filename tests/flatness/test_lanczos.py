"""Lanczos on dense matrices whose spectrum is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legato.errors import LegatoValueError, LegatoWarning
from legato.flatness.lanczos import Krylov, lanczos


def matrix(values, seed=0):
    """Symmetric, with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    basis = torch.randn(len(values), len(values), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q = torch.linalg.qr(basis).Q
    return (q * values) @ q.T


def spread(n=120):
    """Many small eigenvalues, some outside at both ends: what a network's Hessian looks like."""
    values = torch.linspace(-1, 1, n, dtype=torch.float64) ** 5
    values[-4:] = torch.tensor([4.0, 5.0, 7.0, 11.0])
    values[:2] = torch.tensor([-6.0, -2.0])
    return values


def solve(a, **options):
    return lanczos(lambda v: a @ v, len(a), dtype=a.dtype, **options)


@given(
    values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=25),
    ends=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    block=st.integers(1, 3),
    rule=st.sampled_from(["residual", "value"]),
    seed=st.integers(0, 100),
)
def test_the_residual_bound_holds_and_values_are_inside_the_spectrum(values, ends, block, rule, seed):
    top, bottom = ends
    if not 1 <= top + bottom <= len(values):
        return
    a = matrix(values, seed)
    true = torch.linalg.eigvalsh(a)
    found = solve(a, top=top, bottom=bottom, block=block, rule=rule, tol=1e-4, vectors=True)
    slack = 1e-13 * (1 + float(true.abs().max()))
    assert ((found.values[:, None] - true).abs().min(1).values <= found.residuals + slack).all()
    assert (found.values <= true[-1] + slack).all()
    assert (found.values >= true[0] - slack).all()
    miss = (found.vectors @ a - found.values[:, None] * found.vectors).norm(dim=1)
    assert (miss <= found.residuals + slack).all()
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(top + bottom).double(), rtol=0, atol=1e-12)
    assert found.products <= len(values)
    assert found.converged


@pytest.mark.parametrize("rule", ["residual", "value"])
@pytest.mark.parametrize("block", [1, 3])
def test_both_ends_are_told_apart_to_the_tolerance(rule, block):
    a = matrix(spread())
    found = solve(a, top=3, bottom=2, rule=rule, block=block)
    want = torch.tensor([11.0, 7.0, 5.0, -2.0, -6.0]).double()
    torch.testing.assert_close(found.values, want, rtol=1e-6, atol=0)
    if rule == "residual":
        assert (found.residuals <= 1.01e-6 * want.abs()).all()


@pytest.mark.parametrize("rule", ["residual", "value"])
def test_the_tolerance_is_met_and_not_exceeded_by_a_product(rule):
    """With one product less, the criterion that stopped it does not hold."""
    a = matrix(spread())
    found = solve(a, tol=1e-5, rule=rule)
    with pytest.warns(LegatoWarning, match="were not enough"):
        before = solve(a, tol=1e-5, rule=rule, max_products=found.products - 1)
    assert not before.converged
    assert before.products == found.products - 1
    assert before.residuals[0] > found.residuals[0]
    gap = 11 - 7
    assert before.residuals[0] > 1e-5 * 11 if rule == "residual" else before.residuals[0] ** 2 / gap > 0.9e-5 * 11


def test_the_value_is_right_before_the_vector_is():
    a = matrix(spread())
    early, late = (solve(a, rule=rule) for rule in ("value", "residual"))
    assert early.products < late.products
    assert abs(float(early.values[0]) - 11) <= 1e-6 * 11
    assert (
        abs(float(early.values[0]) - 11) <= float(early.residuals[0]) ** 2 / (11 - 7) * 1.1
    )  # Kato and Temple's bound


def test_the_top_may_be_negative_and_far_smaller_than_the_bottom():
    values = -torch.linspace(0.5, 40, 60, dtype=torch.float64)
    found = solve(matrix(values), bottom=1)
    torch.testing.assert_close(found.values, torch.tensor([-0.5, -40.0]).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("values", [[3, 3, 1, 1, 1, -2, -2], [3] * 6, [0] * 5, [4, 4, 4, 4, 0, 0, 0, 0]])
def test_behind_an_invariant_subspace_it_finds_every_copy(values, k):
    found = solve(matrix(values), top=k)
    want = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    torch.testing.assert_close(found.values, want[:k], rtol=1e-12, atol=1e-13)
    other = solve(matrix(values), top=0, bottom=k)
    torch.testing.assert_close(other.values, want[len(values) - k :], rtol=1e-12, atol=1e-13)


def test_a_multiple_of_the_identity_takes_one_product():
    found = lanczos(lambda v: -3 * v, 1000)
    assert found.products == 1
    assert found.converged
    torch.testing.assert_close(found.values, torch.tensor([-3.0]).double())


def test_a_block_sees_copies_that_one_start_vector_does_not():
    values = spread()
    values[-2:] = 11.0
    a = matrix(values)
    single, double = (solve(a, top=2, block=block) for block in (1, 2))
    torch.testing.assert_close(single.values, torch.tensor([11.0, 5.0]).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(double.values, torch.tensor([11.0, 11.0]).double(), rtol=1e-6, atol=0)


def test_restarts_bound_the_memory_and_change_nothing_else():
    a = matrix(torch.linspace(-1, 1, 300) ** 3)
    true = torch.linalg.eigvalsh(a)
    sizes = []
    free = solve(a, top=2, bottom=1, basis=300, tol=1e-8)

    def product(v):
        sizes.append(v.untyped_storage().nbytes() // (8 * 300))
        return a @ v

    bound = lanczos(product, 300, top=2, bottom=1, basis=16, tol=1e-8, vectors=True)
    for found in (free, bound):
        torch.testing.assert_close(found.values, true[[-1, -2, 0]], rtol=1e-8, atol=0)
    assert max(sizes) <= 32 < free.products <= bound.products
    miss = (bound.vectors @ a - bound.values[:, None] * bound.vectors).norm(dim=1)
    assert (miss <= bound.residuals).all()


def test_a_restart_keeps_what_is_known_of_the_products():
    """Q A Q^T in the kept vectors, and between them and those that wait."""
    a = matrix(spread())
    krylov = Krylov(
        lambda v: a @ v, torch.randn(3, 120, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    for _ in range(20):
        krylov.grow()
    keep = torch.tensor([0, 1, 15, 19]).numpy()
    krylov.restart(krylov.ritz(), keep)
    assert (krylov.done, krylov.count) == (4, 7)
    q = krylov.basis[:7]
    torch.testing.assert_close(q @ q.T, torch.eye(7).double(), rtol=0, atol=1e-13)
    for known in (krylov.matrix[:7, :4], krylov.matrix[:4, :7].T):
        torch.testing.assert_close(q @ a @ q[:4].T, torch.from_numpy(known), rtol=0, atol=1e-12)


def test_products_in_float32_are_kept_account_of_in_float64():
    a = matrix(spread())
    short = a.float()
    found = lanczos(lambda v: short @ v, 120, top=2, bottom=1, dtype=torch.float32, vectors=True)
    assert found.values.dtype == torch.float64
    assert found.vectors.dtype == torch.float32
    torch.testing.assert_close(found.values, torch.tensor([11.0, 7.0, -6.0]).double(), rtol=1e-6, atol=0)
    v = found.vectors.double()
    assert ((v @ short.double() - found.values[:, None] * v).norm(dim=1) <= found.residuals).all()
    asked_for_more = lanczos(lambda v: short @ v, 120, dtype=torch.float32, tol=1e-14)
    assert asked_for_more.converged
    assert asked_for_more.products < 40


def test_the_same_generator_gives_the_same_result_and_the_global_one_is_left_alone():
    a = matrix(spread())
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again = (solve(a, vectors=True, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    other = solve(a, vectors=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.vectors, again.vectors)
    assert not torch.equal(first.vectors, other.vectors)


def test_the_basis_stays_orthonormal_and_its_matrix_true():
    a = matrix(spread())
    krylov = Krylov(
        lambda v: a @ v, torch.randn(2, 120, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    for _ in range(100):
        krylov.grow()
    q = krylov.basis[:100]
    torch.testing.assert_close(q @ q.T, torch.eye(100).double(), rtol=0, atol=1e-13)
    torch.testing.assert_close(q @ a @ q.T, torch.from_numpy(krylov.matrix[:100, :100]), rtol=0, atol=1e-12)
    wide = abs(krylov.matrix[:100, :100])
    assert max(wide[i, j] for i in range(100) for j in range(100) if abs(i - j) > 2) < 1e-12


def test_wrong_arguments_say_what_is_wrong():
    def product(v):
        return v

    with pytest.raises(LegatoValueError, match=r"1 \.\. 3 eigenvalues; got 3 \+ 1"):
        lanczos(product, 3, top=3, bottom=1)
    for wrong in ({"tol": 0.0}, {"tol": math.nan}, {"block": 0}, {"max_products": 0}):
        with pytest.raises(LegatoValueError, match=next(iter(wrong))):
            lanczos(product, 3, **wrong)
    with pytest.raises(LegatoValueError, match="Did you mean 'residual'"):
        lanczos(product, 3, rule="residuals")
    with pytest.raises(LegatoValueError, match="NaN or infinity"):
        lanczos(lambda v: v * math.nan, 3)
