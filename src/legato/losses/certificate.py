"""From scores on data of its own to a statement on the error that holds with a given confidence."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from legato import errors
from legato.losses.arguments import check_indices, check_logits, check_range, is_number
from legato.losses.comp_sum import comp_sum_loss
from legato.losses.guarantees import check, error_bound
from legato.losses.tight_guarantees import tight_error_bound

UNBOUNDED = (
    "the loss has no upper limit for tau <= 1, so no finite sample bounds its mean: only tau > 1 has a surrogate bound"
)
NO_BEST_RISK = (
    "no lower bound on the best surrogate risk was given, and with 0 in its place the surrogate bound cannot be the smaller one, "
    "since every error costs at least Phi_tau(1) and the transform is convex"
)


@dataclass(frozen=True)
class Certificate:
    """What is sure, with probability `confidence`, about the error rate; `str` says it in words. Shares are of one, not percent."""

    tau: float
    classes: int
    samples: int
    mistakes: int
    """Samples whose largest score is not at their label."""
    confidence: float
    """The probability, over the drawing of the samples, that all statements here hold together."""
    error_upper: float
    """The error rate is at most this: Clopper and Pearson's one-sided bound."""
    best_error: float
    """What was given as a lower bound on the error rate of the best classifier, Bayes'."""
    risk: float
    """The mean comp-sum loss of the samples."""
    best_risk: float | None
    """What was given as a lower bound on the best risk."""
    risk_upper: float | None
    """The risk is at most this; None where there is no surrogate bound."""
    surrogate_excess: float | None
    """The error rate is at most this above Bayes', by the surrogate; None where there is no surrogate bound."""
    reason: str = ""
    """Why there is no surrogate bound."""

    @property
    def direct_excess(self) -> float:
        """The error rate is at most this above Bayes', by counting: error_upper - best_error."""
        return max(self.error_upper - self.best_error, 0.0)

    @property
    def tighter(self) -> Literal["surrogate", "direct"]:
        """The statement on the excess that says more."""
        by_surrogate = self.surrogate_excess is not None and self.surrogate_excess < self.direct_excess
        return "surrogate" if by_surrogate else "direct"

    @property
    def excess(self) -> float:
        """The smaller of the two bounds on the error above Bayes'."""
        return min(self.direct_excess, math.inf if self.surrogate_excess is None else self.surrogate_excess)

    def __str__(self) -> str:
        lines = [
            f"With confidence {100 * self.confidence:g}%, from {self.samples} samples of {self.classes} classes that the model has not seen:",
            f"  counting:  the error is at most {self.error_upper:.4g} ({self.mistakes} mistakes, Clopper-Pearson), and so at most "
            f"{self.direct_excess:.4g} above the best classifier, whose error is at least {self.best_error:.4g}.",
        ]
        if self.surrogate_excess is None:
            lines.append(f"  surrogate: none; {self.reason}.")
        else:
            lines.append(
                f"  surrogate: the comp-sum risk at tau={self.tau:g} is at most {self.risk_upper:.4g} (mean {self.risk:.4g}) and at best "
                f"{self.best_risk:.4g}, and so the error is at most {self.surrogate_excess:.4g} above the best classifier."
            )
        lines.append(f"  tighter:   {'the surrogate' if self.tighter == 'surrogate' else 'counting'}.")
        return "\n".join(lines)


def certificate(
    logits: Tensor,
    target: Tensor,
    tau: float,
    best_risk: float | None = None,
    confidence: float = 0.95,
    *,
    best_error: float = 0.0,
    tight: bool = False,
) -> Certificate:
    r"""Bound the error rate of a model from its scores on a split that nothing was chosen by: no training, no early stop, no tau.

    The samples must be independent draws of the distribution that the statement is about, and `target` its labels, with their noise.

    Counting. The number of mistakes is binomial, so R01(h) <= U01 of Clopper and Pearson, and R01(h) - R01* <= U01 - best_error, with
    R01* the error of the best classifier of all, Bayes', and any best_error <= R01*.

    Surrogate. The bound of a complete symmetric H reads R01(h) - R01*(H) + M01(H) <= Gamma(R_tau(h) - R_tau*(H) + M_tau(H)). The gap
    M_tau(H) = R_tau*(H) - E_x C*(x) takes R_tau*(H) away again, and M01(H) = R01*(H) - R01* likewise, so that it says

        R01(h) - R01*  <=  Gamma( R_tau(h) - E_x C*(x) )  <=  Gamma( U_tau - best_risk ),

    gap included, for any best_risk <= E_x C*(x) and R_tau(h) <= U_tau. It needs nothing of the model but its scores. U_tau is the
    bound of Chernoff and Hoeffding for means of [0, 1]: with B = 1/(tau-1), which no loss exceeds, m samples and the mean r, the
    largest u with kl(r/B, u/B) <= log(1/delta)/m, kl being the relative entropy of two coins. It needs tau > 1: for tau <= 1 the loss
    has no upper limit.

    Without best_risk the surrogate bound cannot win. A mistake has p <= 1/2 and costs at least Phi_tau(1), so with 0 for best_risk the
    argument of Gamma is at least Phi_tau(1) times the share of mistakes, and T(b) <= b T(1) <= b Phi_tau(1). And whoever knows R01*
    itself, as for symmetric noise, should give it as best_error: since T(R01(h) - R01*) <= R_tau(h) - E_x C*(x) for every model,
    counting then wins on large samples.

    Where both bounds are made, each has half of 1 - confidence, so that they hold together and the smaller one may be taken.

    Args:
        logits: [B, C], B >= 1 and C >= 2.
        target: [B] int64; no row is ignored.
        tau: >= 0, of the loss that bounds the error; it need not be that of the training.
        best_risk: a lower bound on E_x C*(x), such as `best_risk_symmetric_noise`.
        confidence: in (0, 1).
        best_error: in [0, 1], a lower bound on Bayes' error.
        tight: take `tight_error_bound`, which is ours, for Gamma.
    Raises: LegatoValueError for an argument out of range, and where U_tau < best_risk, which has at most the probability
        1 - confidence unless best_risk is too large.
    Source: Clopper and Pearson 1934, Biometrika 26; Hoeffding 1963, theorem 1; Mao, Mohri, Zhong 2023, arXiv 2304.07288.
    """
    _check(logits, target, confidence, best_error)
    classes = logits.shape[1]
    check(tau, classes)
    check_range(target, classes, ignore_index=-1 - classes)
    scores = logits.detach().cpu().double()  # on the processor, for some devices have no float64
    labels = target.cpu()
    samples, mistakes = len(labels), int((scores.argmax(1) != labels).sum())
    risk = float(comp_sum_loss(scores, labels, tau))
    reason = UNBOUNDED if tau <= 1 else NO_BEST_RISK if best_risk is None else ""
    delta = (1 - confidence) / (1 if reason else 2)
    risk_upper = None if reason else upper_mean(risk * (tau - 1), samples, delta) / (tau - 1)
    return Certificate(
        tau=tau, classes=classes, samples=samples, mistakes=mistakes, confidence=confidence,
        error_upper=upper_share(mistakes, samples, delta), best_error=best_error,
        risk=risk, best_risk=best_risk, risk_upper=risk_upper,
        surrogate_excess=_surrogate(risk_upper, best_risk, tau, classes, tight), reason=reason,
    )  # fmt: skip


def upper_share(mistakes: int, samples: int, delta: float) -> float:
    """Clopper and Pearson's bound: the p at which `mistakes` or fewer of `samples` have the probability delta; 1 if all are mistakes."""
    from scipy.special import betaincinv

    return 1.0 if mistakes == samples else float(betaincinv(mistakes + 1, samples - mistakes, 1 - delta))


def upper_mean(mean: float, samples: int, delta: float) -> float:
    """Chernoff and Hoeffding's bound on the expectation of numbers in [0, 1]: the u >= mean with kl(mean, u) = log(1/delta)/samples."""
    from scipy.optimize import brentq

    limit = math.log(1 / delta) / samples
    most = 1 - 1e-15
    if mean >= most or _kl(mean, most) <= limit:
        return 1.0
    return float(brentq(lambda u: _kl(mean, u) - limit, mean, most, xtol=1e-15))


def _kl(a: float, b: float) -> float:
    first = a * math.log(a / b) if a > 0 else 0.0
    return first + ((1 - a) * math.log((1 - a) / (1 - b)) if a < 1 else 0.0)


def _surrogate(
    risk_upper: float | None, best_risk: float | None, tau: float, classes: int, tight: bool
) -> float | None:
    if risk_upper is None or best_risk is None:
        return None
    if not (is_number(best_risk) and 0 <= best_risk <= risk_upper):
        raise errors.argument(
            "best_risk", expected=f"a number in [0, {risk_upper:.4g}], the model's own risk being at most that", got=best_risk,
            fix="is it a lower bound for these labels: the same tau, classes and noise",
        )  # fmt: skip
    return (tight_error_bound if tight else error_bound)(risk_upper - best_risk, tau, classes)


def _check(logits: Tensor, target: Tensor, confidence: float, best_error: float) -> None:
    check_logits(logits)
    if logits.dim() != 2 or len(logits) == 0:
        raise errors.argument("logits", expected="shape [B, C] with B >= 1", got=f"shape {list(logits.shape)}")
    check_indices(logits, target)
    if not bool(logits.isfinite().all()):
        raise errors.argument("logits", expected="finite scores", got="NaN or infinite ones")
    if not (is_number(confidence) and 0 < confidence < 1):
        raise errors.argument("confidence", expected="a number in (0, 1)", got=confidence, fix="0.95 is 95%")
    if not (is_number(best_error) and 0 <= best_error <= 1):
        raise errors.argument("best_error", expected="a number in [0, 1]", got=best_error)
