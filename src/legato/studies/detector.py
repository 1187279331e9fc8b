"""How well the early warnings of `watch` foresee runs that end badly: recall, false alarms and lead, like any detector."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from legato.stability.readings import AttentionReading, LogitReading, Reading
from legato.stability.rules import Thresholds, alarms

GRID: Mapping[str, tuple[float, ...]] = {
    "growth": (3.0, 10.0, 30.0), "growth_from": (30.0, 100.0, 300.0), "limit": (1e3, 1e4), "entropy": (1e-4, 0.01, 0.05),
}  # fmt: skip
"""The thresholds that are fitted, all combinations."""
MOST_FALSE = 0.05
"""Share of the stable runs that may alarm where thresholds are fitted."""


@dataclass(frozen=True)
class Watched:
    """A run with what was read of it, and what became of it."""

    arm: str
    size: str
    learning_rate: float
    seed: int
    loss: float
    """At the end; NaN where the run was lost."""
    losses: tuple[float, ...]
    """On validation data at each check, up to where it was lost."""
    check_every: int
    """Steps between checks."""
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class Labelled:
    """A run that is known to have failed or not."""

    run: Watched
    seen_at: int | None
    """The step at which the failure can be seen in the loss and stays; None for a stable run."""


@dataclass(frozen=True)
class Detection:
    """How a set of thresholds did."""

    unstable: int
    caught: int
    """Unstable runs with an alarm."""
    stable: int
    false: int
    """Stable runs with an alarm."""
    leads: tuple[int, ...]
    """Steps from the first alarm to where the failure can be seen, for the runs caught; below 0 it came too late."""

    @property
    def recall(self) -> float:
        """Share of the unstable runs that are caught; NaN without one."""
        return self.caught / self.unstable if self.unstable else math.nan

    @property
    def false_alarms(self) -> float:
        """Share of the stable runs with an alarm; NaN without one."""
        return self.false / self.stable if self.stable else math.nan

    @property
    def lead(self) -> float:
        """Median of the leads; NaN without one."""
        return float(np.median(self.leads)) if self.leads else math.nan


def label(runs: Sequence[Watched], margin: float) -> list[Labelled]:
    """Which runs failed: those above the best learning rate of their arm, size and seed that were lost, or ended more than `margin` above it.

    The failure can be seen from the first check on after which the loss stays more than `margin` above that of the best run at the
    same check; for a lost run at its last check at the latest.
    """
    found = []
    for _, group in itertools.groupby(sorted(runs, key=_cell), key=_cell):
        rates = list(group)
        best = min(rates, key=lambda run: math.inf if math.isnan(run.loss) else run.loss)
        found += [Labelled(run, _seen_at(run, best, margin)) for run in rates]
    return found


def _cell(run: Watched) -> tuple[str, str, int]:
    return run.arm, run.size, run.seed


def _seen_at(run: Watched, best: Watched, margin: float) -> int | None:
    if (
        run.learning_rate <= best.learning_rate or run.loss <= best.loss + margin
    ):  # False for a lost run, whose loss is NaN
        return None
    worse = [not loss <= other + margin for loss, other in zip(run.losses, best.losses, strict=False)]
    first = len(worse) - 1
    while first > 0 and worse[first - 1]:
        first -= 1
    return (first + 1) * run.check_every


def first_alarm(readings: Sequence[Reading], thresholds: Thresholds) -> int | None:
    """The step of the first alarm; None without one."""
    for last in range(1, len(readings) + 1):
        if alarms(readings[:last], thresholds):
            return readings[last - 1].step
    return None


def detect(runs: Iterable[Labelled], thresholds: Thresholds) -> Detection:
    """Let the rules look at runs whose fate is known."""
    told = [(one.seen_at, first_alarm(one.run.readings, thresholds)) for one in runs]
    unstable = [(seen, alarm) for seen, alarm in told if seen is not None]
    stable = [alarm for seen, alarm in told if seen is None]
    leads = [seen - alarm for seen, alarm in unstable if alarm is not None]
    return Detection(len(unstable), len(leads), len(stable), sum(alarm is not None for alarm in stable), tuple(leads))


def fit(runs: Sequence[Labelled], grid: Mapping[str, Sequence[float]] = GRID) -> Thresholds:
    """The thresholds with the best recall among those with few false alarms (the fewest, where none has few); ties go to the longer lead.

    Args:
        runs: with both fates among them.
        grid: threshold -> values, all combinations are tried.
    """
    settings: list[dict[str, Any]] = [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    candidates = [replace(Thresholds(), **setting) for setting in settings]
    scored = [(detect(runs, candidate), candidate) for candidate in candidates]
    fewest = max(MOST_FALSE, min((found.false_alarms for found, _ in scored), default=0.0))
    good = [(found, candidate) for found, candidate in scored if not found.false_alarms > fewest]
    return max(good, key=lambda pair: (pair[0].recall, -math.inf if math.isnan(pair[0].lead) else pair[0].lead))[1]


def compact(readings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the rules of attention and output logits need of readings as plain data; gradients and updates are left out."""
    return [
        {
            "step": reading["step"],
            "attention": {
                name: {"largest": layer["max"] or layer["upper"], "entropy": layer["entropy"]}
                for name, layer in reading["attention"].items()
            },
            "logits": reading["logits"],
        }
        for reading in readings
    ]


def revive(told: Sequence[Mapping[str, Any]]) -> tuple[Reading, ...]:
    """Readings again, of what `compact` kept; NaN was stored as None."""
    return tuple(_reading(one) for one in told)


def _reading(told: Mapping[str, Any]) -> Reading:
    layers = {
        name: AttentionReading([], _numbers(layer["largest"]), _numbers(layer["entropy"] or []), None, None, None, "given")
        for name, layer in told["attention"].items()
    }  # fmt: skip
    logits = told["logits"]
    return Reading(
        told["step"], layers, logits and LogitReading(**dict(zip(logits, _numbers(logits.values()), strict=True)))
    )


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]
