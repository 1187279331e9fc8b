"""Checkpoints of a run: one folder a generation, safetensors beside JSON, in place by one rename."""

import json
import os
import re
import shutil
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from legato import errors
from legato.training.plain import flatten, unflatten

KEEP = 2
"""Generations that stay on disk: the newest, and the one before in case the newest is damaged."""

_CHUNK = 1 << 22


@final
class Checkpoints:
    """The generations `checkpoint-000001`, `checkpoint-000002` ... in one folder.

    A generation is written under a temporary name, synchronised to the disk and renamed, so that a process killed at
    any moment leaves whole generations only. Its JSON holds the CRC-32 of both files.

    Args:
        folder: made when the first checkpoint is written.
        every: seconds between checkpoints, at least; counted from now.
    """

    def __init__(self, folder: Path, every: float) -> None:
        self.folder = Path(folder)
        self.every = every
        self._last = time.monotonic()
        self._damaged: list[Path] = []

    def due(self) -> bool:
        """Whether the last checkpoint, or the start, is `every` seconds ago."""
        return time.monotonic() - self._last >= self.every

    def any(self) -> bool:
        """Whether there is a checkpoint, whole or not."""
        return bool(self._generations())

    def check_place(self) -> None:
        """See, before hours of training, that checkpoints can be written; writes nothing.

        Raises: CheckpointError when the folder, or the nearest one above it that is there, is no folder of ours.
        """
        there = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise _unwritable(self.folder, f"{there} is no folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise _unwritable(self.folder, f"no permission to write in {there}")

    def save(self, state: Mapping[str, Any]) -> Path:
        """Write `state` as the next generation and remove damaged ones and those before the last two.

        Raises: CheckpointError for a state that cannot be stored, a full disk or a folder that cannot be written; the
        generations before are kept.
        """
        generations = self._generations()
        number = max(generations, default=0) + 1
        tensors: dict[str, Tensor] = {}
        plain = flatten(dict(state), "run", tensors)
        place = self.folder / f"checkpoint-{number:06d}"
        with _whole(place) as scratch:
            scratch.mkdir()
            _save_tensors(tensors, scratch / "tensors.safetensors")
            check = {"tensors": _crc_of_file(scratch / "tensors.safetensors"), "state": _crc_of_state(plain)}
            (scratch / "state.json").write_text(json.dumps({"crc32": check, "state": plain}, allow_nan=False, indent=1))
            _synchronise(scratch / "state.json")
        whole = [old for old in generations.values() if old not in self._damaged]
        for old in (*self._damaged, *whole[: len(whole) + 1 - KEEP]):
            shutil.rmtree(old, ignore_errors=True)
        self._damaged = []
        self._last = time.monotonic()
        return place

    def load(self) -> dict[str, Any] | None:
        """The newest whole generation; None in a folder without any.

        A damaged generation is named in a LegatoWarning and the one before it is taken.
        Raises: CheckpointError, which names the files, when all are damaged.
        """
        damage: dict[Path, str] = {}
        for generation in reversed(self._generations().values()):
            try:
                state = _read(generation)
            except (OSError, ValueError, KeyError, TypeError) as problem:
                damage[generation] = f"{generation}: {problem}"
                continue
            if damage:
                text = "; ".join(damage.values())
                text = f"damaged checkpoint {text}. The run goes on from {generation.name}, the one before."
                warnings.warn(text, errors.LegatoWarning, stacklevel=3)
            self._damaged = list(damage)
            return state
        if damage:
            text = "; ".join(damage.values())
            raise errors.CheckpointError(f"no whole checkpoint: {text}. Fix: delete {self.folder} to start again.")
        return None

    def _generations(self) -> dict[int, Path]:
        """By number, oldest first."""
        named = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in self.folder.glob("checkpoint-*")]
        return dict(sorted((int(match[1]), path) for match, path in named if match))


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one safetensors file so that `path` is at any moment the old file, the new one or absent, and never half.

    Args:
        tensors: any; those that share memory are stored each by itself.
        metadata: words kept in the file's header.
    Raises: CheckpointError for a full disk or a folder that cannot be written.
    """
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    with _whole(path) as scratch:
        _save_tensors(own, scratch, metadata)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a file that `write_tensors` wrote. Raises: CheckpointError, which names it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as problem:
        raise errors.CheckpointError(f"{path} cannot be read: {problem}. Fix: delete it and train again.") from problem


@contextmanager
def _whole(place: Path) -> Iterator[Path]:
    """A name beside `place` to write a file or folder under; on leaving, it is synchronised to the disk and takes its place."""
    from safetensors import SafetensorError

    scratch = place.with_name(f".writing-{place.name}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove(scratch)  # left by a process that was killed
        yield scratch
        _synchronise(scratch)
        scratch.replace(place)
        _synchronise(place.parent)
    except (OSError, SafetensorError) as problem:
        with suppress(OSError):
            _remove(scratch)
        raise _unwritable(place, problem) from problem


def _save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path, metadata=metadata)
    _synchronise(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _unwritable(place: Path, problem: object) -> errors.CheckpointError:
    fix = "free some space or choose another folder, and start the same run again"
    return errors.CheckpointError(f"{place} cannot be written: {problem}. Fix: {fix}.")


def _read(generation: Path) -> dict[str, Any]:
    stored = json.loads((generation / "state.json").read_text())
    path = generation / "tensors.safetensors"
    found = {"tensors": _crc_of_file(path), "state": _crc_of_state(stored["state"])}
    for part, crc in found.items():
        if crc != stored["crc32"][part]:
            raise ValueError(f"the {part} have CRC-32 {crc} where {stored['crc32'][part]} was written")
    state: dict[str, Any] = unflatten(stored["state"], read_tensors(path)[0])
    return state


def _crc_of_file(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def _crc_of_state(plain: Any) -> int:
    return zlib.crc32(json.dumps(plain).encode())


def _synchronise(path: Path) -> None:
    """fsync a file, or a folder, which makes the names in it safe."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
