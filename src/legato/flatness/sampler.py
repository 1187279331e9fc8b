"""A sampler that leaves each row of the training set with one process, so that a table of outputs can be divided among processes."""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor
from torch.utils.data import Sampler

from legato import errors
from legato.flatness.trajectory import check_whole


@final
class TrajectorySampler(Sampler[int]):
    """Rows rank, rank + W, rank + 2 W ... of N, in an order that follows from (seed, epoch): each process sees the same rows in every epoch.

    torch's DistributedSampler deals all rows anew each epoch, and a process then finds 1 of W of its records. Here the batches of a
    process are drawn from its own 1/W of the rows, which is a little less random; the loss of an epoch is over all rows as before.
    All processes get ceil(N / W) rows: one that has a row less sees one of its own twice. Call `set_epoch` before each epoch.

    With `SAF(num_samples, num_classes, rows=sampler.rows)` the table of each process has 1/W of the rows.

    Args:
        num_samples: N.
        rank: of this process, in 0 .. W-1; None for torch.distributed's.
        world_size: W, the number of processes; None for torch.distributed's.
        seed: the same in all processes.
        shuffle: False keeps the order of the rows.
    Raises: LegatoValueError for a number out of range, or more processes than rows.
    """

    def __init__(
        self,
        num_samples: int,
        rank: int | None = None,
        world_size: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        check_whole("num_samples", num_samples, 1)
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.world_size = (torch.distributed.get_world_size() if together else 1) if world_size is None else world_size
        self.rank = (torch.distributed.get_rank() if together else 0) if rank is None else rank
        check_whole("world_size", self.world_size, 1)
        check_whole("rank", self.rank, 0)
        check_whole("seed", seed, 0)
        if self.rank >= self.world_size:
            raise errors.argument("rank", expected=f"a rank in 0 .. {self.world_size - 1}", got=self.rank)
        if self.world_size > num_samples:
            raise errors.argument(
                "world_size", expected=f"at most {num_samples}, the number of rows", got=self.world_size
            )
        self.num_samples, self.seed, self.shuffle, self.epoch = num_samples, seed, shuffle, 0

    def __repr__(self) -> str:
        return f"TrajectorySampler({len(self.rows)} of {self.num_samples} rows, process {self.rank} of {self.world_size}, seed={self.seed})"

    @property
    def rows(self) -> Tensor:
        """int64: the rows that this process sees, in every epoch."""
        return torch.arange(self.rank, self.num_samples, self.world_size)

    def local(self, index: Tensor) -> Tensor:
        """Where rows of the training set are among `rows`, for a table of one's own: index // W."""
        return index // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch is about to begin."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_samples // self.world_size)

    def __iter__(self) -> Iterator[int]:
        rows = self.rows
        if self.shuffle:
            generator = torch.Generator().manual_seed(
                (self.seed * 0x9E3779B97F4A7C15 + self.epoch * 0xBF58476D1CE4E5B9 + 1) % 2**63
            )
            rows = rows[torch.randperm(len(rows), generator=generator)]
        if len(rows) < len(self):
            rows = torch.cat([rows, rows[:1]])
        return iter(rows.tolist())
