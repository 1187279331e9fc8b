"""`legato study online`: regret when losses change, tested claim by claim. The trials stand in online_trials, the page in online_panels.

A seed is an environment: a random process with its own losses, an order of the days, a bandit. Rates are tuned on the environments 0 to 4, all
arms of a part with the same number of settings, and the verdicts are measured on the environments 100 to 109.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from legato.data import costs
from legato.lab.trial import Record
from legato.studies import online_panels
from legato.studies.experiment import Experiment
from legato.studies.online_trials import CONFIRMING, PARTS, TUNING, Numbers, Play, trial, values_of
from legato.studies.spec import Form

SMOKE = ("growth", "inverse", "one-hot", "simulator-free", "gains")
"""The parts that need no data."""


def trials(form: Form, tuned: Mapping[str, Any], records: Sequence[Record]) -> list[Play]:
    """Every trial of a form, all of them known from the start."""
    if form == "full":
        return [
            _play(name, arm, environment, part.tuned_at, rate)
            for name, part in PARTS.items()
            for arm in part.arms
            for rate in part.rates(arm)
            for environment in TUNING
        ]
    if form == "smoke":
        return [
            _play(name, arm, environment, (200, part.sizes[0][1]), rate)
            for name, part in PARTS.items()
            if name in SMOKE
            for arm, rate in [*part.arms.items(), *((arm, 0.0) for arm in part.fixed)]
            for environment in TUNING[:2]
        ]
    return [
        _play(name, arm, environment, size, tuned[name][arm] if arm in part.arms else 0.0, held_out=True)
        for name, part in PARTS.items()
        for arm in (*part.arms, *part.fixed)
        for size in part.sizes
        for environment in CONFIRMING
    ]


def tune(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Part -> arm -> the rate with the smallest mean over the environments of tuning."""
    chosen: dict[str, dict[str, float]] = {}
    for name, part in PARTS.items():
        for arm in part.arms:
            values = {rate: values_of(records, name, arm, part.tuned_at, rate) for rate in part.rates(arm)}
            chosen.setdefault(name, {})[arm] = min(values, key=lambda rate: values[rate].mean())
    return chosen


def measures(records: Sequence[Record]) -> dict[str, ArrayLike]:
    """Claim -> how much better, a number an environment.

    Regrets are compared by the logarithm of their ratio, 0.1 is about 10 percent; those on the battery, which may be negative, by their
    difference as a share of uniform play's.
    """
    last, before = (100_000, 4), (10_000, 4)

    def value(part: str, arm: str, size: tuple[int, int] | None = None) -> Numbers:
        return values_of(records, part, arm, size or PARTS[part].sizes[-1])

    def slope(arm: str) -> Numbers:
        rise = np.log(value("growth", arm, last)) - np.log(value("growth", arm, before))
        return np.asarray(rise / np.log(last[0] / before[0]))

    def less(part: str, arm: str, baseline: str, size: tuple[int, int] | None = None) -> Numbers:
        return np.log(value(part, baseline, size)) - np.log(value(part, arm, size))

    def share(part: str, arm: str, baseline: str) -> Numbers:
        return np.asarray((value(part, baseline) - value(part, arm)) / value(part, "uniform"))

    once, often = "battery, once", "battery, twenty times"
    return {
        "online-rate-log-barrier": slope("luo") - slope("log-barrier"),
        "online-rate-magnitude-reduced": slope("luo") - slope("mr"),
        "online-root-log-barrier": 0.6 - slope("log-barrier"),
        "online-root-magnitude-reduced": 0.6 - slope("mr"),
        "online-regret-log-barrier": less("growth", "log-barrier", "luo", last),
        "online-regret-magnitude-reduced": less("growth", "mr", "luo", last),
        "online-actions": less("actions", "mr", "log-barrier", (10_000, 32)) - less("actions", "mr", "log-barrier", (10_000, 2)),
        "online-negative": less("gains, by theory", "log-barrier", "entropy"),
        "online-negative-tuned": less("gains", "log-barrier", "entropy"),
        "online-negative-spikes": less("spikes", "log-barrier", "entropy"),
        "online-negative-mixed": less("gains", "log-barrier", "entropy, mixed"),
        "online-averaging-inverse": less("inverse", "averaged", "mgr", (1_000, 4)),
        "online-averaging-regret": less("covariance", "averaged", "mgr"),
        "online-simulator-free": less("simulator-free", "averaged, log-barrier", "mgr, entropy"),
        "online-simulator-free-averaging": less("simulator-free", "averaged, entropy", "mgr, entropy"),
        "online-simulator-free-uniform": less("simulator-free", "averaged, log-barrier", "uniform"),
        "online-battery-luo": share(often, "log-barrier", "luo"),
        "online-battery-uniform": share(once, "log-barrier", "uniform"),
        "online-battery-controller": share(once, "hedge", "mean of 7"),
    }  # fmt: skip


def _play(
    name: str, arm: str, environment: int, size: tuple[int, int], rate: float, *, held_out: bool = False
) -> Play:  # fmt: skip
    battery = name.startswith("battery")
    return Play(name, arm, environment, *size, rate, held_out and battery, costs.SHA256 if battery else "")


EXPERIMENT = Experiment(
    paper="2301.12942",
    title="decisions under losses that change",
    trial=trial,
    trials=trials,
    measures=measures,
    panels=online_panels.panels,
    tune=tune,
    cut="processes of 4 states a step, 6 features and at most 2 steps, and 10^5 episodes; the practical rates, for with those of the theory nothing is "
    "learnt in as many episodes and every bound is vacuous; covariances are exact but where a part is about them; two runs in each of ten environments",
)
