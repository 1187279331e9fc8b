"""What the claims of `proxies` are judged by: one number a seed, larger is more in favour of the claim."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from legato.lab.trial import Record
from legato.stability.forecast import Forecast, forecast
from legato.stability.sensitivity import lr_sensitivity, upper_sensitivity, width_within
from legato.studies.decoder_sweep import GRADIENT, LOGIT
from legato.studies.proxies_trials import (
    DRIFT,
    EPS,
    FORECAST,
    INTERVENTIONS,
    MAIN,
    MARGIN,
    RATES,
    SIZES,
    of_part,
    runs_of,
    sweep_of,
)
from legato.studies.sweep_config import PAPER_RATES
from legato.studies.sweep_page import NEAR
from legato.studies.sweep_runs import Run, Sweep

Array = NDArray[np.float64]
Measure = Callable[..., NDArray[np.float64]]
HIGH = 0.3
"""The learning rate at which arms are compared."""
BEYOND = math.sqrt(10) * RATES[-1]
"""What a first unstable rate counts as that lies above the grid: half a decade above it."""
LEVEL = 0.8
HELD_BACK = ("96x2", "128x2")


def measures(records: Sequence[Record]) -> dict[str, Array]:
    """Claim id -> [S], seeds rising."""
    sizes = sweep_of(runs_of(records, SIZES.name), MARGIN, RATES)
    main = interventions(records, RATES)

    def s(arm: str, of: Measure = lr_sensitivity, size: str = MAIN) -> Array:
        return on_paper_grid(sizes if size != MAIN else main, arm, size, of)

    def loss(arm: str, rate: float) -> Array:
        return _values(main.runs, arm, MAIN, rate, lambda run: run.initial_loss if math.isnan(run.loss) else run.loss)

    logits = [
        np.log10(_values(main.runs, arm, MAIN, HIGH, lambda run: run.statistics[LOGIT.format(75)]))
        for arm in ("none", "qk-norm")
    ]
    shrunk = _values(runs_of(records, EPS.name), "eps:1e-2", MAIN, 0.01, lambda run: run.loss)
    gradients = [
        _values(runs_of(records, FORECAST.name), "none", size, 0.1, lambda run: run.statistics[GRADIENT])
        for size in ("16x2", "128x2")
    ]
    decades = [
        width_within(RATES, curve.losses, curve.initial, NEAR)
        for curve in (main.curve(arm, MAIN) for arm in ("all", "none"))
    ]
    log_z = [_metric(records, arm, "log_z_rms") for arm in DRIFT.arms]
    slopes = {arm: _slopes(records, arm) for arm in ("none", "mup:full")}
    return {
        "proxies-qk-loss": loss("none", HIGH) - loss("qk-norm", HIGH),
        "proxies-qk-logits": logits[0] - logits[1],
        "proxies-qk-sensitivity": s("none") - s("qk-norm"),
        "proxies-qk-upper": s("none", upper_sensitivity) - s("qk-norm", upper_sensitivity),
        "proxies-size": s("qk-norm", upper_sensitivity, "64x1") - s("qk-norm", upper_sensitivity, "16x1"),
        "proxies-cliff": cliffs(sizes, "none", "16x1") - cliffs(sizes, "none", "64x1"),
        "proxies-warmup": s("none") - s("warmup:0.25"),
        "proxies-decay": s("decay:conventional") - s("none"),
        "proxies-z-loss": s("qk-norm") - s("qk-norm+z-loss"),
        "proxies-mup-sensitivity": s("mup:full") - s("none"),
        "proxies-mup-coordinates": slopes["none"] - slopes["mup:full"],
        "proxies-all": decades[0] - decades[1],
        "proxies-forecast": np.mean([cell.held for cell in held_back(records)], axis=0),
        "proxies-gradient": np.log10(gradients[0]) - np.log10(gradients[1]),
        "proxies-eps": shrunk - loss("none", 0.01),
        "proxies-log-z": log_z[0] - log_z[1],
    }


def interventions(records: Sequence[Record], rates: Sequence[float]) -> Sweep:
    """Every arm at the main size."""
    shared = [run for run in runs_of(records, SIZES.name) if run.size == MAIN]
    return sweep_of([*shared, *runs_of(records, INTERVENTIONS.name)], MARGIN, rates)


def on_paper_grid(sweep: Sweep, arm: str, size: str, of: Measure) -> Array:
    """[S] a sensitivity over the paper's seven rates."""
    curve = sweep.curve(arm, size)
    kept = [place for place, rate in enumerate(curve.learning_rates) if rate in PAPER_RATES]
    return of(PAPER_RATES, curve.losses[:, kept], curve.initial)


def cliffs(sweep: Sweep, arm: str, size: str) -> Array:
    """[S] log10 of the first unstable rate, half a decade above the grid where there is none."""
    found = np.array([sweep.cliff(arm, size, seed) for seed in sweep.seeds])
    return np.log10(np.where(np.isnan(found), BEYOND, found))


@dataclass(frozen=True)
class HeldBack:
    """One forecast of a size that was held back, and what came of it."""

    size: str
    learning_rate: float
    step: int
    found: Forecast
    measured: Array
    """[S]."""

    @property
    def held(self) -> NDArray[np.bool_]:
        """[S] whether a run lies in the interval."""
        return (self.found.band.low <= self.measured) & (self.measured <= self.found.band.high)


def held_back(records: Sequence[Record]) -> list[HeldBack]:
    """For each held-back size, rate and step: the forecast from all seeds of all smaller sizes, and the runs of this size."""
    runs = runs_of(records, FORECAST.name)
    steps = dict(FORECAST.changes)["probe_steps"]
    return [
        _held_back(runs, size, rate, step) for size in HELD_BACK for rate in FORECAST.learning_rates for step in steps
    ]


def _held_back(runs: Sequence[Run], size: str, rate: float, step: int) -> HeldBack:
    mine = sorted((run for run in runs if (run.size, run.learning_rate) == (size, rate)), key=lambda run: run.seed)
    smaller = [run for run in runs if run.learning_rate == rate and run.parameters < mine[0].parameters]
    name = LOGIT.format(step)
    values = [run.statistics.get(name, math.nan) for run in smaller]
    found = forecast([run.parameters for run in smaller], values, mine[0].parameters, level=LEVEL)
    return HeldBack(size, rate, step, found, np.array([run.statistics.get(name, math.nan) for run in mine]))


def _slopes(records: Sequence[Record], arm: str) -> Array:
    """[S] |slope| of log RMS of the last block's output over log width; 0 is flat."""
    found = sorted(
        (r for r in records if r.config["arm"] == arm and "widths" in r.config), key=lambda r: r.config["seed"]
    )
    return np.array(
        [abs(np.polyfit(np.log10(r.config["widths"]), np.log10(r.metrics["rms"]["blocks.1"]), 1)[0]) for r in found]
    )


def _metric(records: Sequence[Record], arm: str, name: str) -> Array:
    """[S] a metric of an arm of the drift."""
    found = sorted((r for r in of_part(records, DRIFT.name) if r.config["arm"] == arm), key=lambda r: r.config["seed"])
    return np.array([r.metrics[name] for r in found], dtype=np.float64)


def _values(runs: Sequence[Run], arm: str, size: str, rate: float, read: Callable[[Run], float]) -> Array:
    """[S] a number of the runs of one cell, seeds rising."""
    found: Mapping[int, Run] = {
        run.seed: run for run in runs if (run.arm, run.size, run.learning_rate) == (arm, size, rate)
    }
    return np.array([read(found[seed]) for seed in sorted(found)])
