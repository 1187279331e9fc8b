"""DDIM: from noise to a picture by a fixed way, and back."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from legato import errors
from legato.diffusion.denoiser import NOTHING, Condition, Denoiser, guided
from legato.diffusion.schedule import NoiseSchedule

Conditions: TypeAlias = Condition | Sequence[Condition]
"""One for all steps, or one a step, from the noisiest on."""
SPACINGS = ("leading", "trailing")


def ddim_levels(schedule: NoiseSchedule, steps: int, spacing: str = "leading") -> tuple[int, ...]:
    """The levels that a walk of `steps` steps passes, rising, steps + 1 of them; -1 is a clean picture.

    leading: 0, 1, 1 + r, 1 + 2r, ... with r = T // steps, as Stable Diffusion has it. trailing: -1, ..., T - 1, for schedules that end in
    pure noise and for flow matching.

    Raises: LegatoValueError for an unknown word, or steps outside 1 .. T - 1.
    """
    if spacing not in SPACINGS:
        raise errors.choice("spacing", spacing, SPACINGS)
    total = len(schedule)
    if not 1 <= steps < total:
        raise errors.argument("steps", expected=f"a whole number in 1 .. {total - 1}", got=steps)
    if spacing == "leading":
        return (0, *(1 + k * (total // steps) for k in range(steps)))
    return tuple(round(k * total / steps) - 1 for k in range(steps + 1))


def ddim_step(schedule: NoiseSchedule, x: Tensor, output: Tensor, told: int, here: int, there: int) -> Tensor:
    """x at level `there`: alpha_there x0_hat + sigma_there noise_hat, both read from x at level `here`.

    Args:
        schedule: the levels.
        x: [B, ...] at level `here`.
        output: of the network, which was told the level `told`: the upper one of the two, upwards as downwards.
        told, here, there: levels, -1 for clean.
    """
    if told == here:
        clean, noise = schedule.clean(x, output, here), schedule.noise(x, output, here)
    else:  # upwards: the same prediction is read at the lower level
        noise = schedule.noise(x, output, told)
        alpha, sigma = schedule.at(here, x)
        clean = (x - sigma * noise) / alpha
    alpha, sigma = schedule.at(there, x)
    return alpha * clean + sigma * noise


def ddim_sample(
    denoiser: Denoiser,
    noise: Tensor,
    levels: Sequence[int],
    condition: Conditions = NOTHING,
    *,
    scale: float = 1.0,
    nothing: Conditions = NOTHING,
) -> Tensor:
    """The picture [B, ...] that noise [B, ...] becomes.

    Args:
        denoiser: without guidance.
        noise: x at the last of `levels`.
        levels: of `ddim_levels`.
        condition: one for all steps, or one a step (`switched` makes those of an edit).
        scale: of the guidance; 1 is without.
        nothing: the condition that says nothing, one for all steps or one a step (those of `null_text_inversion`).
    Raises: LegatoValueError for a number of conditions that is not that of the steps.
    """
    steps = len(levels) - 1
    x = noise
    for (here, there), given, empty in zip(
        _down(levels), _each("condition", condition, steps), _each("nothing", nothing, steps), strict=True
    ):
        with_guidance = guided(denoiser, scale, empty)
        x = ddim_step(denoiser.schedule, x, with_guidance.output(x, here, given), here, here, there)
    return x


def ddim_invert(denoiser: Denoiser, x0: Tensor, levels: Sequence[int], condition: Condition = NOTHING) -> Tensor:
    """The way back from pictures x0 [B, ...] to noise: [steps + 1, B, ...], x0 first.

    DDIM with each step turned round: the network sees x at the lower level and is told the upper one, so the way is not quite that
    of `ddim_sample`; more steps bring them together. Without guidance, as the paper inverts.
    """
    way = [x0]
    for there, here in reversed(list(_down(levels))):
        way.append(
            ddim_step(denoiser.schedule, way[-1], denoiser.output(way[-1], there, condition), there, here, there)
        )
    return torch.stack(way)


def switched(source: Condition, target: Condition, ratio: float, steps: int) -> list[Condition]:
    """The conditions of an edit: the source's in the first (1 - ratio) steps, the target's after.

    Args:
        source, target: of the picture as it is, and as it is to be.
        ratio: r in [0, 1]: the share of steps, the least noisy ones, under the target; the paper takes 0.6 to 0.9.
        steps: of the walk.
    Raises: LegatoValueError for a ratio out of range.
    Source: Guo et al. 2023, arXiv 2312.04410, Eq. 15.
    """
    if not 0 <= ratio <= 1:
        raise errors.argument("ratio", expected="a number in [0, 1]", got=ratio)
    first = round((1 - ratio) * steps)
    return [source if i < first else target for i in range(steps)]


def _down(levels: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(upper, lower) level of each step, from the noisiest on."""
    return pairwise(reversed(levels))


def _each(name: str, conditions: Conditions, steps: int) -> Sequence[Condition]:
    if isinstance(conditions, Mapping):
        return [conditions] * steps
    if len(conditions) != steps:
        raise errors.argument(name, expected=f"one, or one for each of {steps} steps", got=f"{len(conditions)}")
    return conditions
