"""A learner that needs neither a simulator nor the dynamics, for linear processes with enumerated states. Experimental.

What is known of it: the parts. The exploratory share makes each estimate unbiased up to the regulariser, features that are linear make the
regression of next values consistent, and tests say so. What is not known: a regret bound for this combination, and whether it reaches the
K^(8/9) of Dai, Luo, Wei and Zimmert 2023, whose internals we could not check. The phases, the cover, the lengths of epochs and all constants here are our own choices.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from legato import errors
from legato.online.barrier import WarmBarrier
from legato.online.bonuses import bonuses
from legato.online.learners import resampled_inverse
from legato.online.mdp import Array, LinearMDP, occupancies
from legato.online.paths import Dice, Path
from legato.online.simplex import entropy_step
from legato.online.tuning import Tuning

Whole = NDArray[np.int64]
REGULARISERS = ("log-barrier", "entropy")
COVARIANCES = ("averaged", "mgr")


@dataclass(frozen=True)
class SimulatorFree:
    """Explores first, then plays epochs: one policy each, with a share of episodes that explore, and an update from what was seen.

    1. Cover: `cover` episodes, each with the policy that is greedy for the lengths of features not yet seen, seen through next values that are
       regressed on the features. These policies are kept.
    2. Epochs. An episode explores with chance `explore`: a kept policy up to a random step, the epoch's policy from there on. A step is used from the
       exploring step on, so that its return is always that of the epoch's policy.
    3. After an epoch, every second episode gives the covariance, and the others the action values phi^T Inv mean(phi L), so that the two are independent.
       Action values less a dilated bonus, whose next values are regressed too, go into the regularised leader.
    """

    regulariser: Literal["log-barrier", "entropy"] = "log-barrier"
    covariance: Literal["averaged", "mgr"] = "averaged"
    """averaged, or mgr: Matrix Geometric Resampling of the same episodes, a baseline."""
    rate: float = 30.0
    """Factor on the learning rate: eta = rate eta0, eta0 = sqrt(D / (d H^4 epochs)), D = A ln(epochs) or ln A."""
    epoch: int | None = None
    """Episodes of an epoch; None is max(2 d, sqrt(K)), rounded."""
    cover: int | None = None
    """Episodes of exploration at the start; None is as many as two epochs."""
    explore: float = 0.1
    """Share of exploring episodes within an epoch, in (0, 1]."""
    bonus: float = 0.02
    """Size of the bonus: beta = bonus eta0 H^2."""
    gamma: float = 0.01
    """Regulariser of the covariance, > 0."""

    def __post_init__(self) -> None:
        for name, choices in (("regulariser", REGULARISERS), ("covariance", COVARIANCES)):
            if getattr(self, name) not in choices:
                raise errors.choice(name, getattr(self, name), choices)
        for name in ("epoch", "cover"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise errors.argument(name, expected="a whole number >= 2", got=value)
        if not 0 < self.explore <= 1:
            raise errors.argument("explore", expected="a share in (0, 1]", got=self.explore)
        for name in ("rate", "gamma"):
            if not 0 < getattr(self, name) < math.inf:
                raise errors.argument(name, expected="a finite number > 0", got=getattr(self, name))
        if not 0 <= self.bonus < math.inf:
            raise errors.argument("bonus", expected="a finite number >= 0", got=self.bonus)

    @property
    def name(self) -> str:
        """`simulator-free (averaged, log-barrier)`."""
        return f"simulator-free ({self.covariance}, {self.regulariser})"

    def start(self, mdp: LinearMDP, episodes: int, seeds: Sequence[int]) -> "SimulatorFreePlay":
        """One run a seed. Of the process only its size and its features are used."""
        return SimulatorFreePlay(self, mdp, episodes, seeds)


class SimulatorFreePlay:
    """The runs of a `SimulatorFree`. Memory: the kept policies, and for each step a d x S table of where features led to."""

    feedback: Literal["bandit", "full"] = "bandit"

    def __init__(self, learner: SimulatorFree, mdp: LinearMDP, episodes: int, seeds: Sequence[int]) -> None:
        self.learner, self.mdp = learner, mdp
        h, s, a, d, n = *mdp.shape, mdp.dimension, len(seeds)
        self._phi = mdp.feature_rows
        self._length = learner.epoch or max(2 * d, round(math.sqrt(episodes)))
        self._cover_left = self._cover = learner.cover or 2 * self._length
        epochs = max(2, (episodes - self._cover) // self._length)
        diameter = a * math.log(epochs) if learner.regulariser == "log-barrier" else math.log(max(a, 2))
        base = math.sqrt(diameter / (d * h**4 * epochs))
        self.tuning = Tuning(
            learner.rate * base, learner.bonus * base * h**2, learner.gamma, "experimental", None, h * episodes
        )
        self._sums = np.zeros((n, h, s, a))
        self._barrier = WarmBarrier((n, h, s), a) if learner.regulariser == "log-barrier" else None
        self._policy = np.full((n, h, s, a), 1 / a)
        self._kept = np.empty((self._cover, n, h, s), np.int64)
        self._gram = np.broadcast_to(np.eye(d), (n, h, d, d)).copy()
        self._led = np.zeros((n, h, d, s))
        self._dice = Dice(seeds, 3, stream=3)
        self._from = np.zeros(n, np.int64)
        self._next = self._explorer()
        self._begin()

    def policies(self) -> Array:
        """[N, H, S, A]."""
        return self._next

    def occupancy(self) -> Array:
        """[N, H, S, A], from the true dynamics: for the books of `run` alone, the learner makes no use of it."""
        return occupancies(self.mdp, self._next)

    def update(self, path: Path, losses: Array | None = None) -> None:
        """Learn from the paths.

        Raises: LegatoValueError for a loss that is not in [0, 1]; the state is then unchanged.
        """
        path.check(self.mdp)
        n, h = np.ogrid[: len(path.states), : self.mdp.horizon]
        seen = self._phi[h, path.states * self.mdp.actions + path.actions]
        self._gram += seen[..., None] * seen[..., None, :]
        self._led[n, h[:, :-1], :, path.states[:, 1:]] += seen[:, :-1]
        if self._cover_left:
            self._cover_left -= 1
            self._next = self._explorer() if self._cover_left else self._mixed()
            return
        self._seen.append(seen)
        self._returns.append(path.to_go())
        self._used.append(np.arange(self.mdp.horizon) >= self._from[:, None])
        if len(self._seen) == self._length:
            self._end_epoch()
        self._next = self._mixed()

    def _begin(self) -> None:
        self._seen: list[Array] = []
        self._returns: list[Array] = []
        self._used: list[NDArray[np.bool_]] = []

    def _end_epoch(self) -> None:
        seen, returns, used = (
            np.stack(self._seen, 2),
            np.stack(self._returns, 2),
            np.stack(self._used, 2),
        )  # [N, H, W, ...]
        self._begin()
        inverse = self._inverse(seen[:, :, ::2], used[:, :, ::2])
        weight = used[:, :, 1::2] / np.maximum(used[:, :, 1::2].sum(-1, keepdims=True), 1)
        moment = np.einsum("nhw,nhwd->nhd", weight * returns[:, :, 1::2], seen[:, :, 1::2])
        values = np.einsum("hxd,nhd->nhx", self._phi, np.einsum("nhde,nhe->nhd", inverse, moment))
        squares = np.einsum("hxd,nhde,hxe->nhx", self._phi, inverse, self._phi).reshape(self._sums.shape)
        bonus = bonuses(squares, self._policy, self.tuning.beta)
        self._sums += values.reshape(self._sums.shape) - self._dilated(bonus)
        eta = self.tuning.eta
        self._policy = entropy_step(self._sums, eta) if self._barrier is None else self._barrier(self._sums, eta)

    def _inverse(self, seen: Array, used: NDArray[np.bool_]) -> Array:
        """[N, H, d, d] from the features [N, H, M, d] of the steps that are used."""
        gamma = self.tuning.gamma
        if self.learner.covariance == "averaged":
            weighted = seen * used[..., None]
            count = np.maximum(used.sum(-1), 1)[..., None, None]
            return np.asarray(np.linalg.inv(weighted.swapaxes(-1, -2) @ seen / count + gamma * np.eye(seen.shape[-1])))
        out = np.empty((*seen.shape[:2], seen.shape[-1], seen.shape[-1]))
        for spot in np.ndindex(seen.shape[:2]):
            rows = seen[spot][used[spot]]
            out[spot] = resampled_inverse(rows, gamma) if len(rows) else np.eye(seen.shape[-1]) / gamma
        return out

    def _dilated(self, bonus: Array) -> Array:
        """B = b + (1 + 1/H) (next value of B), with the next value regressed on the features and kept between 0 and what B can be."""
        out, grow = bonus.copy(), 1 + 1 / self.mdp.horizon
        for h in range(self.mdp.horizon - 2, -1, -1):
            after = np.einsum("nsa,nsa->ns", self._policy[:, h + 1], out[:, h + 1])
            out[:, h] += grow * self._next_values(h, after)
        return out

    def _next_values(self, h: int, values: Array) -> Array:
        """[N, S, A], the mean of `values` [N, S] after step h: phi^T (I + sum phi phi^T)^-1 sum phi value(next), within the values."""
        w = np.linalg.solve(self._gram[:, h], self._led[:, h] @ values[..., None])[..., 0]
        means = (w @ self._phi[h].T).reshape(len(w), self.mdp.states, self.mdp.actions)
        return np.asarray(np.clip(means, 0, values.max(-1)[:, None, None]))

    def _explorer(self) -> Array:
        """The policy that is greedy for unseen features, and what is kept of it."""
        shape = (len(self._gram), *self.mdp.shape)
        inverse = np.linalg.inv(self._gram)
        lengths = np.sqrt(np.einsum("hxd,nhde,hxe->nhx", self._phi, inverse, self._phi)).reshape(shape)
        lengths *= np.arange(self.mdp.horizon, 0, -1)[
            :, None, None
        ]  # what has not been tried may lead to as much in each step left
        for h in range(self.mdp.horizon - 2, -1, -1):
            lengths[:, h] += self._next_values(h, lengths[:, h + 1].max(-1))
        actions = lengths.argmax(-1)
        self._kept[self._cover - self._cover_left] = actions
        return np.asarray(np.eye(self.mdp.actions)[actions])

    def _mixed(self) -> Array:
        """The epoch's policy; in runs that explore, a kept one up to and with a random step."""
        rolled, steps = self._dice.roll(), self.mdp.horizon
        explores = rolled[:, 0] < self.learner.explore
        self._from = np.where(explores, (rolled[:, 1] * steps).astype(np.int64), 0)
        kept = self._kept[(rolled[:, 2] * self._cover).astype(np.int64), np.arange(len(rolled))]
        before = explores[:, None] & (np.arange(steps) <= self._from[:, None])
        return np.where(before[..., None, None], np.eye(self.mdp.actions)[kept], self._policy)
