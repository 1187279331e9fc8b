"""What every reader gives: checked arrays and their origin, not yet cut."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Origin(NamedTuple):
    """Where the arrays were found, in words that name no path of the user's machine."""

    source: str
    searched: tuple[str, ...] = ()


class Labelled(NamedTuple):
    """Inputs and class indices of one file."""

    inputs: Array
    """uint8 [N, C, H, W] or float32 [N, D]."""
    targets: NDArray[np.int64]
    """[N]."""


@dataclass(frozen=True)
class Pool:
    """The rows that may be learnt from, and the files that are held out if the source has any."""

    name: str
    rows: Labelled
    class_names: tuple[str, ...]
    origin: Origin
    feature_names: tuple[str, ...] = ()
    group: NDArray[np.int64] | None = None
    """[N] group of each row; rows of one group stay together in every cut."""
    validation: Labelled | None = None
    test: Labelled | None = None
    licence: str = "not stated"
    citation: str = ""
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The number of rows of all files together."""
        return sum(len(file.targets) for file in (self.rows, self.validation, self.test) if file is not None)

    def each(self, change: Callable[[Labelled], Labelled]) -> "Pool":
        """The pool with each of its files changed."""
        return replace(
            self,
            rows=change(self.rows),
            validation=None if self.validation is None else change(self.validation),
            test=None if self.test is None else change(self.test),
        )

    @cached_property
    def sha256(self) -> str:
        """The fingerprint of the decoded arrays; it does not depend on any seed."""
        held_out = [part for part in (self.validation, self.test) if part is not None]
        group = [] if self.group is None else [self.group]
        return fingerprint([*self.rows, *group, *(array for part in held_out for array in part)])


def fingerprint(arrays: Iterable[Array]) -> str:
    """The sha256 of arrays in order: their type, shape and values, and nothing of how they were stored."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
