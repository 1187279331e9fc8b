"""The page and the JSON of a sharpness report; every part is a plain function of the report."""

import math
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legato.flatness.density import Density
from legato.flatness.landscape import Landscape
from legato.lab import drawing, environment, files, page, palette, plots
from legato.lab.drawing import box, mute_ticks, number, overlay, sheet
from legato.lab.page import Cell, Figure, Page, Panel, Table
from legato.lab.plots import Line
from legato.studies.sharpness import Reading, Report

FLOOR = 1e-6
"""The density is drawn down to this share of its peak."""
BANDS = 8
SAYS = (
    ("sam", "what SAM lowers: the rise after one step of that length along the gradient; mostly slope where the gradient is not small"),
    ("pgd", "the largest rise that was found in the ball; a lower bound of the largest there is"),
    ("asam", "the same in a ball that scales with each weight; equal for networks that differ only by the scale of their layers"),
    ("m-sharpness", "each group of rows has a worst point of its own; larger for smaller groups"),
    ("lambda", "curvature in the steepest direction; plain gradient descent is stable at rates below 2 / it"),
    ("trace", "sum of all curvatures; radius^2 trace / (2 weights) is the mean rise at a random point of the sphere, to second order"),
    ("density", "how many directions are curved at all"),
    ("layers", "curvature along one layer's weights, the others held"),
    ("landscape", "one random cut, for the eye"),
)  # fmt: skip


def write(report: Report, folder: Path) -> Path:
    """Write sharpness.json, index.html and the plots; gives the path of index.html."""
    path = page.write(sharpness_page(report), folder)
    files.write(folder / "sharpness.json", files.pack_json(to_json(report)))
    return path


def to_json(report: Report) -> dict[str, Any]:
    """Everything that was measured, as plain values; None for what is not finite."""
    curves: dict[str, Any] = {}
    if report.density is not None:
        d = report.density
        names = ("grid", "density", "standard_error", "nodes", "weights")
        curves["density"] = {name: getattr(d, name).tolist() for name in names} | {"width": d.width}
    for name in ("line", "plane", "path"):
        found = getattr(report, name)
        if found is not None:
            kept = {k: getattr(found, k) for k in ("lengths", "distance", "statistics", "barrier") if hasattr(found, k)}
            metric = None if found.metric is None else found.metric.tolist()
            curves[name] = kept | {"steps": found.steps.tolist(), "loss": found.loss.tolist(), "metric": metric}
    plain: dict[str, Any] = _finite(
        {
            "title": report.title,
            "settings": asdict(report.settings),
            "weights": report.weights,
            "rows": report.rows,
            "loss": report.loss,
            "gradient_norm": report.gradient_norm,
            "readings": [asdict(reading) for reading in report.readings],
            "notes": report.notes,
            "method": dict(report.method),
            "curves": curves,
            "environment": environment.describe(),
        }
    )
    return plain


def sharpness_page(report: Report) -> Page:
    """The whole page."""
    asked = report.settings
    panels = [_meaning(report), _cuts(report), _path(report), _spectrum(report)]
    seconds = sum(reading.seconds for reading in report.readings)
    return Page(
        title=report.title,
        verdict=report.verdict,
        figure=None if report.plane is None else _plane(report.plane),
        tables=(_table(report),),
        code=CODE,
        panels=tuple(panel for panel in panels if panel is not None),
        method=(
            *report.method,
            ("weights", f"{report.weights:,}"),
            ("mode", f"{asked.mode}: " + ("dropout off, running statistics" if asked.mode == "eval" else "each batch's own statistics, and dropout")),
            ("eigenvalues", f"Lanczos with full re-orthogonalisation, relative tolerance {asked.tol:g}; an eigenvalue lies within the bound"),
            ("trace", f"random signs until the standard error is {100 * asked.trace_error:g} %, {asked.products} products at most"),
            ("seed", str(asked.seed)),
            ("time", f"{seconds:.1f} s"),
        ),
    )  # fmt: skip


CODE = """from torch.nn import functional as F
from legato.flatness import Surface, sam_sharpness, top_eigenvalues

surface = Surface(model, F.cross_entropy, batches)
sam_sharpness(surface, radius=0.05, steps=10).sharpness
top_eigenvalues(surface).values[0]"""


def cells(reading: Reading) -> tuple[str, ...]:
    """A row of the table, as text."""
    return (
        reading.measure,
        reading.what,
        "" if reading.radius is None else f"{reading.radius:g}",
        f"{reading.value:.4g}",
        "" if reading.error is None else f"{reading.error:.2g}",
        reading.error_of,
        str(reading.products or ""),
        str(reading.passes or ""),
        f"{reading.seconds:.2f}",
    )


COLUMNS = ("measure", "what", "radius", "value", "±", "of", "products", "passes", "seconds")


def _table(report: Report) -> Table:
    def value(text: str) -> float | str | None:
        try:
            return float(text)
        except ValueError:
            return text or None

    rows = tuple(tuple(Cell(text, value(text)) for text in cells(reading)) for reading in report.readings)
    caption = (
        f"Loss {report.loss:.4g}, gradient norm {report.gradient_norm:.3g}, {report.rows} rows, {report.settings.mode} mode. "
        "± is a standard error over rows, groups or probes, or a bound that holds."
    )
    return Table(COLUMNS, rows, caption)


def _meaning(report: Report) -> Panel:
    asked = dict.fromkeys(reading.measure for reading in report.readings)
    text = " ".join(
        (
            *report.notes,
            "Compare numbers of one column only, at equal radius, mode and rows, and models of similar loss.",
        )
    )
    return Panel("How to read it", text, items=tuple((name, said) for name, said in SAYS if name in asked))


def _lines(
    name: str, steps: NDArray[np.float64], curves: dict[str, NDArray[np.float64]], xlabel: str, alt: str
) -> Figure:
    panels = {word: [Line(word, "", steps.tolist(), values, values, values)] for word, values in curves.items()}
    return plots.lines(name, panels, palette.colours(tuple(curves)), xlabel=xlabel, logarithmic=False, alt=alt)


def _curves(loss: NDArray[np.float64], metric: NDArray[np.float64] | None) -> dict[str, NDArray[np.float64]]:
    return {"loss": loss} if metric is None else {"loss": loss, "error %": 100 * metric}


def _cuts(report: Report) -> Panel | None:
    line = report.line
    if line is None:
        return None
    figure = _lines(
        "line",
        line.steps,
        _curves(line.loss, line.metric),
        "steps along the direction",
        "The loss along one random direction",
    )
    text = (
        "A random direction in which each filter has the norm that it has in the weights; biases and normalisation stay, running statistics "
        f"too. A step of 1 is a distance of {line.lengths[0]:.3g}. The plane above is spanned by two of them."
    )
    return Panel("A cut through the weights", text, (figure,))


def _path(report: Report) -> Panel | None:
    path = report.path
    if path is None:
        return None
    xlabel = "0 is this model, 1 the other"
    figure = _lines(
        "path", path.steps, _curves(path.loss, path.metric), xlabel, "The loss on the line between two models"
    )
    normal = {
        "none": "",
        "interpolated": " Running statistics of batch normalisation move with the weights.",
        "re-estimated": " Running statistics of batch normalisation are estimated anew at each point.",
    }[path.statistics]
    text = (
        f"The models are {path.distance:.3g} apart; the loss between them rises at most {path.barrier:.3g} above the straight line.{normal} A "
        "barrier says little about either end: networks whose units stand in another order are equal."
    )
    return Panel("From one model to the other", text, (figure,))


def _spectrum(report: Report) -> Panel | None:
    d = report.density
    if d is None:
        return None
    figure = _lines("density", *_thinned(d), "eigenvalue", "How the eigenvalues of the Hessian are spread")
    text = (
        f"Smoothed by {d.width:.2g}; by stochastic Lanczos quadrature with {len(d.nodes)} probes. {100 * d.share(high=-2 * d.width):.2g} % of the "
        "eigenvalues lie below 0 by more than twice that."
    )
    return Panel("All eigenvalues", text, (figure,))


def _thinned(d: Density) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Grid and the logarithm of the density, at as many points as a figure shows."""
    keep = drawing.thin(len(d.grid))
    height = d.density.numpy()
    grid = np.array([float(f"{x:.3g}") for x in d.grid.numpy()[keep]])
    return grid, {"log10 of the density": np.log10(np.maximum(height, FLOOR * height.max()))[keep]}


def _plane(plane: Landscape) -> Figure:
    low, high = float(np.nanmin(plane.loss)), float(np.nanmax(plane.loss))

    def paint(width: int) -> Any:
        side = min(width - 60, 430)
        drawn = sheet(width, side + 64)
        axes = box(drawn, 44, 14, side, side)
        bands = _bands(low, high)
        for place, (bottom, top) in enumerate(pairwise(bands)):
            axes.contourf(plane.steps, plane.steps, plane.loss.T, [bottom, top], colors=[palette.OKABE_ITO[0]],
                          alpha=0.06 + 0.8 * place / BANDS)  # fmt: skip
        lines = axes.contour(
            plane.steps, plane.steps, plane.loss.T, bands[1:-1], colors=palette.INK, linewidths=0.5, alpha=0.5
        )
        axes.clabel(lines, fmt=lambda value: number(float(f"{value:.2g}")), fontsize=drawing.SMALL)
        axes.plot([0], [0], "o", color=palette.OKABE_ITO[1], markersize=6)
        axes.set(
            aspect="equal", xticks=plane.steps[:: len(plane.steps) // 2], yticks=plane.steps[:: len(plane.steps) // 2]
        )
        axes.set_xlabel("first direction", fontsize=drawing.SMALL, alpha=drawing.MUTED)
        if width > 560:
            text = overlay(drawn)
            for place, words in enumerate((f"loss at the weights {plane.loss[len(plane.loss) // 2, len(plane.loss) // 2]:.3g}",
                                           f"lowest {low:.3g}", f"highest {high:.3g}")):  # fmt: skip
                text.text(side + 70, 40 + 22 * place, words, fontsize=drawing.BODY, alpha=drawing.MUTED)
        mute_ticks(axes)
        return drawn

    return drawing.figure(
        "plane", paint, alt="The loss on a plane through the weights",
        caption="The loss on a plane through the weights (the dot), spanned by two random directions with each filter's norm; lines at levels that "
        "are equally far apart in the logarithm.",
    )  # fmt: skip


def _bands(low: float, high: float) -> NDArray[np.float64]:
    """Levels from the lowest to the highest loss, equally far apart in the logarithm where the loss is positive."""
    high = max(high, low + 1e-9 * max(1.0, abs(low)))
    if low <= 0 or not math.isfinite(high):
        return np.linspace(low, high if math.isfinite(high) else low + 1, BANDS + 1)
    return np.geomspace(low * (1 - 1e-9), high * (1 + 1e-9), BANDS + 1)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None
