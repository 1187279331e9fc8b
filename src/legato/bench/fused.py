"""A last layer with its loss, three ways: ours, the plain way, and torch's own fused layer with one line after it."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from legato.bench.timing import Step
from legato.losses import comp_sum_loss
from legato.losses.fused import fused_linear_comp_sum

LastLayer = Callable[[Tensor, Tensor, Tensor, float, str], Tensor]


def ours(hidden: Tensor, weight: Tensor, target: Tensor, tau: float, reduction: str = "mean") -> Tensor:
    """`fused_linear_comp_sum`."""
    return fused_linear_comp_sum(hidden, weight, target, tau, reduction=reduction)


def plain(hidden: Tensor, weight: Tensor, target: Tensor, tau: float, reduction: str = "mean") -> Tensor:
    """All logits, then `comp_sum_loss`, or `F.cross_entropy` at tau = 1."""
    logits = F.linear(hidden, weight)
    if tau == 1:
        return F.cross_entropy(logits, target, reduction=reduction)
    return comp_sum_loss(logits, target, tau, reduction=reduction)


def torch_line(hidden: Tensor, weight: Tensor, target: Tensor, tau: float, reduction: str = "mean") -> Tensor:
    """`F.linear_cross_entropy` with its default options, and expm1 of each row; at tau = 1 its own mean or sum."""
    options = torch.nn.LinearCrossEntropyOptions()
    if tau == 1:
        return F.linear_cross_entropy(hidden, weight, target, reduction=reduction, options=options)
    ce = F.linear_cross_entropy(hidden, weight, target, reduction="none", options=options)
    losses = torch.expm1((1 - tau) * ce) / (1 - tau)
    return losses.mean() if reduction == "mean" else losses.sum()


def fused_step(shape: tuple[int, int, int], tau: float, reduction: str = "mean") -> Step:
    """Forward and backward of `ours`; see `layer_step` for the arguments."""
    return layer_step(ours, shape, tau, reduction)


def plain_step(shape: tuple[int, int, int], tau: float, reduction: str = "mean") -> Step:
    """Forward and backward of `plain`."""
    return layer_step(plain, shape, tau, reduction)


def torch_line_step(shape: tuple[int, int, int], tau: float, reduction: str = "mean") -> Step:
    """Forward and backward of `torch_line`."""
    return layer_step(torch_line, shape, tau, reduction)


def layer_step(
    loss: LastLayer,
    shape: tuple[int, int, int],
    tau: float,
    reduction: str = "mean",
    dtype: torch.dtype = torch.float32,
) -> Step:
    """One forward and backward on hidden states and a weight of its own, both of which get their gradient.

    Args:
        loss: (hidden, weight, target, tau, reduction) -> [].
        shape: rows, width and classes: hidden [N, D], weight [C, D].
        tau, reduction: of the loss.
        dtype: of hidden and weight.
    Returns: a step that leaves nothing behind: what it allocates, gradients included, it frees, so that its peak is all its own.
    """
    rows, width, classes = shape
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(classes, width, generator=generator) / width**0.5).to(dtype).requires_grad_()
    target = torch.randint(classes, (rows,), generator=generator)

    def step() -> None:
        loss(hidden, weight, target, tau, reduction).backward()
        hidden.grad = weight.grad = None

    return step
