"""`legato compare`: run the comparison and print what it found."""

import sys
from collections.abc import Callable, Mapping
from typing import TypeAlias

from rich import box
from rich.console import Console
from rich.table import Table

from legato.lab.statistics import Estimate
from legato.studies import compare, summary
from legato.studies.config import CompareConfig
from legato.studies.result import Result
from legato.studies.score import Score
from legato.studies.summary import ArmRow

Columns: TypeAlias = Mapping[str, Callable[[ArmRow], str]]

LEGENDS = {
    "accuracy": (
        "Accuracy is on the test set's true labels; intervals are 95%. NLL is at a temperature fitted on validation labels. ECE is the "
        "calibration error against labels with the noise of training: raw, scaled with that temperature, and raw against the true labels. "
        "Sens.: mean validation error over the learning rates above that of the best one. Step: time of a step, relative.\n"
    ),
    "loss": (
        "Nats a byte: cross-entropy on test text at a temperature fitted on validation text, raw in the second table; intervals are 95%. "
        "ECE is the calibration error of the next byte, raw and scaled with that temperature. Sens.: mean validation loss over the learning "
        "rates above that of the best one. Step: time of a step, relative.\n"
    ),
}
"""By the name of the score."""


def run(config: CompareConfig) -> None:
    """Everything the command does."""
    if config.dry_run:
        _estimate(config)
        return
    result = compare.run(config)
    console, score = Console(), result.plan.judged_by
    for noise in result.plan.label_noise:
        title = f"{result.plan.setting.data}, {summary.condition(noise, score)}"
        console.print(_table(result, noise, ranked(score), title), _table(result, noise, BESIDE[score.name]))
        for reference in result.summary.references:
            if reference.noise == noise:
                console.print(f"{reference.name}: {reference.accuracy.text(100, 1)} % accuracy\n", highlight=False)
    console.print(LEGENDS[score.name], highlight=False)
    console.print(result.verdict, style="bold", highlight=False)
    console.print(f"\n{result.code}\n", highlight=False, markup=False)
    print(f"page: {result.page()}")


def _estimate(config: CompareConfig) -> None:
    plan, size = compare.estimate(config)
    print(f"{size.trials} trials: {len(plan.label_noise)} noise levels x {len(plan.arms)} objectives x {len(plan.seeds)} seeds "
          f"x ({len(plan.learning_rates)} learning rates + 1 test reading)")  # fmt: skip
    print(
        f"about {size.minutes:.1f} minutes with {compare.workers_of(config.workers)} workers, {size.megabytes:.1f} MB in {compare.folder_of(config)}"
    )
    for note in plan.notes:
        print(note, file=sys.stderr)


def _table(result: Result, noise: float, columns: Columns, title: str = "") -> Table:
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    rows = result.summary.at(noise)
    shown = {name: [show(row) for row in rows] for name, show in columns.items()}
    kept = {name: cells for name, cells in shown.items() if any(cells)}
    for name in kept:
        words = name == "objective"  # only words may be broken, numbers never
        table.add_column(name, justify="left" if words else "right", no_wrap=not words, min_width=12 if words else None)
    for cells in zip(*kept.values(), strict=True):
        table.add_row(*cells)
    return table


def ranked(score: Score) -> Columns:
    """What was reached."""
    return {
        "objective": lambda row: row.label,
        "rate": lambda row: f"{row.learning_rate:g}",
        score.heading: lambda row: score.text(row.value),
        "under attack %": lambda row: row.robust.text(100, 1) if row.robust else "",
        score.gain: lambda row: score.text(row.difference.difference) if row.difference else "baseline",
        "p (Holm)": lambda row: f"{row.difference.p_value:.2g}" if row.difference else "",
    }


def _mean(estimate: Estimate | None) -> str:
    return f"{estimate.mean:.3f}" if estimate else ""


COST: Columns = {
    "step": lambda row: f"{row.step_ratio[0]:.2f}x" if row.step_ratio else "",
    "diverged": lambda row: str(row.diverged or ""),
}
BESIDE: Mapping[str, Columns] = {
    "accuracy": {
        "objective": lambda row: row.label,
        "NLL": lambda row: _mean(row.nll_scaled),
        "ECE": lambda row: _mean(row.ece_raw),
        "scaled": lambda row: _mean(row.ece_scaled),
        "true": lambda row: _mean(row.ece_true) if row.noise else "",
        "sens.": lambda row: _mean(row.sensitivity),
        **COST,
    },
    "loss": {
        "objective": lambda row: row.label,
        "accuracy %": lambda row: f"{100 * row.accuracy.mean:.1f}",
        "raw": lambda row: _mean(row.nll_raw),
        "ECE": lambda row: _mean(row.ece_raw),
        "scaled": lambda row: _mean(row.ece_scaled),
        "sens.": lambda row: _mean(row.sensitivity_nll),
        **COST,
    },
}
"""By the name of the score."""
