"""From small models to a large one: a statistic over sizes, on log-log axes, as a line or a parabola with its prediction interval."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from legato import errors

Array = NDArray[np.float64]
Shape = Literal["auto", "line", "quadratic"]
DEGREES = {"line": 1, "quadratic": 2}
FAR = 10.0
"""Beyond this factor of the largest size that was measured an extrapolation is a guess."""


@dataclass(frozen=True)
class Band:
    """What is foreseen at one size."""

    value: float
    """The centre: the median of a new run."""
    low: float
    high: float
    """A single new run lies between them with the chance that was asked for, if the curve is right."""


@dataclass(frozen=True)
class Fit:
    """log10 value = polynomial of log10 size + noise, by least squares over all runs, seeds being replicates.

    A new run at size N has log10 value t-distributed with n - (degree + 1) degrees of freedom, about x'b with
    scale s sqrt(1 + x' (X'X)^-1 x), x = (1, log10 N, ...), s^2 = sum of squared residuals / degrees of freedom.
    """

    shape: str
    """line or quadratic."""
    coefficients: tuple[float, ...]
    """Of rising powers of log10(size) - centre."""
    centre: float
    scale: float
    """s, the spread of single runs about the curve, in decades."""
    freedom: int
    """Degrees of freedom."""
    inverse: tuple[tuple[float, ...], ...]
    """(X'X)^-1."""
    smallest: float
    largest: float
    """The sizes that were measured."""

    def at(self, size: float, level: float = 0.8) -> Band:
        """The prediction interval of one new run of this size.

        Raises: LegatoValueError for a size or a level out of range, or a parabola that turns over on the way there.
        """
        if not 0 < level < 1:
            raise errors.argument("level", expected="a number above 0 and below 1", got=level)
        centre, spread = self._new_run(size)
        half = spread * float(stdtrit(self.freedom, (1 + level) / 2))
        return Band(*(_power(centre + move) for move in (0.0, -half, half)))

    def probability_above(self, threshold: float, size: float) -> float:
        """The chance that a new run of this size has a value above the threshold, if the curve is right.

        Raises: LegatoValueError as `at`, and for a threshold that is not positive.
        """
        if not (threshold > 0 and math.isfinite(threshold)):
            raise errors.argument("threshold", expected="a finite number > 0", got=threshold)
        centre, spread = self._new_run(size)
        gap = math.log10(threshold) - centre
        if spread == 0:
            return float(gap < 0)
        return float(stdtr(self.freedom, -gap / spread))

    def turn(self) -> float:
        """The size at which a parabola turns over; infinite for a line."""
        if len(self.coefficients) < 3 or self.coefficients[2] == 0:
            return math.inf
        return _power(self.centre - self.coefficients[1] / (2 * self.coefficients[2]))

    def _new_run(self, size: float) -> tuple[float, float]:
        """Centre and scale of log10 value of a new run."""
        if not (size > 0 and math.isfinite(size)):
            raise errors.argument("size", expected="a finite number > 0", got=size)
        if turns_between(self, size):
            raise errors.argument(
                "shape", expected=f"a curve that keeps its direction up to {max(size, self.largest):.3g}",
                got=f"a parabola that turns over at {self.turn():.3g}", fix="shape='line'",
            )  # fmt: skip
        x = (math.log10(size) - self.centre) ** np.arange(len(self.coefficients))
        leverage = float(x @ np.array(self.inverse) @ x)
        return float(x @ np.array(self.coefficients)), self.scale * math.sqrt(1 + leverage)


def fit_power(sizes: ArrayLike, values: ArrayLike, shape: Literal["line", "quadratic"] = "line") -> Fit:
    """Fit a curve to values over sizes.

    Args:
        sizes: [n] number of parameters of each run, > 0.
        values: [n] > 0, finite.
        shape: line (3 or more sizes) or quadratic (4 or more).
    Raises: LegatoValueError for too few sizes, values that have no logarithm, or an unknown shape.
    """
    if shape not in DEGREES:
        raise errors.choice("shape", str(shape), DEGREES)
    size, value = _pairs(sizes, values)
    if not (np.isfinite(value) & (value > 0)).all():
        raise errors.argument("values", expected="finite numbers > 0", got=value.tolist(), fix="use forecast, which leaves out the others")  # fmt: skip
    needed, found = DEGREES[shape] + 2, len(np.unique(size))
    if found < needed:
        raise errors.argument(
            "sizes", expected=f"{needed} or more different ones for a {shape} with its interval", got=found
        )
    return _least_squares(size, value, shape)


@dataclass(frozen=True)
class Forecast:
    """A chosen curve and why it was chosen."""

    fit: Fit
    size: float
    """The size that is asked about."""
    band: Band
    """The prediction interval of one run there."""
    level: float
    misses: Mapping[str, float]
    """Shape -> mean |log10 predicted / measured| at the largest size when it is left out of the fit."""
    used: int
    """Runs that entered the fit."""
    notes: tuple[str, ...] = ()
    """What was left out, and what to be warned of, in words."""

    def probability_above(self, threshold: float) -> float:
        """The chance that one run of this size passes the threshold, if the curve is right."""
        return self.fit.probability_above(threshold, self.size)


def forecast(
    sizes: ArrayLike,
    values: ArrayLike,
    size: float,
    *,
    shape: Shape = "auto",
    level: float = 0.8,
    same: Mapping[str, Sequence[Any]] | None = None,
) -> Forecast:
    """Foresee a statistic, such as the largest attention logit, of a model of `size` parameters.

    With shape auto, both curves are fitted without the largest size and the one that foresees it better, by the mean of
    |log10 predicted / measured|, is fitted to all; a parabola needs 4 sizes and must not turn over up to `size`, else it is the line.

    Args:
        sizes: [n] number of parameters of each run; seeds of a size are replicates.
        values: [n] the statistic, > 0. NaN, infinity and 0 (diverged or saturated runs) are left out, which the notes say: read
            the statistic early, before runs diverge, or what is left is too low.
        size: to foresee, > 0.
        shape: auto, line or quadratic.
        level: of the prediction interval.
        same: name -> [n] settings that must be equal for all runs, such as step, block and learning rate.
    Raises: LegatoValueError for fewer than 3 sizes (4 for a quadratic), settings that are mixed, and a quadratic that turns over.
    Source: Wortsman et al. 2024, arXiv 2309.14322, section 3.2.1, has the quadratic; line, choice and intervals are ours.
    """
    if shape not in (*DEGREES, "auto"):
        raise errors.choice("shape", str(shape), [*DEGREES, "auto"])
    measured, value = _pairs(sizes, values)
    for name, column in (same or {}).items():
        if len(set(column)) > 1:
            raise errors.argument(
                name, expected="the same for all runs of a forecast", got=f"{len(set(column))} different ones", fix="a forecast for each"
            )  # fmt: skip
    kept = np.isfinite(value) & (value > 0)
    fits = _candidates(measured[kept], value[kept], shape)
    misses = {name: _miss(measured[kept], value[kept], name) for name in fits}
    straight = {name: fit for name, fit in fits.items() if shape != "auto" or not turns_between(fit, size)}
    chosen = straight[min(straight, key=lambda name: round(misses[name], 9))]  # the line where rounding alone decides
    band = chosen.at(size, level)
    notes = (*_dropped(measured, kept), *_turned(fits, straight), *_far(chosen, size))
    return Forecast(chosen, size, band, level, misses, int(kept.sum()), notes)


def turns_between(fit: Fit, size: float) -> bool:
    """Whether a parabola turns over between the sizes that were measured and `size`."""
    return min(fit.smallest, size) < fit.turn() < max(fit.largest, size)


def _candidates(sizes: Array, values: Array, shape: Shape) -> dict[str, Fit]:
    if shape != "auto":
        return {shape: fit_power(sizes, values, shape)}
    fits = {"line": fit_power(sizes, values, "line")}
    if len(np.unique(sizes)) >= 4:
        fits["quadratic"] = fit_power(sizes, values, "quadratic")
    return fits


def _miss(sizes: Array, values: Array, shape: str) -> float:
    """Mean |log10 predicted / measured| at the largest size, left out of the fit."""
    last = sizes == sizes.max()
    fit = _least_squares(sizes[~last], values[~last], shape)
    x = math.log10(sizes.max()) - fit.centre
    foreseen = sum(c * x**power for power, c in enumerate(fit.coefficients))
    return float(np.abs(foreseen - np.log10(values[last])).mean())


def _least_squares(sizes: Array, values: Array, shape: str) -> Fit:
    """The centre takes the sizes' own mean out, so that powers of log10 size stay well apart."""
    logs = np.log10(sizes)
    centre = float(logs.mean())
    x = np.vander(logs - centre, DEGREES[shape] + 1, increasing=True)
    coefficients, *_ = np.linalg.lstsq(x, np.log10(values), rcond=None)
    freedom = len(x) - x.shape[1]
    residual = float(((np.log10(values) - x @ coefficients) ** 2).sum())
    return Fit(
        shape,
        tuple(map(float, coefficients)),
        centre,
        math.sqrt(residual / freedom) if freedom else math.inf,
        freedom,
        tuple(tuple(map(float, row)) for row in np.linalg.inv(x.T @ x)),
        float(sizes.min()),
        float(sizes.max()),
    )


def _pairs(sizes: ArrayLike, values: ArrayLike) -> tuple[Array, Array]:
    size, value = np.asarray(sizes, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if size.ndim != 1 or size.shape != value.shape:
        raise errors.argument("values", expected=f"one for each size, shape {list(size.shape)}", got=f"shape {list(value.shape)}")  # fmt: skip
    if not (np.isfinite(size) & (size > 0)).all():
        raise errors.argument("sizes", expected="finite numbers > 0", got=size.tolist())
    return size, value


def _dropped(sizes: Array, kept: NDArray[np.bool_]) -> Iterable[str]:
    if not kept.all():
        where = ", ".join(f"{size:.3g}" for size in np.unique(sizes[~kept]))
        yield f"{(~kept).sum()} of {len(kept)} runs are left out, diverged, saturated or without a reading; their sizes: {where}"


def _turned(fits: Mapping[str, Fit], straight: Mapping[str, Fit]) -> Iterable[str]:
    for name in fits.keys() - straight.keys():
        yield f"the {name} is left out: it turns over at {fits[name].turn():.3g}"


def _far(fit: Fit, size: float) -> Iterable[str]:
    if size > FAR * fit.largest or size < fit.smallest / FAR:
        edge = fit.largest if size > fit.largest else fit.smallest
        yield f"{size:.3g} is {max(size / edge, edge / size):.0f} times away from the sizes that were measured: the band is a guess"


def _power(exponent: float) -> float:
    return 10.0**exponent if exponent < 300 else math.inf
