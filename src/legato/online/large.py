"""State spaces too large to enumerate: policies that are evaluated only in the states that are met.

In a linear process whose features are mixtures of d hidden causes, everything a log-barrier learner has seen fits in vectors and
matrices of size d for each step, whatever the number of states and of episodes:

    cumulative loss of (s, a) in step h  =  phi . (theta_h - w_h) - phi^T M_h phi  + what is the same for all actions,

theta_h sums (gamma I + Sigma)^-1 phi_k L_k, M_h sums beta (gamma I + Sigma)^-1, and w_h sums (1 + 1/H) times the mean of the next
step's dilated bonus under each hidden cause. What is the same for all actions does not change a policy and is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from legato import errors
from legato.online.covariance import regularised_inverse
from legato.online.mdp import Array, LinearMDP
from legato.online.simplex import log_barrier_step
from legato.online.tuning import Tuning, log_barrier_rates

Indices = NDArray[np.int64]
CHUNK = 1 << 16  # states that are looked at together when all are


class LargeMDP(Protocol):
    """A linear process that is never written out: P_h(.|s, a) = sum_j phi_h(s, a)_j mu_{h,j}, with phi on the simplex."""

    horizon: int
    states: int
    actions: int
    dimension: int

    def features(self, step: int, states: Indices) -> Array:
        """[B, A, d], each row sums to 1."""

    def first(self, uniform: Array) -> Indices:
        """States of step 0 for B numbers in [0, 1)."""

    def after(self, step: int, cause: Indices, uniform: Array) -> Indices:
        """States of step + 1 under the causes [B], for B numbers in [0, 1)."""

    def cause_chances(self, step: int, states: Indices) -> Array:
        """[d, B], mu_{step, j}(s) of each cause; sums to 1 over all states."""


@dataclass(frozen=True)
class Waves:
    """A made-up large process: features are a softmax of waves over the states, and cause j leads to the states s = j modulo d.

    phi_h(s, a) = softmax_j( sharpness cos(2 pi (s f_{h,a,j} / S + g_{h,a,j})) ), f and g from the seed. The first state is uniform.
    """

    states: int = 1_000_000
    actions: int = 4
    horizon: int = 2
    dimension: int = 6
    sharpness: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.states >= self.dimension >= 1 or self.actions < 1 or self.horizon < 1:
            raise errors.argument(
                "states", expected="at least as many states as features, and both >= 1", got=self.states
            )

    def features(self, step: int, states: Indices) -> Array:
        """[B, A, d]."""
        frequency, shift = np.random.default_rng((self.seed, step)).random((2, self.actions, self.dimension))
        waves = np.cos(2 * np.pi * (states[:, None, None] * (9 * frequency + 1) / self.states + shift))
        weights: Array = np.exp(self.sharpness * waves)
        return np.asarray(weights / weights.sum(-1, keepdims=True))

    def first(self, uniform: Array) -> Indices:
        """Uniform over all states."""
        return (uniform * self.states).astype(np.int64)

    def after(self, step: int, cause: Indices, uniform: Array) -> Indices:
        """Uniform over the states that are congruent to the cause."""
        count = (self.states - 1 - cause) // self.dimension + 1
        return cause + self.dimension * (uniform * count).astype(np.int64)

    def cause_chances(self, step: int, states: Indices) -> Array:
        """[d, B]."""
        cause = np.arange(self.dimension)[:, None]
        count = (self.states - 1 - cause) // self.dimension + 1
        return np.asarray((states[None] % self.dimension == cause) / count)

    def enumerated(self) -> LinearMDP:
        """The same process written out, for few states."""
        every = np.arange(self.states)
        phi = np.stack([self.features(h, every) for h in range(self.horizon)])
        causes = np.stack([self.cause_chances(h, every) for h in range(self.horizon)])
        moves = np.einsum("hsaj,hjt->hsat", phi, causes)
        return LinearMDP(moves, np.full(self.states, 1 / self.states), phi, name="waves")


class LazyLogBarrier:
    """Algorithm 1 without a table of states: one run, O(A d^2) for a policy in a state, and a cost an episode that does not grow.

    The covariance and the next step's bonus are averages over `samples` simulated states a step; with samples=None they are exact,
    over all states, which only a small process can afford.

    Args:
        mdp: the process.
        episodes: K, which the rates are tuned for.
        samples: simulated states for each step, and for each cause a share of 1/d of them, at least 1.
        preset, rate: as in `log_barrier`.
        seed: of the simulator; the path of the episode is no part of it.
    """

    def __init__(
        self, mdp: LargeMDP, episodes: int, *, samples: int | None = 128, preset: str = "practical", rate: float = 10.0,
        seed: int = 0,
    ) -> None:  # fmt: skip
        if samples is not None and samples < 1:
            raise errors.argument("samples", expected="a whole number >= 1, or None for all states", got=samples)
        self.mdp, self.samples = mdp, samples
        self.tuning: Tuning = log_barrier_rates(
            mdp.horizon, mdp.actions, mdp.dimension, episodes, preset=preset, rate=rate
        )
        h, d = mdp.horizon, mdp.dimension
        self.theta, self.ahead, self.matrix = np.zeros((h, d)), np.zeros((h, d)), np.zeros((h, d, d))
        self._rng = np.random.default_rng((seed, 1))

    def policy(self, step: int, states: Indices) -> Array:
        """[B, A], the policy in these states."""
        return self._policy(step, self.mdp.features(step, states))

    def _policy(self, step: int, phi: Array) -> Array:
        losses = phi @ (self.theta[step] - self.ahead[step]) - _squares(phi, self.matrix[step])
        return log_barrier_step(losses, self.tuning.eta)

    def play(self, loss: Callable[[int, Array], Array], uniform: Array) -> tuple[Array, Indices, Indices]:
        """One episode, and what it teaches.

        Args:
            loss: called with a step and the features [B, d] of what is done there; gives the losses [B] in [0, 1].
            uniform: [3 H], numbers in [0, 1): for each step for the state, the action and the cause.
        Returns: losses, states and actions of the path, each [H].
        """
        losses, states, actions, seen = [], [], [], []
        state = self.mdp.first(uniform[:1])
        for h in range(self.mdp.horizon):
            phi = self.mdp.features(h, state)
            action = _pick(self._policy(h, phi), uniform[3 * h + 1 : 3 * h + 2])
            seen.append(phi[0, action[0]])
            losses.append(float(loss(h, seen[-1][None])[0]))
            states.append(int(state[0]))
            actions.append(int(action[0]))
            if not 0 <= losses[-1] <= 1:
                raise errors.argument(
                    f"loss at (h, s, a) = ({h}, {states[-1]}, {actions[-1]})", expected="a finite loss in [0, 1]",
                    got=losses[-1],
                )  # fmt: skip
            if h + 1 < self.mdp.horizon:
                cause = _pick(seen[-1][None], uniform[3 * h + 2 : 3 * h + 3])
                state = self.mdp.after(h, cause, uniform[3 * h + 3 : 3 * h + 4])
        self.learn(np.array(seen), np.array(losses))
        return np.array(losses), np.array(states), np.array(actions)

    def learn(self, seen: Array, losses: Array) -> None:
        """Take in a path: its features [H, d] and its losses [H]."""
        to_go = np.cumsum(losses[::-1])[::-1]
        inverses = [regularised_inverse(sigma, self.tuning.gamma) for sigma in self.covariances()]
        ahead = np.zeros((self.mdp.horizon, self.mdp.dimension))
        grow = 1 + 1 / self.mdp.horizon
        for h in range(self.mdp.horizon - 2, -1, -1):
            ahead[h] = grow * self._dilated_means(h + 1, inverses[h + 1], ahead[h + 1])
        for h, inverse in enumerate(inverses):
            self.theta[h] += inverse @ seen[h] * to_go[h]
            self.matrix[h] += self.tuning.beta * inverse
        self.ahead += ahead

    def covariances(self) -> list[Array]:
        """Sigma of each step [d, d] under the present policy: from simulated paths, or exactly."""
        if self.samples is None:
            return _exact_covariances(self.mdp, self.policy)
        out, states = [], self.mdp.first(self._rng.random(self.samples))
        for h in range(self.mdp.horizon):
            phi = self.mdp.features(h, states)
            done = phi[np.arange(len(phi)), _pick(self._policy(h, phi), self._rng.random(len(phi)))]
            out.append(done.T @ done / len(done))
            if h + 1 < self.mdp.horizon:
                states = self.mdp.after(h, _pick(done, self._rng.random(len(done))), self._rng.random(len(done)))
        return out

    def _dilated_means(self, step: int, inverse: Array, ahead: Array) -> Array:
        """[d], for each cause of the step before the mean of the dilated bonus of the policy in the states that it leads to."""
        d = self.mdp.dimension
        if self.samples is None:
            chunks = _chunks(self.mdp.states)
            means = [self.mdp.cause_chances(step - 1, s) @ self._dilated(step, s, inverse, ahead) for s in chunks]
            return np.asarray(np.sum(means, axis=0))
        count = max(1, self.samples // d)
        cause = np.repeat(np.arange(d), count)
        states = self.mdp.after(step - 1, cause, self._rng.random(len(cause)))
        return np.asarray(self._dilated(step, states, inverse, ahead).reshape(d, count).mean(1))

    def _dilated(self, step: int, states: Indices, inverse: Array, ahead: Array) -> Array:
        """E_{a ~ pi(.|s)} B(step, s, a) = sum_a pi(a|s) (2 beta ||phi||^2 + phi . ahead); [B]."""
        phi = self.mdp.features(step, states)
        bonus = 2 * self.tuning.beta * _squares(phi, inverse) + phi @ ahead
        return np.asarray((self._policy(step, phi) * bonus).sum(1))


def best_in_hindsight(mdp: LargeMDP, totals: Array) -> float:
    """Expected loss of the best fixed policy for losses phi . totals_h, exactly, in one pass over all states of each step.

    Args:
        totals: [H, d], the sum over the episodes of the vectors that their losses are linear with.
    """
    return _pass(mdp, totals, lambda step, states, values: np.asarray(values.min(1)))


def value_of(mdp: LargeMDP, policy: Callable[[int, Indices], Array], totals: Array) -> float:
    """Expected loss of a policy, step and states -> [B, A], for losses phi . totals_h; exact, and as costly as all states are."""
    return _pass(mdp, totals, lambda step, states, values: np.asarray((policy(step, states) * values).sum(1)))


def _pass(mdp: LargeMDP, totals: Array, choose: Callable[[int, Indices, Array], Array]) -> float:
    ahead = np.zeros(mdp.dimension)
    for h in range(mdp.horizon - 1, 0, -1):
        vector = totals[h] + ahead
        ahead = np.sum(
            [mdp.cause_chances(h - 1, s) @ choose(h, s, mdp.features(h, s) @ vector) for s in _chunks(mdp.states)], 0
        )
    vector = totals[0] + ahead
    starts = [choose(0, s, mdp.features(0, s) @ vector) for s in _chunks(mdp.states)]
    return float(sum(part.sum() for part in starts) / mdp.states)


def _exact_covariances(mdp: LargeMDP, policy: Callable[[int, Indices], Array]) -> list[Array]:
    out: list[Array] = []
    causes = np.zeros(mdp.dimension)
    for h in range(mdp.horizon):
        sigma, after = np.zeros((mdp.dimension, mdp.dimension)), np.zeros(mdp.dimension)
        for s in _chunks(mdp.states):
            reach = np.full(len(s), 1 / mdp.states) if h == 0 else causes @ mdp.cause_chances(h - 1, s)
            phi = mdp.features(h, s)
            weights = reach[:, None, None] * policy(h, s)[..., None] * phi
            sigma += np.einsum("bai,baj->ij", weights, phi)
            after += weights.sum((0, 1))
        out.append(sigma)
        causes = after
    return out


def _squares(phi: Array, matrix: Array) -> Array:
    return np.asarray(np.vecdot(phi @ matrix, phi))


def _pick(chances: Array, uniform: Array) -> Indices:
    """One index for each row of probabilities."""
    sums = np.cumsum(chances, axis=-1)
    return np.asarray(np.minimum((sums <= uniform[:, None] * sums[:, -1:]).sum(1), chances.shape[1] - 1))


def _chunks(states: int) -> list[Indices]:
    return [np.arange(start, min(start + CHUNK, states)) for start in range(0, states, CHUNK)]
