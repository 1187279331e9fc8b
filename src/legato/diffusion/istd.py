"""How evenly pictures change along an interpolation: the standard deviation of its steps (ISTD), and what it hides."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from legato import errors

Features = Callable[[Tensor], Tensor]
RESAMPLES = 2000


@dataclass(frozen=True)
class Evenness:
    """What the steps of several interpolations say. ISTD grows with contrast, so it is read beside the mean step, or as cv."""

    istd: float
    """Mean over pairs of the standard deviation of the steps, in the unit of the pictures."""
    istd_interval: tuple[float, float]
    """95% percentile bootstrap over pairs."""
    mean_step: float
    cv: float
    """istd / mean_step, free of scale; 0 where nothing moves."""
    cv_interval: tuple[float, float]
    largest: float
    """Mean over pairs of the largest step divided by the mean one; 1 where nothing moves."""
    pairs: int
    steps: int
    ddof: int
    """Subtracted from the number of steps in the standard deviation."""
    value_range: tuple[float, float]
    """Of the pictures."""

    def __str__(self) -> str:
        low, high = self.istd_interval
        return (
            f"ISTD {self.istd:.4g} [{low:.4g}, {high:.4g}] (ddof {self.ddof}, pictures in [{self.value_range[0]:g}, {self.value_range[1]:g}], "
            f"{self.pairs} pairs, {self.steps} steps), mean step {self.mean_step:.4g}, CV {self.cv:.4g}"
        )


def step_lengths(pictures: Tensor, features: Features | None = None) -> Tensor:
    """L2 distances of neighbours along each interpolation.

    Args:
        pictures: [K, B, ...], K points of B interpolations.
        features: maps [B, ...] to [B, ...] before distances are taken, such as a network's last layer; None for the pictures themselves.
    Returns: [B, K-1], roots of sums of squares over all elements.
    Raises: LegatoValueError for fewer than 2 steps, no pair, or a value that is not finite.
    """
    if pictures.dim() < 3 or pictures.shape[0] < 3 or pictures.shape[1] < 1:
        raise errors.argument(
            "pictures", expected="shape [K, B, ...] with K >= 3 and B >= 1", got=f"shape {list(pictures.shape)}"
        )
    seen = torch.stack([(picture if features is None else features(picture)).flatten(1) for picture in pictures])
    if not bool(seen.isfinite().all()):
        raise errors.argument("pictures", expected="finite values", got=f"{int((~seen.isfinite()).sum())} that are not")
    lengths: Tensor = (seen[1:] - seen[:-1]).norm(dim=2).mT
    return lengths


def evenness(
    steps: Tensor, *, ddof: int = 0, value_range: tuple[float, float] = (-1.0, 1.0), generator: Generator | None = None
) -> Evenness:
    """ISTD of the paper, mean step, CV and largest step of `step_lengths`, with intervals over pairs.

    Args:
        steps: [B, K] with K >= 2, >= 0.
        ddof: 0 or 1; the paper does not say which.
        value_range: of the pictures, only for the record.
        generator: of the bootstrap; None is one with seed 0.
    Raises: LegatoValueError for another shape or a ddof that leaves nothing.
    Source: Guo et al. 2023, arXiv 2312.04410, section 4.1 (10 steps at equal shares, both ends among the points).
    """
    if steps.dim() != 2 or steps.shape[0] < 1 or steps.shape[1] < 2:
        raise errors.argument(
            "steps", expected="shape [B, K] with B >= 1 pairs and K >= 2 steps", got=f"shape {list(steps.shape)}"
        )
    if ddof not in (0, 1):
        raise errors.argument("ddof", expected="0 or 1", got=ddof)
    wide = steps.double().cpu()
    deviation, mean = wide.std(1, correction=ddof), wide.mean(1)
    drawn = torch.randint(len(wide), (RESAMPLES, len(wide)), generator=generator or Generator().manual_seed(0))
    largest = torch.where(mean > 0, wide.amax(1) / mean, 1.0)
    return Evenness(
        istd=float(deviation.mean()),
        istd_interval=_interval(deviation[drawn].mean(1)),
        mean_step=float(mean.mean()),
        cv=float(_ratio(deviation.mean(), mean.mean())),
        cv_interval=_interval(_ratio(deviation[drawn].mean(1), mean[drawn].mean(1))),
        largest=float(largest.mean()),
        pairs=len(wide),
        steps=wide.shape[1],
        ddof=ddof,
        value_range=value_range,
    )


def local_variation(
    generate: Callable[[Tensor], Tensor], noise: Tensor, angles: Sequence[float], generator: Generator
) -> Tensor:
    """|dx| / |dz| for minor variations of the noise: each row turned by a small angle towards a random direction, its norm kept.

    Args:
        generate: [B, ...] noise -> [B, ...] pictures.
        noise: [B, ...].
        angles: in radians, > 0.
        generator: of the directions, the same for all angles.
    Returns: [len(angles), B].
    Raises: LegatoValueError for an angle out of (0, pi/2].
    """
    if not angles or not all(0 < angle <= math.pi / 2 for angle in angles):
        raise errors.argument("angles", expected="numbers in (0, pi/2]", got=list(angles))
    flat = noise.flatten(1)
    other = torch.randn(flat.shape, dtype=flat.dtype, device=generator.device, generator=generator).to(flat.device)
    other = other - (other * flat).sum(1, keepdim=True) / flat.square().sum(1, keepdim=True) * flat
    other = other * flat.norm(dim=1, keepdim=True) / other.norm(dim=1, keepdim=True)
    start, rates = generate(noise), []
    for angle in angles:
        turned = math.cos(angle) * flat + math.sin(angle) * other
        moved = generate(turned.view_as(noise)) - start
        rates.append(moved.flatten(1).norm(dim=1) / (turned - flat).norm(dim=1))
    return torch.stack(rates)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole, 0.0)


def _interval(values: Tensor) -> tuple[float, float]:
    low, high = torch.quantile(values, values.new_tensor([0.025, 0.975]))
    return float(low), float(high)
