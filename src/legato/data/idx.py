"""IDX, the file format of MNIST and its relatives: a header of big-endian integers, then bytes."""

import gzip
import hashlib
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from legato import errors
from legato.data.arrays import pool_of
from legato.data.pool import Pool

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
"""The four files of a set: train images, train labels, test images, test labels."""
NAME = re.compile(r"(?P<prefix>.*?)-?(?P<part>train|t10k|test)-(?P<kind>images|labels)[-.]idx[13]-ubyte(\.gz)?")
"""How the four are named: MNIST's own way, EMNIST's with its prefix and "test", and both with a dot."""
PARTS = ("train images", "train labels", "test images", "test labels")

Files = tuple[Path, ...]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, raw or gzipped, as an array of the shape that its header states.

    Raises: DataError for a file that is damaged, cut short or of another type.
    """
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        zero, kind, ndim = struct.unpack_from(">HBB", raw)
        if (zero, kind) != (0, 8):
            raise ValueError("its header is not that of an IDX file of unsigned bytes")
        shape = struct.unpack_from(f">{ndim}I", raw, 4)
        return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * ndim).reshape(shape)
    except (ValueError, EOFError, struct.error, zlib.error, gzip.BadGzipFile) as problem:
        raise errors.DataError(
            f"{path.name}: not a readable IDX file: {problem}. Fix: fetch the file again."
        ) from problem


def md5(array: NDArray[np.uint8]) -> str:
    """The MD5 of the uncompressed IDX file that holds `array`, whatever it was read from."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return hashlib.md5(header + array.tobytes(), usedforsecurity=False).hexdigest()


def set_in(folder: Path) -> Files | None:
    """The four files of a set in `folder`, each raw or gzipped, or None if one is missing."""
    candidates = [[folder / name, folder / f"{name}.gz"] for name in FILES]
    found = [next((path for path in both if path.is_file()), None) for both in candidates]
    paths = tuple(path for path in found if path is not None)
    return paths if len(paths) == len(FILES) else None


def sets_below(path: Path) -> dict[Path, dict[str, Path]]:
    """The sets in IDX files that `path` means: each by its address, with the files that are there by their part.

    `path` is the folder of the files, or one of the two above it, as torchvision makes them (ROOT/KMNIST/raw); or the folder and the
    prefix of one set of several (ROOT/EMNIST/raw/emnist-letters). The address of a set without a prefix is its folder.
    """
    found: dict[Path, dict[str, Path]] = {}
    folders = [path, *sorted(path.glob("*/")), *sorted(path.glob("*/raw/"))] if path.is_dir() else [path.parent]
    for folder in folders:
        for file in sorted(folder.glob("*idx[13]-ubyte*")):
            if name := NAME.fullmatch(file.name):
                address = folder / name["prefix"] if name["prefix"] else folder
                part = "train" if name["part"] == "train" else "test"
                found.setdefault(address, {}).setdefault(f"{part} {name['kind']}", file)
    return found if path.is_dir() else {address: files for address, files in found.items() if address == path}


def read_folder(path: Path) -> Pool:
    """The one set in IDX files that `path` means, see `sets_below`; its classes are named by their numbers.

    Raises: DataError for several sets, a missing file, and files that cannot be read.
    """
    sets = sets_below(path)
    if len(sets) != 1:
        shown = ", ".join(str(address.relative_to(path)) for address in sets)
        raise errors.DataError(
            errors.message(
                path.name, expected="one set in IDX files", got=f"{len(sets)}: {shown}", fix="name one of these as the data set"
            )
        )  # fmt: skip
    address, files = next(iter(sets.items()))
    if missing := [part for part in PARTS if part not in files]:
        raise errors.DataError(
            errors.message(
                path.name, expected="four IDX files", got=f"none for the {missing[0]}", fix="fetch the missing file"
            )
        )
    images, labels, test_images, test_labels = (read_idx(files[part]) for part in PARTS)
    name = address.parent.name if address.name == "raw" else address.name
    return pool_of(name, {"train": (images, labels), "test": (test_images, test_labels)}, f"IDX files: {name}")
