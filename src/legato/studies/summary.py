"""From the records of a comparison to its rows and its verdict in words. Everything here can be computed again from the store."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from legato.lab import statistics
from legato.lab.statistics import Comparison, Estimate
from legato.stability.sensitivity import lr_sensitivity
from legato.studies import objectives
from legato.studies.plan import Plan, Rates, Results
from legato.studies.score import ACCURACY, Score
from legato.studies.tasks import Setting

ReadArrays = Callable[[Setting], dict[str, NDArray[np.generic]]]


@dataclass(frozen=True)
class ArmRow:
    """All numbers of one objective at one level of label noise. Shares are of one, not percent."""

    arm: str
    noise: float
    learning_rate: float
    tried: int
    """Learning rates tried; 0 when the rate was chosen earlier on other seeds."""
    diverged: int
    value: Estimate
    """What the arms are ranked by, in its own unit."""
    accuracy: Estimate
    difference: Comparison | None
    """By how much that value is better than the baseline's, paired over seeds; None for the baseline."""
    over_items: Estimate | None
    """The same difference with seeds and test items drawn again."""
    nll_raw: Estimate
    nll_scaled: Estimate
    """Against labels with the noise of training, as the temperature was fitted on such."""
    ece_raw: Estimate
    ece_scaled: Estimate
    ece_true: Estimate
    """Raw, against the true labels."""
    sensitivity: Estimate | None
    """Mean over the grid of (validation error, clipped at a guess) minus the best; None where nothing was tuned here."""
    sensitivity_nll: Estimate | None
    step_ratio: tuple[float, float, float] | None
    """Time of a step over the baseline's: median, low, high."""
    robust: Estimate | None = None
    """Accuracy under attack, where one was measured."""
    at_edge: bool = False
    """Whether the chosen learning rate is the smallest or largest that was tried, so that a better one may lie beyond."""

    @property
    def label(self) -> str:
        """The objective for people."""
        return objectives.parse(self.arm).label


@dataclass(frozen=True)
class ReferenceRow:
    """A model without an objective; the difference is to the baseline, uncorrected, since it is not one of the arms."""

    name: str
    noise: float
    accuracy: Estimate
    difference: Estimate


@dataclass(frozen=True)
class Summary:
    """The rows of a comparison, baseline first, by level of label noise."""

    plan: Plan
    rates: Rates
    rows: tuple[ArmRow, ...]
    references: tuple[ReferenceRow, ...] = ()

    def at(self, noise: float) -> tuple[ArmRow, ...]:
        """The rows of one level of label noise."""
        return tuple(row for row in self.rows if row.noise == noise)

    def winner(self, noise: float) -> ArmRow:
        """The arm that beats the baseline by most; the baseline itself when none is sure to beat it."""
        baseline, *others = self.at(noise)
        better = [row for row in others if row.difference and row.difference.verdict == "shows"]
        return max(better, key=lambda row: self.plan.judged_by.sign * row.value.mean, default=baseline)


def summarise(plan: Plan, results: Results, arrays: ReadArrays) -> Summary:
    """Rows in the order of noise levels and arms."""
    rates = plan.choose(results)
    rows = [row for noise in plan.label_noise for row in _rows(plan, results, arrays, rates, noise)]
    references = tuple(
        _reference(plan, results, rates, noise, name) for noise in plan.label_noise for name in plan.references
    )
    return Summary(plan, rates, tuple(rows), references)


def _reference(plan: Plan, results: Results, rates: Rates, noise: float, name: str) -> ReferenceRow:
    errors_ = np.array([results[plan.reference(noise, name, seed)]["test_error"] for seed in plan.seeds])
    base = [plan.trial(noise, plan.baseline, rates[noise, plan.baseline], s, reads_test=True) for s in plan.seeds]
    theirs = _column(results, base, "test_error")
    return ReferenceRow(name, noise, statistics.t_interval(1 - errors_), statistics.t_interval(theirs - errors_))


def _rows(plan: Plan, results: Results, arrays: ReadArrays, rates: Rates, noise: float) -> list[ArmRow]:
    readings = {
        arm: [plan.trial(noise, arm, rates[noise, arm], s, reads_test=True) for s in plan.seeds] for arm in plan.arms
    }
    score = plan.judged_by
    values = {arm: score.value(_column(results, configs, f"test_{score.key}")) for arm, configs in readings.items()}
    merits = {arm: score.sign * found for arm, found in values.items()}
    others = {arm: merits[arm] for arm in plan.arms[1:]}
    compared = {row.arm: row for row in statistics.compare_arms(merits[plan.baseline], others)} if others else {}
    items = {arm: score.sign * _items(score, arrays, configs) for arm, configs in readings.items()}
    ratio = results[plan.cost()]["ratio"] if plan.cost() in results else {}
    return [
        ArmRow(
            arm=arm,
            noise=noise,
            learning_rate=rates[noise, arm],
            tried=0 if plan.fixed_rates else len(plan.learning_rates),
            diverged=sum(results[c]["diverged"] is not None for c in (*_tuning(plan, noise, arm), *configs)),
            value=statistics.t_interval(values[arm]),
            accuracy=statistics.t_interval(1 - _column(results, configs, "test_error")),
            difference=compared.get(arm),
            over_items=statistics.two_way_bootstrap(items[arm] - items[plan.baseline]) if arm in compared else None,
            nll_raw=statistics.t_interval(_column(results, configs, "noisy_test_nll")),
            nll_scaled=statistics.t_interval(_column(results, configs, "noisy_test_nll_scaled")),
            ece_raw=statistics.t_interval(_column(results, configs, "noisy_test_ece")),
            ece_scaled=statistics.t_interval(_column(results, configs, "noisy_test_ece_scaled")),
            ece_true=statistics.t_interval(_column(results, configs, "test_ece")),
            sensitivity=_sensitivity(plan, results, noise, arm, "validation_error"),
            sensitivity_nll=_sensitivity(plan, results, noise, arm, "validation_nll_scaled"),
            step_ratio=tuple(ratio[arm]) if arm in ratio else None,
            robust=_robust(results, configs),
            at_edge=not plan.fixed_rates
            and len(plan.learning_rates) > 2
            and rates[noise, arm] in (min(plan.learning_rates), max(plan.learning_rates)),
        )
        for arm, configs in readings.items()
    ]


def _column(results: Results, configs: Sequence[Setting], key: str) -> NDArray[np.float64]:
    return np.array([results[config][key] for config in configs], dtype=np.float64)


def _robust(results: Results, configs: Sequence[Setting]) -> Estimate | None:
    if "test_robust_error" not in results[configs[0]]:
        return None
    return statistics.t_interval(1 - _column(results, configs, "test_robust_error"))


def _items(score: Score, arrays: ReadArrays, configs: Sequence[Setting]) -> NDArray[np.float64]:
    """[S, N] the score of each test item."""
    return np.stack([score.items(arrays(config)) for config in configs])


def _tuning(plan: Plan, noise: float, arm: str) -> list[Setting]:
    """The trials that chose the arm's rate; none if the rates are fixed."""
    rates = () if plan.fixed_rates else plan.learning_rates
    return [plan.trial(noise, arm, rate, seed) for seed in plan.seeds for rate in rates]


def _sensitivity(plan: Plan, results: Results, noise: float, arm: str, key: str) -> Estimate | None:
    """Learning-rate sensitivity, one number a seed; a run that does worse than a guess counts as one."""
    if plan.fixed_rates or len(plan.learning_rates) < 2:
        return None
    values = np.array([[results[plan.trial(noise, arm, r, s)][key] for r in plan.learning_rates] for s in plan.seeds])
    guess = [results[plan.trial(noise, arm, plan.learning_rates[0], s)][f"guess_{key}"] for s in plan.seeds]
    return statistics.t_interval(lr_sensitivity(plan.learning_rates, values, guess))


def verdict(summary: Summary, name: str) -> str:
    """One paragraph. Its first sentence gives the result at every level of label noise, whichever way it came out."""
    plan = summary.plan
    clauses = [f"{condition(noise, plan.judged_by)} {_outcome(summary, noise)}" for noise in plan.label_noise]
    first = "; ".join(clauses)
    tuned = (
        "learning rates as chosen before on other seeds"
        if plan.fixed_rates
        else f"each objective at the best of {len(plan.learning_rates)} learning rates by validation {plan.select_by}"
    )
    how = f"{name}, {plan.setting.model}, {len(plan.seeds)} seeds, {tuned}; intervals are 95%, corrected for {max(1, len(plan.arms) - 1)} comparisons."
    notes = [*plan.notes, *_edges(summary)]
    return " ".join([_capital(first) + ".", f"Measured on {how}", *(f"{_capital(note)}." for note in notes)])


def _edges(summary: Summary) -> list[str]:
    """A warning for objectives whose best rate was the last of the grid."""
    arms = dict.fromkeys(row.label for row in summary.rows if row.at_edge)
    if not arms:
        return []
    return [
        f"the best learning rate of {', '.join(arms)} is at the edge of the grid: a wider --learning-rates may change this"
    ]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def condition(noise: float, score: Score = ACCURACY) -> str:
    """The words for a level of label noise."""
    return f"with {noise:.0%} of the training labels corrupted" if noise else score.clean


def _outcome(summary: Summary, noise: float) -> str:
    baseline, *others = summary.at(noise)
    score = summary.plan.judged_by
    if not others:
        return f"{baseline.label} reaches {score.text(baseline.value)} {score.reached}"
    better = [row for row in others if row.difference and row.difference.difference.low > 0]
    worse = [row for row in others if row.difference and row.difference.difference.high < 0]
    parts = [f"{row.label} beats {baseline.label} by {_gain(score, row)}" for row in better]
    parts += [f"{row.label} loses to {baseline.label} by {_gain(score, row, -1)}" for row in worse]
    undecided = [row for row in others if row not in better and row not in worse]
    if undecided and not parts:
        listed = ", ".join(f"{row.label} {_gain(score, row, signed=True)}" for row in undecided)
        return f"no difference to {baseline.label} can be told from chance ({listed})"
    if undecided:
        parts.append("the rest is undecided" if len(undecided) == 1 else "the rest are undecided")
    return ", ".join(parts)


def _gain(score: Score, row: ArmRow, sign: int = 1, signed: bool = False) -> str:
    assert row.difference is not None  # only called for arms that were compared
    d = row.difference.difference
    scale, digits = score.scale * sign, score.digits
    mean, low, high = scale * d.mean, *sorted((scale * d.low, scale * d.high))
    return f"{mean:{'+' if signed else ''}.{digits}f} {score.unit} [{low:.{digits}f}, {high:.{digits}f}]"
