"""The sections of the page of `legato study online`: a table for each part, and figures where sizes are compared."""

from collections.abc import Sequence

import numpy as np

from legato.lab import palette, plots
from legato.lab.page import Cell, Figure, Panel, Table
from legato.lab.plots import Line
from legato.lab.statistics import Estimate, t_interval
from legato.lab.trial import Record
from legato.online.regret import Interval, slope
from legato.studies.online_costs import UNIFORM
from legato.studies.online_trials import PARTS, SPREAD, TUNING, Numbers, Part, values_of

Row = tuple[str, float]
"""An arm and its rate."""
Size = tuple[int, int]

WORDS = {
    "growth": "Regret against the best fixed policy in hindsight, in random linear processes whose losses jump from phase to phase. A learner is tuned to the "
    "number of episodes by its formula; the factor on its rate was chosen once. What is flat in the figure grows like the square root.",
    "actions": "The same with one step and more and more actions. Processes differ with the number of actions, so only learners with equal numbers compare.",
    "covariance": "Log-barrier; 200 draws a step and episode for the covariance, or the exact one. Regret.",
    "inverse": "Relative error of (gamma I + Sigma)^-1 at gamma = 0.01 in operator norm; the number of episodes is that of the samples.",
    "one-hot": "Largest difference in regret between magnitude-reduced and plain estimates where features are one-hot: nothing but rounding.",
    "simulator-free": "Regret of the experimental learner, which sees neither the dynamics nor a simulator: averaging or Matrix Geometric Resampling of "
    "the same episodes.",
    "gains, by theory": "The bandit of the next section; rates are those with the smallest bound for losses of that size, and nothing is tuned.",
    "gains": "Regret of a bandit whose losses are 0 and -1. Only the mixed learner is forced to explore.",
    "spikes": "The same with 20 arms that gain 10 in at most one round of twenty.",
    "battery, once": "Regret against the best fixed policy, in units of loss. Demand for power stands for the price; an environment is an order of the same days. Hedge and the controllers see all costs "
    "afterwards, the others their own path. Below 0 is better than any fixed policy.",
    "battery, twenty times": "The same days twenty times over.",
}  # fmt: skip


def panels(records: Sequence[Record]) -> list[Panel]:
    """One section for each part that has records."""
    shown = []
    for name, part in PARTS.items():
        mine = [record for record in records if record.config["part"] == name]
        if mine:
            tuned = f"{WORDS[name]} Rates: {settings(part)}."
            shown.append(Panel(part.title, tuned, figures=_figures(name, mine), tables=(_table(name, mine),)))
    return shown


def settings(part: Part) -> str:
    """How many settings each arm of a part has had."""
    if not part.arms:
        return "nothing to tune"
    told = "; ".join(f"{arm} {', '.join(f'{rate:g}' for rate in part.rates(arm))}" for arm in part.arms)
    episodes, actions = part.tuned_at
    return (
        f"{len(SPREAD)} for each arm ({told}), tried on {len(TUNING)} other environments with {episodes:,} episodes and {actions} actions; the best on "
        "average was kept"
    )


def _rows(records: Sequence[Record]) -> list[Row]:
    part = PARTS[records[0].config["part"]]
    order = [*part.arms, *part.fixed]
    rows = {(r.config["arm"], r.config["rate"]) for r in records}
    return sorted(rows, key=lambda row: (order.index(row[0]), row[1]))


def _sizes(records: Sequence[Record]) -> list[Size]:
    return sorted({(r.config["episodes"], r.config["actions"]) for r in records})


def _table(name: str, records: Sequence[Record]) -> Table:
    sizes, rows = _sizes(records), []
    by_actions = len({actions for _, actions in sizes}) > 1
    for arm, rate in _rows(records):
        found = [values_of(records, name, arm, size, rate) for size in sizes]
        tried = PARTS[name].rates(arm) if rate else ()
        edge = rate in tried[:1] + tried[-1:]
        line = [Cell(arm), Cell(f"{rate:g}{' (edge)' if edge else ''}" if rate else "", rate)]
        for values in found:
            estimate = t_interval(values) if len(values) else None
            line.append(Cell(_text(estimate), estimate.mean) if estimate else Cell(""))
        told = _slope(name, sizes, found)
        line.append(Cell(f"{told:.2f}", told.value) if told else Cell(""))
        rows.append(tuple(line))
    columns = [f"{actions} actions" if by_actions else f"{episodes:,}" for episodes, actions in sizes]
    caption = "Mean over the environments and its 95% interval; smaller is better. Slope: of the logarithms over the last tenfold of episodes."
    return Table(("arm", "rate", *columns, "slope"), tuple(rows), caption)


def _slope(name: str, sizes: Sequence[Size], values: Sequence[Numbers]) -> Interval | None:
    """Of log(mean regret) over the sizes of the last tenfold; None where there are no two, or a regret that is not positive."""
    late = [place for place, (episodes, _) in enumerate(sizes) if 10 * episodes >= sizes[-1][0]]
    if name != "growth" or len(late) < 2 or any(not len(values[place]) for place in late):
        return None
    curves = np.stack([values[place] for place in late], 1)
    return slope(np.array([sizes[place][0] for place in late]), curves) if (curves.mean(0) > 0).all() else None


def _figures(name: str, records: Sequence[Record]) -> tuple[Figure, ...]:
    sizes, rows = _sizes(records), [row for row in _rows(records) if row[0] != UNIFORM]  # which is far above all others
    if name not in ("growth", "actions") or len(sizes) < 2 or len({arm for arm, _ in rows}) < len(rows):
        return ()
    across = "episodes" if name == "growth" else "actions"
    at = [float(size[across == "actions"]) for size in sizes]
    lines = []
    for arm, rate in rows:
        each = [t_interval(values_of(records, name, arm, size, rate) / np.sqrt(size[0])) for size in sizes]
        mean, low, high = (np.array([getattr(e, end) for e in each]) for end in ("mean", "low", "high"))
        lines.append(Line(arm, arm, at, mean, low, high))
    figure = plots.lines(
        f"online-{name}", {"regret / sqrt(episodes)": lines}, palette.colours([arm for arm, _ in rows]), xlabel=across, logarithmic=True,
        alt=f"Regret over the square root of the number of episodes, against {across}", caption="Mean over the environments with its 95% interval.",
    )  # fmt: skip
    return (figure,)


def _text(estimate: Estimate) -> str:
    digits = 0 if abs(estimate.mean) >= 100 else 1 if abs(estimate.mean) >= 10 else 3
    return estimate.text(digits=digits) if abs(estimate.mean) >= 1e-3 or estimate.mean == 0 else f"{estimate.mean:.1e}"
