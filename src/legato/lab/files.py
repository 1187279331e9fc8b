"""Single files: JSON and numeric arrays as bytes, and writing that happens whole or not at all."""

import errno
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from legato import errors
from legato.lab.trial import Arrays

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Damaged(Exception):
    """A stored file that cannot be trusted; the text says why."""


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a temporary neighbour, flushed to the disk, takes its name.

    The caller holds the lock for `path`, so the neighbour's name is always the same, and one that was left by a killed process
    is used again.

    Raises: StoreError for a full disk or a folder that cannot be written; the temporary file is removed.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as problem:
        with suppress(OSError):
            temporary.unlink()
        raise refused(path, problem) from problem


def refused(path: Path, problem: OSError) -> errors.StoreError:
    """The error for a file or folder that the system does not let us write."""
    if problem.errno in DISK_FULL:
        return errors.StoreError(
            f"the disk is full: {path} could not be written ({problem.strerror}). Finished trials are kept. "
            "Fix: free some space and give the same command again; it finishes the rest."
        )
    return errors.StoreError(f"{path} cannot be written ({problem.strerror}). Fix: choose another folder with --out.")


def pack_arrays(arrays: Arrays) -> bytes:
    """Arrays as the bytes of a safetensors file; equal arrays give equal bytes.

    Raises: LegatoTypeError for anything but numeric numpy arrays of at most 8 bytes a number.
    """
    from safetensors.numpy import save

    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            got = f"{array.dtype} array" if isinstance(array, np.ndarray) else type(array).__name__
            raise errors.argument_type(
                f"arrays[{name!r}]", expected="a numpy array of booleans, integers or floats", got=got
            )
    packed: bytes = save({name: np.asarray(arrays[name], order="C") for name in sorted(arrays)})
    return packed


def unpack_arrays(packed: bytes) -> dict[str, Any]:
    """What `pack_arrays` was given. Raises Damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(load(packed))
    except SafetensorError as problem:
        raise Damaged("its arrays cannot be read") from problem


def pack_json(content: Any) -> bytes:
    """JSON for people: indented, sorted keys, a line end."""
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
