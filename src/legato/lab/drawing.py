"""From a matplotlib figure to what the page needs: SVG that takes the page's ink, font and width, and a PNG.

Every plot is drawn twice, for a wide column and for a narrow one, because text in a drawing that is only scaled down
cannot be read on a phone. One unit of a drawing is one CSS pixel. Output is a pure function of what is drawn.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from legato.lab.page import Figure
from legato.lab.palette import INK, PAPER

WIDE, NARROW = 760, 344
SMALL, BODY = 11.0, 12.5
FAINT, MUTED = 0.14, 0.62
"""Opacity of rules and of secondary text."""

MAX_POINTS = 300
PNG_SCALE = 2.5

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "legato",
    "text.parse_math": False,  # a class called "$x" is a name, not a formula
    "font.family": "DejaVu Sans",
    "font.size": SMALL,
    "lines.solid_capstyle": "round",
    "path.simplify": False,
}


def figure(name: str, paint: Callable[[int], Any], *, alt: str, caption: str = "") -> Figure:
    """`paint(width)` draws on a sheet that is `width` pixels wide; it is asked for a wide and for a narrow drawing."""
    with _style():
        wide, narrow = paint(WIDE), paint(NARROW)
        return Figure(name, _svg(wide, f"{name}-wide"), _png(wide), alt, caption, narrow=_svg(narrow, f"{name}-narrow"))


def sheet(width: int, height: float) -> Any:
    """An empty matplotlib figure of `width` x `height` pixels, without pyplot and its global state."""
    from matplotlib.figure import Figure as Sheet

    return Sheet(figsize=(width / 72, height / 72), dpi=72, facecolor="none")


def overlay(sheet: Any) -> Any:
    """Axes over the whole sheet in pixels from its top left corner, for text and marks that are placed by hand."""
    width, height = sheet.get_size_inches() * 72
    axes = sheet.add_axes((0, 0, 1, 1), zorder=5)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return axes


def box(sheet: Any, left: float, top: float, width: float, height: float) -> Any:
    """Bare axes at that place in pixels: no frame, no tick marks, small muted tick labels."""
    across, down = sheet.get_size_inches() * 72
    axes = sheet.add_axes((left / across, 1 - (top + height) / down, width / across, height / down), facecolor="none")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=5, labelsize=SMALL)
    axes.set_axisbelow(True)
    return axes


def mute_ticks(axes: Any) -> None:
    """Secondary ink for the tick labels; last, because matplotlib makes ticks when they are asked for."""
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_alpha(MUTED)


def words(text: str, limit: int = 32) -> str:
    """One printable line of at most `limit` characters: names come from the user's files and may hold anything."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def thin(count: int) -> list[int]:
    """At most 300 of the positions 0 .. count - 1, evenly spread, with the first and the last."""
    if count <= MAX_POINTS:
        return list(range(count))
    return [round(place * (count - 1) / (MAX_POINTS - 1)) for place in range(MAX_POINTS)]


def number(value: float) -> str:
    """A tick label: `0.003`, `10`, and `1e-5` for what would need more zeros."""
    return f"{value:g}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's own defaults and ours, whatever the user's matplotlibrc says; restored afterwards."""
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing from"
        )  # the browser has the font, only the PNG lacks it
        yield


def _png(sheet: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    out = io.BytesIO()
    FigureCanvasAgg(sheet)
    sheet.savefig(out, format="png", dpi=72 * PNG_SCALE, facecolor=PAPER, metadata={"Software": None})
    return out.getvalue()


def _svg(sheet: Any, prefix: str) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    out = io.StringIO()
    FigureCanvasSVG(sheet)
    sheet.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _themed(ElementTree.fromstring(out.getvalue()), prefix)


def _themed(root: ElementTree.Element, prefix: str) -> str:
    """Inline SVG: ids that are used get `prefix`, others go; black becomes currentColor; fonts are left to the page."""
    used = {found for element in root.iter() for value in element.attrib.values() for found in _targets(value)}
    for parent in list(root.iter()):
        for child in [c for c in parent if _local(c.tag) in ("metadata", "style")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update(_attributes(attributes, used, prefix))
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib.clear()
    root.attrib.update(
        {"viewBox": f"0 0 {width} {height}", "style": f"max-width: {width}px", "fill": "currentColor"}
        | {"stroke-linejoin": "round", "aria-hidden": "true", "focusable": "false"}
    )
    return ElementTree.tostring(root, encoding="unicode")


def _attributes(attributes: dict[str, str], used: set[str], prefix: str) -> dict[str, str]:
    """One element's attributes, for the page."""
    kept = {}
    for key, value in attributes.items():
        if key == "id":
            if value.startswith("arm:"):
                kept["data-arm"] = value.removeprefix("arm:")
            elif value in used:
                kept["id"] = f"{prefix}-{value}"
        elif key == "style":
            kept["style"] = _themed_style(value)
        elif key == "d":
            kept["d"] = " ".join(_rounded(value).split())
        elif not (key == "transform" and value.startswith("rotate(-0")):
            kept[key] = _rounded(re.sub(r"#(?=\w)", f"#{prefix}-", value) if _targets(value) else value)
    return kept


def _themed_style(style: str) -> str:
    without_font = re.sub(r"font-family:[^;]*;?\s*", "", style)
    inked = without_font.replace(INK, "currentColor").replace(PAPER, f"var(--paper, {PAPER})")
    return _rounded(re.sub(r"url\(#(\w+)\)", r"url(#\1)", inked))


def _targets(value: str) -> list[str]:
    """The ids that an attribute points to: `#id` or `url(#id)`."""
    return re.findall(r"^#([\w.-]+)$|url\(#([\w.-]+)\)", value) and [
        a or b for a, b in re.findall(r"^#([\w.-]+)$|url\(#([\w.-]+)\)", value)
    ]


def _rounded(text: str) -> str:
    """Two decimals of a pixel are enough."""
    return re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), text)


def _local(name: str) -> str:
    return name.rpartition("}")[2]
