"""ControlNet++: a reward for pictures whose control, detected again in one step, is the control that was asked for."""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from legato import errors
from legato.diffusion.schedule import NoiseSchedule

Detector = Callable[[Tensor], Tensor]
"""Pictures [B, C, H, W] in [0, 1] -> controls [B, Cc, h, w]."""
Distance = Callable[[Tensor, Tensor], Tensor]
"""(detected, asked for), each [B, ...] -> [B]."""
WINDOW = (0, 200)
"""Levels of 1000, both included, at which one step still gives a picture."""


def squared_distance(detected: Tensor, control: Tensor) -> Tensor:
    """mean over elements of (detected - control)^2, [B]."""
    return (detected - control).square().flatten(1).mean(1)


def unit_range(x0: Tensor) -> Tensor:
    """Samples in [-1, 1] as pictures in [0, 1], clamped."""
    return ((x0 + 1) / 2).clamp(0, 1)


def consistency_loss(
    schedule: NoiseSchedule,
    x: Tensor,
    output: Tensor,
    t: Tensor,
    control: Tensor,
    detector: Detector,
    *,
    window: tuple[int, int] = WINDOW,
    distance: Distance = squared_distance,
    picture: Callable[[Tensor], Tensor] = unit_range,
) -> Tensor:
    """Mean over the rows with t in the window of distance(detector(picture(x0_hat)), control), x0_hat by one step from x_t.

    Only these rows are decoded and detected. The released code divides by their number + 1e-10; here it is 0 where there are none.

    Args:
        schedule: levels and what the network predicts.
        x: x_t [B, ...].
        output: [B, ...] of the network at x_t under `control`; the same pass serves the denoising loss.
        t: int64 [B], levels.
        control: [B, Cc, h, w], what was asked for.
        detector: any differentiable callable.
        window: levels (first, last), both included.
        distance: for masks, the cross-entropy of classes.
        picture: x0_hat -> pictures in [0, 1]; for latents the decoder of the autoencoder. Where it clamps there is no gradient.
    Returns: a scalar in units of the distance.
    Raises: LegatoValueError for a detector without a gradient or with another number of rows, or a window that is none.
    Source: Li et al. 2024, arXiv 2404.07987, and its code: t <= 200 of 1000.
    """
    if not 0 <= window[0] <= window[1]:
        raise errors.argument("window", expected="two levels >= 0, rising", got=window, fix="(0, 200) is the paper's")
    rows = (t >= window[0]) & (t <= window[1])
    if not bool(rows.any()):
        return output.new_zeros(())
    clean = schedule.clean(x[rows], output[rows].to(x), t[rows])
    detected = detector(picture(clean))
    if output.requires_grad and torch.is_grad_enabled() and not detected.requires_grad:
        raise errors.argument(
            "detector", expected="a differentiable detector", got="an output without a gradient, which would be a silent constant",
            fix="leave rounding, casts to whole numbers, thresholds, numpy and no_grad out of it; or train by ConditionPreference, which needs no gradient",
        )  # fmt: skip
    found = distance(detected, control[rows])
    if found.shape != (len(clean),):
        raise errors.argument(
            "distance", expected=f"a number a picture, shape [{len(clean)}]", got=f"shape {list(found.shape)}"
        )
    return found.mean()


@final
class ConsistencyReward:
    """`consistency_loss` with its parts: reward = ConsistencyReward(detector); loss = base + weight * reward(schedule, x_t, output, t, control).

    Args:
        detector, window, distance, picture: as in `consistency_loss`.
        weight: >= 0; ControlNet++ has 0.5 for lines, 0.2 or 0.5 for masks and 1 for edges and depth.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        weight: float = 1.0,
        window: tuple[int, int] = WINDOW,
        distance: Distance = squared_distance,
        picture: Callable[[Tensor], Tensor] = unit_range,
    ) -> None:
        if not 0 <= weight < float("inf"):
            raise errors.argument("weight", expected="a number >= 0", got=weight)
        self.detector, self.weight, self.window = detector, weight, window
        self.distance, self.picture = distance, picture

    def __call__(self, schedule: NoiseSchedule, x: Tensor, output: Tensor, t: Tensor, control: Tensor) -> Tensor:
        """The weighted loss, a scalar; arguments as in `consistency_loss`."""
        return self.weight * consistency_loss(
            schedule,
            x,
            output,
            t,
            control,
            self.detector,
            window=self.window,
            distance=self.distance,
            picture=self.picture,
        )
