"""Regret against the exact best fixed policy in hindsight: playing, curves with bands, slopes, phases, and the report."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from legato import errors
from legato.online.adversaries import Adversary
from legato.online.learners import Learner
from legato.online.mdp import Array, LinearMDP, best_policy, check_losses, deterministic, occupancies
from legato.online.paths import Dice, roll_out
from legato.online.tuning import Tuning

POINTS = 120
MOST_PHASES = 40


@dataclass(frozen=True)
class Phase:
    """Episodes between two changes of the losses."""

    start: int
    """Its first episode."""
    stop: int
    """The one after its last."""
    regret: Array
    """[N], against the best policy for this phase alone."""
    static: Array
    """[N], against the policy that is best for all episodes; negative where the learner does better in this phase."""


@dataclass(frozen=True, eq=False)
class Run:
    """What came of playing. Everything is cumulative, at C points of time."""

    learner: str
    adversary: str
    process: str
    seeds: tuple[int, ...]
    tuning: Tuning
    """As the learner was started with."""
    at: NDArray[np.int64]
    """[C], episodes played."""
    losses: Array
    """[N, C], losses met on the paths."""
    values: Array
    """[N, C], expected losses of the policies played: their noise is that of the learner alone."""
    best: Array
    """[C], expected loss of the fixed policy that is best for the episodes so far."""
    best_actions: NDArray[np.int64]
    """[H, S], the best fixed policy for all episodes."""
    policies: Array
    """[N, H, S, A], the policies after the last episode."""
    phases: tuple[Phase, ...]
    seconds: float
    """Processor time."""

    @property
    def episodes(self) -> int:
        """K."""
        return int(self.at[-1])

    @property
    def regret(self) -> Array:
        """[N, C], expected loss of the policies less that of the best fixed policy so far."""
        return self.values - self.best

    def __str__(self) -> str:
        return report(self)


def run(
    mdp: LinearMDP,
    adversary: Adversary,
    learner: Learner,
    episodes: int,
    seeds: Sequence[int] = (0,),
    *,
    points: Sequence[int] | None = None,
    log: Callable[[str], None] | None = None,
) -> Run:
    """Play K episodes in N runs side by side. All runs meet the same losses; their seeds move the learner and the paths.

    Memory does not grow with K: what is kept are sums, at about 120 points of time.

    Args:
        episodes: K.
        seeds: one a run. A run does not depend on the others, up to rounding.
        points: the numbers of played episodes at which sums are kept, instead of log-spaced ones; K is always among them.
        log: called with the learner's rates and bound before play, such as `print`.
    Raises: LegatoValueError for losses outside of [0, 1] or not finite, with (h, s, a).
    """
    if episodes < 1:
        raise errors.argument("episodes", expected="a whole number >= 1", got=episodes)
    if not len(seeds):
        raise errors.argument("seeds", expected="at least one", got="none")
    play = learner.start(mdp, episodes, seeds)
    if log is not None:
        log(f"{learner.name}, {episodes:,} episodes: {play.tuning}")
    cuts = _cuts(adversary, episodes)
    marks = _marks(episodes, points, cuts)
    books = _Books(mdp, len(seeds), marks, cuts)
    dice = Dice(seeds, 2 * mdp.horizon)
    begin = time.process_time()
    for k in range(episodes):
        losses = np.asarray(adversary.losses(k), dtype=np.float64)
        check_losses(mdp, losses, f"losses of episode {k}")
        path = roll_out(mdp, play.policies(), losses, dice.roll())
        books.add(path.losses, play.occupancy(), losses)
        play.update(path, losses if play.feedback == "full" else None)
    seconds = time.process_time() - begin
    return Run(
        learner.name, adversary.name, mdp.name, tuple(seeds), play.tuning, np.array(marks), np.stack(books.losses, 1),
        np.stack(books.values, 1), np.array(books.best), best_policy(mdp, books.total)[1], np.array(play.policies()),
        books.phases(), seconds,
    )  # fmt: skip


class _Books:
    """Running sums, kept at the marks, and the tables of losses between the cuts."""

    def __init__(self, mdp: LinearMDP, runs: int, marks: list[int], cuts: list[int]) -> None:
        self.mdp, self._marks, self._cuts = mdp, marks, cuts
        self.total = np.zeros(mdp.shape)
        self._loss, self._value = np.zeros(runs), np.zeros(runs)
        self.losses: list[Array] = []
        self.values: list[Array] = []
        self.best: list[float] = []
        self._ends: list[tuple[Array, Array]] = [(np.zeros(runs), np.zeros(mdp.shape))]
        self._played = 0

    def add(self, losses: Array, occupancy: Array, table: Array) -> None:
        """One episode: the losses of its paths [N, H], the occupancies [N, H, S, A] and the losses of all [H, S, A]."""
        self._loss += losses.sum(1)
        steps, runs = self.mdp.horizon, len(occupancy)
        q = occupancy.swapaxes(0, 1).reshape(steps, runs, -1)  # the step comes first in memory, so this copies nothing
        self._value += (q @ table.reshape(steps, -1, 1)).sum((0, 2))
        self.total += table
        self._played += 1
        if self._played == self._marks[len(self.best)]:
            self.losses.append(self._loss.copy())
            self.values.append(self._value.copy())
            self.best.append(best_policy(self.mdp, self.total)[0])
        if len(self._ends) <= len(self._cuts) and self._played == self._cuts[len(self._ends) - 1]:
            self._ends.append((self._value.copy(), self.total.copy()))

    def phases(self) -> tuple[Phase, ...]:
        """One between any two cuts."""
        fixed = deterministic(best_policy(self.mdp, self.total)[1], self.mdp.actions)
        q = occupancies(self.mdp, fixed)
        found = []
        for number, stop in enumerate(self._cuts):
            (value, table), (value_after, table_after) = self._ends[number], self._ends[number + 1]
            losses, paid = table_after - table, value_after - value
            start = self._cuts[number - 1] if number else 0
            found.append(Phase(start, stop, paid - best_policy(self.mdp, losses)[0], paid - float((q * losses).sum())))
        return tuple(found)


def _cuts(adversary: Adversary, episodes: int) -> list[int]:
    """Where phases end, K included; ten equal parts where the adversary has no phases, or too many to be looked at."""
    cuts = adversary.phases(episodes)
    if not cuts or len(cuts) > MOST_PHASES:
        parts = min(10, episodes)
        cuts = [episodes * (i + 1) // parts for i in range(parts - 1)]
    return [*cuts, episodes]


def _marks(episodes: int, points: Sequence[int] | None, cuts: list[int]) -> list[int]:
    """The numbers of played episodes at which sums are kept."""
    if points is None:
        spaced = np.geomspace(1, episodes, POINTS).round().astype(int)
        return sorted({*(int(i) for i in spaced), *cuts})
    if not all(1 <= point <= episodes for point in points):
        raise errors.argument("points", expected=f"numbers of episodes in 1 .. {episodes}", got=list(points))
    return sorted({*(int(point) for point in points), episodes})


def best_each_episode(mdp: LinearMDP, adversary: Adversary, episodes: int) -> Array:
    """Expected loss of the best policy for each episode, had its losses been known before: a perfect forecast; shape [K]."""
    return np.array([best_policy(mdp, adversary.losses(k))[0] for k in range(episodes)])


@dataclass(frozen=True)
class Interval:
    """A number with its interval."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def band(curves: Array, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> tuple[Array, Array, Array]:
    """Mean over the runs, with a percentile bootstrap over the runs, point by point.

    With few runs the band is too narrow: five runs cover 83% where 95% is asked for.

    Args:
        curves: [N, C].
    Returns: mean, low and high, each [C].
    """
    _check_curves(curves)
    means = _resampled(curves, resamples, seed)
    tail = (1 - level) / 2
    return curves.mean(0), np.quantile(means, tail, axis=0), np.quantile(means, 1 - tail, axis=0)


def slope(
    at: Array | NDArray[np.int64], curves: Array, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Least-squares slope of log(mean regret) on log(episodes), with a percentile bootstrap over the runs.

    1/2 is regret that grows as sqrt(K); 1 is a learner that does not learn. For the rate of an algorithm whose learning rate depends
    on K, give the final regrets of runs with different K, not the curve of one run.

    Args:
        at: [C] at least two different numbers > 0.
        curves: [N, C], whose mean over the runs is positive everywhere.
    """
    _check_curves(curves)
    if len(at) != curves.shape[1] or len(set(np.asarray(at).tolist())) < 2:
        raise errors.argument(
            "at", expected=f"{curves.shape[1]} numbers of episodes, two or more of them different", got=list(at)
        )
    mean = curves.mean(0)
    if not (mean > 0).all():
        raise errors.argument(
            "curves", expected="a mean regret > 0 at each point", got=f"{mean.min():.3g}",
            fix="leave out the points where the learner is ahead of the best fixed policy",
        )  # fmt: skip
    x = np.log(np.asarray(at, dtype=np.float64))
    x -= x.mean()
    weights = x / (x @ x)
    means = _resampled(curves, resamples, seed)
    slopes = np.log(means[(means > 0).all(1)]) @ weights
    tail = (1 - level) / 2
    return Interval(
        float(np.log(mean) @ weights), float(np.quantile(slopes, tail)), float(np.quantile(slopes, 1 - tail))
    )


def _resampled(curves: Array, resamples: int, seed: int) -> Array:
    """[R, C], means over runs drawn with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(len(curves), np.full(len(curves), 1 / len(curves)), size=resamples) @ curves / len(curves)


def _check_curves(curves: Array) -> None:
    if curves.ndim != 2 or 0 in curves.shape:
        raise errors.argument("curves", expected="shape [N, C]", got=f"shape {list(curves.shape)}")


def last_slope(run: Run, share: float = 0.1) -> Interval | None:
    """Slope of the regret of one run over the points from `share` of its episodes on; None where the regret is not positive."""
    late = run.at >= share * run.episodes
    curves = run.regret[:, late]
    if late.sum() < 2 or not (curves.mean(0) > 0).all():
        return None
    return slope(run.at[late], curves)


def report(run: Run) -> str:
    """The run in words: regret, slope, bound, phases."""
    _, low, high = band(run.regret[:, -1:])
    final, count = run.regret[:, -1], len(run.seeds)
    lines = [
        f"{run.learner} on {run.process}, losses: {run.adversary}; {run.episodes:,} episodes, {count} {'run' if count == 1 else 'runs'}",
        f"  loss {run.values[:, -1].mean():.6g}, best fixed policy {run.best[-1]:.6g}, regret {final.mean():.4g}"
        + (f" [{low[0]:.4g}, {high[0]:.4g}]" if count > 1 else ""),
        f"  {run.tuning}",
    ]
    late = last_slope(run)
    if late is not None:
        lines.append(f"  log-log slope over the last tenfold of episodes: {late:.2f}")
    lines += [
        f"  episodes {p.start:,} to {p.stop - 1:,}: regret {p.regret.mean():.4g} against the phase's own best policy, "
        f"{p.static.mean():.4g} against the best for all"
        for p in run.phases
    ]
    return "\n".join(lines)
