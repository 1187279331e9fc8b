"""What a learner sees of an episode under bandit feedback: the path that it took, and the losses on it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from legato import errors
from legato.online.mdp import SLACK, Array, LinearMDP, first

BLOCK = 256  # episodes whose random numbers are drawn at once


@dataclass(frozen=True, eq=False)
class Path:
    """One episode of N runs side by side."""

    states: NDArray[np.int64]
    """[N, H]."""
    actions: NDArray[np.int64]
    """[N, H]."""
    losses: Array
    """[N, H], each in [0, 1]."""

    def check(self, mdp: LinearMDP) -> None:
        """Every loss finite and in [0, 1].

        Raises: LegatoValueError that names the run and the step. A learner calls this first, so its state is unchanged.
        """
        if self.losses.ndim != 2 or self.losses.shape[1] != mdp.horizon:
            raise errors.argument(
                "losses", expected=f"shape [N, {mdp.horizon}]", got=f"shape {list(self.losses.shape)}"
            )
        if not (self.losses.min() >= -SLACK and self.losses.max() <= 1 + SLACK):
            spot = first(~((self.losses >= -SLACK) & (self.losses <= 1 + SLACK)))
            raise errors.argument(
                f"losses at (run, step) = {spot}", expected="a finite loss in [0, 1]", got=float(self.losses[spot]),
                fix="shift and scale the losses; the learner has not been changed by this episode",
            )  # fmt: skip

    def to_go(self) -> Array:
        """[N, H], the loss from each step to the end of the episode."""
        return np.cumsum(self.losses[:, ::-1], axis=1)[:, ::-1]


class Dice:
    """Uniform numbers for N runs, one stream a seed, so that a run is the same whatever runs beside it.

    Args:
        seeds: one a run.
        count: how many numbers each run needs in an episode.
        stream: 0 for the paths; what a learner draws for itself has another number, because a covariance that is estimated from
            the path it is applied to is biased.
    """

    def __init__(self, seeds: Sequence[int], count: int, stream: int = 0) -> None:
        self._generators = [np.random.default_rng((seed, stream)) for seed in seeds]
        self._count = count
        self._block = np.empty((0, len(self._generators), count))
        self._next = 0

    def roll(self) -> Array:
        """[N, count], the numbers of the next episode."""
        if self._next == len(self._block):
            size = max(1, min(BLOCK, (1 << 20) // max(1, self._count * len(self._generators))))
            self._block = np.stack([g.random((size, self._count)) for g in self._generators], axis=1)
            self._next = 0
        self._next += 1
        out: Array = self._block[self._next - 1]
        return out


def roll_out(mdp: LinearMDP, policies: Array, losses: Array, uniform: Array) -> Path:
    """Play one episode in each of N runs.

    Args:
        policies: [N, H, S, A].
        losses: [H, S, A].
        uniform: [N, 2 H], numbers in [0, 1): for each step one for the state and one for the action.
    """
    runs, last = np.arange(len(policies)), mdp.actions - 1
    states, actions = np.empty((2, len(policies), mdp.horizon), dtype=np.int64)
    chances: Array = _cumulative(mdp.initial)[None]
    for h in range(mdp.horizon):
        s = (chances <= uniform[:, 2 * h, None]).sum(1)
        chosen = policies[runs, h, s].cumsum(1)
        a = np.minimum((chosen <= uniform[:, 2 * h + 1, None]).sum(1), last)  # a sum may round to less than 1
        states[:, h], actions[:, h] = s, a
        if h + 1 < mdp.horizon:
            chances = _next_states(mdp)[h, s, a]
    return Path(states, actions, losses[np.arange(mdp.horizon), states, actions])


def _cumulative(chances: Array) -> Array:
    """Running sums that end in exactly 1 from the last possible state on, so that no impossible state is drawn."""
    sums = np.cumsum(chances, axis=-1)
    sums /= sums[..., -1:]
    sums[sums >= 1 - 1e-15] = 1.0
    return sums


def _next_states(mdp: LinearMDP) -> Array:
    """[H, S, A, S], the running sums of the transitions, computed once a process."""
    known: Array | None = mdp.__dict__.get("_running")
    if known is None:
        known = _cumulative(mdp.transitions)
        object.__setattr__(mdp, "_running", known)
    return known
