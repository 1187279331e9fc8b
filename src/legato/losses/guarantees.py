r"""What an excess of a comp-sum loss guarantees about the error rate, in closed form: H-consistency bounds.

Phi_tau(u) = ((1+u)^(1-tau) - 1)/(1-tau), log(1+u) at tau = 1, is the loss of a sample with u = 1/p - 1 (p its softmax). For every
distribution, and every set H of models that is symmetric (closed under permuting the scores) and complete (scores take all values),

    R01(h) - R01*(H) + M01(H)  <=  Gamma( R_tau(h) - R_tau*(H) + M_tau(H) ),        Gamma = T^-1,

R being expected losses, R* their infimum over H, and M = R* - E_x inf_h C(h, x) the minimizability gaps, C(h, x) being the
expected loss given x. The R* cancel: on the left stands R01(h) minus Bayes' error, on the right Gamma of R_tau(h) - E_x C*(x) with
C* from `conditional_infimum`. These are bounds on the excess error, not on the error.
Source: Mao, Mohri, Zhong 2023, arXiv 2304.07288; the forms used here are derived in docs/methods/guarantees.md.
"""

import math
from typing import TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from legato import errors
from legato.losses.arguments import is_number

Floats = NDArray[np.float64]
Numbers = TypeVar("Numbers", float, NDArray[np.float64])

NEAR_ONE = 0.25
"""Where |tau - 1| is at most this, the transform is integrated and not subtracted."""

NODES, WEIGHTS = (np.asarray(part) for part in np.polynomial.legendre.leggauss(12))


def phi(u: Numbers, tau: float) -> Numbers:
    """The comp-sum loss Phi_tau of a sample whose softmax is 1/(1 + u) at its label.

    Args:
        u: >= 0, a float or an array.
        tau: >= 0.
    Returns: a float or an array of the same shape, >= 0; 1-Lipschitz, rising and concave in u, at most 1/(tau - 1) for tau > 1.
    Raises: LegatoValueError for a tau or u out of range or NaN.
    """
    _check_tau(tau)
    return like(u, _expm1_over(np.log1p(not_negative("u", u)), 1 - tau))


def transform(b: Numbers, tau: float, n: int) -> Numbers:
    r"""T(b), the surrogate excess that an error excess of b costs at least; the inverse of `error_bound`.

    A(b) = ( ((1+b)^(1/(2-tau)) + (1-b)^(1/(2-tau))) / 2 )^(2-tau)
    tau < 1:      2^(1-tau)/(1-tau) (1 - A(b))                  tau = 1:   (1+b)/2 log(1+b) + (1-b)/2 log(1-b)
    1 < tau < 2:  (A(b) - 1) / ((tau-1) n^(tau-1))              tau >= 2:  b / ((tau-1) n^(tau-1))

    With d = atanh(b) and c = 2 - tau, log A = c log cosh(d/c) - log cosh(d), which needs no power of 1 + b or 1 - b; near tau = 1 it is
    integrated over c, so that nothing cancels there. T is convex, rises from T(0) = 0, and is continuous in tau.

    Args:
        b: in [0, 1], a float or an array.
        tau: >= 0.
        n: >= 2, the number of classes; it counts for tau > 1 alone.
    Returns: a float or an array of the same shape, in the unit of the loss (nats at tau = 1); relative error about 1e-13.
    Raises: LegatoValueError for an argument out of range or NaN.
    """
    check(tau, n)
    return like(b, _transform(shares("b", b), tau, n))


def error_bound(excess: Numbers, tau: float, n: int) -> Numbers:
    """Gamma(excess), the largest excess of the error rate that a surrogate excess (with its gap) allows; the inverse of `transform`.

    Args:
        excess: >= 0, a float or an array; R_tau(h) - R_tau*(H) + M_tau(H), in nats at tau = 1.
        tau: >= 0.
        n: >= 2 classes.
    Returns: in [0, 1], a float or an array of the same shape; 1 for an excess of T(1) and more.
    Raises: LegatoValueError for an argument out of range or NaN.
    """
    check(tau, n)
    t = not_negative("excess", excess)
    return like(excess, np.minimum(1.0, t * _linear(tau, n)) if tau >= 2 else _inverse(t, tau, n))


def explicit_error_bound(excess: Numbers, tau: float, n: int) -> Numbers:
    """A bound for the back of an envelope; never below `error_bound`.

    tau < 1: sqrt(2^tau (2-tau) t).   1 <= tau < 2: sqrt(2 n^(tau-1) t).   tau >= 2: (tau-1) n^(tau-1) t.
    A form with a further factor 2-tau in the root for 1 < tau < 2 is false: it lies below what is attained.

    Args, Returns, Raises: as in `error_bound`.
    """
    check(tau, n)
    t = not_negative("excess", excess)
    return like(excess, np.minimum(1.0, _explicit(t, tau, n)))


def conditional_infimum(p: ArrayLike, tau: float) -> Floats:
    """C*(p), the least expected loss at a point where the classes have the probabilities p, over all scores.

    tau < 2: ((sum_y p_y^(1/(2-tau)))^(2-tau) - 1)/(1-tau), at tau = 1 the entropy.   tau >= 2: (1 - max_y p_y)/(tau-1).
    For tau < 2 it is reached where softmax(h) is proportional to p^(1/(2-tau)).

    Args:
        p: [..., n], >= 0, each row of sum 1 within 1e-6.
        tau: >= 0.
    Returns: [...], in nats at tau = 1.
    Raises: LegatoValueError for rows that are no probabilities, and for a tau out of range.
    """
    _check_tau(tau)
    rows = np.asarray(p, dtype=np.float64)
    if rows.ndim == 0 or not (np.all(rows >= 0) and np.all(np.abs(rows.sum(-1) - 1) < 1e-6)):
        raise errors.argument("p", expected="rows of probabilities, each of sum 1", got="others", fix="p / p.sum(-1)")
    if tau >= 2:
        return np.asarray((1 - rows.max(-1)) / (tau - 1))
    logs = np.log(np.where(rows > 0, rows, 1.0))
    power = 1 / (2 - tau)
    if abs(tau - 1) <= NEAR_ONE:  # log sum p^power as the log of 1 + something small
        weighted = rows * _expm1_over(logs, (tau - 1) / (2 - tau))
        slope = (
            np.log1p((tau - 1) / (2 - tau) * weighted.sum(-1)) * (2 - tau) / (1 - tau)
            if tau != 1
            else -weighted.sum(-1)
        )
    else:
        top = rows.max(-1, keepdims=True)
        scaled = ((rows / top) ** power).sum(-1)
        slope = (np.log(top[..., 0]) + (2 - tau) * np.log(scaled)) / (1 - tau)
    return np.asarray(_expm1_over(slope, 1 - tau))


def best_risk_symmetric_noise(tau: float, n: int, rate: float) -> float:
    """The least surrogate risk that any model can have when a share `rate` of the labels is flipped to any other class.

    It is C* of (1 - rate, rate/(n-1), ..., rate/(n-1)): E_x C*(x) where the clean label follows from x, and a lower bound on E_x C*(x)
    where it does not, because C* is concave. So it can stand as `best_risk` in `certificate`.

    Args:
        tau: >= 0.
        n: >= 2 classes.
        rate: in [0, 1], the probability that a label is replaced by another class, all others being equally likely.
    Raises: LegatoValueError for an argument out of range or NaN.
    """
    check(tau, n)
    share = float(shares("rate", rate))
    p = np.full(n, share / (n - 1))
    p[0] = 1 - share
    return float(conditional_infimum(p, tau))


def bounded_infimum(tau: float, n: int, bound: float) -> float:
    """Phi_tau((n-1) e^(-2 bound)): the least loss of a sample when all scores lie in [-bound, bound].

    Args:
        tau: >= 0.
        n: >= 2 classes.
        bound: >= 0; math.inf gives 0.
    Raises: LegatoValueError for an argument out of range or NaN.
    """
    check(tau, n)
    largest = float(not_negative("bound", bound))
    return phi(float((n - 1) * np.exp(-2 * largest)), tau)


def gap_complete(best_sum_exponential: float, mean_infimum: float, tau: float) -> float:
    """At most this large is the minimizability gap M_tau(H) of a complete H: Phi_tau(R_0*(H)) - E_x C*(x), by Jensen.

    Args:
        best_sum_exponential: R_0*(H) >= 0, the best risk of the sum-exponential loss, tau = 0.
        mean_infimum: E_x C*(x) at tau, the mean of `conditional_infimum`.
        tau: >= 0.
    Raises: LegatoValueError for a best risk that no model can have, and for arguments out of range.
    """
    _check_tau(tau)
    gap = phi(best_sum_exponential, tau) - float(not_negative("mean_infimum", mean_infimum))
    if gap < -1e-12:
        raise errors.argument(
            "best_sum_exponential", expected=f"a risk whose Phi_tau is at least mean_infimum = {mean_infimum:g}",
            got=f"{best_sum_exponential:g}, whose Phi_tau is {phi(best_sum_exponential, tau):g}",
            fix="no model is that good: both must be of the same distribution, and the risk of tau = 0",
        )  # fmt: skip
    return max(gap, 0.0)


def gap_bounded(best_sum_exponential: float, tau: float, n: int, bound: float) -> float:
    """The same where x decides the label and the scores lie in [-bound, bound]: Phi_tau(R_0*(H)) - Phi_tau((n-1) e^(-2 bound)).

    It falls as tau grows.

    Args:
        best_sum_exponential: R_0*(H), at least (n-1) e^(-2 bound).
        tau: >= 0.
        n: >= 2 classes.
        bound: >= 0, of the scores.
    Raises: LegatoValueError as `gap_complete`.
    """
    return gap_complete(best_sum_exponential, bounded_infimum(tau, n, bound), tau)


def check(tau: float, n: int) -> None:
    """The parameters of a bound.

    Raises: LegatoValueError for a tau that is not >= 0, or fewer than 2 classes.
    """
    _check_tau(tau)
    if not (isinstance(n, int | np.integer) and n >= 2):
        raise errors.argument("n", expected="a whole number of classes >= 2", got=n)


def not_negative(name: str, value: ArrayLike) -> Floats:
    """As an array. Raises: LegatoValueError for anything below 0, and for NaN."""
    values = np.asarray(value, dtype=np.float64)
    if not np.all(values >= 0):
        fix = "a risk below the best one: is the best risk a lower bound?" if name == "excess" else ""
        raise errors.argument(name, expected="numbers >= 0", got=_first(values, values >= 0), fix=fix)
    return values


def shares(name: str, value: ArrayLike) -> Floats:
    """As an array. Raises: LegatoValueError for anything outside [0, 1], and for NaN."""
    values = np.asarray(value, dtype=np.float64)
    inside = (values >= 0) & (values <= 1)
    if not inside.all():
        raise errors.argument(name, expected="numbers in [0, 1]", got=_first(values, inside))
    return values


def like(given: Numbers, result: Floats) -> Numbers:
    """An array for an array, a plain float for a plain number."""
    return cast(Numbers, float(result) if np.ndim(given) == 0 else np.asarray(result))


def _check_tau(tau: float) -> None:
    if not (is_number(tau) and tau >= 0):
        raise errors.argument("tau", expected="a plain finite number >= 0", got=tau, fix="tau=1.0 is cross-entropy")


def _first(values: Floats, fine: NDArray[np.bool_]) -> float:
    return float(values[~fine].flat[0]) if values.ndim else float(values)


def _linear(tau: float, n: int) -> float:
    """(tau-1) n^(tau-1), the power held below 10^300: no excess but 0 is worth anything long before."""
    return float((tau - 1) * float(n) ** min(tau - 1, 690 / math.log(n)))


def _explicit(t: Floats, tau: float, n: int) -> Floats:
    if tau >= 2:
        return t * _linear(tau, n)
    return np.sqrt(t * (2**tau * (2 - tau) if tau < 1 else 2 * float(n) ** (tau - 1)))


def _transform(b: Floats, tau: float, n: int) -> Floats:
    if tau >= 2:
        return b / _linear(tau, n)
    scale = (2.0 if tau < 1 else float(n)) ** (1 - tau)
    with np.errstate(divide="ignore"):
        d = np.arctanh(b)
    return np.asarray(scale * _expm1_over(_slope(d, tau), tau - 1))


def _inverse(t: Floats, tau: float, n: int) -> Floats:
    """By bisection of log b between a chord and the explicit form, of which T makes the one too small and the other too large."""
    most = float(_transform(np.asarray(1.0), tau, n))
    inside = (t > 0) & (t < most)
    low = np.where(inside, t, most) / most
    high = np.where(inside, np.minimum(1.0, _explicit(t, tau, n)), 1.0)
    for _ in range(64):  # to the last bit: the two are at most 10^155 apart
        middle = np.sqrt(low) * np.sqrt(high)
        above = _transform(middle, tau, n) > t
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.where(inside, high, np.where(t > 0, 1.0, 0.0))


def _expm1_over(x: Floats, power: float) -> Floats:
    """(e^(power x) - 1) / power, which is x at power 0."""
    return x if power == 0 else np.asarray(np.expm1(power * x) / power)


def _slope(d: Floats, tau: float) -> Floats:
    """log A / (tau - 1) at b = tanh(d), for tau < 2.

    log A = c l(d/c) - l(d) with l = log cosh and c = 2 - tau. The derivative of c l(d/c) in c is -k(d/c) with k(y) = y tanh(y) - l(y) > 0,
    so that the slope is also the mean of k(d/u) over u in [c, 1], a mean of positive numbers; at tau = 1 it is k(d).
    """
    c = 2 - tau
    if abs(tau - 1) <= NEAR_ONE:
        u = 0.5 * ((1 + c) + (1 - c) * NODES)
        return np.asarray((0.5 * WEIGHTS * _k(d[..., None] / u)).sum(-1))
    small, large = np.minimum(d, 1.0), np.maximum(d, 1.0)
    log_a = np.where(
        d < 1,
        c * _log_cosh(small / c) - _log_cosh(small),
        c * _below_line(large / c) - _below_line(large),  # log cosh(y) - y, for the lines cancel
    )
    return np.asarray(log_a / (tau - 1))


def _log_cosh(y: Floats) -> Floats:
    near = np.minimum(y, 1.0)
    return np.where(y < 1, np.log1p(2 * np.sinh(near / 2) ** 2), y + _below_line(y))


def _below_line(y: Floats) -> Floats:
    """The distance of log cosh(y) from the line y, from 0 to -log 2."""
    return np.asarray(np.log1p(np.exp(-2 * y)) - np.log(2.0))


def _k(y: Floats) -> Floats:
    """The k of `_slope`, from 0 to log 2."""
    near, far = np.minimum(y, 1.0), np.clip(y, 1.0, 350.0)  # beyond 350 nothing changes, and inf would give NaN
    small = near * np.tanh(near) - np.log1p(2 * np.sinh(near / 2) ** 2)
    return np.asarray(np.where(y < 1, small, -2 * far / (np.exp(2 * far) + 1) - _below_line(far)))
