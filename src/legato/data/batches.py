"""Batches (inputs, targets, index) as a function of the epoch, from tensors or from any DataLoader."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from legato import errors

Augment = Callable[[Tensor, Generator], Tensor]


class Batches:
    """The fastest way for tensors in memory: one permutation an epoch, one index_select a batch, no copies of the data set.

    Everything follows from (seed, epoch), so a resumed run needs no state. With several processes each takes every world_size-th
    row of the same global batch; batch_size must be a multiple of world_size, and the last, shorter batch is cut to one, so that the
    mean over processes is the mean over rows.

    Args:
        inputs, targets, index: equal lengths, on any one device.
        batch_size: rows of a global batch; the last one of an epoch may be shorter.
        augment: `(inputs, generator) -> inputs`, applied to each batch.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        index: Tensor,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        augment: Augment | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise errors.argument(
                "batch_size", expected=f"a multiple of the {world_size} processes, >= 1", got=batch_size
            )
        self.tensors = (inputs, targets, index)
        self.batch_size, self.seed, self.shuffle, self.augment = batch_size, seed, shuffle, augment
        self.rank, self.world_size = rank, world_size
        self.rows = len(targets) - len(targets) % world_size

    def __repr__(self) -> str:
        return f"Batches({self.rows} rows, batch_size={self.batch_size}, seed={self.seed})"

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of epoch 0, 1, 2 ..., always the same for the same number."""
        device = self.tensors[0].device
        generator = Generator().manual_seed(_mix(self.seed, epoch))
        order = (
            torch.randperm(len(self.tensors[1]), generator=generator)
            if self.shuffle
            else torch.arange(len(self.tensors[1]))
        )
        for rows in order[: self.rows].to(device).split(self.batch_size):
            inputs, targets, index = (t.index_select(0, rows[self.rank :: self.world_size]) for t in self.tensors)
            yield (self.augment(inputs, generator) if self.augment else inputs), targets, index


def crop_and_flip(inputs: Tensor, generator: Generator, *, shift: int = 2) -> Tensor:
    """Each picture [B, C, H, W] moved by up to `shift` pixels each way (zeros come in) and mirrored with probability 1/2."""
    rows, _, height, width = inputs.shape
    padded = torch.nn.functional.pad(inputs, [shift] * 4)
    down, right = (torch.randint(0, 2 * shift + 1, (rows, 1), generator=generator) for _ in range(2))
    columns = torch.arange(width).expand(rows, width)
    flipped = torch.rand(rows, 1, generator=generator) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns) + right
    lines = torch.arange(height) + down
    picture = torch.arange(rows)[:, None, None]
    device = inputs.device
    return padded.permute(0, 2, 3, 1)[
        picture.to(device), lines[:, :, None].to(device), columns[:, None, :].to(device)
    ].permute(0, 3, 1, 2)


class IndexedLoader:
    """Any DataLoader over a map-style data set of (input, target), with the sample's index beside; the data set is not changed.

    Keeps the loader's sampler, workers, collate function and the rest. The order of an epoch follows from (seed, epoch): the sampler's
    generator is seeded with it, torch's global one for as long as the order is drawn, and `set_epoch` is called where there is one.
    """

    def __init__(self, loader: "DataLoader[Any]", *, seed: int = 0) -> None:
        if isinstance(loader.dataset, IterableDataset):
            raise errors.argument_type(
                "loader", expected="a DataLoader over a map-style data set", got="an IterableDataset, whose samples have no index",
                fix="give the data set __getitem__ and __len__",
            )  # fmt: skip
        if loader.batch_sampler is None:
            raise errors.argument_type(
                "loader",
                expected="a DataLoader that makes the batches",
                got="batch_size=None",
                fix="give it a batch_size",
            )
        self.seed = seed
        self.generator = Generator()
        self._sampler: Any = loader.batch_sampler
        self._order: list[list[int]] = []
        self.loader: DataLoader[Any] = DataLoader(
            _Indexed(loader.dataset),
            batch_sampler=self._order,
            collate_fn=_Collate(loader.collate_fn),
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
            generator=self.generator,
        )

    def __len__(self) -> int:
        return len(self._sampler)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of epoch 0, 1, 2 ..., always the same for the same number."""
        mixed = _mix(self.seed, epoch)
        self.generator.manual_seed(mixed)
        samplers: list[Any] = [getattr(self._sampler, "sampler", None), self._sampler]
        for sampler in samplers:
            if hasattr(sampler, "generator"):
                sampler.generator = Generator().manual_seed(mixed)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        before = torch.get_rng_state()
        try:
            torch.default_generator.manual_seed(mixed)
            self._order[:] = self._sampler
        finally:
            torch.set_rng_state(before)
        yield from self.loader


class _Indexed(Dataset[Any]):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.dataset[index], int(index)

    def __len__(self) -> int:
        return len(self.dataset)


class _Collate:
    """The user's collate function on the samples, a tensor of the indices beside; an object, so that workers can be sent it."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[tuple[Any, int]]) -> tuple[Any, Any, Tensor]:
        batch = self.collate([sample for sample, _ in items])
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise errors.argument_type(
                "loader",
                expected="batches (inputs, targets)",
                got=f"a {type(batch).__name__}",
                fix="give it a collate_fn",
            )
        inputs, targets = batch
        return inputs, targets, torch.tensor([index for _, index in items])


def _mix(seed: int, epoch: int) -> int:
    """Different for every (seed, epoch) that anybody uses; neighbours are far apart."""
    return (seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63
