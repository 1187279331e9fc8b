"""The grid of a comparison: every objective x learning rate x seed x label noise, then one test reading per chosen arm and seed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from legato import errors
from legato.lab.trial import Record
from legato.studies import objectives
from legato.studies.classify import TrialConfig
from legato.studies.cost import CostConfig
from legato.studies.language import LanguageConfig
from legato.studies.references import ReferenceConfig
from legato.studies.score import Score
from legato.studies.tasks import Setting, task_of

AnyConfig: TypeAlias = Setting | CostConfig | ReferenceConfig
Results: TypeAlias = Mapping[AnyConfig, Mapping[str, Any]]
Rates: TypeAlias = Mapping[tuple[float, str], float]
"""(label noise, objective) -> learning rate."""


@dataclass(frozen=True)
class Plan:
    """What a comparison is going to measure."""

    setting: Setting
    """The template of all trials; objective, learning rate, seed and label noise are put in."""
    arms: tuple[str, ...]
    """Canonical objectives; the first is the baseline."""
    label_noise: tuple[float, ...]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    select_by: str = "error"
    fixed_rates: tuple[tuple[float, str, float], ...] = ()
    """(label noise, objective, learning rate) chosen earlier on other seeds; then nothing is tuned here."""
    reads_test: bool = True
    """False stops after tuning."""
    references: tuple[str, ...] = ()
    """Models without an objective."""
    notes: tuple[str, ...] = ()
    """What was trimmed, said in words."""

    @property
    def baseline(self) -> str:
        """The arm that all others are compared with."""
        return self.arms[0]

    @property
    def judged_by(self) -> Score:
        """What the arms are ranked by."""
        return task_of(self.setting).score

    def trial(self, noise: float, arm: str, rate: float, seed: int, *, reads_test: bool = False) -> Setting:
        """The config of one cell of the grid."""
        cell = replace(self.setting, objective=arm, learning_rate=rate, seed=seed, reads_test=reads_test)
        if isinstance(cell, LanguageConfig):  # the page shows what was watched at the chosen rates alone
            return cell if reads_test else replace(cell, watch_every=0)
        keeps_model = cell.keeps_model and reads_test and seed == self.seeds[0]
        return replace(cell, label_noise=noise, keeps_model=keeps_model)

    def grid(self) -> list[Setting]:
        """The tuning trials, seed by seed, so that an interrupted run holds whole seeds; none if the rates are fixed."""
        if self.fixed_rates:
            return []
        return [
            self.trial(noise, arm, rate, seed)
            for seed in self.seeds
            for noise in self.label_noise
            for arm in self.arms
            for rate in self.learning_rates
        ]

    def readings(self, rates: Rates) -> list[Setting]:
        """The trials that read the test set: one for each chosen arm and seed."""
        return [
            self.trial(noise, arm, rates[noise, arm], seed, reads_test=True)
            for seed in self.seeds
            for noise in self.label_noise
            for arm in self.arms
        ]

    def reference(self, noise: float, name: str, seed: int) -> ReferenceConfig:
        """The config of a reference model."""
        setting = self.setting
        assert isinstance(setting, TrialConfig)  # other tasks have no references
        return ReferenceConfig(
            setting.data,
            setting.data_sha256,
            name,
            seed,
            noise,
            setting.noise_kind,
            setting.validation_labels,
            setting.train_rows,
        )

    def reference_trials(self) -> list[ReferenceConfig]:
        """One for each reference, noise level and seed."""
        return [
            self.reference(n, name, seed) for seed in self.seeds for n in self.label_noise for name in self.references
        ]

    def cost(self) -> CostConfig:
        """The measurement of step times, at a rate and seed that do not matter."""
        return CostConfig(replace(self.setting, learning_rate=self.learning_rates[0], seed=self.seeds[0]), self.arms)

    def choose(self, results: "Results") -> Rates:
        """For each noise level and arm, the rate with the best mean over seeds on validation data; ties go to the other criterion.

        The criteria are the same for all arms, never an arm's own loss.
        """
        if self.fixed_rates:
            return {(noise, arm): rate for noise, arm, rate in self.fixed_rates}
        return {
            (noise, arm): min(self.learning_rates, key=lambda rate: self.score(results, noise, arm, rate))
            for noise in self.label_noise
            for arm in self.arms
        }

    def score(self, results: "Results", noise: float, arm: str, rate: float) -> tuple[float, float]:
        """What a setting is chosen by, the smaller the better: the means over seeds of both criteria on validation data."""
        first, second = {
            "error": ("error", "nll_scaled"),
            "nll": ("nll_scaled", "error"),
            "robust-error": ("robust_error", "error"),
        }[self.select_by]
        rows = [results[self.trial(noise, arm, rate, seed)] for seed in self.seeds]
        means = (float(np.mean([row[f"validation_{key}"] for row in rows])) for key in (first, second))
        return round(next(means), 12), round(next(means), 12)

    def trainings(self, done: "Results") -> list[Setting | ReferenceConfig]:
        """All trainings that can be named now: the grid and, once it is done, the readings of the chosen rates and the references."""
        grid = self.grid()
        if not self.reads_test or not all(config in done for config in grid):
            return [*grid]
        return [*grid, *self.readings(self.choose(done)), *self.reference_trials()]


def next_trials(plans: Sequence[Plan], records: Sequence[Record]) -> list[AnyConfig]:
    """The trials of several comparisons that can be named now; costs come last, each alone, so that nothing disturbs the clock."""
    done = index(records)
    trainings = [config for plan in plans for config in plan.trainings(done)]
    if not all(config in done for config in trainings):
        return list(trainings)
    costs = [plan.cost() for plan in plans if plan.reads_test]
    measured = [cost for cost in costs if cost in done]
    return [*trainings, *measured, *[cost for cost in costs if cost not in done][:1]]


def index(records: Sequence[Record]) -> dict[AnyConfig, dict[str, Any]]:
    """Metrics by config."""
    return {revive(record.config): record.metrics for record in records}


def revive(fields: Mapping[str, Any]) -> AnyConfig:
    """The config that a stored record was made from."""
    if "arms" in fields:
        return CostConfig(_setting(fields["setting"]), tuple(fields["arms"]))
    if "reference" in fields:
        return ReferenceConfig(**fields)
    return _setting(fields)


def _setting(fields: Mapping[str, Any]) -> Setting:
    if "steps" in fields:
        return LanguageConfig(**{**fields, "probe_steps": tuple(fields["probe_steps"])})
    return TrialConfig(**fields)


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Plain data from which `plan_from_json` makes the same plan."""
    return asdict(plan)


def plan_from_json(fields: Mapping[str, Any]) -> Plan:
    """The plan of a stored run, so that its page can be drawn again without the data."""
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    plain["fixed_rates"] = tuple(tuple(row) for row in fields["fixed_rates"])
    return Plan(**{**plain, "setting": _setting(fields["setting"])})


def order_arms(texts: Sequence[str]) -> tuple[str, ...]:
    """Canonical objectives without repetition; `ce`, where it is among them, comes first since it is the baseline."""
    if not texts:
        raise errors.argument(
            "objectives", expected="one or more objectives", got="none", fix="--objectives ce comp-sum:1.7"
        )
    arms = dict.fromkeys(str(objectives.parse(text)) for text in texts)
    return tuple(sorted(arms, key=lambda arm: arm != "ce"))


def trim(plan: Plan, seconds_a_trial: float, workers: int, minutes: float) -> Plan:
    """Cut seeds, then learning rates, until the plan fits `minutes`; what was cut is added to the plan's notes.

    At least 3 seeds and then 2 rates stay, since fewer cannot give an interval or a choice.
    """

    def minutes_of(candidate: Plan) -> float:
        cells = len(candidate.label_noise) * len(candidate.arms) * len(candidate.seeds)
        return cells * (len(candidate.learning_rates) + 1) * seconds_a_trial / workers / 60

    small = plan
    while minutes_of(small) > minutes and len(small.seeds) > 3:
        small = replace(small, seeds=small.seeds[:-1])
    while minutes_of(small) > minutes and len(small.learning_rates) > 2:
        small = replace(small, learning_rates=small.learning_rates[1:])
    if small == plan:
        return plan
    note = (
        f"trimmed to fit {minutes:g} minutes: {len(small.seeds)} of {len(plan.seeds)} seeds, "
        f"{len(small.learning_rates)} of {len(plan.learning_rates)} learning rates"
    )
    return replace(small, notes=(*plan.notes, note))
