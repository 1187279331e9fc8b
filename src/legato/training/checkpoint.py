"""Checkpoints of a run: one folder a generation, safetensors beside JSON, in place by one rename."""

import json
import os
import shutil
import time
import warnings
import zlib
from collections.abc import Mapping
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

    def due(self) -> bool:
        """Whether the last checkpoint, or the start, is `every` seconds ago."""
        return time.monotonic() - self._last >= self.every

    def any(self) -> bool:
        """Whether there is a checkpoint, whole or not."""
        return bool(self._generations())

    def save(self, state: Mapping[str, Any]) -> Path:
        """Write `state` as the next generation and remove those before the last two."""
        from safetensors.torch import save_file

        generations = self._generations()
        number = int(generations[-1].name.partition("-")[2]) + 1 if generations else 1
        self.folder.mkdir(parents=True, exist_ok=True)
        for left_over in self.folder.glob(".writing-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        scratch = self.folder / f".writing-{number:06d}"
        scratch.mkdir()
        tensors: dict[str, Tensor] = {}
        plain = flatten(dict(state), "run", tensors)
        save_file(tensors, scratch / "tensors.safetensors")
        _synchronise(scratch / "tensors.safetensors")
        check = {"tensors": _crc_of_file(scratch / "tensors.safetensors"), "state": _crc_of_state(plain)}
        (scratch / "state.json").write_text(json.dumps({"crc32": check, "state": plain}, allow_nan=False, indent=1))
        _synchronise(scratch / "state.json")
        _synchronise(scratch)
        final_name = self.folder / f"checkpoint-{number:06d}"
        scratch.replace(final_name)
        _synchronise(self.folder)
        for old in generations[: len(generations) + 1 - KEEP]:
            shutil.rmtree(old, ignore_errors=True)
        self._last = time.monotonic()
        return final_name

    def load(self) -> dict[str, Any] | None:
        """The newest whole generation; None in a folder without any.

        A damaged generation is named in a LegatoWarning and the one before it is taken.
        Raises: CheckpointError, which names the files, when all are damaged.
        """
        damage = []
        for generation in reversed(self._generations()):
            try:
                state = _read(generation)
            except (OSError, ValueError, KeyError, TypeError) as problem:
                damage.append(f"{generation}: {problem}")
                continue
            if damage:
                warnings.warn(
                    f"damaged checkpoint {damage[0]}; the run goes on from {generation.name}, the one before.",
                    errors.LegatoWarning,
                    stacklevel=3,
                )
            return state
        if damage:
            text = "; ".join(damage)
            raise errors.CheckpointError(f"no whole checkpoint: {text}. Fix: delete {self.folder} to start again.")
        return None

    def _generations(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-[0-9]*"))


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one safetensors file so that `path` is at any moment the old file, the new one or absent, and never half.

    Args:
        tensors: any; those that share memory are stored each by itself.
        metadata: words kept in the file's header.
    """
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".writing-{path.name}")
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    save_file(own, scratch, metadata=metadata)
    _synchronise(scratch)
    scratch.replace(path)
    _synchronise(path.parent)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a file that `write_tensors` wrote. Raises: CheckpointError, which names it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as problem:
        raise errors.CheckpointError(f"{path} cannot be read: {problem}. Fix: delete it and train again.") from problem


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
