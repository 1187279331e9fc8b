"""The spectral density of the Hessian by stochastic Lanczos quadrature: how its eigenvalues are spread, without computing them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from legato import errors
from legato.flatness.lanczos import Krylov, Product
from legato.flatness.surface import Surface
from legato.flatness.trace import rademacher

REACH = 5.0
"""How many widths the grid goes beyond the outermost nodes; 6e-7 of a Gaussian is outside of it."""


@dataclass(frozen=True, eq=False)
class Density:
    """The spread of P eigenvalues, as a sum of peaks and as a smooth curve; all float64 on the CPU."""

    nodes: Tensor
    """[probes, steps], where the peaks are; a row with fewer has zeros of weight 0 at its end."""
    weights: Tensor
    """[probes, steps], the share of each peak in its row; each row sums to 1."""
    grid: Tensor
    """[G], equally spaced."""
    density: Tensor
    """[G], share of the eigenvalues per unit of the grid; it integrates to 1."""
    standard_error: Tensor
    """[G], of `density`, from the spread between probes; NaN for a single probe."""
    width: float
    """Standard deviation of the Gaussian that smooths the peaks."""
    products: int
    """How many products were taken."""

    def share(self, low: float = -math.inf, high: float = math.inf) -> float:
        """The estimated share of eigenvalues in low < x <= high, not smoothed."""
        inside = (self.nodes > low) & (self.nodes <= high)
        return float((self.weights * inside).sum() / len(self.weights))

    def moment(self, power: int = 1) -> float:
        """The estimated mean of the eigenvalues to a power; exact for each probe up to a power of 2 * steps - 1."""
        return float((self.weights * self.nodes**power).sum() / len(self.weights))


def spectral_density(
    surface: Surface,
    steps: int = 40,
    probes: int = 5,
    *,
    width: float | None = None,
    points: int = 1000,
    generator: torch.Generator | None = None,
) -> Density:
    """The spectral density of the Hessian of a surface.

    Args:
        surface: the loss; a single micro-batch that fits in memory is fastest.
        steps, probes, width, points, generator: as in `quadrature`.
    Raises: LegatoValueError for a number out of range, and for a loss, weights or data that are not finite.
    """
    with surface.held() as product:
        return quadrature(
            product, surface.size, steps, probes,
            width=width, points=points, dtype=surface.dtype, device=surface.device, generator=generator,
        )  # fmt: skip


def quadrature(
    product: Product,
    size: int,
    steps: int = 40,
    probes: int = 5,
    *,
    width: float | None = None,
    points: int = 1000,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Density:
    r"""Stochastic Lanczos quadrature of the density (1/P) sum_i delta(x - lambda_i) of a symmetric A [P, P].

    A probe z of +1 and -1, scaled to length 1, gives the tridiagonal T of Lanczos with eigenvalues theta_j and unit eigenvectors
    s_j; z' f(A) z = sum_j (s_j)_1^2 f(theta_j) exactly for polynomials up to degree 2 * steps - 1, and in the mean over
    probes it is tr f(A) / P. The curve is sum_j (s_j)_1^2 N(x; theta_j, width^2), averaged over probes.

    Args:
        product: v [P] -> A v [P].
        size: P.
        steps: products of a probe, and vectors that are kept; a probe that closes on an invariant subspace stops early, exact.
        probes: how many.
        width: > 0, in the unit of the eigenvalues; None is 1% of the distance between the outermost nodes.
        points: of the grid at least; it gets more where its step would be above half a width, up to 100,000.
        dtype, device: of the vectors that `product` takes.
        generator: of the probes, on any device; None is one on the CPU with seed 0.
    Raises: LegatoValueError for a number out of range, and for a product that is not finite.
    Source: Ubaru, Chen, Saad 2017, doi 10.1137/16M1104974; for networks: Ghorbani, Krishnan, Xiao 2019, arXiv 1901.10159.
    """
    _check(steps, probes, width, points)
    generator = generator or torch.Generator().manual_seed(0)
    nodes, weights = torch.zeros(2, probes, min(steps, size), dtype=torch.float64)
    products = 0
    for row in range(probes):
        start = rademacher(size, generator).to(device, dtype)
        krylov = Krylov(product, start[None])
        while krylov.done < min(steps, size) and not krylov.exhausted:
            krylov.grow()
        ritz = krylov.ritz()
        nodes[row, : krylov.done] = torch.from_numpy(ritz.values)
        weights[row, : krylov.done] = torch.from_numpy(ritz.coefficients[0] ** 2)
        products += krylov.products
    return _smoothed(nodes, weights, width, points, products)


def _check(steps: int, probes: int, width: float | None, points: int) -> None:
    for name, number, least in (("steps", steps, 1), ("probes", probes, 1), ("points", points, 2)):
        if number < least:
            raise errors.argument(name, expected=f"a whole number >= {least}", got=number)
    if width is not None and not 0 < width < math.inf:
        raise errors.argument("width", expected="a number > 0, or None", got=width)


def _smoothed(nodes: Tensor, weights: Tensor, width: float | None, points: int, products: int) -> Density:
    used = nodes[weights > 0]
    low, high = float(used.min()), float(used.max())
    sigma = width or 0.01 * (high - low) or 0.01 * abs(high) or 0.01
    low, high = low - REACH * sigma, high + REACH * sigma
    points = min(max(points, math.ceil(2 * (high - low) / sigma) + 1), 100_000)
    grid = torch.linspace(low, high, points, dtype=torch.float64)
    curves = torch.stack([_curve(grid, n, w, sigma) for n, w in zip(nodes, weights, strict=True)])
    probes = len(curves)
    error = curves.std(0) / math.sqrt(probes) if probes > 1 else torch.full_like(grid, math.nan)
    return Density(nodes, weights, grid, curves.mean(0), error, sigma, products)


def _curve(grid: Tensor, nodes: Tensor, weights: Tensor, sigma: float) -> Tensor:
    peaks = torch.exp(-0.5 * ((grid[:, None] - nodes) / sigma) ** 2)
    return peaks @ weights / (sigma * math.sqrt(2 * math.pi))
