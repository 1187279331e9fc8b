"""v by timestep: what the smoothness term evens out, before and after."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from legato import errors
from legato.diffusion.denoiser import NOTHING, Condition, Denoiser
from legato.diffusion.schedule import NoiseSchedule
from legato.diffusion.smoothness import unit_directions, variation_norms


@dataclass(frozen=True)
class VariationProfile:
    """v of the same samples at several timesteps."""

    timesteps: tuple[int, ...]
    norms: Tensor
    """[T', B], v of each row at each of the timesteps."""

    @property
    def mean(self) -> Tensor:
        """[T'] over the rows."""
        return self.norms.mean(1)

    @property
    def spread(self) -> float:
        """Standard deviation of v over timesteps and rows together (divisor n): 0 is what the penalty asks for."""
        return float(self.norms.std(correction=0))


def variation_profile(
    denoiser: Denoiser,
    x0: Tensor,
    timesteps: Sequence[int],
    generator: Generator,
    *,
    condition: Condition = NOTHING,
    weighting: str = "paper",
) -> VariationProfile:
    """v of each row of x0 [B, ...] at each of the timesteps, exact, with noise and directions from `generator`."""
    if not timesteps:
        raise errors.argument("timesteps", expected="at least one", got="none")
    found = []
    for t in timesteps:
        noise = torch.randn(x0.shape, dtype=x0.dtype, device=generator.device, generator=generator).to(x0.device)
        level = torch.full((len(x0),), t, device=x0.device)
        norms = variation_norms(
            denoiser, x0, noise, level, unit_directions(x0, generator),
            condition=condition, weighting=weighting, create_graph=False,
        )  # fmt: skip
        found.append(norms.detach())
    return VariationProfile(tuple(timesteps), torch.stack(found))


def gaussian_variation(schedule: NoiseSchedule, variance: float = 1.0) -> Tensor:
    """v [T] of the exact denoiser of data N(0, variance I): alpha sigma^2 s^2 / (alpha^2 s^2 + sigma^2), the reference of a profile.

    For s = 1 and alpha^2 + sigma^2 = 1 its maximum over t is 2 / (3 sqrt 3) = 0.385, at alpha^2 = 1/3.
    """
    if not variance > 0:
        raise errors.argument("variance", expected="a number > 0", got=variance)
    alpha, sigma = schedule.alpha, schedule.sigma
    return alpha * sigma**2 * variance / (alpha**2 * variance + sigma**2)
