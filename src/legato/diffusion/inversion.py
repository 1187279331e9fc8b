"""Real pictures into noise and back under guidance: null-text inversion, of one picture or of a pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from legato import errors
from legato.diffusion.ddim import ddim_invert, ddim_sample, ddim_step
from legato.diffusion.denoiser import Condition, Denoiser, guided

RATE, INNER = 1e-2, 10
"""Adam's rate at the first step, and the most inner steps; of the authors' code."""


@dataclass(frozen=True)
class Inverted:
    """What `null_text_inversion` found: with `noise` and `nothing`, guided sampling gives the pictures back."""

    noise: Tensor
    """[B, ...] at the last level."""
    nothing: tuple[Condition, ...]
    """The empty condition of each step, from the noisiest on."""
    inner_steps: int
    """Optimizer steps in all."""


def null_text_inversion(
    denoiser: Denoiser,
    x0: Tensor,
    levels: Sequence[int],
    condition: Condition,
    nothing: Condition,
    *,
    scale: float = 7.5,
    rate: float = RATE,
    inner: int = INNER,
) -> Inverted:
    """Bend the empty condition, step by step, until guided sampling follows the unguided DDIM inversion of x0.

    At step i, from the noise downwards: Adam with rate (1 - i / 100) on nothing_i, which starts where nothing_(i-1) ended, for at most
    `inner` steps on the squared distance to the inversion's next point, until each picture's mean is below 1e-5 + 2e-5 i.

    Args:
        denoiser: with weights in float32 or float64; they get no gradient.
        x0: [B, ...].
        levels: of `ddim_levels`.
        condition: of the pictures.
        nothing: floating point, such as the embedding of an empty text. One row [1, ...] is shared by all pictures, which is the
            inversion of a pair of the paper's Eq. 20; B rows give each its own.
        scale: of the guidance, not 1.
        rate, inner: as above.
    Raises: LegatoValueError for a condition that is no floating point, and a scale of 1, for which `ddim_invert` does.
    Source: Mokady et al. 2022, arXiv 2211.09794; the pair: Guo et al. 2023, arXiv 2312.04410, Eq. 20.
    """
    if scale == 1:
        raise errors.argument(
            "scale",
            expected="guidance other than 1",
            got=scale,
            fix="ddim_invert, which is exact enough without guidance",
        )
    if not nothing or not all(value.is_floating_point() for value in nothing.values()):
        raise errors.argument(
            "nothing", expected="a floating-point condition, which can be bent", got={name: str(value.dtype) for name, value in nothing.items()},
            fix="embeddings instead of tokens or class indices",
        )  # fmt: skip
    with torch.no_grad():
        way = ddim_invert(denoiser, x0, levels, condition)
    x, now, found, spent = way[-1], dict(nothing), [], 0
    for i, (here, there) in enumerate(pairwise(reversed(levels))):
        goal = way[len(levels) - 2 - i]
        bent = {name: value.detach().clone().requires_grad_(True) for name, value in now.items()}
        optimizer = torch.optim.Adam(bent.values(), lr=rate * (1 - i / 100))
        for _ in range(inner):
            ahead = _guided_step(denoiser, x, here, there, condition, bent, scale)
            distance = (ahead - goal).square().flatten(1).mean(1)
            if bool((distance < 1e-5 + 2e-5 * i).all()):
                break
            grads = torch.autograd.grad(distance.sum(), list(bent.values()))
            for value, grad in zip(bent.values(), grads, strict=True):
                value.grad = grad
            optimizer.step()
            spent += 1
        now = {name: value.detach() for name, value in bent.items()}
        found.append(now)
        with torch.no_grad():
            x = _guided_step(denoiser, x, here, there, condition, now, scale)
    return Inverted(way[-1], tuple(found), spent)


def reconstruct(
    denoiser: Denoiser, found: Inverted, levels: Sequence[int], condition: Condition, *, scale: float = 7.5
) -> Tensor:
    """The pictures that `null_text_inversion` was given, or with another `condition` their edit, [B, ...]."""
    with torch.no_grad():
        return ddim_sample(denoiser, found.noise, levels, condition, scale=scale, nothing=found.nothing)


def round_trip(
    denoiser: Denoiser,
    x0: Tensor,
    levels: Sequence[int],
    condition: Condition,
    *,
    scale: float = 1.0,
    nothing: Condition | None = None,
) -> Tensor:
    """x0 [B, ...] through unguided inversion and guided sampling, [B, ...]: what plain DDIM makes of real pictures."""
    with torch.no_grad():
        noise = ddim_invert(denoiser, x0, levels, condition)[-1]
        return ddim_sample(denoiser, noise, levels, condition, scale=scale, nothing=nothing or {})


def _guided_step(
    denoiser: Denoiser, x: Tensor, here: int, there: int, condition: Condition, nothing: Condition, scale: float
) -> Tensor:
    output = guided(denoiser, scale, nothing).output(x, here, condition)
    return ddim_step(denoiser.schedule, x, output, here, here, there)
