"""Numbers from several seeds: paired intervals, Holm's correction, a two-way bootstrap, and the word that follows.

Everything is paired over seeds: arm and baseline saw the same data cut, the same corrupted labels and the same batches.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from legato import errors

ALPHA = 0.05


@dataclass(frozen=True)
class Estimate:
    """A mean with its two-sided interval, in the unit of what was measured."""

    mean: float
    low: float
    high: float
    count: int

    def text(self, scale: float = 1.0, digits: int = 3) -> str:
        """`mean [low, high]` after multiplying with `scale`."""
        mean, low, high = (f"{scale * value:.{digits}f}" for value in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"


@dataclass(frozen=True)
class Comparison:
    """One arm against the baseline: the mean paired difference, its Holm-corrected interval and p-value."""

    arm: str
    difference: Estimate
    p_value: float
    verdict: str


def t_interval(values: ArrayLike, alpha: float = ALPHA) -> Estimate:
    """Student's interval for the mean of `values` [S], one value a seed; for a paired test pass the differences.

    mean +- t(1 - alpha/2, S - 1) * sd / sqrt(S), with the sample standard deviation (ddof = 1). One seed gives an infinite interval.
    """
    sample = _finite(values)
    mean, half = float(sample.mean()), float("inf")
    if len(sample) > 1:
        half = float(_t().ppf(1 - alpha / 2, len(sample) - 1)) * _standard_error(sample)
    return Estimate(mean, mean - half, mean + half, len(sample))


def paired_p_value(differences: ArrayLike, null: float = 0.0) -> float:
    """Two-sided p-value of the paired t-test that the mean of `differences` [S] is `null`; 1 for a single seed."""
    sample = _finite(differences)
    if len(sample) < 2:
        return 1.0
    error = _standard_error(sample)
    if error == 0:
        return 1.0 if sample.mean() == null else 0.0
    return float(2 * _t().sf(abs(sample.mean() - null) / error, len(sample) - 1))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjusted p-values [K] (Holm 1979): with p sorted, adjusted_k = max_{j <= k} min(1, (K - j) p_j), j from 0."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(stepped)
    return adjusted


def holm_levels(p_values: ArrayLike, alpha: float = ALPHA) -> NDArray[np.float64]:
    """The level at which each interval is drawn so that it excludes the null exactly when Holm's test rejects.

    The k-th smallest p-value is tested at alpha / (K - k); from the first that fails on, all keep that level.
    """
    p = np.asarray(p_values, dtype=np.float64)
    count, levels, level = len(p), np.empty(len(p)), alpha
    rejecting = True
    for rank, position in enumerate(np.argsort(p, kind="stable")):
        if rejecting:
            level = alpha / (count - rank)
            rejecting = bool(p[position] <= level)
        levels[position] = level
    return levels


def word(low: float, high: float, minimal_effect: float = 0.0) -> str:
    """`shows` when the whole interval lies above the minimal effect, `does not show` when it lies under it, else `undecided`."""
    if low > minimal_effect:
        return "shows"
    return "does not show" if high <= minimal_effect else "undecided"


def compare_arms(
    baseline: ArrayLike, arms: Mapping[str, ArrayLike], *, minimal_effect: float = 0.0, alpha: float = ALPHA
) -> list[Comparison]:
    """Each arm's paired difference to `baseline` [S], corrected over the arms by Holm's procedure.

    Args:
        baseline: [S] one number a seed, larger is better.
        arms: name -> [S], the same seeds in the same order.
        minimal_effect: the smallest difference worth the name; the null hypothesis of the p-value.
        alpha: the chance of one or more false words over all arms together.
    """
    reference = np.asarray(baseline, dtype=np.float64)
    differences = {}
    for arm, values in arms.items():
        sample = np.asarray(values, dtype=np.float64)
        if sample.shape != reference.shape:
            raise errors.argument(
                arm, expected=f"the {len(reference)} seeds of the baseline", got=f"{len(sample)} seeds",
                fix="run the same command again; it finishes the missing trials",
            )  # fmt: skip
        differences[arm] = sample - reference
    p_values = [paired_p_value(d, minimal_effect) for d in differences.values()]
    levels, adjusted = holm_levels(p_values, alpha), holm(p_values)
    rows = []
    for (arm, sample), level, p in zip(differences.items(), levels, adjusted, strict=True):
        interval = t_interval(sample, float(level))
        rows.append(Comparison(arm, interval, float(p), word(interval.low, interval.high, minimal_effect)))
    return rows


def two_way_bootstrap(
    differences: ArrayLike, *, resamples: int = 2000, seed: int = 0, alpha: float = ALPHA
) -> Estimate:
    """Percentile interval of the mean of `differences` [S, N] when both seeds and test items are drawn again.

    The t interval speaks of other seeds on the same test items; this one also of other test items. For each resample, S seeds and N items
    are drawn with replacement and the mean of the crossed table is taken (the items' draw is a vector of weights, so the cost is S*N a resample).
    """
    table = np.asarray(differences, dtype=np.float64)
    seeds, items = table.shape
    generator = np.random.default_rng(seed)
    seed_weights = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    item_weights = generator.multinomial(items, np.full(items, 1 / items), resamples) / items
    means = np.einsum("rs,rs->r", seed_weights, item_weights @ table.T)
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    return Estimate(float(table.mean()), float(low), float(high), seeds)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) == 0 or not np.isfinite(sample).all():
        raise errors.argument("values", expected="one finite number a seed, shape [S] with S >= 1", got=sample)
    return sample


def _standard_error(sample: NDArray[np.float64]) -> float:
    return float(sample.std(ddof=1) / np.sqrt(len(sample)))


def _t() -> Any:
    from scipy.stats import t

    return t
