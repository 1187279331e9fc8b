"""The figures of a page: plain functions of plain data. Arms keep their colour and are named beside their line, not in a legend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legato.lab import drawing
from legato.lab.drawing import FAINT, MUTED, box, mute_ticks, number, overlay, sheet, thin, words
from legato.lab.page import Figure
from legato.lab.palette import INK


@dataclass(frozen=True)
class Interval:
    """One row of a forest plot."""

    group: str
    arm: str
    label: str
    mean: float
    low: float
    high: float


def forest(
    name: str, rows: Sequence[Interval], colours: Mapping[str, str], *, unit: str, alt: str, caption: str = "", digits: int = 1
) -> Figure:  # fmt: skip
    """Differences to the baseline with their intervals; the line at 0 is no difference."""
    ends = [0.0, *(e for r in rows for e in (r.low, r.high) if np.isfinite(e)), *(r.mean for r in rows)]
    margin = 0.08 * (max(ends) - min(ends) or 1.0)
    limits = min(ends) - margin, max(ends) + margin

    def paint(width: int) -> Any:
        wide = width > 500
        groups = list(dict.fromkeys(row.group for row in rows))
        step, head = (30 if wide else 42), 34
        height = sum(head + step * sum(r.group == g for r in rows) for g in groups) + 44
        page, left, right = sheet(width, height), (210 if wide else 4), (176 if wide else 4)
        axes, text = box(page, left, 0, width - left - right, height - 40), overlay(page)
        axes.set(xlim=limits, ylim=(height - 40, 0), yticks=[])
        axes.axvline(0, color=INK, linewidth=1)
        y = 0.0
        for group in groups:
            text.text(4, y + 20, words(group, 70), fontsize=drawing.BODY, alpha=MUTED)
            y += head
            for row in (r for r in rows if r.group == group):
                centre = y + (step / 2 if wide else step - 12)
                colour = colours[row.arm]
                axes.plot(
                    [max(row.low, limits[0]), min(row.high, limits[1])], [centre] * 2, color=colour, linewidth=2.6
                )
                axes.plot([row.mean], [centre], "o", color=colour, markersize=7)
                numbers = f"{row.mean:+.{digits}f}  [{row.low:+.{digits}f}, {row.high:+.{digits}f}]"
                level = centre + 4 if wide else y + 14
                text.text(4, level, words(row.label), fontsize=drawing.BODY, color=colour)
                text.text(width - 4, level, numbers, fontsize=drawing.BODY, ha="right")
                y += step
        axes.set_xlabel(unit, fontsize=drawing.SMALL, alpha=MUTED)
        mute_ticks(axes)
        return page

    return drawing.figure(name, paint, alt=alt, caption=caption)


@dataclass(frozen=True)
class Line:
    """A line with its band."""

    arm: str
    label: str
    x: Sequence[float]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    marked: float | None = None
    """An x that is marked with a dot, such as the chosen learning rate."""


def lines(
    name: str,
    panels: Mapping[str, Sequence[Line]],
    colours: Mapping[str, str],
    *,
    xlabel: str,
    logarithmic: bool,
    alt: str,
    caption: str = "",
    across: int | None = None,
) -> Figure:
    """Small multiples, one a panel, each with its own scale; every line is named at its right end.

    At most `across` panels stand side by side, by default all; on a narrow screen they stand below each other.
    """

    def paint(width: int) -> Any:
        columns = min(across or len(panels), len(panels)) if width > 500 else 1
        down = -(-len(panels) // columns)
        tall, label_space = 250, 118
        page = sheet(width, down * tall + 16)
        cell = width / columns
        text = overlay(page)
        for place, (title, panel) in enumerate(panels.items()):
            left, top = (place % columns) * cell, (place // columns) * tall
            axes = box(page, left + 40, top + 30, cell - 40 - label_space, tall - 82)
            low, high, margin = _limits(panel)
            axes.set_ylim(low - margin, high + margin)
            if logarithmic:
                axes.set_xscale("log")
            ticks = sorted({x for line in panel for x in line.x})
            ticks = ticks if len(ticks) < 7 else [ticks[i] for i in (0, len(ticks) // 2, -1)]
            axes.set_xticks(ticks, [number(x) for x in ticks])
            axes.minorticks_off()
            axes.grid(axis="y", alpha=FAINT, color=INK, linewidth=0.8)
            for line in panel:
                keep = thin(len(line.x))
                x = np.asarray(line.x)[keep]
                axes.fill_between(x, line.low[keep], line.high[keep], color=colours[line.arm], alpha=0.13, linewidth=0)
                axes.plot(x, line.mean[keep], color=colours[line.arm], linewidth=1.9)
                if line.marked is not None:
                    where = list(line.x).index(line.marked)
                    axes.plot([line.marked], [line.mean[where]], "o", color=colours[line.arm], markersize=7)
            text.text(left + 4, top + 16, words(title, 60), fontsize=drawing.BODY, alpha=MUTED)
            axes.set_xlabel(xlabel, fontsize=drawing.SMALL, alpha=MUTED)
            heights = [1 - (line.mean[-1] - (low - margin)) / (high - low + 2 * margin) for line in panel]
            for line, y in zip(panel, _spread(heights, top + 30, tall - 82), strict=True):
                text.text(
                    left + cell - label_space + 8,
                    y + 4,
                    words(line.label, 20),
                    fontsize=drawing.SMALL,
                    color=colours[line.arm],
                )
            mute_ticks(axes)
        return page

    return drawing.figure(name, paint, alt=alt, caption=caption)


def _limits(panel: Sequence[Line]) -> tuple[float, float, float]:
    """Lowest and highest value to show, and the margin beyond: all means, and bands as far as half the range of the means."""
    low, high = min(float(line.mean.min()) for line in panel), max(float(line.mean.max()) for line in panel)
    spare = 0.5 * (high - low)
    bottom = max(low - spare, min(float(np.nanmin(line.low)) for line in panel))
    top = min(high + spare, max(float(np.nanmax(line.high)) for line in panel))
    return min(bottom, low), max(top, high), 0.06 * (high - low or 1.0)


def _spread(heights: Sequence[float], top: float, height: float) -> list[float]:
    """Places in pixels for labels near their line's end, at least 15 apart."""
    places = [0.0] * len(heights)
    last = -np.inf
    for line in sorted(range(len(heights)), key=lambda i: heights[i]):
        last = places[line] = max(top + height * float(np.clip(heights[line], 0, 1)), last + 15)
    return places


def reliability(
    name: str,
    panels: Mapping[str, tuple[str, NDArray[np.float64], NDArray[np.float64]]],
    colours: Mapping[str, str],
    *,
    alt: str,
    caption: str = "",
) -> Figure:
    """title -> (arm, mean confidence, accuracy) of each bin; the diagonal is perfect calibration."""

    def paint(width: int) -> Any:
        across = min(len(panels), 4 if width > 500 else 2)
        cell = width / across
        down = -(-len(panels) // across)
        page = sheet(width, down * (cell + 22))
        text = overlay(page)
        for place, (title, (arm, confidence, accuracy)) in enumerate(panels.items()):
            left, top = (place % across) * cell, (place // across) * (cell + 22)
            axes = box(page, left + 34, top + 26, cell - 48, cell - 48)
            axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
            axes.plot([0, 1], [0, 1], color=INK, alpha=0.3, linewidth=1)
            axes.plot(confidence, accuracy, "o-", color=colours[arm], markersize=3.5, linewidth=1.6)
            text.text(left + 4, top + 16, words(title, 26), fontsize=drawing.SMALL, color=colours[arm])
            mute_ticks(axes)
        return page

    return drawing.figure(name, paint, alt=alt, caption=caption)


def thumbnail(image: NDArray[np.uint8]) -> bytes:
    """A picture [C, H, W] as PNG."""
    import io

    from matplotlib.image import imsave

    out = io.BytesIO()
    picture = image[0] if len(image) == 1 else image[:3].transpose(1, 2, 0)
    imsave(
        out,
        picture,
        cmap="gray_r" if len(image) == 1 else None,
        format="png",
        vmin=0,
        vmax=255,
        metadata={},
    )
    return out.getvalue()
