"""The page of a sweep, drawn like the paper's figures: loss against learning rate, sensitivity and cliff against size."""

import math

import numpy as np
from numpy.typing import NDArray

from legato.errors import LegatoValueError
from legato.lab import palette, plots
from legato.lab.page import Cell, Figure, Page, Panel, Table
from legato.lab.plots import Line
from legato.lab.statistics import Estimate, t_interval
from legato.stability.forecast import Forecast
from legato.stability.sensitivity import width_within
from legato.studies.sweep_runs import CLIFF, Sweep

Array = NDArray[np.float64]
NEAR = 0.1
"""Nats from the best loss within which losses are called similar."""
DECADES = f"decades within {NEAR:g}"
AHEAD = 10.0
"""How many times the largest size the cliff is extrapolated to in the figure."""


def sweep_page(sweep: Sweep, title: str, method: tuple[tuple[str, str], ...]) -> Page:
    """The whole page."""
    panels = (*loss_panels(sweep), sensitivity_panel(sweep), cliff_panel(sweep), *statistic_panels(sweep), lost_panel(sweep))  # fmt: skip
    return Page(
        title=title,
        verdict=verdict(sweep),
        figure=loss_figure(sweep),
        tables=(sensitivity_table(sweep),),
        code="",
        panels=tuple(panel for panel in panels if panel is not None),
        method=method,
    )


def verdict(sweep: Sweep) -> str:
    """How the sensitivity of each arm compares at the largest size, and what to be warned of."""
    size = sweep.sizes[-1]
    curves = {arm: sweep.curve(arm, size) for arm in sweep.arms}
    told = [f"{arm} {text(curve.interval())}" for arm, curve in curves.items()]
    found = {arm: curve.sensitivity() for arm, curve in curves.items()}
    notes = [f"{arm}: {note}" for arm, sensitivity in found.items() if sensitivity for note in sensitivity.notes]
    words = f"Learning-rate sensitivity at {size} (N = {number(sweep.parameters[-1])}), lower is steadier: {', '.join(told)}."
    return " ".join([words, *(f"{note}." for note in dict.fromkeys(notes))])


def text(interval: Estimate | None) -> str:
    """A mean with its t interval; the mean alone for one seed."""
    if interval is None:
        return "no run learned"
    return interval.text() if interval.count > 1 else f"{interval.mean:.3f} (one seed)"


def number(size: float) -> str:
    """A count of parameters for people: 24.6 k, 2.36 M."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:g}"


def loss_figure(sweep: Sweep, name: str = "loss") -> Figure:
    """Loss against learning rate, a panel an arm, a line a size; lost runs count as the initial loss."""
    colours = palette.colours(sweep.sizes)

    def line(arm: str, size: str) -> Line:
        curve = sweep.curve(arm, size)
        table = curve.clipped
        return Line(size, size, curve.learning_rates, *band(table), marked=curve.learning_rates[int(table.mean(0).argmin())])  # fmt: skip

    panels = {arm: [line(arm, size) for size in sweep.sizes] for arm in sweep.arms[:3]}  # a figure has room for three
    return plots.lines(
        name, panels, colours, xlabel="learning rate", logarithmic=True,
        alt="Validation loss against learning rate for each size",
        caption="Mean over seeds with its 95% t interval; a run that was lost counts as the initial loss; the dot is the best rate.",
    )  # fmt: skip


def loss_panels(sweep: Sweep) -> list[Panel]:
    """The same for each size, a line an arm."""
    colours = palette.colours(sweep.arms, sweep.arms[0])

    def line(arm: str, size: str) -> Line:
        curve = sweep.curve(arm, size)
        return Line(arm, arm, curve.learning_rates, *band(curve.clipped))

    figure = plots.lines(
        "loss-by-arm", {size: [line(arm, size) for arm in sweep.arms] for size in sweep.sizes[-2:]}, colours,
        xlabel="learning rate", logarithmic=True, alt="Validation loss against learning rate for each arm",
    )  # fmt: skip
    return [Panel("Which arm bears which learning rate?", "The largest sizes; mean over seeds.", (figure,))]


def sensitivity_table(sweep: Sweep) -> Table:
    """S, upper-side S, the best rate and the width of the valley of each arm and size."""
    rows = [_row(sweep, arm, size) for size in sweep.sizes for arm in sweep.arms]
    columns = ("arm", "size", "N", "S", "upper-side S", "best rate", DECADES, "best loss", "lost")
    rates = ", ".join(f"{rate:g}" for rate in sweep.learning_rates)
    caption = f"Sensitivity over the rates {rates}, with t intervals over seeds; upper-side S is over the rates from the best one upwards."
    return Table(columns, tuple(rows), caption)


def _row(sweep: Sweep, arm: str, size: str) -> tuple[Cell, ...]:
    curve = sweep.curve(arm, size)
    whole, upper = curve.interval(), curve.interval(upper=True)
    best = curve.learning_rates[int(curve.clipped.mean(0).argmin())]
    wide = width_within(curve.learning_rates, curve.losses, curve.initial, NEAR) if curve.learned else np.zeros(1)
    return (
        Cell(arm), Cell(size), Cell(number(curve.parameters), curve.parameters),
        Cell(text(whole), whole.mean if whole else None), Cell(text(upper), upper.mean if upper else None), Cell(f"{best:g}", best),
        Cell(f"{wide.mean():.2f}", float(wide.mean())), Cell(f"{curve.clipped.mean(0).min():.3f}", float(curve.clipped.mean(0).min())),
        Cell(f"{curve.lost} of {curve.losses.size}", curve.lost),
    )  # fmt: skip


def sensitivity_panel(sweep: Sweep) -> Panel | None:
    """S and upper-side S against N; None for a single size, or where an arm did not learn."""
    if len(sweep.sizes) < 2 or not all(sweep.curve(a, n).learned for a in sweep.arms for n in sweep.sizes):
        return None
    colours = palette.colours(sweep.arms, sweep.arms[0])

    def line(arm: str, upper: bool) -> Line:
        found = [sweep.curve(arm, size).interval(upper=upper) for size in sweep.sizes]
        rows = np.array([_ends(e) for e in found if e is not None])
        return Line(arm, arm, sweep.parameters, *rows.T)

    panels = {title: [line(arm, upper) for arm in sweep.arms] for title, upper in (("S", False), ("upper-side S", True))}  # fmt: skip
    figure = plots.lines(
        "sensitivity", panels, colours, xlabel="parameters N", logarithmic=True,
        alt="Learning-rate sensitivity against the number of parameters for each arm",
    )  # fmt: skip
    words = (
        "Mean over seeds with its 95% t interval. Short trainings make S large at low rates too, whatever the arm; "
        "upper-side S leaves that out."
    )
    return Panel("Does sensitivity grow with size?", words, (figure,))


def _ends(e: Estimate) -> tuple[float, float, float]:
    return (e.mean, e.low, e.high) if e.count > 1 else (e.mean, e.mean, e.mean)


def cliff_panel(sweep: Sweep) -> Panel:
    """The first unstable rate against N, extrapolated; a table, and a figure where there are enough sizes."""
    rows, lines, notes = [], [], []
    for arm in sweep.arms:
        cliffs = np.array([[sweep.cliff(arm, size, seed) for seed in sweep.seeds] for size in sweep.sizes])
        rows += [_cliff_row(arm, size, values) for size, values in zip(sweep.sizes, cliffs, strict=True)]
        try:
            target = AHEAD * max(sweep.parameters)
            lines.append(_forecast_line(arm, sweep, sweep.foresee(CLIFF, arm, target)))
        except LegatoValueError as problem:
            notes.append(f"{arm}: no extrapolation ({problem})")
    table = Table(("arm", "size", "first unstable rate", "from", "to", "seeds without one"), tuple(rows))
    words = (
        f"The smallest rate above the best one whose run ends more than {sweep.margin:g} above the best loss of its seed, or is lost. "
        f"Medians over seeds. Lines are fits on log-log axes up to {AHEAD:g} times the largest size, with 80% prediction intervals of one run. "
    )
    figures = () if not lines else (_cliff_figure(sweep, lines),)
    return Panel("Where is the cliff?", words + " ".join(notes), figures, (table,))


def _cliff_row(arm: str, size: str, values: Array) -> tuple[Cell, ...]:
    known = values[np.isfinite(values)]
    cells = [Cell(f"{f(known):g}", float(f(known))) if len(known) else Cell("", None) for f in (np.median, np.min, np.max)]  # fmt: skip
    return (Cell(arm), Cell(size), *cells, Cell(str(len(values) - len(known)), len(values) - len(known)))


def _forecast_line(arm: str, sweep: Sweep, found: Forecast) -> Line:
    sizes = np.unique([float(f"{size:.2g}") for size in np.geomspace(min(sweep.parameters), found.size, 30)])
    bands = [found.fit.at(size, found.level) for size in sizes]
    rows = np.log10(np.array([(b.value, b.low, b.high) for b in bands]))
    return Line(arm, arm, sizes.tolist(), *rows.T)


def _cliff_figure(sweep: Sweep, lines: list[Line]) -> Figure:
    return plots.lines(
        "cliff", {"log10 of the first unstable learning rate": lines}, palette.colours(sweep.arms, sweep.arms[0]),
        xlabel="parameters N", logarithmic=True, alt="First unstable learning rate against the number of parameters, extrapolated",
    )  # fmt: skip


def statistic_panels(sweep: Sweep) -> list[Panel]:
    """Every statistic against the learning rate at each size, for the first arm and the last."""
    if not sweep.statistics:
        return []
    colours = palette.colours(sweep.sizes)
    figures = []
    for place, name in enumerate(sweep.statistics):
        panels = {
            arm: lines for arm in (sweep.arms[0], sweep.arms[-1]) if (lines := _statistic_lines(sweep, name, arm))
        }
        if panels:
            figures.append(
                plots.lines(f"statistic-{place}", panels, colours, xlabel="learning rate", logarithmic=True, alt=f"{name} against learning rate",
                            caption=f"log10 of {name}, median over seeds, with the range; runs without a reading are left out.")
            )  # fmt: skip
    return [Panel("What grows inside?", "", tuple(figures))] if figures else []


def _statistic_lines(sweep: Sweep, name: str, arm: str) -> list[Line]:
    lines = []
    for size in sweep.sizes:
        rates, rows = [], []
        for rate in sweep.learning_rates:
            cell = [run.statistics.get(name, math.nan) for run in sweep.runs if (run.arm, run.size, run.learning_rate) == (arm, size, rate)]  # fmt: skip
            known = [value for value in cell if math.isfinite(value) and value > 0]
            if known:
                rates.append(rate)
                rows.append(np.log10([np.median(known), min(known), max(known)]))
        if len(rates) > 1:
            lines.append(Line(size, size, rates, *np.array(rows).T))
    return lines


def lost_panel(sweep: Sweep) -> Panel:
    """The runs that were lost, each with the reason."""
    rows = [
        (Cell(run.arm), Cell(run.size), Cell(f"{run.learning_rate:g}", run.learning_rate), Cell(str(run.seed), run.seed), Cell(run.lost))
        for run in sweep.lost
    ]  # fmt: skip
    words = f"{len(rows)} of {len(sweep.runs)} runs. They count as the initial loss."
    return Panel(
        "Which runs were lost?",
        words,
        tables=(Table(("arm", "size", "rate", "seed", "why"), tuple(rows)),) if rows else (),
    )


def band(table: Array) -> tuple[Array, Array, Array]:
    """[S, X] -> mean and 95% t interval at each x; the mean thrice for one seed."""
    if len(table) < 2:
        return table[0], table[0], table[0]
    found = [t_interval(column) for column in table.T]
    mean, low, high = (np.array([getattr(e, name) for e in found]) for name in ("mean", "low", "high"))
    return mean, low, high
