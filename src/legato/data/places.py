"""Where data sets are looked for, and the file cache of decoded arrays."""

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legato import errors


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
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "legato"


def read_cached(name: str, parts: Sequence[str]) -> list[NDArray[Any]] | None:
    """The arrays that `write_cached` kept, or None where one is missing or unreadable."""
    try:
        return [np.load(cache_folder() / name / f"{part}.npy", allow_pickle=False) for part in parts]
    except (OSError, ValueError, EOFError):
        return None


def write_cached(name: str, parts: Sequence[str], arrays: Sequence[NDArray[Any]]) -> None:
    """Keep arrays as uncompressed .npy files, each renamed into place when whole; an unwritable cache is no error."""
    folder = cache_folder() / name
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        for part, array in zip(parts, arrays, strict=True):
            _write_whole(folder / f"{part}.npy", array)


def _write_whole(path: Path, array: NDArray[Any]) -> None:
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
