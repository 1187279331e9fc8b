"""name or file -> splits: the table of data sets and the one function that loads any of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from legato import errors
from legato.data import bundled, fashion, places
from legato.data.arrays import pool_of, read_npz
from legato.data.cuts import check_cut, cut
from legato.data.pool import Pool
from legato.data.splits import Splits
from legato.data.tabular import read_table


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


TABLE: dict[str, Entry] = {
    "fashion-mini": Entry(fashion.read_mini, "5,000 + 1,000", "1 x 28 x 28", 10, "MIT", ""),
    "fashion-mnist": Entry(fashion.read_full, "60,000 + 10,000", "1 x 28 x 28", 10, "MIT", fashion.COMMAND),
    "digits": Entry(bundled.read_digits, "1,797", "1 x 8 x 8", 10, "CC-BY-4.0", ""),
    "breast_cancer": Entry(bundled.read_breast_cancer, "569", "30", 2, "CC-BY-4.0", ""),
}


def load(
    data: str,
    *,
    target: str | None = None,
    seed: int = 0,
    validation_fraction: float = 0.2,
    validation: str | None = None,
    test: str | None = None,
    group: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
) -> Splits:
    """Load a data set and cut it in train, validation and test.

    Args:
        data: a name of the table (`legato data` prints it), a .csv or .parquet file (with `target`), or an .npz file.
        target: column of the class; `group`: column whose equal values are never divided.
        seed: of the validation cut; the test rows are the same for every seed.
        validation_fraction: of the rows that are not for the test.
        validation, test: files of the same form, instead of a cut.
        data_dir: searched first; then $LEGATO_DATA, the user cache, the system's places.
        download: allow torchvision, if installed, to fetch a set.
    Raises: DataNotFoundError with every place that was tried; DataError for data that cannot be used.
    """
    check_cut(seed, validation_fraction)
    pool = _pool(data, target, group, _stamp(data), test, validation, data_dir, download)
    return cut(pool, seed=seed, validation_fraction=validation_fraction)


def from_arrays(
    x: Any,
    y: Any,
    *,
    seed: int = 0,
    validation_fraction: float = 0.2,
    test: tuple[Any, Any] | None = None,
    group: Any = None,
    name: str = "arrays",
) -> Splits:
    """Cut arrays or tensors: x [N, D], [N, H, W] or [N, C, H, W]; y [N] integers or strings."""
    return cut(pool_of(name, x, y, test, "arrays", group), seed=seed, validation_fraction=validation_fraction)


def from_dataset(dataset: Any, *, seed: int = 0, validation_fraction: float = 0.2, name: str = "dataset") -> Splits:
    """Cut a map-style Dataset of (input, class), read into memory once."""
    rows = [dataset[i] for i in range(len(dataset))]
    x, y = np.stack([np.asarray(row[0]) for row in rows]), np.array([int(row[1]) for row in rows])
    return from_arrays(x, y, seed=seed, validation_fraction=validation_fraction, name=name)


@lru_cache(maxsize=4)
def _pool(
    data: str,
    target: str | None,
    group: str | None,
    stamp: object,
    test: str | None,
    validation: str | None,
    data_dir: str | None,
    download: bool,
) -> Pool:
    """Decoded once a process; a trial asks again for each seed. `stamp` changes when the file does."""
    if data in TABLE:
        return TABLE[data].read(places.data_folder(data_dir), download)
    path = Path(data).expanduser()
    if not path.exists():
        if path.suffix or "/" in data:
            raise errors.DataNotFoundError(
                f"{data}: there is no such file or folder, seen from {Path.cwd().name or '/'}."
            )
        raise errors.choice("data", data, TABLE)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".parquet"):
        return read_table(path, target, group, _existing("test", test), _existing("validation", validation))
    if suffix == ".npz":
        return read_npz(path)
    raise errors.DataError(
        errors.message(data, expected="a .csv, .parquet or .npz file, or a name", got=suffix or "a folder")
    )


def _existing(word: str, file: str | None) -> Path | None:
    if file is not None and not Path(file).exists():
        raise errors.DataNotFoundError(errors.message(word, expected="an existing file", got=file))
    return None if file is None else Path(file)


def _stamp(data: str) -> object:
    path = Path(data).expanduser()
    return (path.stat().st_mtime_ns, path.stat().st_size) if data not in TABLE and path.exists() else None
