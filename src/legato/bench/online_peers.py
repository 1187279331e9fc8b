"""Decisions as users write them in plain numpy, one run at a time. Our reimplementation, not a package's code."""

from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from legato.online.mdp import LinearMDP
from legato.online.tuning import Tuning

Array = NDArray[np.float64]


def softmax(losses: Array, eta: float) -> Array:
    """[..., A] -> [..., A], the entropy's step as everybody writes it."""
    weights = np.exp(-eta * (losses - losses.min(-1, keepdims=True)))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def newton(losses: Array, eta: float) -> Array:
    """[..., A] -> [..., A], the log-barrier's step: Newton from 1 on the normaliser, all states until the last has settled."""
    x = eta * (losses - losses.min(-1, keepdims=True))
    lam = np.ones((*x.shape[:-1], 1))
    for _ in range(100):
        p = 1 / (x + lam)
        step = (p.sum(-1, keepdims=True) - 1) / (p**2).sum(-1, keepdims=True)
        lam += step
        if (step <= 1e-10 * lam).all():
            break
    return np.asarray(1 / (x + lam))


class PlainLearner:
    """Algorithm 1, or with `draws` Algorithm 2 and its sampled reduction, one run: the formulas step by step, whole states at once."""

    def __init__(self, mdp: LinearMDP, tuning: Tuning, seed: int, draws: int = 0) -> None:
        assert mdp.features is not None
        self.mdp, self.tuning, self.draws = mdp, tuning, draws
        self.features: Array = mdp.features
        self.sums = np.zeros(mdp.shape)
        self.rng = np.random.default_rng(seed)

    def episode(self, losses: Array) -> None:
        """Play and learn from the table of losses [H, S, A], of which the path is seen."""
        mdp, (horizon, states, actions) = self.mdp, self.mdp.shape
        policy = (softmax if self.draws else newton)(self.sums, self.tuning.eta)
        path = self.path(policy)
        seen = np.array([losses[h, s, a] for h, (s, a) in enumerate(path)])
        estimate, bonus = np.empty((2, *mdp.shape))
        reach = mdp.initial
        for h, (s, a) in enumerate(path):
            q = reach[:, None] * policy[h]
            reach = np.einsum("sa,sat->t", q, mdp.transitions[h])
            phi = self.features[h]
            covariance = np.einsum("sa,sai,saj->ij", q, phi, phi)
            inverse = np.linalg.inv(covariance + self.tuning.gamma * np.eye(len(covariance)))
            g = phi @ inverse @ phi[s, a]
            estimate[h] = g * seen[h:].sum()
            if self.draws:
                pairs = self.rng.choice(states * actions, self.draws, p=q.ravel() / q.sum())
                others = phi @ inverse @ phi.reshape(states * actions, -1)[pairs].T
                estimate[h] += (horizon - h) * (np.minimum(others, 0).mean(-1) - np.minimum(g, 0))
            squares = np.einsum("sai,ij,saj->sa", phi, inverse, phi)
            bonus[h] = self.tuning.beta * (squares + (policy[h] * squares).sum(1, keepdims=True))
        for h in range(horizon - 2, -1, -1):
            after = (policy[h + 1] * bonus[h + 1]).sum(1)
            bonus[h] += (1 + 1 / horizon) * np.einsum("sat,t->sa", mdp.transitions[h], after)
        self.sums += estimate - bonus

    def path(self, policy: Array) -> list[tuple[int, int]]:
        """The states and actions of an episode."""
        mdp, found = self.mdp, []
        state = self.rng.choice(mdp.states, p=mdp.initial)
        for h in range(mdp.horizon):
            action = self.rng.choice(mdp.actions, p=policy[h, state] / policy[h, state].sum())
            found.append((int(state), int(action)))
            state = self.rng.choice(mdp.states, p=mdp.transitions[h, state, action])
        return found


def has_river() -> bool:
    """Whether river is installed: pip install river."""
    return find_spec("river") is not None


def river_rounds(rounds: int) -> int:
    """How many of so many rounds with rewards of 1 and 0 river's Exp3 plays before its weights overflow."""
    from river.bandit import Exp3

    policy = Exp3(gamma=0.5, seed=0)
    for played in range(rounds):
        try:
            arm = policy.pull(["a", "b"])
        except ValueError:  # "Total of weights must be finite"
            return played
        policy.update(arm, float(arm == "a"))
    return rounds
