"""Finite-horizon decision processes with known dynamics and linear features: occupancies, values, the best fixed policy.

Letters: H steps an episode, S states in each step, A actions, d features, N runs side by side (any leading axes).
Steps are counted from 0. The transitions of the last step lead out of the episode and count nothing.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from legato import errors

Array = NDArray[np.float64]
SLACK = 1e-8


@dataclass(frozen=True, eq=False)
class LinearMDP:
    """A process with enumerated states. Whatever is wrong with its arrays is said with the first (h, s, a) where it is wrong.

    Raises: LegatoValueError for shapes that do not fit, a row of probabilities that is none, or a feature vector longer than 1.
    """

    transitions: Array
    """[H, S, A, S], the chance of each next state; every row sums to 1."""
    initial: Array
    """[S], the chance of each state in step 0."""
    features: Array | None = None
    """[H, S, A, d] with a length of at most 1; None is one-hot (tabular, d = S A), which is computed without d x d matrices."""
    name: str = "process"
    """What a report calls it."""

    def __post_init__(self) -> None:
        shape = np.shape(self.transitions)
        if len(shape) != 4 or shape[1] != shape[3] or 0 in shape:
            raise errors.argument(
                "transitions", expected="shape [H, S, A, S]", got=f"shape {list(shape)}",
                fix="for the same dynamics in each step, legato.online.readers.from_arrays takes [S, A, S] and a horizon",
            )  # fmt: skip
        for name in ("transitions", "initial", "features"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float64))
        _check_rows(self.transitions)
        _check_initial(self.initial, shape[1])
        if self.features is not None:
            _check_features(self.features, shape[:3])

    @property
    def horizon(self) -> int:
        """H."""
        return int(self.transitions.shape[0])

    @property
    def states(self) -> int:
        """S."""
        return int(self.transitions.shape[1])

    @property
    def actions(self) -> int:
        """A."""
        return int(self.transitions.shape[2])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, S, A)."""
        return self.horizon, self.states, self.actions

    @property
    def dimension(self) -> int:
        """d."""
        return self.states * self.actions if self.features is None else self.features.shape[3]

    @cached_property
    def rows(self) -> Array:
        """[H, S A, S], the transitions as one matrix for each step."""
        return self.transitions.reshape(self.horizon, self.states * self.actions, self.states)

    @cached_property
    def feature_rows(self) -> Array:
        """[H, S A, d], the features as one matrix for each step; one-hot features are written out."""
        if self.features is None:
            count = self.states * self.actions
            return np.broadcast_to(np.eye(count), (self.horizon, count, count))
        return self.features.reshape(self.horizon, self.states * self.actions, self.dimension)


def occupancies(mdp: LinearMDP, policies: Array) -> Array:
    """How often a policy is in a state and takes an action: q(h, s, a) = P(s_h = s, a_h = a).

    q(0, s, a) = initial(s) pi(a|s);  q(h+1, s', a') = pi(a'|s') sum_{s,a} q(h, s, a) P_h(s'|s, a).

    Args:
        policies: [..., H, S, A], rows of probabilities.
    Returns: [..., H, S, A]; each step sums to 1.
    """
    q = np.empty_like(policies)
    lead = policies.shape[:-3]
    reach: Array = mdp.initial
    for h in range(mdp.horizon):
        np.multiply(reach[..., None], policies[..., h, :, :], out=q[..., h, :, :])
        if h + 1 < mdp.horizon:
            reach = q[..., h, :, :].reshape(*lead, mdp.states * mdp.actions) @ mdp.rows[h]
    return q


def action_values(mdp: LinearMDP, policies: Array, losses: Array) -> Array:
    """What it costs to take an action and to follow the policy from then on.

    Q(h, s, a) = l(h, s, a) + sum_{s'} P_h(s'|s, a) sum_{a'} pi(a'|s') Q(h+1, s', a').

    Args:
        policies: [..., H, S, A].
        losses: [H, S, A], or with the leading axes of the policies.
    Returns: [..., H, S, A].
    """
    q = np.empty_like(policies)
    q[...] = losses
    for h in range(mdp.horizon - 2, -1, -1):
        after = np.einsum("...sa,...sa->...s", policies[..., h + 1, :, :], q[..., h + 1, :, :])
        q[..., h, :, :] += (after @ mdp.rows[h].T).reshape(*after.shape[:-1], mdp.states, mdp.actions)
    return q


def policy_values(mdp: LinearMDP, policies: Array, losses: Array) -> Array:
    """Expected loss of an episode, sum over (h, s, a) of q(h, s, a) l(h, s, a); shape [...]."""
    return np.asarray(np.einsum("...hsa,...hsa->...", occupancies(mdp, policies), np.asarray(losses)))


def best_policy(mdp: LinearMDP, losses: Array) -> tuple[float, NDArray[np.int64]]:
    """The policy with the smallest expected loss, by one backward dynamic programme.

    The value of a policy is linear in the losses, so with the sum of the losses of many episodes this is the best fixed policy in
    hindsight, exactly.

    Args:
        losses: [H, S, A], of any size.
    Returns: its expected loss from the initial distribution, and the action [H, S] that it takes.
    """
    table = np.array(losses, dtype=np.float64)
    if table.shape != mdp.shape:
        raise errors.argument("losses", expected=f"shape {list(mdp.shape)}", got=f"shape {list(table.shape)}")
    for h in range(mdp.horizon - 2, -1, -1):
        table[h] += (mdp.rows[h] @ table[h + 1].min(1)).reshape(mdp.states, mdp.actions)
    return float(mdp.initial @ table[0].min(1)), table.argmin(2)


def deterministic(actions: NDArray[np.int64], count: int) -> Array:
    """A policy [H, S, A] from the action [H, S] that it takes; `count` is A."""
    return np.eye(count)[actions]


def random_linear_mdp(
    states: int = 4,
    actions: int = 4,
    horizon: int = 3,
    features: int = 6,
    *,
    concentration: float = 0.3,
    seed: int = 0,
) -> LinearMDP:
    """A linear process with features on the simplex: phi(s, a) mixes d hidden causes, and each cause has its next states.

    phi_h(s, a) ~ Dirichlet(concentration),  P_h(.|s, a) = sum_j phi_h(s, a)_j mu_{h,j},  mu_{h,j} ~ Dirichlet(1).
    Losses that are linear in phi have action values that are linear in phi, for every policy. The first state is always 0.

    Args:
        concentration: > 0; small gives features near the corners, so that actions differ.
        seed: of the process alone.
    """
    for name, value in {"states": states, "actions": actions, "horizon": horizon, "features": features}.items():
        if value < 1:
            raise errors.argument(name, expected="a whole number >= 1", got=value)
    if not concentration > 0:
        raise errors.argument("concentration", expected="a number > 0", got=concentration)
    rng = np.random.default_rng(seed)
    phi = rng.dirichlet(np.full(features, concentration), size=(horizon, states, actions))
    phi /= phi.sum(-1, keepdims=True)
    causes = rng.dirichlet(np.ones(states), size=(horizon, features))
    transitions = np.einsum("hsaj,hjt->hsat", phi, causes)
    initial = rng.dirichlet(np.ones(states)) if horizon == 1 else np.eye(states)[0]
    return LinearMDP(transitions, initial, phi, name=f"random linear, {horizon} x {states} x {actions}, d = {features}")


@dataclass(frozen=True)
class LinearityReport:
    """How far the action values of random policies are from the span of the features."""

    largest: float
    """The largest |Q - phi theta|, in units of loss."""
    share: float
    """Root mean square of Q - phi theta over that of Q about its mean; 0 is linear, 1 is no better than a constant."""
    where: tuple[int, int, int]
    """(h, s, a) of the largest."""
    policies: int
    """How many random policies were tried, the uniform one and the best one among them."""

    @property
    def linear(self) -> bool:
        """Whether all were in the span, up to rounding."""
        return self.largest < 1e-8

    def __str__(self) -> str:
        h, s, a = self.where
        found = f"the largest residual is {self.largest:.3g} at (h, s, a) = ({h}, {s}, {a}), {self.share:.1%} of the spread of Q"
        verdict = (
            "action values are linear in the features"
            if self.linear
            else "action values are NOT linear in the features, so no bound of the learners holds; one-hot features always are"
        )
        return f"{verdict} ({self.policies} policies: {found})"


def linearity(mdp: LinearMDP, losses: Array, *, policies: int = 8, seed: int = 0) -> LinearityReport:
    """Is Q linear here? Fits the action values of some policies by least squares on the features, step by step.

    Args:
        losses: [H, S, A] or [M, H, S, A], the tables that the losses of the episodes mix.
        policies: how many, at least 2: the uniform one, the best one for the first table, the others drawn from Dirichlet(1).
        seed: of the policies.
    """
    tables = np.asarray(losses, dtype=np.float64).reshape(-1, *mdp.shape)
    rng = np.random.default_rng(seed)
    drawn = rng.dirichlet(np.ones(mdp.actions), size=(max(policies, 2) - 2, mdp.horizon, mdp.states))
    best = deterministic(best_policy(mdp, tables[0])[1], mdp.actions)
    all_policies = np.concatenate([np.full((1, *mdp.shape), 1 / mdp.actions), best[None], drawn])
    q = np.stack([action_values(mdp, all_policies, table) for table in tables])
    residual, spread = np.zeros(q.shape), np.zeros(q.shape)
    for h in range(mdp.horizon):
        y = q[:, :, h].reshape(-1, mdp.states * mdp.actions).T
        x = mdp.feature_rows[h]
        fit = x @ np.linalg.lstsq(x, y, rcond=None)[0]
        residual[:, :, h] = (y - fit).T.reshape(residual[:, :, h].shape)
        spread[:, :, h] = (y - y.mean(0)).T.reshape(residual[:, :, h].shape)
    worst = np.abs(residual).max((0, 1))
    total = float((spread**2).mean())
    share = float(np.sqrt((residual**2).mean() / total)) if total > 0 else 0.0
    h, s, a = (int(i) for i in np.unravel_index(worst.argmax(), worst.shape))
    return LinearityReport(float(worst.max()), share, (h, s, a), len(all_policies))


def check_losses(mdp: LinearMDP, losses: Array, name: str = "losses") -> None:
    """[H, S, A] or [..., H, S, A], every value finite and in [0, 1].

    Raises: LegatoValueError that names the first (h, s, a) and its value.
    """
    if losses.shape[-3:] != mdp.shape:
        raise errors.argument(name, expected=f"shape {list(mdp.shape)}", got=f"shape {list(losses.shape)}")
    if not (losses.min() >= -SLACK and losses.max() <= 1 + SLACK):  # NaN fails both
        wrong = ~((losses >= -SLACK) & (losses <= 1 + SLACK))
        spot = first(wrong)
        raise errors.argument(
            f"{name} at (h, s, a) = {spot[-3:]}", expected="a finite loss in [0, 1]", got=float(losses[spot]),
            fix="shift and scale the losses into [0, 1]; for a file of costs, legato.online.readers.read_problem does so",
        )  # fmt: skip


def first(wrong: NDArray[np.bool_]) -> tuple[int, ...]:
    """The index of the first True, as plain numbers."""
    return tuple(int(i) for i in np.unravel_index(wrong.argmax(), wrong.shape))


def _check_rows(transitions: Array) -> None:
    sums = transitions.sum(-1)
    wrong = ~(np.abs(sums - 1) <= SLACK)
    if wrong.any():
        spot = first(wrong)
        raise errors.argument(
            f"transitions at (h, s, a) = {spot}", expected="probabilities that sum to 1", got=f"a sum of {sums[spot]:.6g}",
            fix="divide each row by its sum; an action that ends the episode leads to an absorbing state",
        )  # fmt: skip
    wrong = np.asarray((transitions < 0).any(-1))
    if wrong.any():
        spot = first(wrong)
        raise errors.argument(
            f"transitions at (h, s, a) = {spot}", expected="probabilities >= 0", got=float(transitions[spot].min())
        )


def _check_initial(initial: Array, states: int) -> None:
    if initial.shape != (states,):
        raise errors.argument("initial", expected=f"shape [{states}]", got=f"shape {list(initial.shape)}")
    if not (abs(initial.sum() - 1) <= SLACK and (initial >= 0).all()):
        raise errors.argument("initial", expected="probabilities that sum to 1", got=f"a sum of {initial.sum():.6g}")


def _check_features(features: Array, rows: tuple[int, ...]) -> None:
    if features.ndim != 4 or features.shape[:3] != rows or features.shape[3] == 0:
        raise errors.argument("features", expected=f"shape {[*rows, 'd']}", got=f"shape {list(features.shape)}")
    lengths = np.sqrt((features**2).sum(-1))
    wrong = ~(lengths <= 1 + SLACK)
    if wrong.any():
        spot = first(wrong)
        raise errors.argument(
            f"features at (h, s, a) = {spot}", expected="a finite vector no longer than 1", got=f"length {lengths[spot]:.6g}",
            fix=f"rescale=True in legato.online.readers.from_arrays divides all by the largest length, {lengths.max():.6g}",
        )  # fmt: skip
