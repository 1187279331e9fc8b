"""What the exact gradient of an unrolled training costs, against autograd through all of its steps."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from legato.bench.case import Case
from legato.bench.distillation_peers import naive_unrolling
from legato.bench.timing import Step
from legato.distillation import FlatModel, Match, Unrolled, unrolled_grad
from legato.nets import blocks

IMAGES = (10, 3, 32, 32)
WIDTH, DEPTH = 64, 3
"""Of the ConvNet of the distillation papers: 86 thousand weights."""
ALPHA = 0.02


def cases(official: Path | None = None) -> list[Case]:
    """Every case of the room; `official` is of no use here. Naive unrolling is our reimplementation; 200 of its steps do not fit everywhere."""
    naive = [
        Case(
            f"gradient through {steps} steps", "naive unrolling", (steps, *IMAGES), partial(ours, steps), partial(peer, steps), bar=1.2,
            memory_bar=0.2 if steps >= 50 else None,
        )
        for steps in (20, 50)
    ]  # fmt: skip
    longer = [
        Case(f"gradient through 200 steps, {words}", "ours through 50", (200, *IMAGES), partial(ours, 200, 0.0, every), partial(ours, 50), memory_bar=1.3)
        for words, every in (("all weights kept", None), ("every 14th kept", 14))
    ]  # fmt: skip
    momentum = Case(
        "gradient through 50 steps with momentum", "naive unrolling", (50, *IMAGES), partial(ours, 50, 0.9), partial(peer, 50, 0.9), bar=1.2,
        memory_bar=0.2,
    )  # fmt: skip
    return [*naive, momentum, *longer]


def ours(steps: int, momentum: float = 0.0, keep_every: int | None = None) -> Step:
    """The gradient by the adjoint."""
    return partial(_gradient, partial(unrolled_grad, keep_every=keep_every), steps, momentum)


def peer(steps: int, momentum: float = 0.0) -> Step:
    """The same by autograd."""
    return partial(_gradient, naive_unrolling, steps, momentum)


def _gradient(
    method: Callable[..., Unrolled], steps: int, momentum: float, dtype: torch.dtype = torch.float32
) -> Unrolled:
    numbers = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flat = FlatModel(blocks(IMAGES[1:], 10, width=WIDTH, depth=DEPTH).to(dtype))
    images = torch.randn(IMAGES, generator=numbers).to(dtype)
    labels, start = torch.arange(len(images)) % 10, flat.weights()
    target = start + 0.01 * torch.randn(start.shape, generator=numbers).to(dtype)
    batches = [torch.arange(len(images))] * steps
    return method(
        flat.cross_entropy(), start, images, labels, batches, {steps: Match(target, start)}, alpha=ALPHA * (1 - momentum), momentum=momentum
    )  # fmt: skip
