"""The trace of the Hessian, the sum of all its eigenvalues, from random products, with a standard error that is right."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from legato import errors
from legato.flatness.surface import Surface

Product = Callable[[Tensor], Tensor]
METHODS = ("hutch++", "hutchinson")
LEAST = 10
"""Probes before the standard error is believed."""


@dataclass(frozen=True)
class TraceEstimate:
    """An estimate of a trace; its error is that of a mean of independent draws."""

    trace: float
    """Unbiased, but for the small effect of stopping by the spread of what was drawn."""
    standard_error: float
    """Standard deviation of the draws divided by the root of their number."""
    probes: int
    """How many draws the standard error stands on."""
    products: int
    """How many products were taken."""
    converged: bool
    """Whether the standard error that was asked for is reached."""

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's t interval for the trace. One draw says nothing of its error, so its interval is infinite.

        Where a few eigenvalues outweigh the rest, draws of `hutchinson` are skewed: with few of them, and more so when it stopped
        by its rule, the interval covers the trace a little less often than its level says. `hutch_plus_plus` does not suffer from it.
        """
        if self.standard_error == 0:
            return self.trace, self.trace
        if self.probes == 1:
            return -math.inf, math.inf
        half = float(stats.t.ppf((1 + level) / 2, self.probes - 1)) * self.standard_error
        return self.trace - half, self.trace + half


def hessian_trace(surface: Surface, method: str = "hutchinson", **options: Any) -> TraceEstimate:
    """The trace of the Hessian of a surface.

    Args:
        surface: the loss; a single micro-batch that fits in memory is fastest.
        method: "hutchinson" or "hutch++", whose error falls faster where a few eigenvalues outweigh the rest.
        options: as in the function of that name.
    Raises: LegatoValueError for an unknown method, a number out of range, and for a loss, weights or data that are not finite.
    """
    if method not in METHODS:
        raise errors.choice("method", str(method), METHODS)
    estimate = hutchinson if method == "hutchinson" else hutch_plus_plus
    with surface.held() as product:
        return estimate(product, surface.size, dtype=surface.dtype, device=surface.device, **options)


def hutchinson(
    product: Product,
    size: int,
    *,
    relative_error: float = 0.05,
    max_products: int = 200,
    probes: int | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> TraceEstimate:
    """tr A = E[z' A z], the entries of z independent and +1 or -1; exact for a diagonal A.

    The variance of a draw is twice the sum of squares off the diagonal. It goes on until the standard error of the mean is at most
    `relative_error` of it, with 10 draws at the least, or until the budget is spent; a mean that has stopped moving proves nothing.

    Args:
        product: v [P] -> A v [P], A symmetric.
        size: P.
        relative_error: > 0, standard error over |estimate|. A trace near 0 never reaches it.
        max_products: the budget, >= 2.
        probes: exactly this many draws, >= 1, in place of the rule and the budget.
        dtype, device: of the vectors that `product` takes.
        generator: of the probes, on any device; None is one on the CPU with seed 0.
    Raises: LegatoValueError for a number out of range, and for a product that is not finite.
    Source: Hutchinson 1990, doi 10.1080/03610919008812866; the variance: Avron and Toledo 2011, doi 10.1145/1944345.1944349.
    """
    rule = _Rule(relative_error, max_products, probes)
    generator = generator or torch.Generator().manual_seed(0)
    draws: list[float] = []
    while rule.wants_more(draws):
        z = rademacher(size, generator).to(device, dtype)
        draws.append(_form(z, product(z)))
    return rule.result(draws)


def hutch_plus_plus(
    product: Product,
    size: int,
    *,
    sketch: int = 10,
    relative_error: float = 0.05,
    max_products: int = 200,
    probes: int | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> TraceEstimate:
    """tr A = tr(Q' A Q) + tr(R A R), R = 1 - Q Q': the first exactly, on a basis Q of random products, the second by Hutchinson.

    Given Q the first part has no error, so the standard error is that of the draws of the second.

    Args:
        sketch: vectors of Q, >= 1; it takes two products for each, and the memory for them.
        product, size, relative_error, max_products, probes, dtype, device, generator: as in `hutchinson`; the budget is at least
            2 * sketch + 2.
    Raises: LegatoValueError for a number out of range, and for a product that is not finite.
    Source: Meyer, Musco, Musco, Woodruff 2021, arXiv 2010.09649.
    """
    if sketch < 1:
        raise errors.argument("sketch", expected="a whole number >= 1", got=sketch)
    columns = min(sketch, size)
    generator = generator or torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return rademacher(size, generator).to(device, dtype)

    rule = _Rule(relative_error, max_products, probes, spent=2 * columns)
    basis = torch.linalg.qr(torch.stack([_finite(product(draw())) for _ in range(columns)], dim=1)).Q
    rule = replace(rule, exact=math.fsum(_form(q, product(q)) for q in basis.T.contiguous()))
    draws: list[float] = []
    while columns < size and rule.wants_more(draws):
        z = draw()
        for _ in range(2):  # what rounding left inside after the first would be counted twice
            z = z - basis @ (basis.T @ z)
        draws.append(_form(z, product(z)))
    return rule.result(draws)


@dataclass(frozen=True)
class _Rule:
    """When to stop, and what is known by then: the trace is `exact` plus the mean of the draws."""

    relative_error: float
    max_products: int
    probes: int | None
    spent: int = 0
    exact: float = 0.0

    def __post_init__(self) -> None:
        if not self.relative_error > 0:
            raise errors.argument("relative_error", expected="a number > 0", got=self.relative_error)
        if self.probes is not None and self.probes < 1:
            raise errors.argument("probes", expected="a whole number >= 1, or None", got=self.probes)
        if self.probes is None and self.max_products < self.spent + 2:
            raise errors.argument("max_products", expected=f"a whole number >= {self.spent + 2}", got=self.max_products)

    def wants_more(self, draws: list[float]) -> bool:
        n = len(draws)
        if self.probes is not None:
            return n < self.probes
        done = n >= LEAST and _spread(draws) <= self.relative_error * abs(self.trace(draws))
        return not done and self.spent + n < self.max_products

    def trace(self, draws: list[float]) -> float:
        return self.exact + math.fsum(draws) / max(1, len(draws))

    def result(self, draws: list[float]) -> TraceEstimate:
        trace, error, n = self.trace(draws), _spread(draws), len(draws)
        return TraceEstimate(trace, error, n, self.spent + n, error <= self.relative_error * abs(trace))


def rademacher(size: int, generator: torch.Generator) -> Tensor:
    """+1 or -1 with equal chance [P], on the generator's device."""
    return torch.randint(0, 2, (size,), generator=generator, device=generator.device).mul_(2).sub_(1)


def _form(z: Tensor, image: Tensor) -> float:
    """z' A z, summed in float64 where the device has it."""
    wide = torch.float32 if z.device.type == "mps" else torch.float64
    value = float(z.to(wide) @ image.to(wide))
    if not math.isfinite(value):
        raise _not_finite()
    return value


def _finite(image: Tensor) -> Tensor:
    if not bool(image.isfinite().all()):
        raise _not_finite()
    return image


def _not_finite() -> errors.LegatoValueError:
    return errors.argument(
        "product",
        expected="finite numbers",
        got="NaN or infinity",
        fix="look whether weights, data and loss are finite",
    )


def _spread(draws: list[float]) -> float:
    """Standard error of the mean of the draws; infinite for one alone."""
    n = len(draws)
    if n < 2:
        return math.inf if n else 0.0
    mean = math.fsum(draws) / n
    return math.sqrt(math.fsum((d - mean) ** 2 for d in draws) / (n - 1) / n)
