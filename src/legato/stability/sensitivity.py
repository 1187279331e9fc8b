"""How much a wrong learning rate costs: one number for a curve of final losses over learning rates."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from legato import errors

Array = NDArray[np.float64]


def lr_sensitivity(learning_rates: ArrayLike, losses: ArrayLike, initial_loss: ArrayLike) -> Array:
    """Learning-rate sensitivity S: by how much the loss exceeds its best, on average over a fixed grid of learning rates.

    clipped_r = min(loss_r, initial loss), the initial loss where loss_r is NaN;  S = mean over r of clipped_r - min over r of clipped_r.

    It weighs every rate of the grid equally, which is about a mean over log rate on the paper's half-decades 3e-4, 1e-3 ... 3e-1. It is 0
    for a model that never learns, and it means little where an arm redefines the rate or the best rate lies at an edge of the grid: look at
    the curve beside it. Two grids give two different numbers.

    Args:
        learning_rates: [R], R >= 2 different numbers > 0, in any order.
        losses: [..., R] validation loss of the final model at each rate; NaN or infinity is a run that diverged.
        initial_loss: [...] or one number, the validation loss before the first step.
    Returns: [...] >= 0, in the unit of the losses.
    Raises: LegatoValueError for such a grid or shape, an initial loss that is not finite, and a row where every run diverged.
    Source: Wortsman et al. 2024, arXiv 2309.14322, section 2. There the minimum is over losses that are not clipped, which is the same
        unless no run ends below the initial loss.
    """
    _, clipped = _clipped(learning_rates, losses, initial_loss)
    return np.asarray((clipped - clipped.min(-1, keepdims=True)).mean(-1))


def upper_sensitivity(learning_rates: ArrayLike, losses: ArrayLike, initial_loss: ArrayLike) -> Array:
    """The same mean over the rates from the best one upwards: what a rate that is too high costs, without what too short a training does.

    The best rate is the smallest of those with the least loss; its own 0 counts in the mean. It is 0 where the best rate is the largest.

    Args, Returns, Raises: as in `lr_sensitivity`.
    """
    _, clipped = _clipped(learning_rates, losses, initial_loss)
    above = np.arange(clipped.shape[-1]) >= clipped.argmin(-1)[..., None]
    excess = np.where(above, clipped - clipped.min(-1, keepdims=True), 0.0)
    return np.asarray(excess.sum(-1) / above.sum(-1))


def shifted_sensitivities(learning_rates: ArrayLike, losses: ArrayLike, initial_loss: ArrayLike, width: int) -> Array:
    """S on every window of `width` neighbouring rates, from the lowest to the highest: does a shift of the grid change the answer?

    The paper takes the smaller of two such windows where an arm moves the best rate.

    Args:
        width: 2 .. R.
        learning_rates, losses, initial_loss: as in `lr_sensitivity`; a window may hold diverged runs only, and has S = 0 then.
    Returns: [..., R - width + 1].
    Raises: LegatoValueError as `lr_sensitivity`, and for a width out of range.
    """
    rates, clipped = _clipped(learning_rates, losses, initial_loss)
    if not 2 <= width <= len(rates):
        raise errors.argument("width", expected=f"a whole number from 2 to {len(rates)}", got=width)
    windows = np.lib.stride_tricks.sliding_window_view(clipped, width, axis=-1)
    return np.asarray((windows - windows.min(-1, keepdims=True)).mean(-1))


def width_within(learning_rates: ArrayLike, losses: ArrayLike, initial_loss: ArrayLike, margin: float) -> Array:
    """Decades of learning rate around the best one whose runs, all of them, end within `margin` of the best loss.

    log10 of the largest over the smallest rate of that unbroken stretch of the grid: a step of the grid is its resolution.

    Args:
        margin: >= 0, in the unit of the losses.
        learning_rates, losses, initial_loss: as in `lr_sensitivity`.
    Returns: [...] >= 0, in decades.
    Raises: LegatoValueError as `lr_sensitivity`, and for a negative margin.
    """
    rates, clipped = _clipped(learning_rates, losses, initial_loss)
    if not margin >= 0:
        raise errors.argument("margin", expected="a number >= 0", got=margin)
    best, places = clipped.argmin(-1)[..., None], np.arange(len(rates))
    bad = clipped > clipped.min(-1, keepdims=True) + margin
    low = np.where(bad & (places < best), places, -1).max(-1) + 1
    high = np.where(bad & (places > best), places, len(rates)).min(-1) - 1
    return np.asarray(np.log10(rates[high] / rates[low]))


def first_unstable(learning_rates: ArrayLike, losses: ArrayLike, initial_loss: ArrayLike, margin: float) -> Array:
    """The smallest rate above the best one whose run ends more than `margin` above the best loss, or diverges.

    Args:
        margin: > 0, in the unit of the losses.
        learning_rates, losses, initial_loss: as in `lr_sensitivity`.
    Returns: [...] learning rates, NaN where no rate of the grid is unstable.
    Raises: LegatoValueError as `lr_sensitivity`, and for a margin that is not positive.
    """
    if not margin > 0:
        raise errors.argument("margin", expected="a number > 0", got=margin)
    rates, clipped = _clipped(learning_rates, losses, initial_loss)
    lost = _in_order(learning_rates, ~np.isfinite(np.asarray(losses, dtype=np.float64)))
    above = np.arange(len(rates)) > clipped.argmin(-1)[..., None]
    bad = above & (lost | (clipped > clipped.min(-1, keepdims=True) + margin))
    return np.where(bad.any(-1), rates[bad.argmax(-1)], np.nan)


@dataclass(frozen=True)
class Spread:
    """A mean over seeds with its percentile bootstrap interval, in the unit of the losses."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Sensitivity:
    """The sensitivity of one arm at one size, over seeds."""

    whole: Spread
    """S."""
    upper: Spread
    """S over the rates from the best one upwards."""
    best: float
    """The rate with the least mean loss over seeds."""
    diverged: int
    """Runs that ended with a NaN or infinity."""
    notes: tuple[str, ...] = ()
    """What makes the numbers doubtful, in words."""


def sensitivity_over_seeds(
    learning_rates: ArrayLike,
    losses: ArrayLike,
    initial_loss: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    generator: np.random.Generator | None = None,
) -> Sensitivity:
    """S and upper-side S as means over seeds, with what to be warned of.

    The intervals are those of a percentile bootstrap of the mean, whole seeds drawn again. With few seeds they are too short: over five
    seeds a 95% interval covers about 83%, and a t interval of the seeds' values serves better.

    Args:
        losses: [S, R], one row a seed.
        initial_loss: [S] or one number.
        level: of the intervals.
        resamples: of the bootstrap.
        generator: of the bootstrap; None is one with seed 0.
        learning_rates: as in `lr_sensitivity`.
    Raises: LegatoValueError as `lr_sensitivity`, and for losses that are not [S, R].
    """
    table = np.asarray(losses, dtype=np.float64)
    if table.ndim != 2 or not len(table):
        raise errors.argument("losses", expected="one row a seed, [S, R]", got=f"shape {list(table.shape)}")
    rates, clipped = _clipped(learning_rates, losses, initial_loss)
    draws = (generator or np.random.default_rng(0)).integers(len(table), size=(resamples, len(table)))
    whole, upper = (f(learning_rates, losses, initial_loss) for f in (lr_sensitivity, upper_sensitivity))
    place = int(clipped.mean(0).argmin())
    notes = [*_edge(rates, place), *_unlearned(clipped, np.broadcast_to(initial_loss, len(table)))]
    return Sensitivity(
        _spread(whole, draws, level), _spread(upper, draws, level), float(rates[place]),
        int((~np.isfinite(table)).sum()), tuple(notes),
    )  # fmt: skip


def _clipped(learning_rates: ArrayLike, losses: ArrayLike, initial_loss: ArrayLike) -> tuple[Array, Array]:
    """[R] rising rates, and [..., R] losses in their order, none above the initial one."""
    rates = np.asarray(learning_rates, dtype=np.float64)
    table, initial = np.asarray(losses, dtype=np.float64), np.asarray(initial_loss, dtype=np.float64)
    _check_rates(rates)
    if table.shape[-1:] != rates.shape:
        raise errors.argument(
            "losses", expected=f"one for each of the {len(rates)} rates, [..., {len(rates)}]", got=f"shape {list(table.shape)}"
        )  # fmt: skip
    if not np.isfinite(initial).all():
        raise errors.argument("initial_loss", expected="finite numbers", got=initial.tolist())
    if initial.shape not in ((), table.shape[:-1]):
        raise errors.argument(
            "initial_loss", expected=f"one number, or shape {list(table.shape[:-1])}", got=f"shape {list(initial.shape)}"
        )  # fmt: skip
    if (table == -math.inf).any():
        raise errors.argument("losses", expected="finite numbers, or NaN for runs that diverged", got="-infinity")
    if (~np.isfinite(table)).all(-1).any():
        raise errors.argument(
            "losses", expected="a run that stays finite", got="none: no run learned, so S says nothing",
            fix="lower learning rates",
        )  # fmt: skip
    clipped = np.minimum(np.where(np.isnan(table), math.inf, table), initial[..., None])
    return np.sort(rates), _in_order(rates, clipped)


def _check_rates(rates: Array) -> None:
    if rates.ndim != 1 or len(rates) < 2:
        raise errors.argument(
            "learning_rates", expected="two or more, [R]", got=rates.tolist(), fix="3e-4 1e-3 3e-3 1e-2 3e-2 1e-1 3e-1"
        )
    if not (np.isfinite(rates).all() and (rates > 0).all()):
        raise errors.argument("learning_rates", expected="finite numbers > 0", got=rates.tolist())
    if len(np.unique(rates)) < len(rates):
        raise errors.argument("learning_rates", expected="different numbers", got=rates.tolist())


def _in_order(learning_rates: ArrayLike, table: NDArray[Any]) -> NDArray[Any]:
    """[..., R] by rising rates."""
    return table[..., np.argsort(np.asarray(learning_rates, dtype=np.float64))]


def _spread(values: Array, draws: NDArray[np.int64], level: float) -> Spread:
    low, high = np.quantile(values[draws].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return Spread(float(values.mean()), float(low), float(high))


def _edge(rates: Array, place: int) -> Iterable[str]:
    if place in (0, len(rates) - 1):
        yield f"the best rate, {rates[place]:g}, is at the edge of the grid: widen it, S may change"


def _unlearned(clipped: Array, initial: Array) -> Iterable[str]:
    count = int((clipped.min(1) >= initial).sum())
    if count:
        yield f"{count} of {len(clipped)} seeds: no run ends below the initial loss, so S is 0 and says nothing"
