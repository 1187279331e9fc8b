"""The page of the smoothness study: a table of the arms, v by timestep, and walks to look at."""

from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legato.diffusion import gaussian_variation, scaled_linear
from legato.lab import drawing, palette, plots
from legato.lab.drawing import MUTED, box, overlay, sheet, words
from legato.lab.page import Cell, Figure, Panel, Table
from legato.lab.plots import Line
from legato.lab.statistics import t_interval
from legato.lab.trial import Record

BASE, RETIMED = "base, not tuned", "base, re-timed"
GAUSS = "exact, N(0, I)"
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "ISTD": ("istd",), "CV": ("cv",), "mean step": ("mean_step",), "spread of v": ("spread",), "loss of the noise": ("noise_loss",),
    "Frechet": ("frechet",), "right class": ("accuracy",), "MSE at 1": ("round_trip", "1"), "MSE at 3": ("round_trip", "3"),
    "MSE at 7.5": ("round_trip", "7.5"),
}  # fmt: skip


def panels(records: Sequence[Record]) -> list[Panel]:
    """What a finished form has to show."""
    rows = _by_arm(records)
    shown = [
        Panel("Arms", _about(records), tables=(_table(rows),)),
        Panel("The variation by timestep", figures=(_curves(rows),)),
    ]
    strips = next((r.metrics["strips"] for r in records if r.metrics.get("strips")), None)
    if strips:
        text = "Classes 0, 1 and 2 of one seed; every row walks between the same two noises. Re-timing changes the pace alone, and costs no training."
        shown.append(Panel("Walks", text, figures=(_walks(strips),)))
    return shown


def arm_name(lam: float, rate: float | None = None) -> str:
    """As the page says it."""
    name = f"lambda {lam:g}" + (", the twin" if lam == 0 else "")
    return name if rate is None else f"{name}, rate {rate:g}"


def _by_arm(records: Sequence[Record]) -> dict[str, list[dict[str, Any]]]:
    """Arm -> what was measured in each seed."""
    several = len({arm["rate"] for record in records for arm in record.metrics["arms"]}) > 1
    several = several and any(len({a["lam"] for a in r.metrics["arms"]}) < len(r.metrics["arms"]) for r in records)
    rows: dict[str, list[dict[str, Any]]] = {BASE: [], RETIMED: []}
    for record in records:
        rows[BASE].append(record.metrics["base"])
        rows[RETIMED].append(record.metrics["base"]["retimed"])
        for arm in record.metrics["arms"]:
            rows.setdefault(arm_name(arm["lam"], arm["rate"] if several else None), []).append(arm)
    return rows


def _about(records: Sequence[Record]) -> str:
    floor = [r.metrics["floor"] for r in records if "floor" in r.metrics]
    text = "Means over seeds with 95% intervals. Pairs, noises and batches are the same for all arms of a seed."
    return (
        f"{text} Two halves of the real pictures are {np.mean(floor):.2f} apart in Frechet distance." if floor else text
    )


def _table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    names = [name for name, path in COLUMNS.items() if any(_find(row, path) is not None for row in rows[BASE])]
    colours = palette.colours(list(rows), BASE)

    def cell(arm: str, path: tuple[str, ...]) -> Cell:
        values = [value for value in (_find(row, path) for row in rows[arm]) if value is not None]
        if not values:
            return Cell("", None)
        found = t_interval(values)
        return Cell(found.text(1, 4) if len(values) > 1 else f"{found.mean:.4f}", found.mean)

    body = tuple((Cell(arm), *(cell(arm, COLUMNS[name]) for name in names)) for arm in rows)
    return Table(("arm", *names), body, colours=tuple(colours[arm] for arm in rows))


def _find(row: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = row
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def _curves(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    arms = [arm for arm in rows if any("variation" in row for row in rows[arm])]
    colours = palette.colours([*arms, GAUSS], GAUSS)
    lines = []
    for arm in arms:
        curves = np.array([row["variation"] for row in rows[arm] if "variation" in row])
        times = [round(t) for t in np.linspace(0, 999, curves.shape[1])]
        lines.append(Line(arm, arm, times, curves.mean(0), curves.min(0), curves.max(0)))
    exact = gaussian_variation(scaled_linear())[times].numpy()
    lines.append(Line(GAUSS, GAUSS, times, exact, exact, exact))
    caption = "v, the norm that the penalty wants to be the same everywhere: mean over pictures, band over seeds. Grey: exact denoiser of a Gaussian."
    return plots.lines(
        "variation", {"v": lines}, colours, xlabel="timestep", logarithmic=False, alt="v by timestep", caption=caption
    )


def _walks(strips: Mapping[str, str]) -> Figure:
    pixels = {arm: _pixels(strip) for arm, strip in strips.items()}

    def paint(width: int) -> Any:
        ratio = next(iter(pixels.values()))
        tall = round((width - 8) * ratio.shape[0] / ratio.shape[1])
        page = sheet(width, len(pixels) * (tall + 30))
        text = overlay(page)
        for place, (arm, image) in enumerate(pixels.items()):
            top = place * (tall + 30)
            text.text(4, top + 18, words(arm, 60), fontsize=drawing.BODY, alpha=MUTED)
            axes = box(page, 4, top + 26, width - 8, tall)
            axes.imshow(image, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
            axes.axis("off")
        return page

    return drawing.figure("walks", paint, alt="pictures along walks through the noise, a block an arm")


def _pixels(png: str) -> NDArray[np.uint8]:
    import io

    from PIL import Image

    with Image.open(io.BytesIO(b64decode(png))) as image:
        return np.asarray(image)
