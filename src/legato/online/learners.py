"""Learners for losses that change, with bandit feedback: log-barrier, magnitude-reduced, and the tuning of Luo, Wei and Lee.

A learner is a recipe; `start` makes a play, which is N runs side by side. `run` drives it, or a loop of your own:

    play = log_barrier().start(mdp, episodes=1000, seeds=[0])
    for k in range(1000):
        path = ...  # one episode with play.policies()[0]
        play.update(path)
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from legato import errors
from legato.online.barrier import WarmBarrier
from legato.online.bonuses import bonuses, dilate
from legato.online.covariance import matrix_geometric_resampling, resampling_length
from legato.online.mdp import Array, LinearMDP, occupancies
from legato.online.paths import Dice, Path
from legato.online.simplex import entropy_step
from legato.online.spans import Dense, Span, drawn_pairs, negative_means, sampled_negative_means, span_of
from legato.online.tuning import Tuning, log_barrier_rates, luo_rates, magnitude_reduced_rates

RATES: dict[str, Callable[..., Tuning]] = {
    "log-barrier": log_barrier_rates,
    "magnitude-reduced": magnitude_reduced_rates,
    "luo": luo_rates,
}
COVARIANCES = ("exact", "averaged", "mgr")


class Play(Protocol):
    """N runs of a learner, one episode after the other."""

    feedback: Literal["bandit", "full"]
    tuning: Tuning

    def policies(self) -> Array:
        """[N, H, S, A], the policy of the next episode in each run."""

    def occupancy(self) -> Array:
        """[N, H, S, A], how often that policy is where; the dynamics are known."""

    def update(self, path: Path, losses: Array | None = None) -> None:
        """Learn from the episode: from its path, or with full feedback from the table of its losses [H, S, A]."""


class Learner(Protocol):
    """What `run` asks for."""

    @property
    def name(self) -> str:
        """What a report calls it."""

    def start(self, mdp: LinearMDP, episodes: int, seeds: Sequence[int]) -> Play:
        """One run a seed, tuned for that many episodes."""


@dataclass(frozen=True)
class DilatedFTRL:
    """Follow the regularised leader in every state, on estimated action values less a dilated bonus."""

    algorithm: Literal["log-barrier", "magnitude-reduced", "luo"]
    """Algorithms 1 and 2 of the paper, and the one that it improves on."""
    preset: str = "practical"
    """theory has a bound, which is vacuous at every number of episodes that can be played; practical has none, and learns."""
    rate: float = 10.0
    """Factor on the learning rate of the practical preset."""
    eta: float | None = None
    """In place of the preset's."""
    beta: float | None = None
    """In place of the preset's."""
    gamma: float | None = None
    """In place of the preset's."""
    covariance: str = "exact"
    """exact; averaged over drawn (s, a); or mgr, Matrix Geometric Resampling, a baseline."""
    samples: int = 200
    """Draws a step and episode for the covariance; unused by exact."""
    reduction_samples: int | None = None
    """Draws a step and episode for the magnitude reduction; None is its exact mean."""

    def __post_init__(self) -> None:
        if self.algorithm not in RATES:
            raise errors.choice("algorithm", self.algorithm, RATES)
        if self.covariance not in COVARIANCES:
            raise errors.choice("covariance", self.covariance, COVARIANCES)
        for name in ("samples", "reduction_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise errors.argument(name, expected="a whole number >= 1", got=value)
        for name in ("eta", "beta", "gamma"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < np.inf:
                raise errors.argument(name, expected="a finite number >= 0", got=value)

    @property
    def name(self) -> str:
        """`log-barrier`, and what differs from the exact covariance."""
        return self.algorithm if self.covariance == "exact" else f"{self.algorithm} ({self.covariance} {self.samples})"

    def tuning(self, mdp: LinearMDP, episodes: int) -> Tuning:
        """The rates for this process and number of episodes."""
        rates = RATES[self.algorithm]
        found = rates(mdp.horizon, mdp.actions, mdp.dimension, episodes, preset=self.preset, rate=self.rate)
        own = {name: getattr(self, name) for name in ("eta", "beta", "gamma") if getattr(self, name) is not None}
        if own:
            return replace(found, **own, preset="own", bound=None, theory=found.bound or found.theory)
        if found.bound is not None and self.covariance != "exact":
            return replace(found, bound=None, theory=found.bound)
        return found

    def start(self, mdp: LinearMDP, episodes: int, seeds: Sequence[int]) -> "DilatedPlay":
        """One run a seed, tuned for that many episodes."""
        return DilatedPlay(self, mdp, episodes, seeds)


def log_barrier(**options: Any) -> DilatedFTRL:
    """Algorithm 1: log-barrier, plain estimates. Takes losses of any sign and estimates of any size; options as in `DilatedFTRL`."""
    return DilatedFTRL("log-barrier", **options)


def magnitude_reduced(**options: Any) -> DilatedFTRL:
    """Algorithm 2: entropy, magnitude-reduced estimates. For many actions; options as in `DilatedFTRL`."""
    return DilatedFTRL("magnitude-reduced", **options)


def luo(**options: Any) -> DilatedFTRL:
    """Entropy, plain estimates, the tuning of Luo, Wei and Lee 2021; options as in `DilatedFTRL`."""
    return DilatedFTRL("luo", **options)


class DilatedPlay:
    """The runs of a `DilatedFTRL`. Memory does not grow with the episodes."""

    feedback: Literal["bandit", "full"] = "bandit"

    def __init__(self, learner: DilatedFTRL, mdp: LinearMDP, episodes: int, seeds: Sequence[int]) -> None:
        self.learner, self.mdp, self.episodes = learner, mdp, episodes
        self.tuning = learner.tuning(mdp, episodes)
        self.episode = 0
        self._span: Span = Dense(mdp) if learner.covariance == "mgr" else span_of(mdp)
        self._sums = np.zeros((mdp.horizon, len(seeds), mdp.states, mdp.actions))  # the step first: see spans.py
        self._barrier = WarmBarrier(self._sums.shape[:-1], mdp.actions) if learner.algorithm == "log-barrier" else None
        self._range = np.arange(mdp.horizon, 0, -1, dtype=np.float64)[:, None, None]
        self._covariance_draws = 0 if learner.covariance == "exact" else learner.samples
        self._covariance_dice = Dice(seeds, mdp.horizon * self._covariance_draws, stream=1)
        # with one-hot features no product is negative, so there is nothing to reduce
        self._reduces = learner.algorithm == "magnitude-reduced" and isinstance(self._span, Dense)
        self._reduction_draws = (learner.reduction_samples or 0) if self._reduces else 0
        self._reduction_dice = Dice(seeds, mdp.horizon * self._reduction_draws, stream=2)
        self._policies: Array | None = None
        self._occupancy: Array | None = None

    def policies(self) -> Array:
        """[N, H, S, A]."""
        if self._policies is None:
            eta = self.tuning.eta
            self._policies = entropy_step(self._sums, eta) if self._barrier is None else self._barrier(self._sums, eta)
        return self._policies.swapaxes(0, 1)

    def occupancy(self) -> Array:
        """[N, H, S, A]."""
        if self._occupancy is None:
            self._occupancy = occupancies(self.mdp, self.policies())
        return self._occupancy

    def update(self, path: Path, losses: Array | None = None) -> None:
        """Learn from the paths.

        Raises: LegatoValueError for a loss that is not in [0, 1]; the state is then unchanged.
        """
        path.check(self.mdp)
        if self.episode == self.episodes:
            warnings.warn(
                f"more than the {self.episodes} episodes that the rates were chosen for are played: nothing is proved of them. "
                "Fix: start with more, or use Doubling",
                errors.LegatoWarning, stacklevel=2,
            )  # fmt: skip
        policies = self.policies()
        estimate, squares = self.estimate(path)
        bonus = bonuses(squares.swapaxes(0, 1), policies, self.tuning.beta)
        self._sums += estimate
        self._sums -= dilate(self.mdp, bonus, policies).swapaxes(0, 1)
        self.episode += 1
        self._policies = self._occupancy = None

    def estimate(self, path: Path) -> tuple[Array, Array]:
        """Estimated action values and squared lengths of the features, both [H, N, S, A]."""
        q = self.occupancy().swapaxes(0, 1).reshape(*self._sums.shape[:2], -1)
        inverse = self._inverse(q)
        g = self._span.products(inverse, path)
        values = g * path.to_go().T[..., None]
        if self._reduces:
            values -= self._range * np.minimum(g, 0)
            values += self._range * self._reduction(inverse, q)
        return values.reshape(self._sums.shape), self._span.squares(inverse).reshape(self._sums.shape)

    def _reduction(self, inverse: Array, q: Array) -> Array:
        if not self._reduction_draws:
            return negative_means(self.mdp, inverse, q)
        return sampled_negative_means(self.mdp, inverse, self._drawn(q, self._reduction_dice))

    def _inverse(self, q: Array) -> Array:
        gamma = self.tuning.gamma
        if not self._covariance_draws:
            return self._span.inverse(self._span.covariance(q), gamma)
        pairs = self._drawn(q, self._covariance_dice)
        if self.learner.covariance == "averaged":
            return self._span.inverse(self._span.covariance(frequencies(pairs, q.shape[2])), gamma)
        return resampled_inverse(self.mdp.feature_rows[np.arange(len(q))[:, None, None], pairs], gamma)

    def _drawn(self, q: Array, dice: Dice) -> NDArray[np.int64]:
        return drawn_pairs(q, dice.roll().reshape(q.shape[1], q.shape[0], -1))


def resampled_inverse(seen: Array, gamma: float) -> Array:
    """Matrix Geometric Resampling from M features [..., M, d] as many copies as they give of products that leave a tenth of the bias."""
    count, constant = seen.shape[-2], min(0.5, 1 / (1 + gamma))
    length = max(1, min(count, resampling_length(gamma, 0.1 / gamma, constant=constant)))
    copies = count // length
    parts = seen[..., : copies * length, :].reshape(*seen.shape[:-2], copies, length, seen.shape[-1])
    return matrix_geometric_resampling(parts, gamma, constant=constant)


def frequencies(pairs: NDArray[np.int64], count: int) -> Array:
    """How often each of `count` pairs is among the drawn ones [H, N, M]; [H, N, count], each row sums to 1."""
    h, n, m = pairs.shape
    offset = np.arange(h * n)[:, None] * count
    found = np.bincount((pairs.reshape(h * n, m) + offset).ravel(), minlength=h * n * count)
    return np.asarray(found.reshape(h, n, count) / m)
