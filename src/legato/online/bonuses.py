"""Bonuses that pay for uncertainty, and their dilation along the dynamics."""

import numpy as np

from legato.online.mdp import Array, LinearMDP


def bonuses(squares: Array, policies: Array, beta: float) -> Array:
    """The bonus of a step: large where the covariance of the played features is thin.

    b(s, a) = beta ( ||phi(s, a)||^2 + sum_{a'} pi(a'|s) ||phi(s, a')||^2 ),  ||x||^2 = x^T (gamma I + Sigma)^{-1} x.
    Played by pi itself, its mean over a step is 2 beta tr((gamma I + Sigma)^{-1} Sigma) <= 2 beta d.

    Args:
        squares: [..., H, S, A], the ||phi(s, a)||^2 of each step's own inverse.
        policies: [..., H, S, A].
        beta: >= 0, in units of loss.
    Returns: [..., H, S, A], >= 0.
    """
    b = beta * squares
    b += np.einsum("...hsa,...hsa->...hs", policies, b)[..., None]
    return b


def dilate(mdp: LinearMDP, bonus: Array, policies: Array, *, factor: float | None = None) -> Array:
    """The dilated bonus, by one backward dynamic programme: each step ahead weighs by a factor more.

    B(h, s, a) = b(h, s, a) + factor E_{s' ~ P_h(.|s, a)} E_{a' ~ pi(.|s')} B(h+1, s', a');  B = b in the last step.

    Args:
        bonus: [..., H, S, A].
        policies: [..., H, S, A].
        factor: 1 + 1/H if None; 1 gives the plain value of the bonus.
    Returns: [..., H, S, A], at most (1 + 1/H)^(H-1) H max b <= e H max b.
    """
    grow = 1 + 1 / mdp.horizon if factor is None else factor
    out = np.empty_like(policies)
    out[...] = bonus
    for h in range(mdp.horizon - 2, -1, -1):
        after = grow * np.einsum("...sa,...sa->...s", policies[..., h + 1, :, :], out[..., h + 1, :, :])
        out[..., h, :, :] += (after @ mdp.rows[h].T).reshape(*after.shape[:-1], mdp.states, mdp.actions)
    return out
