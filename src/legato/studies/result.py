"""A finished comparison, opened from its store: verdict, table, the winning criterion, the page."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legato import errors
from legato.lab.store import Store, read_config
from legato.studies import objectives, summary
from legato.studies.plan import AnyConfig, Plan, index, next_trials, plan_from_json
from legato.studies.summary import ArmRow, Summary

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Best:
    """The objective to train with: its text form, learning rate, criterion and the Python that makes it."""

    objective: str
    learning_rate: float
    epochs: int

    @property
    def criterion(self) -> "nn.Module":
        """A fresh criterion `(logits, target) -> loss`."""
        return objectives.parse(self.objective).build(self.epochs)

    @property
    def python(self) -> str:
        """The lines for the user's own loop."""
        lines = f"criterion = {objectives.parse(self.objective).python}\nlearning_rate = {self.learning_rate:g}"
        return f"import {'legato' if 'legato.' in lines else 'torch'}\n{lines}"


@dataclass(frozen=True)
class Result:
    """What a comparison found. Everything is computed from the files in `folder`."""

    folder: Path
    store: Any
    about: Mapping[str, Any]
    plan: Plan
    summary: Summary
    keys: Mapping[AnyConfig, str]

    def arrays(self, config: AnyConfig) -> dict[str, Any]:
        """Predictions, confidences and labels of one test reading."""
        arrays: dict[str, Any] = self.store.arrays(self.keys[config])
        return arrays

    @property
    def verdict(self) -> str:
        """One paragraph in plain words."""
        return summary.verdict(self.summary, self.plan.setting.data)

    def best_at(self, label_noise: float) -> Best:
        """The winner at one level of label noise: the baseline, when nothing is sure to beat it."""
        if label_noise not in self.plan.label_noise:
            raise errors.argument("label_noise", expected=f"one of {list(self.plan.label_noise)}", got=label_noise)
        row = self.summary.winner(label_noise)
        return Best(row.arm, row.learning_rate, self.plan.setting.epochs)

    @property
    def best(self) -> Best:
        """The winner at the first level of label noise that was asked for."""
        return self.best_at(self.plan.label_noise[0])

    def table(self) -> list[dict[str, Any]]:
        """One plain dict a row, ready for `pandas.DataFrame`."""
        return [_plain(row) for row in self.summary.rows]

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
        return "\n".join(
            f"# {summary.condition(noise)}\n{self.best_at(noise).python}" for noise in self.plan.label_noise
        )

    def __str__(self) -> str:
        return f"{self.verdict}\n\n{self.code}\n\nResults: {self.folder}"


def open_result(path: str | Path) -> Result:
    """Open the folder of a finished comparison, or its pack.

    Raises: StoreError when the folder holds no comparison, or one whose trials are not all there.
    """
    about = read_config(Path(path))
    store = Store(path, about["study"], about["schema"])
    plan = plan_from_json(about["plan"])
    records = store.records()
    results = index(records)
    missing = [config for config in next_trials([plan], records) if config not in results]
    if missing:
        raise errors.StoreError(
            f"{path}: {len(missing)} trials are missing. Fix: run the command that made it again; it finishes the rest."
        )
    keys = {config: record.key for config, record in zip(results, records, strict=True)}
    done = summary.summarise(plan, results, lambda config: store.arrays(keys[config]))
    return Result(Path(path), store, about, plan, done, keys)


def _plain(row: ArmRow) -> dict[str, Any]:
    difference = row.difference.difference if row.difference else None
    return {
        "objective": row.arm,
        "label_noise": row.noise,
        "learning_rate": row.learning_rate,
        "accuracy": row.accuracy.mean,
        "accuracy_low": row.accuracy.low,
        "accuracy_high": row.accuracy.high,
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
