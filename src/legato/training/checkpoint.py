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
    any moment leaves whole generations only. Its JSON holds the length and CRC-32 of its tensors.

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
        size, crc = _fingerprint(scratch / "tensors.safetensors")
        text = json.dumps({"tensors": {"bytes": size, "crc32": crc}, "state": plain}, allow_nan=False, indent=1)
        (scratch / "state.json").write_text(text)
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
            except (OSError, ValueError, KeyError) as problem:
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


def _read(generation: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    stored = json.loads((generation / "state.json").read_text())
    path = generation / "tensors.safetensors"
    size, crc = _fingerprint(path)
    expected = stored["tensors"]
    if (size, crc) != (expected["bytes"], expected["crc32"]):
        raise ValueError(f"tensors.safetensors has {size} bytes with CRC {crc}, and {expected} were written")
    try:
        tensors = load_file(path)
    except SafetensorError as problem:
        raise ValueError(f"tensors.safetensors: {problem}") from problem
    state: dict[str, Any] = unflatten(stored["state"], tensors)
    return state


def _fingerprint(path: Path) -> tuple[int, int]:
    size, crc = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc


def _synchronise(path: Path) -> None:
    """fsync a file, or a folder, which makes the names in it safe."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
