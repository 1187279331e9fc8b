"""The sections of the page of `proxies`; each shows what its part has measured, and is left out where nothing was."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from legato.lab.page import Cell, Panel, Table
from legato.lab.statistics import t_interval
from legato.lab.trial import Record
from legato.stability.rules import Thresholds
from legato.studies import detector, sweep_page
from legato.studies.decoder_sweep import GRADIENT
from legato.studies.detector import Detection
from legato.studies.proxies_measures import LEVEL, held_back, interventions
from legato.studies.proxies_trials import (
    DETECTOR,
    DRIFT,
    EPS,
    FORECAST,
    INTERVENTIONS,
    MAIN,
    MARGIN,
    RATES,
    SIZES,
    of_part,
    runs_of,
    sweep_of,
    watched_of,
)
from legato.studies.sweep_config import PAPER_RATES
from legato.studies.sweep_runs import Sweep

SHOWN = ("none", "qk-norm", "warmup:0.25", "mup:full", "all")
"""The arms of a figure, which has no room for all."""
MODULES = ("blocks.0.attention.query", "blocks.0", "blocks.1", "head")


def panels(records: Sequence[Record]) -> list[Panel]:
    """Every section for which there are records."""
    found: list[Panel] = []
    if sizes := runs_of(records, SIZES.name):
        found += _sizes(sweep_of(sizes, MARGIN, RATES))
    if runs_of(records, INTERVENTIONS.name):
        found.append(_interventions(records))
    if runs_of(records, FORECAST.name):
        found.append(_forecasts(records))
    if told := [name for name in (DETECTOR.name, SIZES.name) if watched_of(records, name)]:
        found.append(_detector(records, told))
    if checks := [record for record in records if "widths" in record.config]:
        found.append(_coordinates(checks))
    if drift := of_part(records, DRIFT.name):
        found.append(_drift(drift))
    if eps := runs_of(records, EPS.name):
        found.append(
            _eps(
                [*(r for r in interventions(records, RATES).runs if r.arm == "none" and r.learning_rate == 0.01), *eps]
            )
        )
    return found


def _sizes(sweep: Sweep) -> list[Panel]:
    figure = sweep_page.loss_figure(sweep, "loss-by-size")
    curves = Panel(
        "Loss against learning rate by size", "The paper's figure 1.", (figure,), (sweep_page.sensitivity_table(sweep),)
    )
    growth = sweep_page.sensitivity_panel(sweep)
    return [curves, *([growth] if growth else []), sweep_page.cliff_panel(sweep)]


def _interventions(records: Sequence[Record]) -> Panel:
    paper = interventions(records, PAPER_RATES)
    wide = interventions(records, RATES)
    shifted = tuple(rate for rate in RATES if rate != RATES[0])
    few = replace(wide, arms=tuple(arm for arm in wide.arms if arm in SHOWN))
    (shown,) = sweep_page.loss_panels(few)
    tables = tuple(
        replace(sweep_page.sensitivity_table(sweep), caption=caption)
        for sweep, caption in (
            (paper, f"Over the paper's rates, {PAPER_RATES[0]:g} to {PAPER_RATES[-1]:g}"),
            (
                interventions(records, shifted),
                f"Over the grid shifted by a half-decade, {shifted[0]:g} to {shifted[-1]:g}",
            ),
        )
    )
    words = (
        f"{MAIN}: width and depth. All arms have the same seeds, batches and rates. none is AdamW with independent weight decay 1e-4 and a warm-up "
        "of a tenth of the steps; all is qk-norm, z-loss, a warm-up of a quarter and muParam (full, base width 16). S weighs low rates, at "
        "which these short trainings do not finish, as much as high ones; upper-side S leaves them out."
    )
    return Panel("What does each remedy do?", words, shown.figures, tables)


def _forecasts(records: Sequence[Record]) -> Panel:
    cells = held_back(records)
    rows = tuple(
        (
            Cell(cell.size), Cell(f"{cell.learning_rate:g}", cell.learning_rate), Cell(str(cell.step), cell.step),
            Cell(f"{cell.found.band.value:.3g}", cell.found.band.value), Cell(f"[{cell.found.band.low:.3g}, {cell.found.band.high:.3g}]"),
            Cell(cell.found.fit.shape), Cell(f"{np.nanmedian(cell.measured):.3g}", float(np.nanmedian(cell.measured))),
            Cell(f"{cell.held.sum()} of {len(cell.held)}", float(cell.held.mean())),
        )
        for cell in cells
    )  # fmt: skip
    held, count = sum(int(cell.held.sum()) for cell in cells), sum(len(cell.held) for cell in cells)
    words = (
        f"The largest attention logit of block 0 on fixed text, without qk-layernorm, foreseen from all smaller sizes. {held} of {count} runs "
        f"({held / count:.0%}) lie in their {LEVEL:.0%} interval. Runs of one row share a forecast, so they are not independent of each other."
    )
    columns = ("size", "rate", "step", "foreseen", f"{LEVEL:.0%} interval", "curve", "median measured", "held")
    return Panel("Is a larger size foreseen?", words, tables=(Table(columns, rows),))


def _detector(records: Sequence[Record], parts: Sequence[str]) -> Panel:
    rows = []
    for part in parts:
        runs = detector.label(watched_of(records, part), MARGIN)
        fitted: dict[str, Any] = dict(of_part(records, part)[0].config["thresholds"])
        settings = {"default": Thresholds()} | ({"fitted": replace(Thresholds(), **fitted)} if fitted else {})
        for size in dict.fromkeys(one.run.size for one in runs):
            own = [one for one in runs if one.run.size == size]
            rows += [
                (Cell(size), Cell(name), *_detection(detector.detect(own, limits))) for name, limits in settings.items()
            ]
    words = (
        f"A run is unstable if it is lost or ends more than {MARGIN:g} nats above the best rate of its arm, size and seed, at a higher rate. At these "
        "sizes none is lost: what fails are runs that learn less. The lead is from the first alarm to the check from which the loss stays "
        "that far above the best run's. Fitted thresholds come from other seeds of the smallest size."
    )
    columns = ("size", "thresholds", "unstable runs", "recall", "stable runs", "false alarms", "median lead in steps")
    return Panel("Do the early warnings warn?", words, tables=(Table(columns, tuple(rows)),))


def _detection(found: Detection) -> tuple[Cell, ...]:
    def share(count: int, of: int) -> Cell:
        return Cell(f"{count / of:.0%} ({count})", count / of) if of else Cell("", None)

    return (
        Cell(str(found.unstable), found.unstable), share(found.caught, found.unstable), Cell(str(found.stable), found.stable),
        share(found.false, found.stable), Cell(f"{found.lead:g}", found.lead) if found.leads else Cell("", None),
    )  # fmt: skip


def _coordinates(checks: Sequence[Record]) -> Panel:
    rows = []
    for arm in dict.fromkeys(record.config["arm"] for record in checks):
        own = [record for record in checks if record.config["arm"] == arm]
        for module in MODULES:
            means = np.mean([record.metrics["rms"][module] for record in own], axis=0)
            rows.append((Cell(arm), Cell(module), *(Cell(f"{value:.3g}", float(value)) for value in means)))
    widths = tuple(f"width {width}" for width in checks[0].config["widths"])
    words = "RMS of each module's output after ten steps at rate 0.01, mean over seeds. It must not grow with the width where muParam is right."
    return Panel("Coordinate check of muParam", words, tables=(Table(("arm", "module", *widths), tuple(rows)),))


def _drift(records: Sequence[Record]) -> Panel:
    def row(arm: str) -> tuple[Cell, ...]:
        own = [record.metrics for record in records if record.config["arm"] == arm]
        found = [
            t_interval([told[name] for told in own]) if len(own) > 1 else None
            for name in ("log_z_rms", "smallest_logit", "loss")
        ]
        return (Cell(arm), *(Cell(e.text(), e.mean) if e else Cell("", None) for e in found))

    arms = dict.fromkeys(record.config["arm"] for record in records)
    columns = ("arm", "log Z (RMS, nats)", "least output logit", "loss")
    words = "Without weight decay, at rate 0.3 for 1,000 steps. The drift is what a z-loss holds back; runs did not diverge from it here."
    return Panel("Do the output logits drift?", words, tables=(Table(columns, tuple(row(arm) for arm in arms)),))


def _eps(runs: Sequence[Any]) -> Panel:
    def row(arm: str) -> tuple[Cell, ...]:
        own = [run for run in runs if run.arm == arm]
        loss, size = np.mean([run.loss for run in own]), np.mean([run.statistics[GRADIENT] for run in own])
        return Cell(arm), Cell(f"{size:.2e}", float(size)), Cell(f"{loss:.3f}", float(loss))

    arms: Mapping[str, None] = dict.fromkeys(run.arm for run in runs)
    words = (
        "In models this small gradients stay far above Adam's usual eps of 1e-8, so eps is raised to meet them instead, at rate 0.01: the "
        "mechanism that the paper saw at 4.8 billion parameters, not its occurrence."
    )
    return Panel(
        "What if gradients are as small as eps?",
        words,
        tables=(Table(("arm", "gradient RMS", "loss"), tuple(row(a) for a in arms)),),
    )
