"""What the losses cost: forward and backward of one batch, against what a user would take instead."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from legato.bench.memory import peak_bytes
from legato.bench.peers import softmax_gather_gce
from legato.bench.row import MIB, Row
from legato.bench.timing import Step, compare
from legato.losses import comp_sum_loss, focal_loss

SHAPES = ((2048, 1000), (4096, 50257))
"""A batch of an image classifier with 1,000 classes; 4,096 tokens of a language model with GPT-2's vocabulary."""
TAU = 1.7


@dataclass(frozen=True)
class Peer:
    """A loss (logits, target) -> scalar to compare with, and the largest ratio of times that we ask for."""

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    bar: float | None = None


PEERS = (
    Peer("F.cross_entropy", F.cross_entropy, bar=1.15),
    Peer("softmax-gather GCE (our reimplementation)", lambda h, y: softmax_gather_gce(h, y, TAU - 1)),
    Peer("legato focal_loss", focal_loss),
)


def run(seconds: float, shapes: Sequence[tuple[int, int]] = SHAPES) -> list[Row]:
    """`comp_sum_loss` at tau 1.7 against each peer at each shape [B, C], in float32 with "mean".

    Args:
        seconds: for timing, shared equally; a large shape takes longer, since it needs its least number of pairs.
        shapes: of the logits.
    """
    share = seconds / (len(shapes) * len(PEERS))
    return [_row(peer, shape, share) for shape in shapes for peer in PEERS]


def _row(peer: Peer, shape: tuple[int, int], seconds: float) -> Row:
    ours, other = (_step(loss, shape) for loss in (lambda h, y: comp_sum_loss(h, y, TAU), peer.loss))
    return Row(
        part=f"comp_sum_loss tau={TAU:g}, forward + backward",
        peer=peer.name,
        shape=shape,
        timing=compare(ours, other, seconds=seconds),
        peak_mib=peak_bytes(ours) / MIB,
        peer_peak_mib=peak_bytes(other) / MIB,
        bar=peer.bar,
    )


def _step(loss: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, int]) -> Step:
    """One forward and backward on logits of its own; the gradient of the step before is freed first."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).requires_grad_()
    target = torch.randint(shape[1], shape[:1], generator=generator)

    def step() -> None:
        logits.grad = None
        loss(logits, target).backward()

    return step
