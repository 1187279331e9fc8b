"""Lanczos with full re-orthogonalisation: the ends of the spectrum of a symmetric matrix that is known by its products alone."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from legato import errors

Product = Callable[[Tensor], Tensor]
Array = NDArray[np.float64]
RULES = ("residual", "value")
COLUMNS = 2**16
"""Of a basis that are widened to float64 at a time."""
NOISE = 16.0
"""What rounding adds to a product with a unit vector at most, in units of the type's epsilon times the norm of the matrix."""
CLOSED = 1000.0
"""In the same units: where what is new in a product may well be rounding, so the basis had closed on an invariant subspace."""
FLOOR = 2.0
"""In the same units: where a residual is rounding alone, and no further product makes it smaller."""


class Ritz(NamedTuple):
    """Approximate eigenpairs in a basis of m vectors, by rising value."""

    values: Array
    """[m]."""
    coefficients: Array
    """[m, m], a column each: the eigenvectors in the basis, orthonormal."""
    residuals: Array
    """[m], norm of A v - value v: an eigenvalue of A is within it."""


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """The outermost eigenvalues of a symmetric matrix A, by falling value."""

    values: Tensor
    """[k] float64 on the CPU: the `top` largest, then the `bottom` smallest."""
    residuals: Tensor
    """[k] float64: norm of A v - value v with its rounding. An eigenvalue of A is within it, whatever else is unknown."""
    vectors: Tensor | None
    """[k, P], orthonormal rows."""
    products: int
    """How many products were taken."""
    converged: bool
    """Whether each pair met the tolerance, or the rounding of the products allowed no more."""


@final
class Krylov:
    """An orthonormal basis Q that grows by a product at a time, and T = Q A Q^T.

    The vectors are multiplied in the order in which they came in, and what is new in a product comes in as the next one. From one
    start vector that is Lanczos; from b it is band Lanczos, which sees eigenvalues of multiplicity up to b. Each product is made
    orthogonal to all of Q twice, so T stays true at any length. Vectors are kept in the type of the start, all sums are float64.

    Args:
        product: v [P] -> A v [P], A symmetric.
        start: [b, P], of full rank.
    """

    def __init__(self, product: Product, start: Tensor) -> None:
        self.product = product
        self.dtype, self.size = start.dtype, start.shape[1]
        self.wide = torch.float32 if start.device.type == "mps" else torch.float64
        self.basis = start.new_empty((max(16, 2 * len(start)), self.size))
        self.matrix = np.zeros((len(self.basis), len(self.basis)))
        self.count = self.done = self.products = self.sweep = self.fresh = 0
        self.scale, self.closed = 0.0, False
        for row in start:
            self._insert(row)

    @property
    def exhausted(self) -> bool:
        """Whether Q spans an invariant subspace: there is nothing left to multiply."""
        return self.done == self.count

    @property
    def rounding(self) -> float:
        """The type's epsilon times what is known of the norm of A."""
        return torch.finfo(self.dtype).eps * self.scale

    def sweep_again(self, vector: Tensor) -> None:
        """Go on behind an invariant subspace with a fresh vector, and what rounding has left there if anything."""
        self.sweep, self.fresh = self.done, self.count
        self._insert(vector)

    def grow(self) -> None:
        """Take one product.

        Raises: LegatoValueError for a product that is not finite.
        """
        j = self.done
        image = self.product(self.basis[j]).to(self.wide)
        rest, column, norm = self._orthogonal(image)
        if not np.isfinite(norm):
            raise errors.argument(
                "product", expected="finite numbers", got="NaN or infinity", fix="look whether weights, data and loss are finite",
            )  # fmt: skip
        self.matrix[: self.count, j] = self.matrix[j, : self.count] = column
        self.scale = max(self.scale, float(np.hypot(np.linalg.norm(column), norm)))
        self.done, self.products = j + 1, self.products + 1
        self.closed = self.exhausted and norm <= CLOSED * self.rounding
        if norm > NOISE * self.rounding and self.count < self.size:
            self._append(rest / norm)
            self.matrix[self.count - 1, j] = self.matrix[j, self.count - 1] = norm

    def ritz(self) -> Ritz:
        """The eigenpairs of T, as far as products have been taken."""
        m = self.done
        values, coefficients = np.linalg.eigh(self.matrix[:m, :m])
        residuals = np.linalg.norm(self.matrix[m : self.count, :m] @ coefficients, axis=0)
        return Ritz(values, coefficients, residuals)

    def newest(self) -> Ritz:
        """The eigenpairs of that part of T to which the last fresh vector has led."""
        inside = slice(self.sweep, self.done)
        values, coefficients = np.linalg.eigh(self.matrix[inside, inside])
        residuals = np.linalg.norm(self.matrix[self.done : self.count, inside] @ coefficients, axis=0)
        return Ritz(values, coefficients, residuals)

    def vectors(self, coefficients: Array) -> Tensor:
        """[k, P] for coefficients [m, k]."""
        out = self.basis.new_empty((coefficients.shape[1], self.size))
        turn = torch.from_numpy(np.ascontiguousarray(coefficients.T)).to(self.basis.device, self.wide)
        for columns in self._columns():
            out[:, columns] = (turn @ self.basis[: len(coefficients), columns].to(self.wide)).to(self.dtype)
        return out

    def restart(self, ritz: Ritz, keep: NDArray[np.intp]) -> None:
        """Thick restart: Q becomes these Ritz vectors and what is not multiplied yet, so that memory stays bounded."""
        kept, waiting = len(keep), self.count - self.done
        self.basis[:kept] = self.vectors(ritz.coefficients[:, keep])
        self.basis[kept : kept + waiting] = self.basis[self.done : self.count].clone()
        coupling = self.matrix[self.done : self.count, : self.done] @ ritz.coefficients[:, keep]
        self.matrix[:] = 0
        self.matrix[:kept, :kept] = np.diag(ritz.values[keep])
        self.matrix[kept : kept + waiting, :kept] = coupling
        self.matrix[:kept, kept : kept + waiting] = coupling.T
        self.done, self.count = kept, kept + waiting
        self.sweep, self.fresh = min(self.sweep, kept), min(self.fresh, kept)

    def _insert(self, vector: Tensor) -> None:
        """Append what of a vector is outside of Q; nothing happens if Q has it all."""
        rest, _, norm = self._orthogonal(vector.to(self.wide))
        if norm > 1e-6 * float(vector.norm()):
            self._append(rest / norm)

    def _append(self, vector: Tensor) -> None:
        if self.count == len(self.basis):
            self.basis = torch.cat([self.basis, torch.empty_like(self.basis)])
            self.matrix = np.pad(self.matrix, (0, len(self.matrix)))
        self.basis[self.count] = vector
        self.count += 1

    def _orthogonal(self, vector: Tensor) -> tuple[Tensor, Array, float]:
        """What of a vector is outside of Q, its coefficients inside, and the norm of the outside."""
        inside, norms = np.zeros(self.count), [float(vector.norm())]
        while len(norms) < 3 or (
            len(norms) < 5 and norms[-1] < 0.1 * norms[-2]
        ):  # twice is enough, but for cancellation
            found = torch.zeros(self.count, dtype=self.wide, device=vector.device)
            for columns in self._columns():
                found += self.basis[: self.count, columns].to(self.wide) @ vector[columns]
            vector = vector.clone()
            for columns in self._columns():
                vector[columns] -= found @ self.basis[: self.count, columns].to(self.wide)
            inside += found.cpu().numpy()
            norms.append(float(vector.norm()))
        return vector, inside, norms[-1]

    def _columns(self) -> list[slice]:
        return [slice(a, a + COLUMNS) for a in range(0, self.size, COLUMNS)]


def lanczos(
    product: Product,
    size: int,
    *,
    top: int = 1,
    bottom: int = 0,
    tol: float = 1e-6,
    rule: str = "residual",
    block: int = 1,
    basis: int = 64,
    max_products: int = 500,
    vectors: bool = False,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Eigenpairs:
    """The `top` largest and `bottom` smallest eigenvalues, sign included, of a symmetric matrix A [P, P].

    A pair is good enough by "residual" when |A v - value v| <= tol |value|: then an eigenvalue is that close. By "value" it is
    when min(r, r^2 / gap) <= tol |value|, r the residual and gap the distance to the other Ritz values: near convergence an
    eigenvalue's error is the square of its vector's, so this stops after some three quarters of the products, but its gap is an estimate,
    and two eigenvalues that are closer to each other than r look like one. No rule asks for less than the rounding of a product.

    From one start vector an eigenvalue of A is found once, however often A has it, unless Q closes on an invariant subspace, after
    which it goes on with a fresh vector; for k eigenvalues with multiplicity take block = k.

    Args:
        product: v [P] -> A v [P].
        size: P.
        top, bottom: how many at each end; together 1 .. P.
        tol: > 0, no unit.
        rule: "residual" or "value".
        block: start vectors, >= 1.
        basis: at most about this many vectors of length P are kept; when they are all in use, the best half stays.
        max_products: a limit; a warning says that it was reached.
        vectors: whether to return the eigenvectors.
        dtype, device: of the vectors that `product` takes.
        generator: of the start vectors, on any device; None is one on the CPU with seed 0.
    Raises: LegatoValueError for a number out of range, and for a product that is not finite.
    Source: thick restart after Wu and Simon 2000, doi 10.1137/S0895479898334605.
    """
    _check(size, top, bottom, tol, rule, block, max_products)
    generator = generator or torch.Generator().manual_seed(0)

    def fresh(rows: int) -> Tensor:
        return torch.randn(rows, size, generator=generator, device=generator.device).to(device, dtype)

    krylov = Krylov(product, fresh(min(block, size)))
    room = max(basis, 2 * (top + bottom) + 4 * block + 4)
    while True:
        krylov.grow()
        ritz = krylov.ritz()
        wanted = _wanted(len(ritz.values), top, bottom)
        good = krylov.done >= top + bottom and bool(
            (_errors(ritz, rule)[wanted] <= _allowed(krylov, ritz, tol)[wanted]).all()
        )
        if krylov.products >= max_products or krylov.done == size:
            break
        if good and _complete(krylov, ritz, top, bottom):
            break
        if krylov.exhausted or (krylov.closed and max(top, bottom) > 1):
            krylov.sweep_again(fresh(1)[0])
        elif krylov.count >= room:
            krylov.restart(ritz, _best(ritz, room // 2, top, bottom))
    good = good or krylov.done == size
    if not good:
        warnings.warn(
            f"Lanczos: {krylov.products} products were not enough for a tolerance of {tol:g}; the residuals say how far it came. "
            "Fix: more max_products, or a larger tol",
            errors.LegatoWarning, stacklevel=2,
        )  # fmt: skip
    return Eigenpairs(
        values=torch.from_numpy(ritz.values[wanted]),
        residuals=torch.from_numpy(ritz.residuals[wanted] + NOISE * krylov.rounding),
        vectors=krylov.vectors(ritz.coefficients[:, wanted]) if vectors else None,
        products=krylov.products,
        converged=good,
    )


def _check(size: int, top: int, bottom: int, tol: float, rule: str, block: int, max_products: int) -> None:
    if min(top, bottom) < 0 or not 1 <= top + bottom <= size:
        raise errors.argument("top + bottom", expected=f"1 .. {size} eigenvalues", got=f"{top} + {bottom}")
    if not tol > 0:
        raise errors.argument("tol", expected="a number > 0", got=tol)
    if rule not in RULES:
        raise errors.choice("rule", str(rule), RULES)
    for name, number in (("block", block), ("max_products", max_products)):
        if number < 1:
            raise errors.argument(name, expected="a whole number >= 1", got=number)


def _wanted(m: int, top: int, bottom: int) -> NDArray[np.intp]:
    """Where the wanted among m rising values are, by falling value; none twice."""
    order = np.arange(m)[::-1]
    return np.concatenate([order[:top], order[top:][max(0, m - top - bottom) :]])


def _best(ritz: Ritz, number: int, top: int, bottom: int) -> NDArray[np.intp]:
    """The Ritz pairs that a restart keeps: those nearest to the ends that are asked for, in proportion."""
    m = len(ritz.values)
    number = min(number, m - 1)
    upper = round(number * top / (top + bottom))
    return np.union1d(np.arange(m - upper, m), np.arange(number - upper)).astype(np.intp)


def _errors(ritz: Ritz, rule: str) -> Array:
    """How wrong each value may be: its residual, or the estimate of second order where that is smaller."""
    if rule == "residual" or len(ritz.values) == 1:
        return ritz.residuals
    apart = np.abs(ritz.values[:, None] - ritz.values) - ritz.residuals
    np.fill_diagonal(apart, np.inf)
    gaps = apart.min(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        second = np.where(gaps > 0, ritz.residuals**2 / gaps, np.inf)
    return np.minimum(ritz.residuals, second)


def _allowed(krylov: Krylov, ritz: Ritz, tol: float) -> Array:
    return np.maximum(tol * np.abs(ritz.values), FLOOR * krylov.rounding)


def _complete(krylov: Krylov, ritz: Ritz, top: int, bottom: int) -> bool:
    """Whether no copy is missing: behind an invariant subspace, the last fresh vector has brought nothing that is asked for."""
    if max(top, bottom) == 1 or not (krylov.closed or krylov.sweep):
        return True
    if krylov.sweep and krylov.done <= krylov.fresh:
        return False
    newest = krylov.newest()
    above = (
        ritz.values[-top] - newest.values[-1] if top > 1 else math.inf
    )  # how far outside of the newest is the last one asked for
    below = newest.values[0] - ritz.values[bottom - 1] if bottom > 1 else math.inf
    slack = NOISE * krylov.rounding
    return bool(above > slack + 100 * newest.residuals[-1] and below > slack + 100 * newest.residuals[0])
