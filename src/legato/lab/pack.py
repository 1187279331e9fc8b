"""A finished store as one file: xz-compressed lines of JSON, arrays as base64. The page is drawn from it as from a folder.

Line 1 is the header: config and environment. Then comes one line a trial, by key, and one for each group of arrays that belong to
the whole run. Equal stores give equal bytes.
"""

import json
import lzma
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from legato import errors
from legato.lab.files import pack_arrays, unpack_arrays, write
from legato.lab.store import open_store
from legato.lab.trial import Arrays, Record

FORMAT = 1


class Results(Protocol):
    """What can be read from a store, be it a folder or a pack."""

    def read_config(self) -> dict[str, Any]:
        """What was asked; with study, schema and version."""

    def read_environment(self) -> dict[str, Any]:
        """What the trials were measured with."""

    def records(self) -> list[Record]:
        """All finished trials, by key."""

    def arrays(self, key: str) -> dict[str, Any]:
        """The arrays of a trial; empty if it has none."""

    def read_arrays(self, name: str) -> dict[str, Any]:
        """Arrays that belong to the whole run; empty if there are none of this name."""

    def named_arrays(self) -> list[str]:
        """The names that `read_arrays` knows."""


class Pack:
    """The content of a pack, read-only."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        header = lines[0]
        self._config, self._environment = header["config"], header["environment"]
        self._trials = {line["trial"]["key"]: line for line in lines[1:] if "trial" in line}
        self._named = {line["name"]: line for line in lines[1:] if "name" in line}

    def read_config(self) -> dict[str, Any]:
        """What was asked; with study, schema and version."""
        return dict(self._config)

    def read_environment(self) -> dict[str, Any]:
        """What the trials were measured with."""
        return dict(self._environment)

    def records(self) -> list[Record]:
        """All trials, by key."""
        return [Record(**line["trial"]) for line in self._trials.values()]

    def arrays(self, key: str) -> dict[str, Any]:
        """The arrays of a trial, without those that were left out; empty if it has none."""
        if key not in self._trials:
            raise errors.StoreError(f"{key}: there is no such trial.")
        return _decode(self._trials[key]["arrays"])

    def read_arrays(self, name: str) -> dict[str, Any]:
        """Arrays that belong to the whole run; empty if there are none of this name."""
        return _decode(self._named[name]["arrays"]) if name in self._named else {}

    def named_arrays(self) -> list[str]:
        """The names that `read_arrays` knows."""
        return list(self._named)


def pack(store: Results, path: Path, leave_out: Collection[str] = ("logits",)) -> None:
    """Write a store as one file, usually NAME.jsonl.xz.

    Args:
        leave_out: names of arrays of trials that stay behind, since they are large and no page needs them.
    Raises: StoreError when the store is damaged, or the file cannot be written.
    """
    text = "".join(json.dumps(line, sort_keys=True, allow_nan=False) + "\n" for line in _lines(store, leave_out))
    write(path, lzma.compress(text.encode(), check=lzma.CHECK_SHA256, preset=9))


def open_pack(path: Path) -> Pack:
    """Read a pack.

    Raises: StoreError when the file is no pack, is cut off or was changed.
    """
    try:
        text = lzma.decompress(path.read_bytes())
        lines = [json.loads(line) for line in text.splitlines()]
        found = lines[0]["pack"]
    except OSError as problem:
        raise errors.StoreError(f"{path} cannot be read ({problem.strerror}).") from problem
    except (lzma.LZMAError, EOFError, ValueError, KeyError, IndexError, TypeError) as problem:
        raise errors.StoreError(
            f"{path} is no pack of legato, or is damaged. Fix: get it again, or make it again with --pack."
        ) from problem
    if found != FORMAT:
        raise errors.StoreError(
            f"{path}: is a pack of format {found}, and this legato reads {FORMAT}. Fix: install a newer legato."
        )
    return Pack(lines)


def open_results(path: Path) -> Results:
    """A folder of results, or a pack of one; for reading.

    Raises: StoreError when `path` is neither.
    """
    return open_pack(path) if path.is_file() else open_store(path)


def _lines(store: Results, leave_out: Collection[str]) -> Iterator[dict[str, Any]]:
    yield {"pack": FORMAT, "config": store.read_config(), "environment": store.read_environment()}
    for record in store.records():
        kept = {name: array for name, array in store.arrays(record.key).items() if name not in leave_out}
        yield {"trial": asdict(record), "arrays": _encode(kept)}
    for name in store.named_arrays():
        yield {"name": name, "arrays": _encode(store.read_arrays(name))}


def _encode(arrays: Arrays) -> str | None:
    return b64encode(pack_arrays(arrays)).decode() if arrays else None


def _decode(text: str | None) -> dict[str, Any]:
    return unpack_arrays(b64decode(text)) if text else {}
