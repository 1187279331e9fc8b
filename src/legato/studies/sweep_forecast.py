"""`legato stability forecast`: every statistic of a sweep at a larger size, and the chance that it passes its threshold there."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from legato import errors
from legato.lab.page import Cell, Table
from legato.stability.forecast import Forecast, Shape
from legato.studies.decoder_sweep import GRADIENT
from legato.studies.sweep import open_sweep
from legato.studies.sweep_page import number
from legato.studies.sweep_runs import CLIFF, Sweep

EPS_MARGIN = 10.0
"""A gradient whose RMS is below this many eps shortens Adam's steps by more than a tenth."""


@dataclass(frozen=True)
class Question:
    """What to foresee."""

    size: float
    statistic: str | None = None
    """None: all."""
    arms: tuple[str, ...] = ()
    learning_rates: tuple[float, ...] = ()
    threshold: float = 1e4
    eps: float = 1e-8
    shape: Shape = "auto"
    level: float = 0.8


@dataclass(frozen=True)
class Row:
    """One forecast, or why there is none."""

    arm: str
    statistic: str
    learning_rate: float | None
    """None for the first unstable rate itself."""
    found: Forecast | None
    problem: str = ""

    def chance(self, asked: Question) -> float | None:
        """That one run passes the threshold: a gradient downwards, everything else upwards; None for a rate, which has none."""
        if self.found is None or self.statistic == CLIFF:
            return None
        if self.statistic == GRADIENT:
            return 1 - self.found.probability_above(EPS_MARGIN * asked.eps)
        return self.found.probability_above(asked.threshold)


def answer(run: Path, asked: Question) -> list[Row]:
    """A row for each arm, statistic and learning rate that was asked for.

    Raises: StoreError when `run` is no finished sweep; LegatoValueError for a name, rate or number that cannot be used, and, where a single
        forecast was asked for, why it is refused.
    """
    sweep = open_sweep(run)
    statistics = [asked.statistic] if asked.statistic else [*sweep.statistics, CLIFF]
    for name, fine, expected in (
        ("size", 0 < asked.size < math.inf, "a finite number > 0"),
        ("threshold", 0 < asked.threshold < math.inf, "a finite number > 0"),
        ("eps", 0 < asked.eps < math.inf, "a finite number > 0"),
        ("level", 0 < asked.level < 1, "a number above 0 and below 1"),
    ):
        if not fine:
            raise errors.argument(name, expected=expected, got=getattr(asked, name))
    rows = [
        _row(sweep, asked, arm, statistic, rate)
        for arm in asked.arms or sweep.arms
        for statistic in statistics
        for rate in ([None] if statistic == CLIFF else asked.learning_rates or sweep.learning_rates)
    ]
    if len(rows) == 1 and rows[0].found is None:
        raise errors.LegatoValueError(rows[0].problem)
    return rows


def _row(sweep: Sweep, asked: Question, arm: str, statistic: str, rate: float | None) -> Row:
    sweep.check(arm, statistic, rate)
    try:
        found = sweep.foresee(statistic, arm, asked.size, learning_rate=rate, shape=asked.shape, level=asked.level)
    except errors.LegatoValueError as problem:
        return Row(arm, statistic, rate, None, str(problem))
    return Row(arm, statistic, rate, found)


def tables(rows: Sequence[Row], asked: Question) -> list[Table]:
    """One for each statistic, a row for each forecast."""
    found = [row for row in rows if row.found is not None]
    return [
        _table(name, [row for row in found if row.statistic == name], asked)
        for name in dict.fromkeys(row.statistic for row in found)
    ]


def _table(statistic: str, rows: Sequence[Row], asked: Question) -> Table:
    below = statistic == GRADIENT
    threshold = f"< {EPS_MARGIN * asked.eps:g}" if below else f"> {asked.threshold:g}"
    own = ("arm", "foreseen", f"{asked.level:.0%} interval", "curve")
    columns = own if statistic == CLIFF else (own[0], "rate", *own[1:], f"chance {threshold}")
    caption = f"{statistic}, at N = {number(asked.size)}"
    return Table(columns, tuple(_cells(row, asked) for row in rows), caption)


def _cells(row: Row, asked: Question) -> tuple[Cell, ...]:
    assert row.found is not None  # only called for those that have one
    band, chance, rate = row.found.band, row.chance(asked), row.learning_rate
    return (
        Cell(row.arm),
        *(() if rate is None else (Cell(f"{rate:g}", rate),)),
        Cell(f"{band.value:.3g}", band.value),
        Cell(f"[{band.low:.3g}, {band.high:.3g}]", band.low),
        Cell(row.found.fit.shape),
        *(() if chance is None else (Cell(f"{chance:.0%}", chance),)),
    )


def notes(rows: Sequence[Row]) -> Iterable[str]:
    """What was left out and what to be warned of, each once."""
    for row in rows:
        rate = "" if row.learning_rate is None else f", rate {row.learning_rate:g}"
        told = [f"no forecast: {row.problem}"] if row.found is None else list(row.found.notes)
        yield from (f"{row.arm}, {row.statistic}{rate}: {note}" for note in told)
