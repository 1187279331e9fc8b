"""Rates of the three learners with a dilated bonus, and the regret bounds that go with them. The constants are our derived constants.

With H steps, A actions, d features, K episodes and losses in [0, 1] (so that a return lies in [0, H], and ||theta|| <= sqrt(d) H), each
bound is  regularisation + bias of the estimate + bonus = H D / eta + 2 H K gamma d H^2 / beta + 6 beta d H K,  with D the diameter of
the regulariser: A ln K for the log-barrier (up to the smoothing of the comparator), ln A for the entropy. Derivation:
docs/methods/online-mdp.md.
"""

import math
from dataclasses import dataclass

from legato import errors

PRESETS = ("theory", "practical")
BONUS = 0.01  # the bonus of the practical presets, as a share of 10 eta0 H^2 or of H sqrt(gamma): a choice, nothing that is derived


@dataclass(frozen=True)
class Tuning:
    """Rates of a learner, and what they guarantee."""

    eta: float
    """Learning rate, per unit of loss."""
    beta: float
    """Size of the bonus, in units of loss."""
    gamma: float
    """Regulariser of the covariance, no unit."""
    preset: str
    """theory, practical, or own where a rate was given by hand."""
    bound: float | None
    """Largest expected regret after all episodes, with the exact covariance; None where nothing is proved."""
    worst: float
    """H K, which no regret passes."""
    theory: float | None = None
    """For rates without a bound: the bound that the preset theory has here."""

    @property
    def vacuous(self) -> bool:
        """Whether the bound says nothing that is not known before."""
        return self.bound is None or self.bound >= self.worst

    def __str__(self) -> str:
        rates = f"preset {self.preset} (eta {self.eta:.3g}, beta {self.beta:.3g}, gamma {self.gamma:.3g})"
        if self.bound is not None:
            judged = "vacuous: " if self.vacuous else ""
            return f"{rates}: regret <= {self.bound:.3g} ({judged}no regret passes {self.worst:.3g})"
        if self.theory is None:
            return f"{rates}: no bound is proved"
        judged = "vacuous" if self.theory >= self.worst else "not vacuous"
        return f"{rates}: no bound is proved for these rates; preset theory has {self.theory:.3g}, which is {judged} (no regret passes {self.worst:.3g})"


def log_barrier_rates(horizon: int, actions: int, features: int, episodes: int, *, preset: str, rate: float) -> Tuning:
    """Log-barrier with plain estimates.

    theory: eta = sqrt(A ln K / (72 d H^4 K)), beta = 8 eta H^2, gamma = 96 eta^2 H^4; regret <= 2 sqrt(72 A d H^6 K ln K).
    practical: eta0 = sqrt(A ln K / (d H^4 K)), eta = rate eta0, beta = 0.1 eta0 H^2, gamma = eta0^2 H^4.
    """
    return _root_of_k(horizon, features, episodes, actions * math.log(max(episodes, 2)), preset=preset, rate=rate)


def magnitude_reduced_rates(
    horizon: int, actions: int, features: int, episodes: int, *, preset: str, rate: float
) -> Tuning:
    """Entropy with magnitude-reduced estimates: the rates of the log-barrier, with ln A in place of A ln K."""
    return _root_of_k(horizon, features, episodes, math.log(max(actions, 2)), preset=preset, rate=rate)


def _root_of_k(horizon: int, features: int, episodes: int, diameter: float, *, preset: str, rate: float) -> Tuning:
    _check(preset, episodes, rate)
    h, d, k = horizon, features, episodes
    bound = 2 * math.sqrt(72 * diameter * d * h**6 * k)
    if preset == "theory":
        eta = math.sqrt(diameter / (72 * d * h**4 * k))
        return Tuning(eta, 8 * eta * h**2, 96 * eta**2 * h**4, preset, bound, h * k)
    base = math.sqrt(diameter / (d * h**4 * k))
    return Tuning(rate * base, BONUS * 10 * base * h**2, base**2 * h**4, preset, None, h * k, bound)


def luo_rates(horizon: int, actions: int, features: int, episodes: int, *, preset: str, rate: float) -> Tuning:
    """Entropy with plain estimates, the tuning of Luo, Wei and Lee for K^(2/3).

    theory: gamma = (ln A / (d K))^(2/3), eta = gamma / (2 H), beta = H sqrt(gamma); regret <= 10 H^2 (d K)^(2/3) (ln A)^(1/3), proved
    where sqrt(gamma) <= 1 / (2 e H^2).
    practical: gamma as there, eta = rate gamma / (2 H), beta = 0.01 H sqrt(gamma).
    """
    _check(preset, episodes, rate)
    h, d, k, log = horizon, features, episodes, math.log(max(actions, 2))
    gamma = (log / (d * k)) ** (2 / 3)
    proved = math.sqrt(gamma) <= 1 / (2 * math.e * h**2)
    bound = 10 * h**2 * (d * k) ** (2 / 3) * log ** (1 / 3) if proved else None
    if preset == "theory":
        return Tuning(gamma / (2 * h), h * math.sqrt(gamma), gamma, preset, bound, h * k)
    return Tuning(rate * gamma / (2 * h), BONUS * h * math.sqrt(gamma), gamma, preset, None, h * k, bound)


def _check(preset: str, episodes: int, rate: float) -> None:
    if preset not in PRESETS:
        raise errors.choice("preset", preset, PRESETS)
    if episodes < 1:
        raise errors.argument(
            "episodes", expected="a whole number >= 1", got=episodes, fix="for an unknown number, use Doubling"
        )
    if not 0 < rate < math.inf:
        raise errors.argument("rate", expected="a number > 0", got=rate)
