"""Errors a sample under several conditions or of several images, for pairs that differ in one thing alone; and what pairs must be."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from legato import errors
from legato.diffusion.denoiser import NOTHING, Condition, Denoiser

LARGEST_IDENTICAL = 0.05
"""Share of pairs with equal controls above which there is a warning: they teach nothing."""


def mean_squared_errors(output: Tensor, target: Tensor) -> Tensor:
    """mean over elements of (output - target)^2, a number a sample: output [..., B, *shape], target [B, *shape] -> [..., B].

    The mean, not the sum, so that beta does not depend on the number of elements; in the target's type.
    """
    dims = tuple(range(1 - target.dim(), 0))
    return (output.to(target) - target).square().mean(dims)


def denoising_errors(
    denoiser: Denoiser, x0: Tensor, noise: Tensor, t: Tensor | int, condition: Condition = NOTHING
) -> Tensor:
    """E = mean (output - target)^2 of each sample at x_t = alpha x0 + sigma noise, [B]; the target is what the schedule's prediction says.

    Args:
        x0, noise: [B, ...].
        t: int64 [B], levels, or one for all.
    """
    output = denoiser.output(denoiser.schedule.noisy(x0, noise, t), t, condition)
    return mean_squared_errors(output, denoiser.schedule.target(x0, noise, t))


def condition_errors(
    denoiser: Denoiser, x0: Tensor, noise: Tensor, t: Tensor | int, conditions: Sequence[Condition]
) -> Tensor:
    """[K, B]: `denoising_errors` under K conditions of the same x_t, in one pass of K B rows.

    For CPO `errors_w, errors_l = condition_errors(denoiser, x0, noise, t, (winner, loser))`; what both share, such as the text, stands in both.
    """
    return _together(denoiser, [x0] * len(conditions), noise, t, conditions)


def image_errors(
    denoiser: Denoiser, images: Sequence[Tensor], noise: Tensor, t: Tensor | int, condition: Condition = NOTHING
) -> Tensor:
    """[K, B]: `denoising_errors` of K images [B, ...] with the same noise, t and condition, in one pass of K B rows. For DPO."""
    return _together(denoiser, images, noise, t, [condition] * len(images))


def check_pairs(x0: Tensor, winner: Tensor, loser: Tensor) -> None:
    """Whether controls can be compared; looks at values, so call it on data and not at each step.

    Args:
        x0: [B, ...] samples.
        winner, loser: [B, ...] controls in [0, 1].
    Raises: LegatoValueError for counts, shapes, types or ranges that do not fit, and for winners that are the losers.
    Warns: where more than 5% of the pairs have equal controls, with their number.
    """
    for name, part in (("winner", winner), ("loser", loser)):
        if len(part) != len(x0):
            raise errors.argument(name, expected=f"a control for each of {len(x0)} images", got=f"{len(part)} controls")
    if winner.shape != loser.shape or winner.dtype != loser.dtype:
        raise errors.argument(
            "loser", expected=f"the winner's {winner.dtype} of shape {list(winner.shape)}",
            got=f"{loser.dtype} of shape {list(loser.shape)}", fix="make both by the same detector and the same resizing",
        )  # fmt: skip
    for name, part in (("winner", winner), ("loser", loser)):
        low, high = (float(end) for end in part.aminmax())
        if not part.is_floating_point() or not (low >= 0 and high <= 1):
            raise errors.argument(
                name, expected="floating point controls in [0, 1]", got=f"{part.dtype} in {low:g} .. {high:g}",
                fix="bytes / 255, without NaN",
            )  # fmt: skip
    equal = int((winner == loser).flatten(1).all(1).sum())
    if equal == len(x0):
        raise errors.argument(
            "loser", expected="controls other than the winner's", got="winner and loser conditions are the same column",
            fix="name the column of the controls that were detected in generated images",
        )  # fmt: skip
    if equal > LARGEST_IDENTICAL * len(x0):
        text = f"{equal} of {len(x0)} pairs have equal controls and teach nothing. Fix: drop them, or generate their losers anew"
        warnings.warn(text, errors.LegatoWarning, stacklevel=2)


def _together(
    denoiser: Denoiser, images: Sequence[Tensor], noise: Tensor, t: Tensor | int, conditions: Sequence[Condition]
) -> Tensor:
    if not conditions:
        raise errors.argument("conditions", expected="at least one", got="none")
    keys = conditions[0].keys()
    if any(condition.keys() != keys for condition in conditions):
        raise errors.argument(
            "conditions",
            expected=f"the keywords {sorted(keys)} in each",
            got=[sorted(condition) for condition in conditions],
        )
    count = len(images)
    level = torch.as_tensor(t, device=noise.device).expand(len(noise)).repeat(count)
    condition = {name: torch.cat([one[name] for one in conditions]) for name in keys}
    rows = denoising_errors(denoiser, torch.cat(list(images)), torch.cat([noise] * count), level, condition)
    found: Tensor = rows.unflatten(0, (count, len(noise)))
    return found
