"""The trials of `legato study online`: parts, arms, their settings, and what one trial measures. Smaller values are better throughout."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from legato.data import costs
from legato.lab.trial import Outcome, Record
from legato.online.adversaries import Adversary, constrained_switching
from legato.online.covariance import averaged_inverse, regularised_inverse
from legato.online.experimental import SimulatorFree
from legato.online.ftrl import FTRL, tuned_rate
from legato.online.learners import Learner, log_barrier, magnitude_reduced, resampled_inverse
from legato.online.mdp import LinearMDP, best_policy, random_linear_mdp
from legato.online.readers import CostProblem, cost_problem
from legato.online.regret import best_each_episode, run
from legato.online.simplex import Regulariser
from legato.studies.online_costs import FORECAST, UNIFORM, YESTERDAY, make_learner

SPREAD = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Rates that are tried, as multiples of the one in the middle."""
TUNING, CONFIRMING = tuple(range(5)), tuple(range(100, 110))
"""Environments."""
RUNS = 2
"""Of a learner that draws lots, in one environment: a trial is their mean."""
SAMPLES = 200
"""Draws a step and episode, for a covariance that is not exact."""
DAYS = 548
"""Half of the days: the first ones are for tuning, the others for the verdicts."""
WEEK = "mean of 7"

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """A question of the study: arms that meet the same environments."""

    title: str
    arms: Mapping[str, float]
    """Those with a rate to be tuned -> the middle of the rates that are tried, from a pilot in two environments that serve nothing else."""
    sizes: tuple[tuple[int, int], ...]
    """(episodes, actions)."""
    tuned_at: tuple[int, int]
    """The size at which the rates are chosen."""
    fixed: tuple[str, ...] = ()
    """Arms without a rate."""

    def rates(self, arm: str) -> tuple[float, ...]:
        """Those that are tried, equally many for each arm."""
        return tuple(float(f"{self.arms[arm] * factor:.6g}") for factor in SPREAD)


@dataclass(frozen=True)
class Play:
    """One trial."""

    part: str
    arm: str
    environment: int
    """Seed of the process, the losses and the learner."""
    episodes: int
    actions: int
    rate: float = 0.0
    """Factor on the learning rate; 0 for arms without one."""
    held_out: bool = False
    """For the battery: days that no tuning has seen."""
    data: str = ""
    """Fingerprint of the days."""


BARRIER, REDUCED, LUO, HEDGE = "log-barrier", "mr", "luo", "hedge"
PARTS: Mapping[str, Part] = {
    "growth": Part(
        "Regret against the number of episodes", {BARRIER: 10, REDUCED: 10, LUO: 100, HEDGE: 100},
        ((1_000, 4), (10_000, 4), (31_623, 4), (100_000, 4)), (10_000, 4), (UNIFORM,),
    ),
    "actions": Part(
        "Regret against the number of actions", {BARRIER: 10, REDUCED: 10, LUO: 100}, ((10_000, 2), (10_000, 8), (10_000, 32)), (10_000, 8), (UNIFORM,),
    ),
    "covariance": Part(
        "Covariance: averaging against Matrix Geometric Resampling", {"averaged": 10, "mgr": 10, "exact": 10}, ((2_000, 4),), (2_000, 4), (UNIFORM,),
    ),
    "inverse": Part("The inverse alone, from equally many samples", {}, ((100, 4), (1_000, 4), (10_000, 4)), (100, 4), ("averaged", "mgr")),
    "one-hot": Part("One-hot features", {}, ((300, 4),), (300, 4), ("difference",)),
    "simulator-free": Part(
        "Without a simulator", {"averaged, log-barrier": 300, "averaged, entropy": 100, "mgr, entropy": 100}, ((20_000, 4),), (20_000, 4), (UNIFORM,),
    ),
    "gains, by theory": Part(
        "A bandit with gains, at the rates of theory", {}, ((10_000, 5),), (10_000, 5), (BARRIER, "entropy", "entropy, mixed"),
    ),
    "gains": Part("A bandit with gains, not losses", {BARRIER: 3, "entropy": 3, "entropy, mixed": 0.3}, ((10_000, 5),), (10_000, 5)),
    "spikes": Part("A bandit with rare large gains", {BARRIER: 3, "entropy": 3, "entropy, mixed": 10}, ((10_000, 20),), (10_000, 20)),
    "battery, once": Part(
        "A battery, each day once", {BARRIER: 100, REDUCED: 100, LUO: 100, "exp3": 10, HEDGE: 100}, ((DAYS, 3),), (DAYS, 3),
        (UNIFORM, YESTERDAY, WEEK, FORECAST),
    ),
    "battery, twenty times": Part(
        "A battery, each day twenty times", {BARRIER: 100, REDUCED: 100, LUO: 100, "exp3": 10, HEDGE: 100}, ((20 * DAYS, 3),), (20 * DAYS, 3),
        (UNIFORM, YESTERDAY, WEEK, FORECAST),
    ),
}  # fmt: skip
BATTERY = {
    "name": "battery", "states": ["empty", "1", "2", "full"], "actions": ["discharge", "hold", "charge"], "cost": "price * change",
    "transitions": {"discharge": [0, 0, 1, 2], "hold": [0, 1, 2, 3], "charge": [1, 2, 3, 3]},
}  # fmt: skip
SPIKE, CHANCE = 10.0, 0.05
"""Size of a rare gain, and its largest chance."""
FAR = 5_000
"""Between the seeds of environments, so that no two share a number."""


def trial(config: Play, folder: Path) -> Outcome:
    """The regret of an arm in one environment, or the error of an inverse; the mean over the runs."""
    values = KINDS.get(config.part, _process)(config)
    return Outcome({"value": float(np.mean(values)), "runs": [float(value) for value in np.atleast_1d(values)]})


def seeds_of(config: Play) -> list[int]:
    """Of the runs."""
    return [FAR * (config.environment + 1) + i for i in range(RUNS)]


def _process(config: Play) -> Numbers:
    steps = 1 if config.part == "actions" else 2
    mdp = random_linear_mdp(4, config.actions, steps, 6, seed=config.environment)
    return _final(mdp, constrained_switching(mdp, seed=FAR + config.environment), config)


def _final(mdp: LinearMDP, adversary: Adversary, config: Play) -> Numbers:
    drawn = config.arm in (UNIFORM, HEDGE, YESTERDAY, WEEK)  # one run says it all
    seeds = seeds_of(config)[:1] if drawn else seeds_of(config)
    return run(mdp, adversary, learner_of(config), config.episodes, seeds, points=[config.episodes]).regret[:, -1]


def learner_of(config: Play) -> Learner:
    """The arm with its rate."""
    if config.part == "covariance" and config.rate:
        return log_barrier(rate=config.rate, covariance=config.arm, samples=SAMPLES)
    if config.part == "simulator-free" and config.rate:
        covariance, _, regulariser = config.arm.partition(", ")
        return SimulatorFree(regulariser, covariance, config.rate)  # type: ignore[arg-type]
    return make_learner(f"{config.arm}:{config.rate}" if config.rate else config.arm)


def _inverse(config: Play) -> Numbers:
    """Relative error, in operator norm, of (gamma I + Sigma)^-1 from so many samples; gamma = 0.01."""
    gamma, mdp = 0.01, random_linear_mdp(4, config.actions, 1, 6, seed=config.environment)
    rows = mdp.feature_rows[0]
    exact = regularised_inverse(rows.T @ rows / len(rows), gamma)
    drawn = rows[np.random.default_rng((config.environment, 7)).integers(len(rows), size=config.episodes)]
    found = averaged_inverse(drawn, gamma) if config.arm == "averaged" else resampled_inverse(drawn, gamma)
    return np.array([np.linalg.norm(found - exact, 2) / np.linalg.norm(exact, 2)])


def _one_hot(config: Play) -> Numbers:
    """Largest difference in regret between magnitude-reduced and plain estimates with one-hot features, written out as vectors."""
    found = random_linear_mdp(4, config.actions, 2, 6, seed=config.environment)
    tabular = LinearMDP(found.transitions, found.initial)
    written = LinearMDP(found.transitions, found.initial, np.array(tabular.feature_rows).reshape(*tabular.shape, -1))
    losses = constrained_switching(found, seed=FAR + config.environment)
    plain = magnitude_reduced()  # which finds nothing to reduce here
    both = [run(mdp, losses, plain, config.episodes, seeds_of(config)).regret for mdp in (tabular, written)]
    return np.asarray(np.abs(both[0] - both[1]).max(-1))


def _bandit(config: Play) -> Numbers:
    """Regret of FTRL over losses below 0, one arm seen a round: against the best arm in hindsight, by the distributions that were played."""
    rng, spikes = np.random.default_rng((FAR, config.environment)), config.part == "spikes"
    size, largest = (SPIKE, CHANCE) if spikes else (1.0, 1.0)
    chance = largest * rng.random(config.actions)
    losses = np.where(rng.random((config.episodes, config.actions)) < chance, -size, 0.0)
    regulariser: Regulariser = "log-barrier" if config.arm == BARRIER else "entropy"
    eta = (config.rate or 1.0) * tuned_rate(regulariser, config.actions, config.episodes, size=size)
    # mixed with so much of all arms, eta times an estimate is at least -1, which the entropy asks for
    mixed = min(0.5, config.actions * eta * size) if config.arm == "entropy, mixed" else 0.0
    return np.array([_bandit_run(FTRL(regulariser, config.actions, eta), losses, mixed, seed) for seed in seeds_of(config)])  # fmt: skip


def _bandit_run(learner: FTRL, losses: Numbers, mixed: float, seed: int) -> float:
    draws, paid = np.random.default_rng(seed).random(len(losses)), 0.0
    for loss, u in zip(losses, draws, strict=True):
        p = (1 - mixed) * learner.probs() + mixed / learner.n
        arm = min(int(np.searchsorted(np.cumsum(p), u, side="right")), learner.n - 1)
        paid += float(p @ loss)
        learner.update(arm, loss[arm], p[arm])
    return paid - float(losses.sum(0).min())


def _battery(config: Play) -> Numbers:
    problem = battery(config.environment, config.held_out)
    if config.arm == FORECAST:
        rows = range(len(problem.costs))
        total = np.sum([problem.adversary.losses(k) for k in rows], axis=0)
        ahead = best_each_episode(problem.mdp, problem.adversary, len(rows)).sum() - best_policy(problem.mdp, total)[0]
        return np.array([config.episodes // len(rows) * ahead])
    return _final(problem.mdp, problem.adversary, config)


@lru_cache(maxsize=4)
def battery(environment: int, held_out: bool) -> CostProblem:
    """Half of the days in an order of the environment's own, in eight blocks of three hours; demand stands for the price."""
    days = costs.read_days()[0]
    half = days[DAYS:] if held_out else days[:DAYS]
    blocks = half.reshape(DAYS, 8, 3).mean(2)
    return cost_problem(np.random.default_rng((FAR, environment)).permutation(blocks), BATTERY, source="battery")


def values_of(
    records: Sequence[Record], name: str, arm: str, size: tuple[int, int], rate: float | None = None
) -> Numbers:
    """[S], what the trials of an arm have measured, a number an environment, in the order of the environments."""
    found = {
        r.config["environment"]: r.metrics["value"]
        for r in records
        if (r.config["part"], r.config["arm"], r.config["episodes"], r.config["actions"]) == (name, arm, *size)
        and rate in (None, r.config["rate"])
    }
    return np.array([found[environment] for environment in sorted(found)])


KINDS: Mapping[str, Callable[[Play], Numbers]] = {
    "inverse": _inverse, "one-hot": _one_hot, "gains": _bandit, "gains, by theory": _bandit, "spikes": _bandit, "battery, once": _battery, "battery, twenty times": _battery,
}  # fmt: skip
