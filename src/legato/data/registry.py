"""name, file or folder -> splits: the one function that loads any data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike, scandir
from pathlib import Path
from typing import Any

from legato import errors
from legato.data import idx, photos, places, tabular
from legato.data.arrays import arrays_of, pool_of, read_npz
from legato.data.classes import keep_classes
from legato.data.cuts import check_cut, cut
from legato.data.pool import Pool
from legato.data.splits import Splits
from legato.data.table import TABLE

KEPT = 16
"""Pools that a process keeps: a study on many small sets asks for them in turn."""


def load(
    data: str | PathLike[str],
    *,
    target: str | None = None,
    group: str | None = None,
    classes: Sequence[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
    seed: int = 0,
    validation_fraction: float = 0.2,
    validation: str | PathLike[str] | None = None,
    test: str | PathLike[str] | None = None,
    data_dir: str | PathLike[str] | None = None,
    download: bool = False,
) -> Splits:
    """Load a data set and cut it in train, validation and test.

    Args:
        data: a name of the table (`legato data` prints it); a .csv or .parquet file (with `target`); an .npz file; a folder of
            pictures, one sub-folder a class; or a folder of IDX files, as MNIST and its relatives come in.
        target: column of the class in a table.
        group: column of a table, or array of an .npz file, whose equal values are never divided.
        classes: keep only these, in this order: names, or indices as text.
        image_size: pictures are cut to this aspect around the centre and resized to (height, width); one number is both.
        seed: of the validation cut; the test rows are the same for every seed.
        validation_fraction: of the rows that are not for the test.
        validation, test: files or folders of the same form, instead of a cut.
        data_dir: searched first; then $LEGATO_DATA, the user cache, the system's places.
        download: allow torchvision, if installed, to fetch a set.
    Returns: copies, so that what is done to them reaches no other caller; the decoded data is kept for the next seed.
    Raises: DataNotFoundError with every place that was tried; DataError for data that cannot be used; LegatoValueError for an
        argument that is out of range, or has no meaning for this data.
    """
    check_cut(seed, validation_fraction)
    if isinstance(classes, str):
        raise errors.argument_type(
            "classes", expected="a sequence of names", got=repr(classes), fix=f"({classes!r}, ...)"
        )
    is_named = str(data) in TABLE
    own = None if is_named else _existing("data", data)
    held_out = [
        None if file is None else _existing(word, file) for word, file in (("validation", validation), ("test", test))
    ]
    request = _Request(
        str(own or data),
        target,
        group,
        _size(image_size),
        validation=held_out[0],
        test=held_out[1],
        data_dir=places.data_folder(data_dir) if is_named else None,
        download=download,
        stamps=tuple(_stamp(path) for path in (own, *held_out) if path is not None),
    )
    pool = _pool(request, None if classes is None else tuple(map(str, classes)))
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
    parts = {"train": (x, y)} if test is None else {"train": (x, y), "test": test}
    return cut(pool_of(name, parts, "arrays", group), seed=seed, validation_fraction=validation_fraction)


def from_dataset(dataset: Any, *, seed: int = 0, validation_fraction: float = 0.2, name: str = "dataset") -> Splits:
    """Cut a map-style Dataset of (input, class), read into memory once; see `arrays_of`."""
    return from_arrays(*arrays_of(dataset), seed=seed, validation_fraction=validation_fraction, name=name)


@dataclass(frozen=True)
class _Request:
    """All that decides a pool, classes apart."""

    data: str
    target: str | None
    group: str | None
    image_size: tuple[int, int] | None
    validation: Path | None
    test: Path | None
    data_dir: Path | None
    download: bool
    stamps: tuple[object, ...]
    """They change when the files do."""

    def refuse(self, *words: str) -> None:
        """Never ignore what was asked for: an argument without a meaning for this data is an error."""
        for word in words:
            if (got := getattr(self, word)) is not None:
                name = Path(self.data).name
                raise errors.argument(
                    word, expected=f"nothing, for {name} has no use for it", got=got, fix="leave it out"
                )


@lru_cache(maxsize=KEPT)
def _pool(request: _Request, classes: tuple[str, ...] | None) -> Pool:
    """Decoded once a process; a trial asks again for each seed."""
    pool = _read(request)
    if classes is not None:
        pool = keep_classes(pool, classes)
    return pool if request.image_size is None else photos.resized(pool, request.image_size)


@lru_cache(maxsize=KEPT)
def _read(request: _Request) -> Pool:
    if request.data not in TABLE:
        return _read_files(request, Path(request.data))
    request.refuse("target", "group", "validation", "test")
    return TABLE[request.data].read(request.data_dir, request.download)


def _read_files(request: _Request, path: Path) -> Pool:
    suffix = path.suffix.lower()
    others = request.validation, request.test
    if path.is_file() and suffix in tabular.SUFFIXES:
        return tabular.read_table(path, request.target, request.group, *others)
    request.refuse("target")
    if path.is_file() and suffix == ".npz":
        return read_npz(path, request.group, *others)
    request.refuse("group")
    if idx.sets_below(path):
        request.refuse("validation", "test")
        return idx.read_folder(path)
    if path.is_dir():
        return photos.read_photos(path, request.image_size, *others)
    raise errors.DataError(
        errors.message(path.name, expected="a .csv, .parquet or .npz file, a folder, or a name", got=suffix or "a file")
    )


def _existing(word: str, data: str | PathLike[str]) -> Path:
    """The absolute path of a file or folder; symbolic links are kept, for its name is the data's name."""
    path = Path(data).expanduser().absolute()
    path = path.resolve() if ".." in path.parts else path
    if path.exists() or idx.sets_below(path):
        return path
    if word == "data" and not path.suffix and "/" not in str(data):
        raise errors.choice("data", str(data), TABLE)
    raise errors.DataNotFoundError(
        f"{word}: {data}: there is no such file or folder, seen from {Path.cwd().name or '/'}."
    )


def _stamp(path: Path) -> tuple[int, int, int]:
    """Files, times and sizes of a file, or of all files below a folder: changes when one of them does."""
    if not path.is_dir():
        found = (path if path.exists() else path.parent).stat()
        return 1, found.st_mtime_ns, found.st_size
    files = times = sizes = 0
    folders = [str(path)]
    while folders:
        with scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.path)
                elif entry.is_file():  # and no link to nowhere
                    files, times, sizes = files + 1, times + entry.stat().st_mtime_ns, sizes + entry.stat().st_size
    return files, times, sizes


def _size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = size if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in pair):
        raise errors.argument("image_size", expected="a whole number >= 1, or (height, width)", got=size)
    return pair[0], pair[1]
