"""Labelled rows: what is asked of them, their digest, and batches of them as a function of the epoch."""

import hashlib
from collections.abc import Iterator
from typing import TypeAlias, final

import torch
from torch import Generator, Tensor, nn

from legato import errors

Rows: TypeAlias = tuple[Tensor, Tensor]
"""(inputs [N, C, H, W] or [N, D], targets int64 [N])."""


def check_rows(word: str, rows: Rows, num_classes: int | None = None) -> int:
    """The number of classes of rows that can be learned from.

    Args:
        word: names them in messages.
        rows: images as uint8, or floats in 0 .. 1; vectors as floats of any size.
        num_classes: of the training rows, where these are others.
    Raises: LegatoValueError for shapes, types and values that do not fit, and for a class without a row.
    """
    inputs, targets = rows
    if inputs.dim() not in (2, 4) or not (inputs.is_floating_point() or inputs.dtype == torch.uint8):
        raise errors.argument(
            f"{word}: inputs", expected="images [N, C, H, W] or vectors [N, D], uint8 or floating point",
            got=f"{inputs.dtype} of shape {list(inputs.shape)}",
        )  # fmt: skip
    if targets.dtype != torch.int64 or targets.shape != inputs.shape[:1] or not len(targets):
        raise errors.argument(
            f"{word}: targets", expected=f"int64 class indices of shape [{len(inputs)}], at least one",
            got=f"{targets.dtype} of shape {list(targets.shape)}",
        )  # fmt: skip
    _check_values(word, inputs)
    return _check_classes(word, targets, num_classes)


def _check_values(word: str, inputs: Tensor) -> None:
    if not inputs.is_floating_point():
        return
    bad = ~inputs.flatten(1).isfinite().all(1)
    if bool(bad.any()):
        got = f"NaN or infinity in {int(bad.sum())} rows, the first is row {int(bad.int().argmax())}"
        raise errors.argument(f"{word}: inputs", expected="finite numbers", got=got)
    low, high = float(inputs.min()), float(inputs.max())
    if inputs.dim() == 4 and not (low >= 0 and high <= 1):
        raise errors.argument(
            f"{word}: images", expected="floats in 0 .. 1, or uint8", got=f"floats in {low:g} .. {high:g}",
            fix="give the images as they are: standardisation is learned here, so that the result can say it",
        )  # fmt: skip


def _check_classes(word: str, targets: Tensor, num_classes: int | None) -> int:
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        raise errors.argument(
            f"{word}: targets", expected=f"classes 0 .. {num_classes - 1 if num_classes else 'C-1'}", got=f"{low} .. {high}"
        )  # fmt: skip
    if num_classes is not None:
        return num_classes
    if high == 0:
        raise errors.argument(f"{word}: targets", expected="at least two classes", got="one")
    empty = (torch.bincount(targets) == 0).nonzero()[:, 0].tolist()
    if empty:
        raise errors.argument(
            f"{word}: targets", expected=f"rows of every class 0 .. {high}", got=f"none of {empty[:5]}",
            fix="number the classes from 0 without a gap",
        )  # fmt: skip
    return high + 1


def digest(*tensors: Tensor) -> str:
    """16 hex digits that tell these tensors, with shapes and types, from any others."""
    told = hashlib.sha256()
    for tensor in tensors:
        whole = tensor.detach().cpu().contiguous()
        told.update(f"{whole.dtype} {list(whole.shape)} ".encode())
        told.update(whole.numpy().tobytes())
    return told.hexdigest()[:16]


@torch.no_grad()
def accuracy(model: nn.Module, rows: Rows, *, at_once: int = 2048) -> float:
    """Share of rows (as the network sees them) whose largest logit is the target's."""
    inputs, targets = rows
    right = [model(x).argmax(1) == y for x, y in zip(inputs.split(at_once), targets.split(at_once), strict=True)]
    return float(torch.cat(right).double().mean())


@final
class Shuffled:
    """Batches (inputs, targets, index) for `legato.training.fit`, in an order that follows from (seed, epoch)."""

    def __init__(self, rows: Rows, batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed

    def __len__(self) -> int:
        return -(-len(self.rows[1]) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of epoch 0, 1, 2 ..."""
        inputs, targets = self.rows
        generator = Generator().manual_seed(1_000_003 * self.seed + epoch)
        for index in torch.randperm(len(targets), generator=generator).to(targets.device).split(self.batch_size):
            yield inputs[index], targets[index], index
