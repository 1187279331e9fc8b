"""Follow the regularised leader over a few arms: full information or one arm at a time, with a bound on its regret."""

import math
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from legato import errors
from legato.online.simplex import STEPS, Array, Regulariser, checked_regulariser, losses_of, stability

LARGEST = 1e300
"""Cumulative and estimated losses stop here, so that nothing overflows; such an arm has no probability to speak of."""


@dataclass(frozen=True)
class RegretBound:
    """What is proved about the regret of a learner; the constants are our derived constants (docs/derivations/online.md)."""

    value: float
    """Upper limit of the regret, in the unit of the losses; infinite where nothing is proved."""
    largest: float
    """The regret that no learner can pass while losses stay in the range that was seen, or that was assumed."""
    rounds: int
    """How many rounds it speaks of."""
    expected: bool
    """Whether it limits the expected regret (one arm seen a round) or that of this very sequence (full information)."""
    discount: float = 1.0
    """Round t of T counts discount^(T - t)."""

    @property
    def vacuous(self) -> bool:
        """Whether it says nothing that was not known before."""
        return not self.value < self.largest

    def __str__(self) -> str:
        kind = ("discounted " if self.discount < 1 else "") + ("expected regret" if self.expected else "regret")
        verdict = f"{'vacuous: ' if self.vacuous else ''}the range of the losses alone gives {self.largest:.4g}"
        return f"{kind} <= {self.value:.4g} after {self.rounds} rounds ({verdict}; our derived constants)"


@final
class FTRL:
    """Follow the regularised leader: p = argmin over the simplex of <p, cumulative losses> + R(p)/eta.

    `sample()` an arm, `update(arm, loss)`; or `update(None, losses)` with the losses of all arms. Lower is better, any sign will do.

    The rate eta is fixed where it is given, or where `horizon` is (`tuned_rate`). Else it falls as the rounds ask for it and
    needs neither the number of rounds nor the size of the losses: eta_t = boldness D / (what the rounds before t can have cost), the
    summed `stability`, with D = (A - 1) ln(2 + rounds), ln A or 2 (sqrt(A) - 1). Losses times ten then give the same play.

    Without `discount` and `share` it competes with the best single arm. If the best arm changes for good it stays with the old
    one for about as long as that was best: use a discount. Its bound is for losses that do not answer to its own play.

    Args:
        regulariser: "log-barrier" (no range of losses, no forced exploration), "entropy" (Hedge, Exp3) or "tsallis" (order 1/2).
        n: number of arms A >= 1.
        eta: > 0, 1 over the unit of the losses; None as above.
        discount: in (0, 1]; all losses so far are multiplied by it after each update. 1 - 1/W forgets after about W rounds.
        share: in [0, 1); after each update p is mixed with that much of the uniform distribution, and goes on from there.
        horizon: the number of rounds, for which a fixed rate is tuned; going on beyond it warns.
        exploration: >= 0; "implicit exploration" of the importance weights: loss / (p + exploration), for losses >= 0 only.
        boldness: > 0, a factor of the falling rate; 1 is what the derivation asks for.
        names: n hashable names of the arms, not None; 0 .. n-1 where left out.
        seed: of the arms that `sample` draws, or a numpy Generator.
    Raises: LegatoValueError for an argument out of range, an unknown regulariser, or names that are not n different ones.
    """

    def __init__(
        self,
        regulariser: Regulariser,
        n: int,
        eta: float | None = None,
        *,
        discount: float = 1.0,
        share: float = 0.0,
        horizon: int | None = None,
        exploration: float = 0.0,
        boldness: float = 1.0,
        names: Sequence[Hashable] | None = None,
        seed: int | np.random.Generator = 0,
    ) -> None:
        _check(n, eta, discount, share, horizon, exploration, boldness)
        self.regulariser: Regulariser = checked_regulariser(regulariser)  # type: ignore[assignment]
        self.n, self.discount, self.share, self.horizon = n, discount, share, horizon
        self.exploration, self.boldness = exploration, boldness
        self.names: tuple[Hashable, ...] = tuple(range(n)) if names is None else tuple(names)
        self._index = {name: place for place, name in enumerate(self.names)}
        if len(self.names) != n or len(self._index) != n or None in self._index:
            raise errors.argument("names", expected=f"{n} different names, none of them None", got=list(self.names))
        self._falls = eta is None and horizon is None
        if eta is None and horizon is not None:
            memory = horizon if discount == 1 else min(horizon, round(1 / (1 - discount)))
            eta = tuned_rate(regulariser, n, memory)
        self.eta = math.inf if eta is None else eta
        self._rng = np.random.default_rng(seed)
        self._losses, self._total = np.zeros(n), np.zeros(n)  # what the step sees; what the arms have cost
        self.rounds, self._updates, self._expected, self._warned = 0, 0, False, False
        self._weight = self._cost = self._bias = 0.0  # of the rounds so far, discounted like the losses
        self._last_eta, self._low, self._high = self.eta, math.inf, -math.inf
        self._probs: Array | None = None

    def probs(self) -> Array:
        """The distribution of the next arm, [n] float64."""
        if self._probs is None:
            rate = 0.0 if self.eta == math.inf else self.eta  # infinite only as long as all arms have cost the same
            self._probs = STEPS[self.regulariser](self._losses, rate)
        return self._probs.copy()

    def sample(self, size: int | None = None) -> Any:
        """The name of an arm, or a list of `size` names drawn independently."""
        edges = np.cumsum(self.probs())
        drawn = np.searchsorted(edges, self._rng.random(size) * edges[-1], side="right")
        last = self.n - 1
        return self.names[min(int(drawn), last)] if size is None else [self.names[min(int(i), last)] for i in drawn]

    def update(self, arm: Any, loss: ArrayLike, prob: ArrayLike | None = None) -> None:
        """Learn from a round, or from several that were played with the same distribution.

        Args:
            arm: the name of the arm that was played; or a list of m names, for m rounds; or None: the losses of all arms are known.
            loss: what it cost, a number; or [m]; or [n] in the order of the names.
            prob: what the arm was drawn with, if not with `probs()`; a number or [m].
        Raises: LegatoValueError for a loss that is NaN or infinite, an unknown arm, a shape that does not fit, a prob out of
            (0, 1], or a loss below 0 with exploration > 0. The learner is then as it was.
        """
        seen = _finite("loss", loss)
        p = self.probs()
        if arm is None:
            if seen.shape != (self.n,) or prob is not None:
                got = f"shape {list(seen.shape)}" if prob is None else "a prob"
                raise errors.argument("loss", expected=f"shape [{self.n}] and no prob, for arm=None", got=got)
            estimate, rounds, bias = seen, 1, 0.0
        else:
            estimate, rounds, bias = self._weighted(arm, seen, prob, p)
            self._expected = True
        if rounds:
            self._low, self._high = min(self._low, float(seen.min())), max(self._high, float(seen.max()))
            self._take(p, _clipped(estimate), rounds, bias)

    def regret_bound(self, switches: int = 0) -> RegretBound:
        """What is proved about the regret so far, from the rounds as they went: R(u)/eta + their summed `stability`.

        Against the best arm in hindsight, or with a discount against the best in discounted losses. With `share` only for
        "entropy" at a fixed rate without discount, there also against the best sequence of arms with so many `switches`.

        Args:
            switches: >= 0.
        """
        if not (isinstance(switches, int) and switches >= 0):
            raise errors.argument("switches", expected="a whole number >= 0", got=switches)
        weight = self._weight / self.discount
        value = self._penalty(switches) / self._last_eta + (self._cost + self._bias) / self.discount
        if self.regulariser == "log-barrier":  # the comparator is the best arm, mixed with this much of all
            value += float(self._total.mean() - self._total.min()) / self.discount / (1 + weight)
        largest = weight * (self._high - self._low) if self.rounds else 0.0
        return RegretBound(value if self.rounds else 0.0, largest, self.rounds, self._expected, self.discount)

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts of these."""
        return {
            "regulariser": self.regulariser, "names": [str(name) for name in self.names], "eta": self.eta, "last_eta": self._last_eta,
            "losses": self._losses.tolist(), "total": self._total.tolist(), "rounds": self.rounds, "updates": self._updates,
            "expected": self._expected, "weight": self._weight, "cost": self._cost, "bias": self._bias,
            "low": self._low, "high": self._high, "generator": self._rng.bit_generator.state,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was: the same probabilities, the same arms. Discount, share and the like stay those of this object.

        Raises: LegatoValueError for the state of a learner with another regulariser or other arms.
        """
        own = {"regulariser": self.regulariser, "names": [str(name) for name in self.names]}
        for key, value in own.items():
            if state[key] != value:
                raise errors.argument(
                    f"state[{key!r}]",
                    expected=str(value),
                    got=state[key],
                    fix="load it into a learner made like the one it is from",
                )
        self._rng.bit_generator.state = state["generator"]
        self._losses, self._total = np.array(state["losses"]), np.array(state["total"])
        self.eta, self._last_eta, self.rounds, self._updates = (
            state["eta"],
            state["last_eta"],
            state["rounds"],
            state["updates"],
        )
        self._expected, self._weight, self._cost, self._bias = (
            state[key] for key in ("expected", "weight", "cost", "bias")
        )
        self._low, self._high, self._probs = state["low"], state["high"], None

    def _weighted(self, arm: Any, seen: Array, prob: ArrayLike | None, p: Array) -> tuple[Array, int, float]:
        """Importance-weighted losses of all arms, the number of rounds, and what implicit exploration hides."""
        arms = self._places([arm] if seen.ndim == 0 else arm)
        costs = np.atleast_1d(seen)
        if costs.shape != arms.shape:
            raise errors.argument(
                "loss", expected=f"a number for each of {len(arms)} arms", got=f"shape {list(seen.shape)}"
            )
        if self.exploration and (costs < 0).any():
            raise errors.argument(
                "loss",
                expected=">= 0 with exploration > 0",
                got=float(costs.min()),
                fix="exploration=0, which needs no sign",
            )
        chance = p[arms] if prob is None else np.broadcast_to(_finite("prob", prob), arms.shape)
        if not ((chance > 0) & (chance <= 1)).all():
            raise errors.argument(
                "prob", expected="in (0, 1], what the arm was drawn with", got=prob if prob is not None else chance
            )
        with np.errstate(over="ignore"):
            weighted = _clipped(costs / (chance + self.exploration))
        hidden = float(weighted @ np.full(len(arms), self.exploration)) if self.exploration else 0.0
        return np.asarray(np.bincount(arms, weighted, self.n), np.float64), len(arms), hidden

    def _places(self, arms: Any) -> NDArray[np.int64]:
        try:
            return np.array([self._index[name] for name in arms], np.int64)
        except (KeyError, TypeError) as problem:
            raise errors.argument(
                "arm", expected=f"one of {list(self.names)}, or a list with a loss for each", got=arms
            ) from problem

    def _take(self, p: Array, estimate: Array, rounds: int, bias: float) -> None:
        with np.errstate(over="ignore"):
            cost = min(float(stability(self.regulariser, p, estimate, self.eta)), LARGEST)
            self._cost = min(self.discount * (self._cost + cost), LARGEST)
            self._total = _clipped(self.discount * (self._total + estimate))
            losses = self.discount * (self._losses + estimate)
            self._losses = np.minimum(losses - losses.min(), LARGEST)
        self._bias = self.discount * (self._bias + bias)
        self._weight = self.discount * (self._weight + rounds)
        self.rounds, self._updates, self._last_eta, self._probs = (
            self.rounds + rounds,
            self._updates + 1,
            self.eta,
            None,
        )
        if self.share and self.eta < math.inf:
            mixed = (1 - self.share) * STEPS[self.regulariser](self._losses, self.eta) + self.share / self.n
            self._losses = losses_of(self.regulariser, mixed, self.eta)
        if self._falls and self._cost > 0:
            wanted = self.boldness * _diameter(self.regulariser, self.n, 2 + self._weight) / self._cost
            self.eta = max(min(self.eta / self.discount, wanted), 1 / LARGEST)
        if self.horizon is not None and self.rounds > self.horizon and not self._warned:
            self._warned = True
            text = f"{self.rounds} rounds are more than horizon={self.horizon}: the rate was tuned for that many"
            warnings.warn(text, errors.LegatoWarning, stacklevel=3)

    def _penalty(self, switches: int) -> float:
        """R(u) - min R for the comparator, and with `share` what it costs to follow it."""
        if self.share:
            if self.regulariser != "entropy" or self._falls or self.discount < 1 or switches >= max(self._updates, 1):
                return math.inf
            stays = (self._updates - 1 - switches) * -math.log1p(-self.share)
            return math.log(self.n) + switches * math.log(self.n / self.share) + stays
        if switches and self.n > 1:
            return math.inf
        if self.regulariser != "log-barrier":
            return _diameter(self.regulariser, self.n, 0)
        mixed = 1 / (1 + self._weight / self.discount)
        return -(self.n - 1) * math.log(mixed) - math.log(self.n * (1 - mixed) + mixed)


def tuned_rate(
    regulariser: Regulariser, n: int, rounds: int, *, feedback: Literal["bandit", "full"] = "bandit", size: float = 1.0
) -> float:
    """The fixed rate with the smallest bound for so many rounds of losses in [0, size]; `tuned_bound` is that bound.

    eta = sqrt(D / (v T)) / size, D = (A - 1) ln T, ln A, 2 (sqrt(A) - 1) for log-barrier, entropy, tsallis, and
    v = 1/2, A/2, sqrt(A) where one arm is seen, 1/4, 1/8, 1 where all are.

    Args:
        regulariser, n: as in `FTRL`.
        rounds: T >= 1.
        feedback: "bandit" (one arm is seen) or "full".
        size: > 0, the largest loss.
    Raises: LegatoValueError for an argument out of range.
    """
    diameter, cost = _tuning(regulariser, n, rounds, feedback, size)
    return math.sqrt(max(diameter, np.finfo(float).tiny) / (cost * rounds)) / size


def tuned_bound(
    regulariser: Regulariser, n: int, rounds: int, *, feedback: Literal["bandit", "full"] = "bandit", size: float = 1.0
) -> RegretBound:
    """The bound at `tuned_rate`, known before the first round: 2 size sqrt(D v T), and + size for the log-barrier.

    Args:
        regulariser, n, rounds, feedback, size: as in `tuned_rate`.
    Raises: LegatoValueError for an argument out of range.
    """
    diameter, cost = _tuning(regulariser, n, rounds, feedback, size)
    value = 2 * math.sqrt(diameter * cost * rounds) + (regulariser == "log-barrier" and n > 1)
    return RegretBound(size * value, size * rounds, rounds, feedback == "bandit")


def _tuning(regulariser: Regulariser, n: int, rounds: int, feedback: str, size: float) -> tuple[float, float]:
    checked_regulariser(regulariser)
    _check(n, None, 1.0, 0.0, rounds, 0.0, 1.0)
    if not 0 < size < math.inf:
        raise errors.argument("size", expected="a finite number > 0", got=size)
    if feedback not in ("bandit", "full"):
        raise errors.choice("feedback", str(feedback), ("bandit", "full"))
    bandit = {"log-barrier": 0.5, "entropy": n / 2, "tsallis": math.sqrt(n)}
    full = {"log-barrier": 0.25, "entropy": 0.125, "tsallis": 1.0}
    return _diameter(regulariser, n, max(rounds, 2)), (bandit if feedback == "bandit" else full)[regulariser]


def _diameter(regulariser: str, n: int, rounds: float) -> float:
    """The largest R(u) - min R of a comparator; for the log-barrier of one that is mixed with 1/rounds of all arms."""
    if regulariser == "log-barrier":
        return (n - 1) * math.log(rounds)
    return math.log(n) if regulariser == "entropy" else 2 * (math.sqrt(n) - 1)


def _clipped(losses: Array) -> Array:
    return np.minimum(np.maximum(losses, -LARGEST), LARGEST)  # np.clip takes longer than both


def _finite(name: str, value: ArrayLike) -> Array:
    numbers = np.asarray(value, np.float64)
    if not np.isfinite(numbers).all():
        first = numbers[~np.isfinite(numbers)].flat[0]
        raise errors.argument(
            name, expected="finite numbers", got=float(first), fix="leave this round out; nothing was learnt from it"
        )
    return numbers


def _check(
    n: int, eta: float | None, discount: float, share: float, horizon: int | None, exploration: float, boldness: float
) -> None:
    if not (isinstance(n, int | np.integer) and n >= 1):
        raise errors.argument("n", expected="a whole number >= 1 of arms", got=n)
    if eta is not None and not 0 < eta < math.inf:
        raise errors.argument("eta", expected="a finite number > 0, or None", got=eta)
    if not 0 < discount <= 1:
        raise errors.argument(
            "discount", expected="a number in (0, 1]", got=discount, fix="1 - 1/W forgets after about W rounds"
        )
    if not 0 <= share < 1:
        raise errors.argument("share", expected="a number in [0, 1)", got=share)
    if horizon is not None and not (isinstance(horizon, int | np.integer) and horizon >= 1):
        raise errors.argument("horizon", expected="a whole number >= 1, or None", got=horizon)
    if not 0 <= exploration < math.inf:
        raise errors.argument("exploration", expected="a finite number >= 0", got=exploration)
    if not 0 < boldness < math.inf:
        raise errors.argument("boldness", expected="a finite number > 0", got=boldness)
