"""A finished comparison, opened from its store: verdict, table, the winning criterion, the page."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legato import errors
from legato.lab.pack import Results, open_results
from legato.lab.statistics import Estimate
from legato.lab.trial import Record
from legato.studies import objectives, summary
from legato.studies.methods import Context
from legato.studies.plan import AnyConfig, Plan, Rates, next_trials, plan_from_json, revive
from legato.studies.summary import ArmRow, Summary
from legato.studies.tasks import Setting, context


@dataclass(frozen=True)
class Best:
    """The objective to train with: its text form, learning rate, criterion and the Python that makes it."""

    objective: str
    learning_rate: float
    context: Context

    @property
    def criterion(self) -> Any:
        """A fresh criterion `(logits, target) -> loss`; an adversarial objective is `(model, inputs, target) -> loss`."""
        return objectives.parse(self.objective).build(self.context)

    @property
    def python(self) -> str:
        """The lines for the user's own loop."""
        spec = objectives.parse(self.objective)
        around = (line if "(..." not in line else f"# {line}" for line in spec.around)
        lines = "\n".join(
            [f"criterion = {spec.python(self.context)}", *around, f"learning_rate = {self.learning_rate:g}"]
        )
        imports = [f"import {name}" for name in ("torch", "legato") if f"{name}." in lines]
        return "\n".join([*imports, lines])


@dataclass(frozen=True, repr=False)
class Result:
    """What a comparison found. Everything is computed from its store."""

    folder: Path
    """Where its page goes."""
    store: Results
    about: Mapping[str, Any]
    plan: Plan
    records: Mapping[AnyConfig, Record]

    def __repr__(self) -> str:
        return f"Result({str(self.folder)!r}, {len(self.records)} trials of {', '.join(self.plan.arms)})"

    @cached_property
    def rates(self) -> Rates:
        """The chosen learning rate of each objective at each level of label noise."""
        return self.plan.choose(self._metrics)

    @cached_property
    def summary(self) -> Summary:
        """The rows of the tables."""
        return summary.summarise(self.plan, self._metrics, self.arrays)

    @cached_property
    def _metrics(self) -> dict[AnyConfig, dict[str, Any]]:
        return {config: record.metrics for config, record in self.records.items()}

    def arrays(self, config: AnyConfig) -> dict[str, Any]:
        """Predictions, confidences and labels of one test reading."""
        return self.store.arrays(self.records[config].key)

    def metrics(self, config: AnyConfig) -> dict[str, Any]:
        """The numbers of one trial."""
        return self.records[config].metrics

    def readings(self, noise: float, arm: str) -> list[Setting]:
        """The trials that read the test set for an arm, one a seed."""
        rate = self.rates[noise, arm]
        return [self.plan.trial(noise, arm, rate, seed, reads_test=True) for seed in self.plan.seeds]

    def column(self, noise: float, arm: str, metric: str) -> NDArray[np.float64]:
        """[S] a metric of an arm's test readings."""
        return np.array([self.metrics(config)[metric] for config in self.readings(noise, arm)], dtype=np.float64)

    @property
    def verdict(self) -> str:
        """One paragraph in plain words."""
        return summary.verdict(self.summary, self.plan.setting.data)

    def best_at(self, label_noise: float) -> Best:
        """The winner at one level of label noise: the baseline, when nothing is sure to beat it."""
        if label_noise not in self.plan.label_noise:
            raise errors.argument("label_noise", expected=f"one of {list(self.plan.label_noise)}", got=label_noise)
        row = self.summary.winner(label_noise)
        return Best(row.arm, row.learning_rate, context(self.plan.setting))

    @property
    def best(self) -> Best:
        """The winner at the first level of label noise that was asked for."""
        return self.best_at(self.plan.label_noise[0])

    def table(self) -> list[dict[str, Any]]:
        """One plain dict a row, ready for `pandas.DataFrame`; `difference` is above 0 where an objective is better than the baseline."""
        return [_plain(row, self.plan.judged_by.name) for row in self.summary.rows]

    def page(self) -> Path:
        """Draw the page from the store and return its path."""
        from legato.lab import page
        from legato.studies import panels

        return page.write(panels.compare_page(self), self.folder)

    @cached_property
    def code(self) -> str:
        """The Python that uses the winner, for each level of label noise."""
        if len({self.best_at(noise).python for noise in self.plan.label_noise}) == 1:
            return self.best.python
        return "\n\n".join(
            f"# {summary.condition(noise, self.plan.judged_by)}\n{self.best_at(noise).python}"
            for noise in self.plan.label_noise
        )

    def __str__(self) -> str:
        return f"{self.verdict}\n\n{self.code}\n\nResults: {self.folder}"


def open_result(path: str | Path) -> Result:
    """Open the folder of a finished comparison, or its pack.

    Raises: StoreError when there is no comparison, or one whose trials are not all there.
    """
    store = open_results(Path(path))
    about = store.read_config()
    if "plan" not in about:
        raise errors.StoreError(f"{path}: holds the study {about['study']}, not a comparison. Fix: legato page {path}.")
    return result_of(store, about, page_folder(Path(path)))


def result_of(store: Results, about: Mapping[str, Any], folder: Path) -> Result:
    """The comparison that `about` describes, from the trials in `store`; its page goes to `folder`.

    Raises: StoreError when trials are missing.
    """
    plan = plan_from_json(about["plan"])
    records = store.records()
    found = {revive(record.config): record for record in records}
    missing = [config for config in next_trials([plan], records) if config not in found]
    if missing:
        raise errors.StoreError(
            f"{folder}: {len(missing)} trials are missing. Fix: run the command that made it again; it finishes the rest."
        )
    return Result(folder, store, about, plan, found)


def page_folder(path: Path) -> Path:
    """Where the page of a run goes: into its folder, or for a pack into the folder beside it that has its name."""
    return path.with_name(path.name.partition(".")[0]) if path.is_file() else path


def _plain(row: ArmRow, score: str) -> dict[str, Any]:
    difference = row.difference.difference if row.difference else None
    return {
        "objective": row.arm,
        "label_noise": row.noise,
        "learning_rate": row.learning_rate,
        **_interval(score, row.value),
        **_interval("accuracy", row.accuracy),
        "difference": difference.mean if difference else 0.0,
        "difference_low": difference.low if difference else 0.0,
        "difference_high": difference.high if difference else 0.0,
        "p_value": row.difference.p_value if row.difference else None,
        "nll_scaled": row.nll_scaled.mean,
        "ece_raw": row.ece_raw.mean,
        "ece_scaled": row.ece_scaled.mean,
        "ece_true_labels": row.ece_true.mean,
        "sensitivity": row.sensitivity.mean if row.sensitivity else None,
        "sensitivity_nll": row.sensitivity_nll.mean if row.sensitivity_nll else None,
        "step_time_ratio": row.step_ratio[0] if row.step_ratio else None,
        "diverged": row.diverged,
    }


def _interval(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
