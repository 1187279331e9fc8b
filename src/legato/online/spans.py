"""The geometry of the features of an enumerated process, for N runs at once: covariance, squared lengths, estimates.

Everything is laid out with the step first, [H, N, ...], so that each step is one matrix product over all runs.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from legato import errors
from legato.online.covariance import regularised_inverse
from legato.online.mdp import Array, LinearMDP
from legato.online.paths import Path

PACKED_LIMIT = 1 << 23  # numbers in the table of products, 64 MB


class Span(Protocol):
    """What the learners with linear estimates ask for."""

    def covariance(self, q: Array) -> Array:
        """E[phi phi^T] under the occupancies q [H, N, S A]; [H, N, d, d], or its diagonal [H, N, S A] where features are one-hot."""

    def inverse(self, covariance: Array, gamma: float) -> Array:
        """(gamma I + Sigma)^{-1}, in the form of the covariance."""

    def squares(self, inverse: Array) -> Array:
        """phi^T inverse phi of each (s, a); [H, N, S A]."""

    def products(self, inverse: Array, path: Path) -> Array:
        """g(s, a) = phi(s, a)^T inverse phi(s_h, a_h) with the path's own features; [H, N, S A]."""


class Dense:
    """Features in R^d. Products of features are tabled once, so that covariance and lengths are plain matrix products."""

    def __init__(self, mdp: LinearMDP) -> None:
        self.rows = mdp.feature_rows
        self.actions = mdp.actions
        d = mdp.dimension
        self._upper = np.triu_indices(d)
        self._twice = np.where(self._upper[0] == self._upper[1], 1.0, 2.0)
        self._place = np.empty((d, d), dtype=np.int64)
        self._place[self._upper] = self._place[self._upper[::-1]] = np.arange(len(self._twice))
        self._packed: Array | None = None
        if self.rows[..., 0].size * len(self._twice) <= PACKED_LIMIT:
            self._packed = np.ascontiguousarray(self.rows[..., self._upper[0]] * self.rows[..., self._upper[1]])

    def covariance(self, q: Array) -> Array:
        """[H, N, d, d]."""
        if self._packed is not None:
            return np.asarray((q @ self._packed)[..., self._place])
        return np.asarray((self.rows.swapaxes(1, 2)[:, None] * q[:, :, None]) @ self.rows[:, None])

    def inverse(self, covariance: Array, gamma: float) -> Array:
        """[H, N, d, d]."""
        if gamma == 0:
            return regularised_inverse(covariance, 0.0)  # which refuses a covariance without full rank
        return np.asarray(np.linalg.inv(covariance + gamma * np.eye(covariance.shape[-1])), dtype=np.float64)

    def squares(self, inverse: Array) -> Array:
        """[H, N, S A]."""
        if self._packed is not None:
            return np.asarray(
                (inverse[..., self._upper[0], self._upper[1]] * self._twice) @ self._packed.swapaxes(1, 2)
            )
        return np.asarray(np.vecdot(self.rows[:, None] @ inverse, self.rows[:, None]))

    def products(self, inverse: Array, path: Path) -> Array:
        """[H, N, S A]."""
        steps = np.arange(len(self.rows))[:, None]
        seen = self.rows[steps, path.states.T * self.actions + path.actions.T]
        return np.asarray((inverse @ seen[..., None])[..., 0] @ self.rows.swapaxes(1, 2))


class OneHot:
    """One feature for each (s, a): every matrix is diagonal, and only its diagonal is kept."""

    def __init__(self, mdp: LinearMDP) -> None:
        self.actions = mdp.actions

    def covariance(self, q: Array) -> Array:
        """[H, N, S A], the occupancies themselves."""
        return q

    def inverse(self, covariance: Array, gamma: float) -> Array:
        """[H, N, S A]."""
        if gamma == 0 and not covariance.min() > 0:
            rank = int((covariance > 0).sum(-1).min())
            expected = f"> 0, for Sigma has rank {rank} < {covariance.shape[-1]}"
            raise errors.argument("gamma", expected=expected, got=gamma, fix="gamma=1e-3")
        return 1 / (covariance + gamma)

    def squares(self, inverse: Array) -> Array:
        """[H, N, S A]."""
        return inverse

    def products(self, inverse: Array, path: Path) -> Array:
        """[H, N, S A], zero but for the pair that was played."""
        out = np.zeros_like(inverse)
        index = np.ogrid[: len(out), : out.shape[1]]
        pair = path.states.T * self.actions + path.actions.T
        out[index[0], index[1], pair] = inverse[index[0], index[1], pair]
        return out


def span_of(mdp: LinearMDP) -> Span:
    """`OneHot` where the process has no features of its own, else `Dense`."""
    return OneHot(mdp) if mdp.features is None else Dense(mdp)


def negative_means(mdp: LinearMDP, inverse: Array, q: Array) -> Array:
    """E_{(s', a') ~ q}[min(0, phi(s, a)^T inverse phi(s', a'))], exactly; needs a table of (S A)^2 numbers a step and run.

    Args:
        inverse: [H, N, d, d].
        q: [H, N, S A].
    Returns: [H, N, S A], <= 0.
    """
    out = np.empty_like(q)
    for h, rows in enumerate(mdp.feature_rows):
        left = rows @ inverse[h]
        for n in range(q.shape[1]):
            played = np.flatnonzero(q[h, n])  # what is never played counts nothing
            table = left[n] @ rows[played].T
            out[h, n] = np.minimum(table, 0, out=table) @ q[h, n, played]
    return out


def drawn_pairs(q: Array, uniform: Array) -> NDArray[np.int64]:
    """Pairs (s, a) drawn from the occupancies, as numbers s A + a.

    Args:
        q: [H, N, S A].
        uniform: [N, H, M], numbers in [0, 1).
    Returns: [H, N, M].
    """
    h, n, pairs = q.shape
    sums = np.cumsum(q, axis=-1)
    sums /= sums[..., -1:]
    offset = np.arange(h * n, dtype=np.float64)[
        :, None
    ]  # one search over all rows, each moved to an interval of its own
    wanted = uniform.swapaxes(0, 1).reshape(h * n, -1)
    found = np.searchsorted((sums.reshape(h * n, pairs) + offset).ravel(), (wanted + offset).ravel(), side="right")
    found = found.reshape(h * n, -1) - offset.astype(np.int64) * pairs
    return np.asarray(np.clip(found, 0, pairs - 1).reshape(h, n, -1))


def sampled_negative_means(mdp: LinearMDP, inverse: Array, pairs: NDArray[np.int64]) -> Array:
    """`negative_means` as an average over M drawn pairs: unbiased, and M/(S A) of the cost.

    Args:
        inverse: [H, N, d, d].
        pairs: [H, N, M] as from `drawn_pairs`, independent of the path.
    """
    rows = mdp.feature_rows
    seen = rows[np.arange(len(rows))[:, None, None], pairs]
    table = (seen @ inverse) @ rows.swapaxes(1, 2)[:, None]
    return np.asarray(np.minimum(table, 0, out=table).mean(2))
