"""Tables of costs that change every day, a row a day and a column a step: real series that are fetched, not shipped."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from legato import errors
from legato.data import places
from legato.data.pool import Array, Origin, fingerprint

ITALY = "italy-power-demand"
NAMES = (ITALY,)
FOLDER = "aeon/datasets/data/ItalyPowerDemand"
FILES = ("ItalyPowerDemand_TRAIN.ts", "ItalyPowerDemand_TEST.ts")
SHA256 = "5b6c978881758a9789f6ab2b61e9609ba512ac9dcc5b7e2cf0a926c18f2f92a6"
LICENCE = "aeon: BSD-3-Clause; of the series itself none is stated"
CITATION = "Keogh, Wei, Xi, Lonardi, Shieh, Sirowy 2006, Intelligent Icons, ICDM; in the UCR archive of time series"
NOTES = (
    "each day is shifted and scaled to mean 0 and standard deviation 1, so it tells when power is wanted, not how much, and is no price",
    "the archive has shuffled the days: the one before a day in the file is not the day before, and no season or week is left",
)


def read_days(name: str = ITALY, data_dir: str | Path | None = None) -> tuple[Array, Origin]:
    """1,096 days of Italian power demand, hour by hour, and where they were found.

    Looks in `data_dir`, else $LEGATO_DATA, then in the user cache: for the files themselves, or for the wheel of aeon, which holds them. The wheel is
    read as an archive; nothing of it is installed or run.

    Returns: float64 [1096, 24], first the training part of the archive, then the test part; see `NOTES`.
    Raises: LegatoValueError for an unknown name; DataNotFoundError with the places that were searched and the line that fetches it; DataError for
        files that are something else.
    """
    if name not in NAMES:
        raise errors.choice("costs", name, NAMES)
    (days,), origin = _on_disk().read(places.data_folder(data_dir), download=False)
    return days, origin


def command() -> str:
    """The line that fetches the wheel to where legato looks."""
    return f"pip download --no-deps --dest {places.shown(places.cache_folder())} aeon"


def _on_disk() -> places.OnDisk:
    return places.OnDisk(
        name=ITALY,
        parts=("days",),
        layouts=(".", FOLDER),
        system=(),
        find=_find,
        decode=_decode,
        is_known=_is_known,
        fix=f"{command()}; or name the folder of {' and '.join(FILES)}, or of aeon's wheel, with data_dir",
    )


def _find(folder: Path) -> tuple[Path, ...] | None:
    files = tuple(folder / name for name in FILES)
    if all(file.is_file() for file in files):
        return files
    wheels = sorted(folder.glob("aeon-*.whl"))
    return (wheels[-1],) if wheels else None


def _decode(files: Sequence[Path]) -> list[Array]:
    texts = _from_wheel(files[0]) if len(files) == 1 else [file.read_text(encoding="utf-8") for file in files]
    try:
        days = np.concatenate([_series(text) for text in texts])
    except ValueError as problem:
        raise errors.DataError(f"{files[0].name}: not the series {ITALY}: {problem}. Fix: {command()}.") from problem
    if not _is_known([days]):
        got = f"others, of shape {list(days.shape)}"
        raise errors.DataError(errors.message(files[0].name, expected="the days of the UCR archive", got=got, fix=command()))  # fmt: skip
    return [days]


def _is_known(arrays: list[Array]) -> bool:
    return fingerprint(arrays) == SHA256


def _from_wheel(wheel: Path) -> list[str]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return [archive.read(f"{FOLDER}/{name}").decode() for name in FILES]
    except (OSError, KeyError, zipfile.BadZipFile, UnicodeDecodeError) as problem:
        raise errors.DataError(f"{wheel.name}: holds no {ITALY}: {problem}. Fix: {command()}.") from problem


def _series(text: str) -> Array:
    """[K, H] of a .ts file: after the line @data, a day a line, numbers with commas, then a colon and the class."""
    lines = io.StringIO(text.partition("@data")[2])
    rows = [line.partition(":")[0].split(",") for line in lines if line.strip()]
    return np.array(rows, dtype=np.float64)
