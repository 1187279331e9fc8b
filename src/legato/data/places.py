"""Where data sets are looked for, and the file cache of decoded arrays."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from legato import errors
from legato.data.pool import Array, Origin

Files = tuple[Path, ...]
CACHE = "user cache"


class Place(NamedTuple):
    """One place to look in."""

    label: str
    """In words that name no path of the user's machine."""
    folder: Path | None
    layouts: tuple[str, ...] = (".",)
    """Sub-folders that may hold the files, "." being the folder itself."""


@dataclass(frozen=True)
class OnDisk:
    """How one set lies in files and where; its decoded arrays are kept in the user cache, under its name."""

    name: str
    parts: tuple[str, ...]
    """A name for each decoded array."""
    layouts: tuple[str, ...]
    """Sub-folders of the user's folder, and of the cache, that may hold the files."""
    system: tuple[Place, ...]
    """Where the system's packages put the files."""
    find: Callable[[Path], Files | None]
    """The files in a folder, or None where one is missing."""
    decode: Callable[[Files], list[Array]]
    is_known: Callable[[list[Array]], bool]
    """Whether arrays are the ones that legato has a fingerprint of; only those are kept and taken from the cache."""
    fix: str
    """What mends a set that is nowhere."""
    downloader: str = ""
    download: Callable[[], Files | str] | None = None
    """Fetches the files, or says in words why it could not."""

    def where(self, data_dir: Path | None) -> str:
        """The place that `read` would take the set from, told without decoding anything; "" where it is nowhere."""
        for place in self._places(data_dir):
            if place.label == CACHE and is_cached(self.name, self.parts):
                return CACHE
            if next(self._found(place), None):
                return place.label
        return ""

    def read(self, data_dir: Path | None, download: bool) -> tuple[list[Array], Origin]:
        """The arrays, decoded from the first place that has them.

        Raises: DataNotFoundError with every place that was tried; DataError for files that cannot be used.
        """
        tried: list[str] = []
        words: list[str] = []
        for place in self._places(data_dir):
            if place.folder is None:
                tried.append(f"{place.label}: not given, and $LEGATO_DATA is not set")
                words.append(f"{place.label}: not given")
                continue
            tried.append(f"{place.label}: {place.folder}" + _as(place.layouts))
            if place.label == CACHE and (kept := self._kept()) is not None:
                return kept, Origin(f"{CACHE}: decoded earlier", (*words, CACHE))
            for layout, files in self._found(place):
                where = place.label if layout == "." else f"{place.label}: {layout}"
                return self._decoded(files), Origin(where, (*words, where))
            words.append(f"{place.label}: not there")
        if self.download is not None:
            fetched = self.download() if download else "not asked, download was not given"
            if not isinstance(fetched, str):
                return self._decoded(fetched), Origin(self.downloader, (*words, self.downloader))
            tried.append(f"{self.downloader}: {fetched}")
        raise not_found(self.name, tried, self.fix)

    def _places(self, data_dir: Path | None) -> tuple[Place, ...]:
        own = Place("data_dir", data_dir, self.layouts)
        return own, Place(CACHE, cache_folder(), self.layouts), *self.system

    def _found(self, place: Place) -> Iterator[tuple[str, Files]]:
        if place.folder is None:
            return
        for layout in place.layouts:
            if files := self.find(place.folder / layout):
                yield layout, files

    def _kept(self) -> list[Array] | None:
        kept = read_cached(self.name, self.parts)
        return kept if kept is not None and self.is_known(kept) else None

    def _decoded(self, files: Files) -> list[Array]:
        arrays = self.decode(files)
        if self.is_known(arrays):
            write_cached(self.name, self.parts, arrays)
        return arrays


def _as(layouts: Sequence[str]) -> str:
    return f" (as {', '.join(layouts)})" if len(layouts) > 1 else ""


def data_folder(data_dir: str | os.PathLike[str] | None) -> Path | None:
    """The user's folder of data sets: `data_dir`, else $LEGATO_DATA, else None.

    Raises: DataNotFoundError for a folder that was named and does not exist.
    """
    named = data_dir or os.environ.get("LEGATO_DATA") or None
    if named is None:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        word = "data_dir" if data_dir else "$LEGATO_DATA"
        raise errors.DataNotFoundError(errors.message(word, expected="an existing folder", got=str(folder)))
    return folder


def cache_folder() -> Path:
    """legato's folder in the user's cache ($XDG_CACHE_HOME, or ~/.cache); it need not exist."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "legato"
    try:
        return Path.home() / ".cache" / "legato"
    except RuntimeError:  # a user without a home, as some containers have
        return Path(tempfile.gettempdir()) / "legato"


def shown(folder: Path) -> str:
    """A path as a user writes it, with ~ for the home folder."""
    try:
        return f"~/{folder.relative_to(Path.home())}"
    except (RuntimeError, ValueError):
        return str(folder)


def is_cached(name: str, parts: Sequence[str]) -> bool:
    """Whether `write_cached` has kept these arrays; they are not read."""
    return all((cache_folder() / name / f"{part}.npy").is_file() for part in parts)


def read_cached(name: str, parts: Sequence[str]) -> list[Array] | None:
    """The arrays that `write_cached` kept, or None where one is missing or unreadable."""
    try:
        return [np.load(cache_folder() / name / f"{part}.npy", allow_pickle=False) for part in parts]
    except (OSError, ValueError, EOFError):
        return None


def write_cached(name: str, parts: Sequence[str], arrays: Sequence[Array]) -> None:
    """Keep arrays as uncompressed .npy files, each renamed into place when whole; an unwritable cache is no error."""
    folder = cache_folder() / name
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        for part, array in zip(parts, arrays, strict=True):
            _write_whole(folder / f"{part}.npy", array)


def _write_whole(path: Path, array: Array) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            np.save(file, array, allow_pickle=False)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def not_found(name: str, tried: Sequence[str], fix: str) -> errors.DataNotFoundError:
    """The error that lists every place that was tried, and the one command that mends it."""
    places = "\n".join(f"  - {place}" for place in tried)
    return errors.DataNotFoundError(f"{name}: found in none of these places:\n{places}\nFix: {fix}.")
