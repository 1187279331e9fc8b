"""Losses that change from episode to episode, fixed before play begins (oblivious). Episodes are counted from 0.

Every adversary mixes loss tables of shape [H, S, A]. Where these are linear in the features of a linear process, so are the mixtures.
An adversary that reacts to the learner is outside of every guarantee here, and there is none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from legato import errors
from legato.online.mdp import Array, LinearMDP, check_losses


class Adversary(Protocol):
    """What `run` asks for."""

    @property
    def name(self) -> str:
        """What a report calls it."""

    def losses(self, episode: int) -> Array:
        """[H, S, A] in [0, 1]; the same table each time it is asked. It may be a view: it must not be written to."""

    def phases(self, episodes: int) -> list[int]:
        """The first episodes of its phases after the first, in ascending order; empty where there are none."""


@dataclass(frozen=True, eq=False)
class Constant:
    """The same losses in each episode."""

    table: Array
    """[H, S, A]."""
    name: str = "constant"

    def losses(self, episode: int) -> Array:
        """The table."""
        return self.table

    def phases(self, episodes: int) -> list[int]:
        """None."""
        return []


@dataclass(frozen=True, eq=False)
class Switching:
    """The tables take turns, in phases of which each is longer than the one before."""

    tables: Sequence[Array]
    """At least one [H, S, A]."""
    growth: float = 1.6
    """Length of a phase over that of the one before; 1 gives phases of one length."""
    length: int = 16
    """Episodes in the first phase."""
    name: str = "switching"
    _ends: list[int] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if not (1 <= self.growth < math.inf):
            raise errors.argument("growth", expected="a number >= 1", got=self.growth)
        if self.length < 1:
            raise errors.argument("length", expected="a whole number >= 1", got=self.length)

    def losses(self, episode: int) -> Array:
        """The table whose turn it is."""
        return self.tables[self._phase(episode) % len(self.tables)]

    def phases(self, episodes: int) -> list[int]:
        """Where the tables change."""
        self._phase(episodes)
        return [end for end in self._ends if end < episodes]

    def _phase(self, episode: int) -> int:
        if self.growth == 1:
            number = episode // self.length
            self._ends[len(self._ends) :] = [(i + 1) * self.length for i in range(len(self._ends), number + 1)]
            return number
        while not self._ends or self._ends[-1] <= episode:
            start = self._ends[-1] if self._ends else 0
            self._ends.append(start + max(1, round(self.length * self.growth ** len(self._ends))))
        return int(np.searchsorted(self._ends, episode, side="right"))


@dataclass(frozen=True, eq=False)
class Sinusoid:
    """Swings between two tables: l_k = (1 - w) low + w high with w = (1 + sin(2 pi k / period + shift)) / 2."""

    low: Array
    high: Array
    period: float
    """Episodes of one swing."""
    shift: float = 0.0
    """In radians."""
    name: str = "sinusoid"

    def __post_init__(self) -> None:
        if not (self.period > 0):
            raise errors.argument("period", expected="a number > 0", got=self.period)

    def losses(self, episode: int) -> Array:
        """The mixture of the episode."""
        weight = (1 + math.sin(2 * math.pi * episode / self.period + self.shift)) / 2
        return self.low + weight * (self.high - self.low)

    def phases(self, episodes: int) -> list[int]:
        """None."""
        return []


@dataclass(frozen=True, eq=False)
class Drift:
    """Moves from one table to another in a straight line: l_k = (1 - w) start + w end with w = min(1, k / episodes)."""

    start: Array
    end: Array
    episodes: int
    """How many episodes the way takes."""
    name: str = "drift"

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise errors.argument("episodes", expected="a whole number >= 1", got=self.episodes)

    def losses(self, episode: int) -> Array:
        """The mixture of the episode."""
        return self.start + min(1.0, episode / self.episodes) * (self.end - self.start)

    def phases(self, episodes: int) -> list[int]:
        """None."""
        return []


@dataclass(frozen=True, eq=False)
class BaitAndSwitch:
    """One table for long enough that a learner settles, and another from then on."""

    bait: Array
    switch: Array
    at: int
    """The first episode of the second table."""
    name: str = "bait and switch"

    def losses(self, episode: int) -> Array:
        """The table whose turn it is."""
        return self.bait if episode < self.at else self.switch

    def phases(self, episodes: int) -> list[int]:
        """Where the tables change."""
        return [self.at] if 0 < self.at < episodes else []


@dataclass(frozen=True, eq=False)
class Replay:
    """Plays a table of costs, such as prices: l_k(h, s, a) = base(h, s, a) + costs[k, h] slope(h, s, a).

    After the last row it begins again, so more episodes than rows are several passes.
    """

    costs: Array
    """[K, H], a row an episode."""
    slope: Array
    """[H, S, A], what a unit of the step's cost means in that state with that action."""
    base: Array | float = 0.0
    """[H, S, A] or a number."""
    name: str = "replay"

    def __post_init__(self) -> None:
        if self.costs.ndim != 2 or self.costs.shape[1] != self.slope.shape[0] or not len(self.costs):
            raise errors.argument(
                "costs", expected=f"shape [K, {self.slope.shape[0]}]", got=f"shape {list(self.costs.shape)}"
            )

    def losses(self, episode: int) -> Array:
        """The table of the row."""
        return self.base + self.costs[episode % len(self.costs), :, None, None] * self.slope

    def phases(self, episodes: int) -> list[int]:
        """The passes, from the second on."""
        return list(range(len(self.costs), episodes, len(self.costs)))


@dataclass(frozen=True, eq=False)
class Tables:
    """Plays given tables one after the other, and begins again after the last."""

    tables: Array
    """[K, H, S, A]."""
    name: str = "tables"

    def losses(self, episode: int) -> Array:
        """The table of the episode."""
        table: Array = self.tables[episode % len(self.tables)]
        return table

    def phases(self, episodes: int) -> list[int]:
        """The passes, from the second on."""
        return list(range(len(self.tables), episodes, len(self.tables)))


def linear_losses(mdp: LinearMDP, *, count: int = 2, seed: int = 0) -> Array:
    """Random loss tables that are linear in the features: l(h, s, a) = phi(h, s, a)^T theta_h, theta uniform on [0, 1]^d.

    In [0, 1] where the features are on the simplex, as in `random_linear_mdp`, or one-hot.

    Returns: [count, H, S, A].
    """
    theta = np.random.default_rng(seed).random((count, mdp.horizon, mdp.dimension))
    tables = np.einsum("hxd,mhd->mhx", mdp.feature_rows, theta).reshape(count, *mdp.shape)
    check_losses(mdp, tables)
    return np.asarray(tables)


def constrained_switching(mdp: LinearMDP, *, spread: float = 0.5, seed: int = 0, growth: float = 1.6) -> Switching:
    """A stochastically constrained adversary: the level of the losses jumps from phase to phase, their differences stay.

    With l = phi^T theta, theta uniform on [0, spread]^d, the phases play l and l + (1 - spread) in turn, which is linear in
    features on the simplex too. The best policy is the same throughout, and the regret of a policy that never changes grows
    linearly, but a learner that compares the losses of one phase with those of another is misled.

    Args:
        spread: in (0, 1], the width of the losses within a phase.
    """
    if not 0 < spread <= 1:
        raise errors.argument("spread", expected="a number in (0, 1]", got=spread)
    table = spread * linear_losses(mdp, count=1, seed=seed)[0]
    return Switching([table, table + (1 - spread)], growth=growth, name="constrained switching")
