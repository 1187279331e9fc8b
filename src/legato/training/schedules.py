"""Learning rates over a run: plain functions (optimizer, total_steps) -> schedule, stepped after each optimizer step.

The optimizer's own learning rate is the highest one. Parameters are set with `functools.partial(cosine, warmup=0.1)`.
"""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LambdaLR, LRScheduler, OneCycleLR

from legato import errors


def constant(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """The optimizer's learning rate all the way."""
    return ConstantLR(optimizer, factor=1.0, total_iters=0)


def cosine(
    optimizer: Optimizer, total_steps: int, *, warmup: float = 0.0, floor: float = 0.0, lowest: float = 0.0
) -> LRScheduler:
    """Linear warm-up, then half a cosine: factor(t) = floor + (1 - floor) (1 + cos(pi (t - W) / (T - W))) / 2.

    Args:
        optimizer: its learning rates are the peak.
        total_steps: T, optimizer steps in the whole run.
        warmup: share of the run in [0, 1); in these W = round(warmup T) steps the factor is (t + 1) / (W + 1).
        floor: factor in [0, 1] that the rate falls to at step T, one step after the last.
        lowest: >= 0, a learning rate that the highest group does not fall below, whatever its peak: the floor is at least lowest / peak.
    Raises: LegatoValueError for a warmup, floor or lowest out of range.
    Source: Loshchilov and Hutter 2017, arXiv 1608.03983, one period.
    """
    if not 0 <= warmup < 1:
        raise errors.argument("warmup", expected="a share of the run in [0, 1)", got=warmup, fix="0.05 is usual")
    if not 0 <= floor <= 1:
        raise errors.argument("floor", expected="a factor in [0, 1]", got=floor)
    if not 0 <= lowest < math.inf:
        raise errors.argument("lowest", expected="a learning rate >= 0", got=lowest)
    peak = max(float(group["lr"]) for group in optimizer.param_groups)
    end = max(floor, min(1.0, lowest / peak)) if lowest else floor
    first = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < first:
            return (step + 1) / (first + 1)
        share = (step - first) / max(1, total_steps - first)
        return end + (1 - end) * (1 + math.cos(math.pi * share)) / 2

    return LambdaLR(optimizer, factor)


def one_cycle(optimizer: Optimizer, total_steps: int, *, warmup: float = 0.3) -> LRScheduler:
    """torch's OneCycleLR: up from 1/25 of the optimizer's rate over the share `warmup` of the run, then down to 0.

    Momentum is left alone. Source: Smith and Topin 2019, arXiv 1708.07120.
    Raises: LegatoValueError for a warmup outside (0, 1).
    """
    if not 0 < warmup < 1:
        raise errors.argument("warmup", expected="a share of the run in (0, 1)", got=warmup, fix="0.3 is usual")
    peaks = [float(group["lr"]) for group in optimizer.param_groups]
    return OneCycleLR(optimizer, peaks, total_steps=total_steps, pct_start=warmup, cycle_momentum=False)
