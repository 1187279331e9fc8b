"""The tables of a comparison's page: what was reached, and what it costs and is worth beside that."""

from collections.abc import Callable, Mapping

from legato.lab.page import Cell, Table
from legato.lab.statistics import Estimate
from legato.studies import objectives
from legato.studies.result import Result
from legato.studies.score import Score
from legato.studies.summary import ArmRow, condition

Columns = Mapping[str, Callable[[ArmRow], Cell]]
NONE = Cell("", None)


def tables(result: Result, colours: Mapping[str, str]) -> tuple[Table, ...]:
    """Two tables for each level of label noise."""
    score = result.plan.judged_by
    return tuple(
        table
        for noise in result.plan.label_noise
        for table in (
            _table(result, noise, colours, ranked(score), _caption(result, noise)),
            _table(result, noise, colours, BESIDE[score.name], "Probabilities, sensitivity and cost"),
        )
    )


def _caption(result: Result, noise: float) -> str:
    words = condition(noise, result.plan.judged_by)
    base = objectives.parse(result.plan.baseline).label
    beside = [
        f"{row.name}: {row.accuracy.text(100, 1)} % accuracy, {row.difference.text(100, 1)} points more than {base}"
        for row in result.summary.references
        if row.noise == noise
    ]
    return ". ".join([words[0].upper() + words[1:], *beside])


def _table(result: Result, noise: float, colours: Mapping[str, str], columns: Columns, caption: str) -> Table:
    """The columns in which any row has something to say."""
    rows = result.summary.at(noise)
    filled = {name: [show(row) for row in rows] for name, show in columns.items()}
    kept = {name: cells for name, cells in filled.items() if any(cell.text for cell in cells)}
    return Table(tuple(kept), tuple(zip(*kept.values(), strict=True)), caption, tuple(colours[row.arm] for row in rows))


def _percent(estimate: Estimate | None) -> Cell:
    return Cell(estimate.text(100, 1), estimate.mean) if estimate else NONE


def _mean(estimate: Estimate | None) -> Cell:
    return Cell(f"{estimate.mean:.3f}", estimate.mean) if estimate else NONE


def ranked(score: Score) -> Columns:
    """What was reached."""
    shown = score.text

    def difference(row: ArmRow) -> Cell:
        found = row.difference.difference if row.difference else None
        return Cell(shown(found), found.mean) if found else Cell("baseline", 0.0)

    def over_items(row: ArmRow) -> Cell:
        found, digits = row.over_items, score.digits
        if found is None:
            return NONE
        return Cell(f"[{score.scale * found.low:.{digits}f}, {score.scale * found.high:.{digits}f}]", found.low)

    return {
        "objective": lambda row: Cell(row.label),
        "rate": lambda row: Cell(f"{row.learning_rate:g}", row.learning_rate),
        score.heading: lambda row: Cell(shown(row.value), row.value.mean),
        "under attack %": lambda row: _percent(row.robust),
        score.gain: difference,
        "over items": over_items,
        "p (Holm)": lambda row: (
            Cell(f"{row.difference.p_value:.2g}", row.difference.p_value) if row.difference else NONE
        ),
    }


COST: Columns = {
    "step": lambda row: Cell(f"{row.step_ratio[0]:.2f}x", row.step_ratio[0]) if row.step_ratio else NONE,
    "diverged": lambda row: Cell(str(row.diverged), row.diverged) if row.diverged else NONE,
}
BESIDE: Mapping[str, Columns] = {
    "accuracy": {
        "objective": lambda row: Cell(row.label),
        "NLL": lambda row: _mean(row.nll_scaled),
        "ECE raw": lambda row: _mean(row.ece_raw),
        "scaled": lambda row: _mean(row.ece_scaled),
        "true labels": lambda row: _mean(row.ece_true) if row.noise else NONE,
        "sensitivity": lambda row: _mean(row.sensitivity),
        "of NLL": lambda row: _mean(row.sensitivity_nll),
        **COST,
    },
    "loss": {
        "objective": lambda row: Cell(row.label),
        "accuracy %": lambda row: _percent(row.accuracy),
        "nats raw": lambda row: _mean(row.nll_raw),
        "ECE raw": lambda row: _mean(row.ece_raw),
        "scaled": lambda row: _mean(row.ece_scaled),
        "sensitivity": lambda row: _mean(row.sensitivity_nll),
        "of error": lambda row: _mean(row.sensitivity),
        **COST,
    },
}
"""By the name of the score."""
