"""The sections of the page of `ast`, drawn from its records alone."""

from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from legato.lab import palette, plots, statistics
from legato.lab.page import Cell, Figure, Panel, Picture, Table
from legato.lab.plots import Line
from legato.lab.trial import Record

COLUMNS: Mapping[str, tuple[str, float, int]] = {
    "accuracy, %": ("accuracy", 100, 1), "distance at the end": ("end_distance", 1, 3), "step size": ("alpha", 1, 3),
    "students' rate": ("learning_rate", 1, 3),
}  # fmt: skip
"""Column -> metric, factor, digits."""
SHOWN = ("mtt", "strong", "strong, ramp", "strong, both", "ast")


def panels(records: Sequence[Record]) -> list[Panel]:
    """Every section for which there are records."""
    sets = [record for record in records if "arm" in record.config]
    found = [_arms(key, own) for key, own in grouped(sets).items()]
    experts = [record for record in records if "recipe" in record.config]
    if experts:
        found.append(_experts(experts))
    if any("ways" in record.metrics for record in sets):
        found.append(_ways([record for record in sets if "ways" in record.metrics and record.config["ipc"] == 1]))
    return found


def grouped(sets: Sequence[Record]) -> dict[str, list[Record]]:
    """Sets and selections by data and images a class, in words."""
    found: dict[str, list[Record]] = {}
    for record in sorted(sets, key=lambda r: r.config["ipc"]):
        task = record.config["experts"]["task"] if "experts" in record.config else record.config["task"]
        found.setdefault(f"{task['data']}, {record.config['ipc']} a class", []).append(record)
    return found


def _arms(title: str, records: Sequence[Record]) -> Panel:
    arms = list(dict.fromkeys(r.config["arm"] for r in sorted(records, key=lambda r: "ways" not in r.metrics)))
    colours = palette.colours(arms, "all data")
    rows = tuple(
        (Cell(arm), *(_cell([r.metrics.get(metric) for r in own], factor, digits) for metric, factor, digits in COLUMNS.values()),
         Cell(str(sum(r.metrics.get("stopped") is not None for r in own))), Cell(str(len(own)), len(own)))
        for arm in arms
        for own in [[r for r in records if r.config["arm"] == arm]]
    )  # fmt: skip
    table = Table(("arm", *COLUMNS, "not finite", "sets"), rows, colours=tuple(colours[arm] for arm in arms))
    test = all(r.config["reads_test"] for r in records)
    words = (
        f"Means over sets with 95% intervals, three students a set, final accuracy on {'test' if test else 'validation'} rows. "
        "Distance at the end: of a student from its expert, 1 at its start."
    )
    return Panel(title, words, tables=(table,), pictures=_pictures(records))


def _cell(values: Sequence[Any], factor: float, digits: int) -> Cell:
    there = [float(value) for value in values if value is not None]
    if not there:
        return Cell("", None)
    found = statistics.t_interval(there)
    text = found.text(factor, digits) if len(there) > 1 else f"{factor * found.mean:.{digits}f}"
    return Cell(text, found.mean)


def _pictures(records: Sequence[Record]) -> tuple[Picture, ...]:
    first = {r.config["arm"]: r for r in records if "pictures" in r.metrics and r.config["arm"] in ("mtt", "ast")}
    return tuple(Picture(b64decode(r.metrics["pictures"]), f"{arm}, one of each class") for arm, r in first.items())


def _experts(records: Sequence[Record]) -> Panel:
    recipes = list(dict.fromkeys(r.config["recipe"] for r in records))
    colours = palette.colours(recipes, "plain")
    steps: list[Line] = []
    rows = []
    for recipe in recipes:
        own = [r for r in records if r.config["recipe"] == recipe and _data(r) == _data(records[0])]
        curves = np.concatenate([np.array(r.metrics["steps"], dtype=np.float64) for r in own])
        wrong = np.concatenate([np.array(r.metrics["errors"], dtype=np.float64) for r in own])
        epochs = [e + 1.0 for e in range(curves.shape[1])]
        steps.append(Line(recipe, recipe, epochs, curves.mean(0), curves.min(0), curves.max(0)))
        shown = (curves[:, 0].mean(), curves[:, 1:].mean(), 100 * wrong[:, 0].mean(), 100 * wrong[:, -1].mean())
        rows.append((Cell(recipe), *(Cell(f"{value:.3g}", float(value)) for value in shown)))
    figure = plots.lines(
        "experts", {"length of an epoch's step": steps}, colours, xlabel="epoch", logarithmic=False,
        alt="how far experts move in each epoch", caption="Mean over experts, band from the smallest to the largest.",
    )  # fmt: skip
    head = ("experts", "first step", "later steps", "error after one epoch, %", "error at the end, %")
    return Panel("How smooth are the experts?", "", (figure,), (Table(head, tuple(rows)),))


def _data(record: Record) -> Any:
    return record.config["task"]["data"]


def _ways(records: Sequence[Record]) -> Panel:
    arms = [arm for arm in SHOWN if any(r.config["arm"] == arm for r in records)]
    lines = []
    for arm in arms:
        ways = [w for r in records if r.config["arm"] == arm for w in r.metrics["ways"] if None not in w]
        if ways:
            curves = np.array(ways, dtype=np.float64)
            steps = [i + 1.0 for i in range(curves.shape[1])]
            lines.append(Line(arm, arm, steps, curves.mean(0), curves.min(0), curves.max(0)))
    text = "The squared distance of a student from its target after each step on the finished images, 1 at its start; mean over sets and starts."
    return Panel("How errors add up", text, figures=(_figure(lines, arms),) if lines else ())


def _figure(lines: Sequence[Line], arms: Sequence[str]) -> Figure:
    return plots.lines(
        "ways", {"distance from the target": lines}, palette.colours(arms, "mtt"), xlabel="inner step", logarithmic=False,
        alt="distance by inner step",
    )  # fmt: skip
