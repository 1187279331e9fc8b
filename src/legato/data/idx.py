"""IDX, the file format of MNIST and its relatives: a header of big-endian integers, then bytes."""

import gzip
import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from legato import errors

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
"""The four files of a set: train images, train labels, test images, test labels."""


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


def set_in(folder: Path) -> tuple[Path, ...] | None:
    """The four files of a set in `folder`, each raw or gzipped, or None if one is missing."""
    candidates = [[folder / name, folder / f"{name}.gz"] for name in FILES]
    found = [next((path for path in both if path.is_file()), None) for both in candidates]
    paths = tuple(path for path in found if path is not None)
    return paths if len(paths) == len(FILES) else None
