"""From the results of a study to the word that each claim gets: what is measured, one number a seed."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from legato import errors
from legato.lab import claims
from legato.lab.claims import Claim, Judged
from legato.studies.result import Result

Measure: TypeAlias = Callable[[Result, Claim], NDArray[np.float64]]
"""(the comparison that a claim looks at, the claim) -> [S] how much the arm is better than the baseline, a number a seed."""


def claims_of(paper: str) -> tuple[Claim, ...]:
    """The claims of a paper, with those that no run can test."""
    path = Path(str(files("legato.studies") / "claims.toml"))
    return tuple(claim for claim in claims.load(path) if claim.paper == paper)


def claims_for(study: str, paper: str) -> tuple[Claim, ...]:
    """The claims that a study tests; the paper's first study also tells those that no run can test."""
    all_claims = claims_of(paper)
    first = next((claim.study for claim in all_claims if claim.study), "")
    return tuple(claim for claim in all_claims if claim.study == study or (not claim.study and study == first))


def judge(study: str, paper: str, results: Mapping[str, Result]) -> list[Judged]:
    """Give every claim of the paper its verdict, corrected over all of them."""
    asked = claims_for(study, paper)
    measured = {claim.id: _measured(claim, results) for claim in asked if claim.study}
    return claims.judge(asked, measured)


def _measured(claim: Claim, results: Mapping[str, Result]) -> NDArray[np.float64]:
    """[S] the claim's measure, as the mean over the parts that its pattern names."""
    chosen = [result for part, result in results.items() if fnmatchcase(part, claim.part)]
    values = np.array([MEASURES[claim.metric](result, claim) for result in chosen])
    mean: NDArray[np.float64] = values.mean(axis=0)
    return mean


TINY = 1e-12
"""The smallest sharpness that is told from zero."""


def accuracy(result: Result, claim: Claim) -> NDArray[np.float64]:
    """Test accuracy of the arm minus that of the baseline."""
    return _drop(result, claim, "test_error")


def recalibration(result: Result, claim: Claim) -> NDArray[np.float64]:
    """By how much the arm's calibration error falls when its logits are divided by 1 / (2 - tau)."""
    arm, noise = claim.arm, claim.label_noise
    return result.column(noise, arm, "noisy_test_ece") - result.column(noise, arm, "noisy_test_ece_recalibrated")


def matched_accuracy(result: Result, claim: Claim) -> NDArray[np.float64]:
    """Accuracy without attack of the arm's frontier minus the baseline's, at equal accuracy under attack.

    Arm and baseline are beginnings of objectives, such as `trades:` for TRADES at every beta. For each seed, the frontier is the
    piecewise linear curve of accuracy over robust accuracy through the best points of its objectives; the difference is the mean
    over 101 robust accuracies of the range that both frontiers cover.
    """
    ours, theirs = ([a for a in result.plan.arms if a.startswith(name)] for name in (claim.arm, claim.baseline))
    seeds = range(len(result.plan.seeds))
    tables = [_points(result, claim.label_noise, arms) for arms in (ours, theirs)]
    return np.array([_gap(tables[0][:, :, s], tables[1][:, :, s]) for s in seeds])


def _points(result: Result, noise: float, arms: list[str]) -> NDArray[np.float64]:
    """[2, K, S]: robust accuracy and accuracy of K objectives."""
    return np.array(
        [[1 - result.column(noise, arm, key) for arm in arms] for key in ("test_robust_error", "test_error")]
    )


def _gap(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    a, b = frontier(ours), frontier(theirs)
    low, high = max(a[0, 0], b[0, 0]), min(a[0, -1], b[0, -1])
    if (
        low > high
    ):  # one is more robust everywhere: it is compared at its least robust point with the other's most robust one
        low = high
    grid = np.linspace(low, high, 101)
    return float(np.mean(np.interp(grid, *a) - np.interp(grid, *b)))


def frontier(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The points [2, K] (robust, clean) that no other beats in both, by rising robust accuracy."""
    kept = [p for p in points.T if not any((q >= p).all() and (q > p).any() for q in points.T)]
    unique = {tuple(p) for p in kept}
    return np.array(sorted(unique)).T


def _columns(result: Result, claim: Claim, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[S] of the arm and [S] of the baseline."""
    noise = claim.label_noise
    arm, baseline = _arm(result, claim.arm), _arm(result, claim.baseline)
    return result.column(noise, arm, metric), result.column(noise, baseline, metric)


def _arm(result: Result, pattern: str) -> str:
    """The one objective that a claim names; a pattern such as `ce|ce+weight-decay:*` leaves its strength to the tuning."""
    found = [arm for arm in result.plan.arms if matches(arm, pattern)]
    if len(found) != 1:
        raise errors.argument("claim", expected=f"one objective that matches {pattern!r}", got=found or "none")
    return found[0]


def matches(arm: str, pattern: str) -> bool:
    """Whether the objective is one of the patterns between the bars."""
    return any(fnmatchcase(arm, one) for one in pattern.split("|"))


def _drop(result: Result, claim: Claim, metric: str) -> NDArray[np.float64]:
    arm, baseline = _columns(result, claim, metric)
    return baseline - arm


def flatness(metric: str) -> Measure:
    """By how much the logarithm of a sharpness is lower for the arm than for the baseline."""

    def measure(result: Result, claim: Claim) -> NDArray[np.float64]:
        arm, baseline = _columns(result, claim, metric)
        logs: NDArray[np.float64] = np.log(np.maximum(baseline, TINY)) - np.log(np.maximum(arm, TINY))
        return logs

    return measure


def follows(result: Result, claim: Claim) -> NDArray[np.float64]:
    """Rank correlation over the epochs between two curves of the arm, which the claim names as baseline `a ~ b`."""
    from scipy.stats import spearmanr

    names = [name.strip() for name in claim.baseline.split("~")]
    both = _curves(result, claim.arm, claim.label_noise, names)
    return np.array([float(spearmanr(a, b, nan_policy="omit").statistic) for a, b in both])


def largest_fall(result: Result, claim: Claim) -> NDArray[np.float64]:
    """By how much the largest fall of the training loss within one epoch, the first third left out, is smaller for the arm."""
    baseline, arm = (
        np.array([_fall(curve) for (curve,) in _curves(result, name, claim.label_noise, ["rows_loss"])])
        for name in (claim.baseline, claim.arm)
    )
    less: NDArray[np.float64] = baseline - arm
    return less


def _fall(curve: NDArray[np.float64]) -> float:
    late = curve[len(curve) // 3 :]
    return float(np.max(late[:-1] - late[1:]))


def _curves(result: Result, pattern: str, noise: float, names: list[str]) -> list[list[NDArray[np.float64]]]:
    """For each seed the curves with these names."""
    readings = result.readings(noise, _arm(result, pattern))
    return [[np.array(result.metrics(r)["curves"][name], dtype=np.float64) for name in names] for r in readings]


MEASURES: Mapping[str, Measure] = {
    "accuracy": accuracy,
    "robust accuracy": lambda result, claim: _drop(result, claim, "test_robust_error"),
    "accuracy at matched robust accuracy": matched_accuracy,
    "fall of the calibration error": recalibration,
    "flatness": flatness("sharpness_ball"),
    "largest eigenvalue": flatness("sharpness_lambda_max"),
    "rank correlation": follows,
    "largest fall of the loss": largest_fall,
}
