"""The table of data sets that are called by a name. Reading it costs neither torch nor a look at the disk."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from legato.data import bundled, fashion, r_packages
from legato.data.pool import Pool


@dataclass(frozen=True)
class Entry:
    """A row of the table."""

    read: Callable[[Path | None, bool], Pool]
    rows: str
    shape: str
    classes: int
    licence: str
    get: str
    """The command that fetches it; empty for what is always there."""
    where: Callable[[Path | None], str]
    """The place it would be read from, told without decoding it; "" where it is nowhere on this machine."""


def _is_here(place: str, data_dir: Path | None) -> str:
    return place


def _of_r(name: str) -> Entry:
    table = r_packages.TABLES[name]
    return Entry(
        partial(r_packages.read, name),
        f"{table.rows:,}",
        str(table.columns),
        len(table.classes) or table.values,
        table.licence,
        r_packages.command(table.package),
        lambda data_dir: r_packages.on_disk(name).where(data_dir),
    )


EMBEDDED = partial(_is_here, "embedded")
BUNDLED = partial(_is_here, bundled.BUNDLED.source)

TABLE: dict[str, Entry] = {
    "fashion-mini": Entry(fashion.read_mini, "5,000 + 1,000", "1 x 28 x 28", 10, "MIT", "", EMBEDDED),
    "fashion-mnist": Entry(
        fashion.read_full, "60,000 + 10,000", "1 x 28 x 28", 10, "MIT", fashion.COMMAND,
        lambda data_dir: fashion.on_disk().where(data_dir),
    ),
    "digits": Entry(bundled.read_digits, "1,797", "1 x 8 x 8", 10, "CC-BY-4.0", "", BUNDLED),
    "breast_cancer": Entry(bundled.read_breast_cancer, "569", "30", 2, "CC-BY-4.0", "", BUNDLED),
    **{name: _of_r(name) for name in r_packages.TABLES},
}  # fmt: skip
BINARY_TABLES = tuple(name for name, entry in TABLE.items() if entry.classes == 2 and "x" not in entry.shape)
"""The tables of two classes, the second being the one that is looked for (breast_cancer apart, whose classes scikit-learn ordered)."""
