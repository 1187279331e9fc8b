"""The log-barrier step for a learner that takes it again and again: it begins where the last step ended."""

import numpy as np

from legato.online.mdp import Array

TOLERANCE = 1e-7  # of the sum; convergence is quadratic, so what is left after one more step is rounding
STEPS = 100


class WarmBarrier:
    """argmin over the simplex of <p, losses> + (1/eta) sum ln(1/p), row by row.

    p_a = 1/(x_a + lam) with x = eta (losses - min losses) >= 0 and lam in [1, A] the root of sum_a p_a = 1. With s = sum p, the
    function 1/s - 1 of lam is concave and increasing, so that Newton's step lam + s (s - 1) / sum p^2 never lands right of the root,
    and from left of it goes straight there. Any start will do; the last root is a good one when little has changed.
    """

    def __init__(self, rows: tuple[int, ...], actions: int) -> None:
        self._root = np.full(rows, float(actions))

    def __call__(self, losses: Array, eta: float) -> Array:
        """Probabilities of the shape of `losses` [*rows, A]."""
        x = losses - losses.min(-1, keepdims=True)
        x *= eta
        ones = np.ones(x.shape[-1])
        for _ in range(STEPS):
            p = 1 / (x + self._root[..., None])
            total = p @ ones
            self._root = np.maximum(self._root + total * (total - 1) / np.vecdot(p, p), 1.0)
            if np.abs(total - 1).max() <= TOLERANCE:
                break
        p = 1 / (x + self._root[..., None])
        p /= (p @ ones)[..., None]
        return np.asarray(p)
