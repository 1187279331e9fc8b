"""The runs of a sweep over sizes and learning rates, and what is made of them: sensitivities, cliffs and forecasts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from legato import errors
from legato.lab.statistics import Estimate, t_interval
from legato.stability.forecast import Forecast, Shape, forecast
from legato.stability.sensitivity import (
    Sensitivity,
    first_unstable,
    lr_sensitivity,
    sensitivity_over_seeds,
    upper_sensitivity,
)

Array = NDArray[np.float64]
CLIFF = "first unstable learning rate"


@dataclass(frozen=True)
class Run:
    """One training."""

    arm: str
    size: str
    """The name of its size, such as d32 L2."""
    parameters: float
    """N, what is plotted and extrapolated over."""
    learning_rate: float
    seed: int
    loss: float
    """On validation data at the end; NaN where the run was lost."""
    initial_loss: float
    lost: str = ""
    """Why the run ended early, in words; empty for one that did not."""
    statistics: Mapping[str, float] = field(default_factory=dict)
    """Name, which says where and at which step, -> value; NaN where there is none."""


@dataclass(frozen=True)
class Curve:
    """Final losses of one arm at one size."""

    parameters: float
    learning_rates: tuple[float, ...]
    losses: Array
    """[S, R]."""
    initial: Array
    """[S]."""

    @property
    def lost(self) -> int:
        """Runs that were lost."""
        return int((~np.isfinite(self.losses)).sum())

    @property
    def learned(self) -> bool:
        """Whether every seed has a run that stayed finite."""
        return bool(np.isfinite(self.losses).any(1).all())

    @property
    def clipped(self) -> Array:
        """[S, R] losses, lost runs at the initial loss."""
        return np.minimum(np.where(np.isfinite(self.losses), self.losses, math.inf), self.initial[:, None])

    def sensitivity(self) -> Sensitivity | None:
        """S with its bootstrap over seeds; None where no run of a seed stayed finite."""
        return sensitivity_over_seeds(self.learning_rates, self.losses, self.initial) if self.learned else None

    def interval(self, *, upper: bool = False) -> Estimate | None:
        """S or upper-side S: mean over seeds and its t interval; None where no run of a seed stayed finite."""
        measure = upper_sensitivity if upper else lr_sensitivity
        return t_interval(measure(self.learning_rates, self.losses, self.initial)) if self.learned else None


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep. Sensitivities stand on the fixed grid alone, cliffs on all rates that were tried."""

    runs: tuple[Run, ...]
    arms: tuple[str, ...]
    sizes: tuple[str, ...]
    learning_rates: tuple[float, ...]
    """The fixed grid, rising."""
    seeds: tuple[int, ...]
    margin: float
    """A run that ends more than this above the best of its arm, size and seed is unstable, in the unit of the loss."""

    @cached_property
    def _at(self) -> dict[tuple[str, str, float, int], Run]:
        return {(run.arm, run.size, run.learning_rate, run.seed): run for run in self.runs}

    @property
    def parameters(self) -> tuple[float, ...]:
        """N of each size."""
        found = {run.size: run.parameters for run in self.runs}
        return tuple(found[size] for size in self.sizes)

    @property
    def missing(self) -> tuple[tuple[str, str, float, int], ...]:
        """(arm, size, learning rate, seed) of the runs of the grid that are not there."""
        asked = [(a, n, r, s) for a in self.arms for n in self.sizes for r in self.learning_rates for s in self.seeds]
        return tuple(cell for cell in asked if cell not in self._at)

    @property
    def lost(self) -> tuple[Run, ...]:
        """The runs that were lost."""
        return tuple(run for run in self.runs if not math.isfinite(run.loss))

    @property
    def statistics(self) -> tuple[str, ...]:
        """The names of all statistics."""
        return tuple(dict.fromkeys(name for run in self.runs for name in run.statistics))

    def curve(self, arm: str, size: str) -> Curve:
        """The fixed grid of an arm at a size."""
        table = [[self._at[arm, size, rate, seed] for rate in self.learning_rates] for seed in self.seeds]
        return Curve(
            table[0][0].parameters,
            self.learning_rates,
            np.array([[run.loss for run in row] for row in table]),
            np.array([row[0].initial_loss for row in table]),
        )

    def tried(self, arm: str, size: str, seed: int) -> Curve:
        """Every rate that was tried for one seed, the grid's and those near the cliff."""
        runs = sorted((r for r in self.runs if (r.arm, r.size, r.seed) == (arm, size, seed)), key=lambda r: r.learning_rate)  # fmt: skip
        rates = tuple(run.learning_rate for run in runs)
        return Curve(runs[0].parameters, rates, np.array([[r.loss for r in runs]]), np.array([runs[0].initial_loss]))

    def cliff(self, arm: str, size: str, seed: int) -> float:
        """The smallest unstable rate above the best one; NaN where none was met."""
        curve = self.tried(arm, size, seed)
        if not curve.learned:
            return math.nan
        return float(first_unstable(curve.learning_rates, curve.losses, curve.initial, self.margin)[0])

    def check(self, arm: str, statistic: str, learning_rate: float | None) -> None:
        """Raises LegatoValueError for an arm, a statistic or a learning rate that the sweep does not have."""
        if arm not in self.arms:
            raise errors.choice("arm", arm, self.arms)
        if statistic not in (*self.statistics, CLIFF):
            raise errors.choice("statistic", statistic, [*self.statistics, CLIFF])
        if statistic != CLIFF and learning_rate not in self.learning_rates:
            grid = ", ".join(f"{rate:g}" for rate in self.learning_rates)
            raise errors.argument("learning_rate", expected=f"one of the grid, {grid}", got=learning_rate)

    def foresee(
        self, statistic: str, arm: str, size: float, *, learning_rate: float | None = None, shape: Shape = "auto", level: float = 0.8
    ) -> Forecast:  # fmt: skip
        """Extrapolate a statistic at one learning rate, or the first unstable learning rate (`CLIFF`), to another size.

        Raises: LegatoValueError as `check`, and what `forecast` raises.
        """
        self.check(arm, statistic, learning_rate)
        if statistic == CLIFF:
            cliffs = [self.cliff(arm, name, seed) for name in self.sizes for seed in self.seeds]
            return forecast(np.repeat(self.parameters, len(self.seeds)), cliffs, size, shape=shape, level=level)
        runs = [run for run in self.runs if (run.arm, run.learning_rate) == (arm, learning_rate)]
        values = [run.statistics.get(statistic, math.nan) for run in runs]
        return forecast([run.parameters for run in runs], values, size, shape=shape, level=level)


def rate_to_try(curve: Curve, margin: float) -> float | None:
    """The geometric middle between the first unstable rate and the highest rate below it, for one seed; None without a cliff."""
    if not curve.learned:
        return None
    cliff = float(first_unstable(curve.learning_rates, curve.losses, curve.initial, margin)[0])
    below: Sequence[float] = [rate for rate in curve.learning_rates if rate < cliff]
    return None if math.isnan(cliff) else float(f"{math.sqrt(cliff * max(below)):.3g}")
