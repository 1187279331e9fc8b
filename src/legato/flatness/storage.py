"""Where a table can stand: on a device, in memory that processes share, or in a file; and whether there is room for it."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from legato import errors

Store = str | torch.device | os.PathLike[str]
Place = str | torch.device | Path
PAGE = 4096
_HEADER = {"legato": "records", "format": 1}


def place_of(store: Store) -> Place:
    """The word "shared", a device, or a file. Raises: LegatoValueError for another word."""
    if isinstance(store, torch.device) or store == "shared":
        return store
    if isinstance(store, str) and not {"/", os.sep, "."} & set(store):
        try:
            return torch.device(store)
        except RuntimeError:
            raise errors.choice("store", store, ["cpu", "cuda", "shared", "a path such as ./records.bin"]) from None
    return Path(store).absolute()


def check_room(place: Place, needed: int) -> None:
    """Raises: LegatoValueError for more than half of the free memory, or than all of the free disk."""
    if isinstance(place, Path):
        there = next(path for path in place.parents if path.exists())
        free, share, what = shutil.disk_usage(there).free + (place.stat().st_size if place.exists() else 0), 1.0, "disk"
    else:
        known = free_memory(place)
        if known is None:
            return
        free, share, what = known, 0.5, "memory"
    if needed > share * free:
        raise errors.argument(
            "store", expected=f"at most {human(int(share * free))}, {share:.0%} of the free {what} of {place}",
            got=f"{human(needed)} ({needed} bytes)",
            fix="dtype=torch.float16 halves it, top_k=16 keeps a few logits of many, a smaller lag saves a slot an epoch; or keep the "
            "records in a file, store='./records.bin', divide them among processes with TrajectorySampler, or use MESA, which keeps none",
        )  # fmt: skip


def free_memory(place: str | torch.device) -> int | None:
    """Bytes that can be had on a device, or in shared memory; None where nobody says."""
    if isinstance(place, torch.device) and place.type == "cuda":
        return int(torch.cuda.mem_get_info(place)[0])
    if isinstance(place, torch.device) and place.type != "cpu":
        return None
    known, memory, shared = [], Path("/proc/meminfo"), Path("/dev/shm")
    if memory.exists():
        known += [
            int(line.split()[1]) * 1024 for line in memory.read_text().splitlines() if line.startswith("MemAvailable")
        ]
    if place == "shared" and shared.exists():
        known.append(shutil.disk_usage(shared).free)
    return min(known, default=None)


def human(count: int) -> str:
    """`7.2 MB`."""
    value, units = float(count), iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 1000 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.3g} {unit}"


@contextmanager
def first_alone() -> Iterator[bool]:
    """Whether this process is the one of its node that makes a file; the others leave the block, empty-handed, after it has."""
    several = distributed.is_available() and distributed.is_initialized()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and not several:
        raise errors.argument(
            "store", expected="processes that have met before they share a file", got=f"{processes} processes that have not",
            fix="call torch.distributed.init_process_group first",
        )  # fmt: skip
    try:
        yield not several or int(os.environ.get("LOCAL_RANK", distributed.get_rank())) == 0
    finally:
        meet()


def meet() -> None:
    """Wait until all processes, if there are several that know each other, have come here."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


def make_file(path: Path, outline: dict[str, Any], size: int) -> None:
    """A file with its header, of its full size, so that a full disk is noticed now; one of the same outline is kept."""
    if path.exists():
        check_file(path, outline)
        return
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(size)
            file.write(json.dumps(_HEADER | outline).encode())
    except OSError as problem:
        path.unlink(missing_ok=True)
        raise errors.argument("store", expected="a place for a file", got=f"{path}: {problem}") from problem


def check_file(path: Path, outline: dict[str, Any]) -> None:
    """Raises: LegatoValueError for a file that is not of this outline."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(PAGE).rstrip(b"\0"))
    except (OSError, ValueError) as problem:
        raise errors.argument(
            "store", expected="a file of records", got=f"{path}: {problem}", fix="give another name"
        ) from problem
    if header != _HEADER | outline:
        raise errors.argument(
            "store", expected=f"a file with {_HEADER | outline}", got=header, fix=f"delete {path} or give another name"
        )
