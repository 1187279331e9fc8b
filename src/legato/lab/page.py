"""The page of a run: one HTML file that opens offline, drawn from plain data."""

from dataclasses import dataclass, replace
from pathlib import Path

from legato.lab.files import write as write_whole


@dataclass(frozen=True)
class Figure:
    """A drawing for a wide and for a narrow screen, and its PNG."""

    name: str
    svg: str
    png: bytes
    alt: str
    caption: str = ""
    narrow: str = ""

    def renamed(self, name: str) -> "Figure":
        """The same drawing under another name; ids inside follow, so that both can stand on one page."""
        wide, narrow = (svg.replace(f"{self.name}-", f"{name}-") for svg in (self.svg, self.narrow))
        return replace(self, name=name, svg=wide, narrow=narrow)


@dataclass(frozen=True)
class Cell:
    """What a table shows, and what it sorts by."""

    text: str
    value: float | str | None = None


@dataclass(frozen=True)
class Table:
    """A sortable table; `colours` has one swatch a row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    colours: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A thumbnail as PNG bytes with its words."""

    png: bytes
    caption: str


@dataclass(frozen=True)
class Panel:
    """A section for whoever doubts."""

    title: str
    text: str = ""
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    items: tuple[tuple[str, str], ...] = ()
    """Words and what is said of them."""


@dataclass(frozen=True)
class Page:
    """Top to bottom: verdict, the figure that carries it, tables, the winner's code, panels, how it was measured."""

    title: str
    verdict: str
    figure: Figure | None
    tables: tuple[Table, ...]
    code: str
    panels: tuple[Panel, ...]
    method: tuple[tuple[str, str], ...]


def render(page: Page) -> str:
    """The page as one self-contained HTML text; everything from the user is escaped."""
    from base64 import b64encode

    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("legato.lab"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: b64encode(data).decode()
    return environment.get_template("page.html.j2").render(page=page)


def write(page: Page, folder: Path) -> Path:
    """Write index.html and, in plots/, each figure as PNG; gives the path of index.html."""
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for figure in [page.figure, *(figure for panel in page.panels for figure in panel.figures)]:
        if figure is not None:
            write_whole(folder / "plots" / f"{figure.name}.png", figure.png)
    write_whole(folder / "index.html", render(page).encode())
    return folder / "index.html"
