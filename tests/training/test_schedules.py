"""Learning rates over a run, each against its closed form."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from legato.errors import LegatoValueError
from legato.training import constant, cosine, one_cycle

PEAKS = (0.5, 2.0)


def rates(make: Callable[..., Any], steps: int) -> list[list[float]]:
    """[steps + 1, 2]: the rates before each step and after the last, for two groups of parameters."""
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": peak} for peak in PEAKS]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    schedule, seen = make(optimizer, steps), []
    for step in range(steps + 1):
        seen.append([group["lr"] for group in optimizer.param_groups])
        if step < steps:
            optimizer.step()
            schedule.step()
    return seen


def check(make: Callable[..., Any], steps: int, factor: Callable[[int], float], upto: int | None = None) -> None:
    for step, found in enumerate(rates(make, steps)[:upto]):
        assert found == pytest.approx([peak * factor(step) for peak in PEAKS], rel=1e-12, abs=1e-15)


def test_constant_stays() -> None:
    check(constant, 7, lambda step: 1.0)


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_cosine_is_half_a_cosine(steps: int) -> None:
    check(cosine, steps, lambda t: math.cos(math.pi * t / steps / 2) ** 2)  # (1 + cos 2a) / 2 = cos(a)^2


@pytest.mark.parametrize(("warmup", "floor"), [(0.25, 0.0), (0.25, 0.1), (0.5, 0.0), (0.0, 1.0), (0.98, 0.0)])
def test_cosine_with_warmup_and_floor(warmup: float, floor: float) -> None:
    steps = 20
    first = round(warmup * steps)

    def factor(t: int) -> float:
        if t < first:
            return (t + 1) / (first + 1)
        angle = math.pi * (t - first) / max(1, steps - first) / 2
        return floor * math.sin(angle) ** 2 + math.cos(angle) ** 2

    check(partial(cosine, warmup=warmup, floor=floor), steps, factor)


@pytest.mark.parametrize(("lowest", "floor"), [(0.1, 0.05), (5.0, 1.0)])
def test_the_lowest_rate_is_absolute(lowest: float, floor: float) -> None:
    """Of the highest group, whose peak is 2; all groups share the factor, and a peak below the lowest rate stays."""
    for found, want in zip(
        rates(partial(cosine, lowest=lowest), 7), rates(partial(cosine, floor=floor), 7), strict=True
    ):
        assert found == pytest.approx(want, rel=1e-12)


def test_warmup_is_a_straight_line_to_the_peak() -> None:
    seen = [first for first, _ in rates(partial(cosine, warmup=0.25), 20)]
    assert seen[:6] == pytest.approx([0.5 * k / 6 for k in range(1, 7)])
    assert max(seen) == seen[5] == PEAKS[0]


@pytest.mark.parametrize("warmup", [0.3, 0.5])
def test_one_cycle_rises_from_a_25th_and_falls_to_a_250000th(warmup: float) -> None:
    """Two half cosines that meet in the peak at step warmup T - 1; the last step is T - 1."""
    steps, low, end = 20, 1 / 25, 1 / 25 / 1e4
    top = warmup * steps - 1

    def factor(t: int) -> float:
        if t <= top:
            return low + (1 - low) * math.sin(math.pi * t / top / 2) ** 2
        return end + (1 - end) * math.cos(math.pi * (t - top) / (steps - 1 - top) / 2) ** 2

    check(partial(one_cycle, warmup=warmup), steps, factor, upto=steps)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(cosine, warmup=1.0), "warmup: expected a share"),
        (partial(cosine, warmup=-0.1), "warmup: expected a share"),
        (partial(cosine, floor=1.5), "floor: expected a factor"),
        (partial(cosine, lowest=-1e-5), "lowest: expected a learning rate"),
        (partial(one_cycle, warmup=0.0), "warmup: expected a share"),
        (partial(one_cycle, warmup=1.0), "warmup: expected a share"),
    ],
)
def test_parameters_are_checked(make: Callable[..., Any], words: str) -> None:
    with pytest.raises(LegatoValueError, match=words):
        rates(make, 4)
