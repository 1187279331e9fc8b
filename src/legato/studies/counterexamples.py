"""Searches for counter-examples to the guarantees of comp-sum losses, on small problems where every number is exact.

A search that finds none proves nothing; its words are "not violated in N problems".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from legato.losses.guarantees import Floats, conditional_infimum, phi, transform
from legato.losses.tight_guarantees import tight_transform
from legato.studies.linear_problems import linear_problems

SLACK = 1e-9
"""Of the right side, and of 1: what is less than this above it is rounding."""

SMALLEST_ERROR = 0.01
"""Excess from which on a ratio of excesses is looked at."""

SHAPES = tuple((d, n) for n in (2, 3, 4) for d in (1, 2))
"""Inputs and classes of the linear problems."""


@dataclass(frozen=True)
class Search:
    """What came of looking for a counter-example to `left <= right`."""

    claim: str
    tau: float
    problems: int
    violations: int
    closest: float
    """The largest left/right that was met; 1 is attained."""

    @property
    def words(self) -> str:
        """`not violated in N problems`, or what was found."""
        if not self.violations:
            return f"not violated in {self.problems} problems"
        return f"VIOLATED in {self.violations} of {self.problems} problems, by up to a factor of {self.closest:.3g}"


def error_bound_problems(
    tau: float, n: int, count: int, generator: np.random.Generator, *, tight: bool = False
) -> Search:
    """T(error excess) <= surrogate excess (gap included), on distributions over 1 to 4 points.

    At half of the points the scores are random, at half they are the best among those that predict a random class.

    Args:
        tau, n: as in `transform`.
        count: problems.
        generator: draws them.
        tight: check `tight_transform` in place of `transform`.
    """
    mass = generator.dirichlet(np.full(4, 0.5), count)
    p = _distributions((count, 4, n), generator)
    error, surrogate = _scored(p, tau, generator)
    chosen = generator.integers(n, size=(count, 4))
    tied = generator.random((count, 4)) < 0.5
    error = np.where(tied, p.max(-1) - np.take_along_axis(p, chosen[..., None], -1)[..., 0], error)
    surrogate = np.where(tied, least_excess(p, chosen, tau), surrogate)
    left = (tight_transform if tight else transform)(np.clip((mass * error).sum(1), 0, 1), tau, n)
    claim = "tighter error bound (ours)" if tight else "error bound"
    return _judge(claim, tau, [(left, (mass * surrogate).sum(1))])


def least_excess(p: Floats, k: NDArray[np.int64], tau: float) -> Floats:
    """The least surrogate excess of all scores that predict class k, ties being predictions of every tied class.

    For tau < 2 the excess is convex in softmax(h), and the best scores tie k with the likeliest classes, as many as are likelier than
    the mean of those that tie. For tau >= 2 it is concave on these scores, and the best tie k with the g - 1 likeliest and leave no mass.

    Args:
        p: [..., n] class probabilities.
        k: [...] the predicted class.
        tau: >= 0.
    Returns: [...], at least 0.
    """
    at_k = np.take_along_axis(p, k[..., None], -1)
    others = -np.sort(-np.where(np.arange(p.shape[-1]) == k[..., None], -1.0, p), axis=-1)[..., :-1]
    sums = at_k + np.concatenate([np.zeros_like(at_k), np.cumsum(others, axis=-1)], axis=-1)
    size = np.arange(1, p.shape[-1] + 1)
    if tau >= 2:
        return np.asarray((p.max(-1) - (sums * size ** (1.0 - tau)).max(-1)) / (tau - 1))
    following = np.concatenate([others, np.full_like(at_k, -1.0)], axis=-1)
    ties = (following <= sums / size).argmax(-1)[..., None]
    mean = np.take_along_axis(sums / size, ties, -1)
    outside = np.concatenate([np.zeros_like(at_k), others], axis=-1) * (size > ties + 1)
    pooled = np.where(size <= ties + 1, mean, outside)
    if tau == 1:
        weights = np.concatenate([at_k, others], axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(weights > 0, weights * np.log(weights / pooled), 0.0).sum(-1))
    power = 1 / (2 - tau)
    return np.asarray(((p**power).sum(-1) ** (2 - tau) - (pooled**power).sum(-1) ** (2 - tau)) / (tau - 1))


def smallest_ratio(
    bound: Callable[[Floats], Floats], tau: float, n: int, generator: np.random.Generator, *, rounds: int = 100
) -> float:
    """The smallest surrogate excess / bound(error excess) that a random local search over class probabilities finds; 1 is tight.

    Args:
        bound: a transform of the error excess.
        tau: >= 0.
        n: >= 2 classes, of which at most 12 have a probability, for few are enough.
        generator: draws starts and steps.
        rounds: of steps, whose size shrinks.
    """
    classes = min(n, 12)
    even = 1 + 0.1 * generator.standard_normal((80, classes))
    p = np.concatenate([_distributions((160, classes), generator), even / even.sum(-1, keepdims=True)])
    value = _ratio(p, bound, tau)
    for step in np.geomspace(1.0, 1e-3, rounds):
        moved = p * np.exp(step * generator.standard_normal(p.shape)) * (generator.random(p.shape) > 0.05 * step)
        moved = np.where(moved.sum(-1, keepdims=True) > 0, moved, p)
        moved /= moved.sum(-1, keepdims=True)
        new = _ratio(moved, bound, tau)
        p, value = np.where((new < value)[:, None], moved, p), np.minimum(new, value)
    return float(value.min())


def adversarial_problems(tau: float, count: int, generator: np.random.Generator) -> Search:
    """The error bound under attack, on linear models with offsets; the attacks change each input by at most gamma.

    The claim, for H symmetric and locally rho-consistent: error excess under attack <= (surrogate excess + gap) / Phi_tau(1) - gap_01,
    where the surrogate is the sup over attacks of Phi_tau(sum over y' of clip(1 - margin/rho, 0, 1)). With the gaps written out, the
    best risks cancel on both sides, and what is left is, with C(h, x) the expected loss at x,

        E[ C_01(h, x) - inf_h C_01(h, x) ]  <=  E[ C(h, x) - inf_h C(h, x) ] / Phi_tau(1).

    The infima are exact: offsets alone can order the classes with gaps of rho everywhere, so that inf C_01 = 1 - max p, and
    inf C = sum over r = 0, 1, ... of Phi_tau(r) times the (r+1)-th largest p.

    Args:
        tau: >= 0.
        count: problems, shared among `SHAPES`; each has two points with masses.
        generator: draws them.
    """
    pairs = []
    for (d, n), share in zip(SHAPES, _split(count, len(SHAPES)), strict=True):
        problems = linear_problems(d, n, share, 2, generator)
        mass = generator.dirichlet(np.ones(2), share)
        least = (-np.sort(-problems.p, axis=-1) * phi(np.arange(n, dtype=np.float64), tau)).sum(-1)
        error = (problems.p * problems.errs()).sum(-1) - (1 - problems.p.max(-1))
        surrogate = (problems.p * phi(problems.worst_margin_sum(), tau)).sum(-1) - least
        pairs.append((phi(1.0, tau) * (mass * error).sum(1), (mass * surrogate).sum(1)))
    return _judge("error bound under attack", tau, pairs)


def chain_problems(tau: float, count: int, generator: np.random.Generator, *, nu_share: float = 1.0) -> Search:
    """Phi_tau(1) [an attack errs] <= rho-margin loss under attack <= smooth adversarial loss with nu = sqrt(n-1)/rho, for every label.

    The smooth loss is Phi_tau(sum over y' of exp(-margin/rho)) without attack + nu sup |change of the margins|_2.

    Args:
        tau, count, generator: as in `adversarial_problems`.
        nu_share: takes this share of sqrt(n-1)/rho for nu; the chain is claimed for 1 and more.
    """
    pairs = []
    for (d, n), share in zip(SHAPES, _split(count, len(SHAPES)), strict=True):
        problems = linear_problems(d, n, share, 1, generator)
        rho = problems.rho[:, None, None]
        with np.errstate(over="ignore"):
            clean = phi(np.exp(-problems.margins / rho[..., None]).sum(-1), tau)
        smooth = clean + nu_share * np.sqrt(n - 1) / rho * problems.worst_move()
        margin = phi(problems.worst_margin_sum(), tau)
        rising = np.stack([phi(1.0, tau) * problems.errs(), margin, smooth]).reshape(3, share, n)
        pairs.append((np.concatenate(rising[:2], axis=1), np.concatenate(rising[1:], axis=1)))
    return _judge("chain of losses under attack", tau, pairs)


def _distributions(shape: tuple[int, ...], generator: np.random.Generator) -> Floats:
    """Class probabilities from nearly even to nearly certain, with zeros."""
    p = generator.dirichlet(np.ones(shape[-1]), shape[:-1]) ** generator.uniform(0.1, 4, (*shape[:-1], 1))
    kept = generator.random(shape) < generator.uniform(0.2, 1.5, (*shape[:-1], 1))
    kept[..., 0] = True
    return np.asarray(p * kept / (p * kept).sum(-1, keepdims=True))


def _scored(p: Floats, tau: float, generator: np.random.Generator) -> tuple[Floats, Floats]:
    """Error excess and surrogate excess of random scores at each point."""
    h = generator.standard_normal(p.shape) * 10 ** generator.uniform(-2, 1, (*p.shape[:-1], 1))
    u = np.exp(h).sum(-1, keepdims=True) / np.exp(h) - 1
    predicted = np.take_along_axis(p, h.argmax(-1)[..., None], -1)[..., 0]
    return p.max(-1) - predicted, (p * phi(np.maximum(u, 0), tau)).sum(-1) - conditional_infimum(p, tau)


def _ratio(p: Floats, bound: Callable[[Floats], Floats], tau: float) -> Floats:
    """Surrogate excess / bound(error excess) where class 1 is predicted; infinite where there is too little error to divide by."""
    error = p.max(-1) - p[..., 1]
    enough = error > SMALLEST_ERROR
    excess = least_excess(p, np.ones(p.shape[:-1], dtype=np.int64), tau)
    return np.where(enough, excess / bound(np.where(enough, error, 1.0)), np.inf)


def _split(count: int, parts: int) -> list[int]:
    return [count // parts + (part < count % parts) for part in range(parts)]


def _judge(claim: str, tau: float, pairs: Sequence[tuple[Floats, Floats]]) -> Search:
    """Left <= right for each problem, a row of each pair; what differs by rounding is no violation."""
    worst, broken = [np.zeros(0)], 0
    for left, right in pairs:
        rows = (len(left), -1)
        over = left > right * (1 + SLACK) + SLACK
        broken += int(over.reshape(rows).any(1).sum()) if len(left) else 0
        worst.append((left / np.maximum(right, SLACK)).reshape(-1))
    ratios = np.concatenate(worst)
    return Search(claim, tau, sum(len(left) for left, _ in pairs), broken, float(ratios.max(initial=0.0)))
