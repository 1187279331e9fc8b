"""What the learners are measured against: full information, EXP3 in every state, best responses, and not learning at all."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from legato import errors
from legato.online.learners import Learner, Play
from legato.online.mdp import (
    Array,
    LinearMDP,
    action_values,
    best_policy,
    check_losses,
    deterministic,
    occupancies,
)
from legato.online.paths import Path
from legato.online.simplex import entropy_step
from legato.online.tuning import Tuning


@dataclass(frozen=True)
class Hedge:
    """Entropy on the exact action values of the policies played: it is shown the losses of every action after the episode.

    With eta_h = sqrt(8 ln A / K) / (H - h) in step h, counted from 0, the regret is at most (1 + ... + H) sqrt(K ln A / 2).
    """

    rate: float = 1.0
    """Factor on the learning rate; the bound holds for 1."""
    name: str = "hedge"

    def start(self, mdp: LinearMDP, episodes: int, seeds: Sequence[int]) -> "HedgePlay":
        """One run a seed; all have the same policies."""
        return HedgePlay(self, mdp, episodes, len(seeds))


class _Shared:
    """One policy [H, S, A] that all N runs play."""

    def __init__(self, mdp: LinearMDP, runs: int) -> None:
        self.mdp, self._runs = mdp, runs
        self._policy: Array = np.full(mdp.shape, 1 / mdp.actions)
        self._occupancy: Array | None = None

    def play(self, policy: Array) -> None:
        self._policy, self._occupancy = policy, None

    def policies(self) -> Array:
        """[N, H, S, A]."""
        return np.broadcast_to(self._policy, (self._runs, *self.mdp.shape))

    def occupancy(self) -> Array:
        """[N, H, S, A]."""
        if self._occupancy is None:
            self._occupancy = occupancies(self.mdp, self._policy)
        return np.broadcast_to(self._occupancy, (self._runs, *self.mdp.shape))


def _table(mdp: LinearMDP, losses: Array | None) -> Array:
    if losses is None:
        raise errors.argument(
            "losses", expected="the table of all losses, since this learner has full information", got=None
        )
    check_losses(mdp, losses)
    return losses


class HedgePlay(_Shared):
    """The runs of `Hedge`."""

    feedback: Literal["bandit", "full"] = "full"

    def __init__(self, learner: Hedge, mdp: LinearMDP, episodes: int, runs: int) -> None:
        super().__init__(mdp, runs)
        h, log = mdp.horizon, math.log(max(mdp.actions, 2))
        eta = math.sqrt(8 * log / episodes)
        bound = h * (h + 1) / 2 * math.sqrt(episodes * log / 2)
        if learner.rate == 1:
            self.tuning = Tuning(eta, 0.0, 0.0, "theory", bound, h * episodes)
        else:
            self.tuning = Tuning(learner.rate * eta, 0.0, 0.0, "own", None, h * episodes, bound)
        self._scale = 1 / np.arange(h, 0, -1, dtype=np.float64)[:, None, None]
        self._sums = np.zeros(mdp.shape)

    def update(self, path: Path | None, losses: Array | None = None) -> None:
        """Learn from the table of losses."""
        self._sums += self._scale * action_values(self.mdp, self._policy, _table(self.mdp, losses))
        self.play(entropy_step(self._sums, self.tuning.eta))


@dataclass(frozen=True)
class Uniform:
    """Every action alike, always."""

    name: str = "uniform"

    def start(self, mdp: LinearMDP, episodes: int, seeds: Sequence[int]) -> "UniformPlay":
        """One run a seed; all have the same policy."""
        return UniformPlay(mdp, episodes, len(seeds))


class UniformPlay(_Shared):
    """The runs of `Uniform`."""

    feedback: Literal["bandit", "full"] = "bandit"

    def __init__(self, mdp: LinearMDP, episodes: int, runs: int) -> None:
        super().__init__(mdp, runs)
        self.tuning = Tuning(0.0, 0.0, 0.0, "none", None, mdp.horizon * episodes)

    def update(self, path: Path | None, losses: Array | None = None) -> None:
        """Nothing."""


@dataclass(frozen=True)
class BestResponse:
    """The best policy for the mean losses of the last episodes: 1 is follow-yesterday, 7 a week's mean, None all of the past.

    With known dynamics this is what a controller does that plans on the mean as its forecast. It has full information.
    """

    window: int | None = 1

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise errors.argument("window", expected="a whole number >= 1, or None", got=self.window)

    @property
    def name(self) -> str:
        """`follow-yesterday`, `mean of 7` or `follow-the-leader`."""
        return {None: "follow-the-leader", 1: "follow-yesterday"}.get(self.window, f"mean of {self.window}")

    def start(self, mdp: LinearMDP, episodes: int, seeds: Sequence[int]) -> "BestResponsePlay":
        """One run a seed; all have the same policies."""
        return BestResponsePlay(self, mdp, episodes, len(seeds))


class BestResponsePlay(_Shared):
    """The runs of `BestResponse`; uniform in the first episode. Memory grows with the window, not with the episodes."""

    feedback: Literal["bandit", "full"] = "full"

    def __init__(self, learner: BestResponse, mdp: LinearMDP, episodes: int, runs: int) -> None:
        super().__init__(mdp, runs)
        self.tuning = Tuning(math.inf, 0.0, 0.0, "none", None, mdp.horizon * episodes)
        self._window = learner.window
        self._recent: deque[Array] = deque()
        self._sum = np.zeros(mdp.shape)

    def update(self, path: Path | None, losses: Array | None = None) -> None:
        """Learn from the table of losses."""
        table = _table(self.mdp, losses)
        if self._window is None:
            self._sum += table
        else:
            self._recent.append(np.array(table))
            if len(self._recent) > self._window:
                self._recent.popleft()
            self._sum = np.sum(self._recent, axis=0)  # anew, so that no rounding piles up
        self.play(deterministic(best_policy(self.mdp, self._sum)[1], self.mdp.actions))


@dataclass(frozen=True)
class Exp3:
    """EXP3 with implicit exploration in each state by itself, on the loss to the end of the episode. Uses no features.

    A visit adds (loss to go) / ((H - h) (pi(a|s) + eta / 2)) to the action that was taken; eta = rate sqrt(2 ln A / (A K)).
    """

    rate: float = 10.0
    """Factor on the learning rate."""
    name: str = "exp3"

    def start(self, mdp: LinearMDP, episodes: int, seeds: Sequence[int]) -> "Exp3Play":
        """One run a seed."""
        return Exp3Play(self, mdp, episodes, len(seeds))


class Exp3Play:
    """The runs of `Exp3`."""

    feedback: Literal["bandit", "full"] = "bandit"

    def __init__(self, learner: Exp3, mdp: LinearMDP, episodes: int, runs: int) -> None:
        self.mdp = mdp
        base = math.sqrt(2 * math.log(max(mdp.actions, 2)) / (mdp.actions * episodes))
        self.tuning = Tuning(learner.rate * base, 0.0, base / 2, "practical", None, mdp.horizon * episodes)
        self._sums = np.zeros((runs, *mdp.shape))
        self._policies = np.full_like(self._sums, 1 / mdp.actions)
        self._left = np.arange(mdp.horizon, 0, -1, dtype=np.float64)

    def policies(self) -> Array:
        """[N, H, S, A]."""
        return self._policies

    def occupancy(self) -> Array:
        """[N, H, S, A]."""
        return occupancies(self.mdp, self._policies)

    def update(self, path: Path, losses: Array | None = None) -> None:
        """Learn from the paths; only the states on them change."""
        path.check(self.mdp)
        n, h = np.ogrid[: len(path.states), : self.mdp.horizon]
        chance = self._policies[n, h, path.states, path.actions]
        self._sums[n, h, path.states, path.actions] += path.to_go() / self._left / (chance + self.tuning.gamma)
        self._policies[n, h, path.states] = entropy_step(self._sums[n, h, path.states], self.tuning.eta)


@dataclass(frozen=True)
class Doubling:
    """For an unknown number of episodes: starts anew after `first`, 2 `first`, 4 `first` ... episodes, tuned for each stretch."""

    make: Learner
    """The learner that is started anew."""
    first: int = 64
    """Episodes of the first stretch."""

    def __post_init__(self) -> None:
        if self.first < 1:
            raise errors.argument("first", expected="a whole number >= 1", got=self.first)

    @property
    def name(self) -> str:
        """`doubling log-barrier`."""
        return f"doubling {self.make.name}"

    def start(self, mdp: LinearMDP, episodes: int, seeds: Sequence[int]) -> "DoublingPlay":
        """One run a seed; `episodes` is not used."""
        return DoublingPlay(self, mdp, episodes, seeds)


class DoublingPlay:
    """The runs of `Doubling`."""

    def __init__(self, learner: Doubling, mdp: LinearMDP, episodes: int, seeds: Sequence[int]) -> None:
        self._learner, self._mdp, self._seeds = learner, mdp, list(seeds)
        self._left = self._stretch = learner.first
        self._play: Play = learner.make.start(mdp, self._stretch, self._seeds)
        self.feedback = self._play.feedback
        self.tuning = Tuning(self._play.tuning.eta, self._play.tuning.beta, self._play.tuning.gamma, "doubling", None,
                             mdp.horizon * episodes)  # fmt: skip

    def policies(self) -> Array:
        """[N, H, S, A]."""
        return self._play.policies()

    def occupancy(self) -> Array:
        """[N, H, S, A]."""
        return self._play.occupancy()

    def update(self, path: Path, losses: Array | None = None) -> None:
        """Learn from the episode, and start anew at the end of a stretch."""
        self._play.update(path, losses)
        self._left -= 1
        if self._left == 0:
            self._stretch *= 2
            self._left = self._stretch
            seeds = [seed + self._stretch for seed in self._seeds]  # else each stretch would draw the same numbers
            self._play = self._learner.make.start(self._mdp, self._stretch, seeds)


LEARNERS: dict[str, Any] = {"hedge": Hedge, "exp3": Exp3, "uniform": Uniform, "follow-yesterday": BestResponse}
