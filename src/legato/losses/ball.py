"""The inputs near a given one: a ball in the l-inf or l2 norm, cut by the bounds that valid inputs have."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import final

import torch
from torch import Tensor

from legato import errors
from legato.losses.arguments import is_number

NORMS = ("linf", "l2")
STARTS = ("uniform", "gaussian")
GAUSSIAN_START = 1e-3
"""Standard deviation of the "gaussian" start, in the units of the inputs: the value in the official code of TRADES and MART."""
ROUNDING = 1e-5
"""How far outside its bounds an input may lie, relative to max(1, |bound|): standardised inputs are rounded."""
Bound = float | Tensor


@final
@dataclass(frozen=True, eq=False)
class Ball:
    """All x' with ||x' - x|| <= radius and low <= x' <= high.

    Raises: LegatoValueError for an unknown norm, a radius that is not a number > 0, and bounds that are not low < high.
    """

    radius: float
    """> 0, in the units of the inputs; for l2 it is the norm over all axes but the first."""
    bounds: tuple[Bound, Bound]
    """(low, high): numbers, or tensors that broadcast to one input, as [C, 1, 1] for pictures standardised per channel."""
    norm: str = "linf"
    """"linf" or "l2"."""

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise errors.choice("norm", str(self.norm), NORMS)
        if not (is_number(self.radius) and self.radius > 0):
            raise errors.argument("radius", expected="a plain finite number > 0", got=self.radius)
        _check_bounds(self.bounds)

    def check(self, x: Tensor) -> None:
        """Read the values of x [B, ...]; a GPU is waited for.

        Raises: LegatoValueError for values that are not finite or out of bounds.
        """
        if not bool(x.isfinite().all()):
            raise errors.argument(
                "inputs", expected="finite numbers", got="NaN or infinity", fix="clean the data first"
            )
        low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in self.bounds)
        outside = (x < low - _slack(low)) | (x > high + _slack(high))
        if bool(outside.any()):
            raise errors.argument(
                "inputs", expected="values within bounds", got=f"{float(x[outside][0]):.6g}, outside {_shown(self.bounds)}",
                fix="bounds are those of the inputs as the model gets them: (0.0, 1.0) for pictures in [0, 1], and "
                "((0 - mean)/std, (1 - mean)/std) for standardised ones",
            )  # fmt: skip

    def start(self, x: Tensor, kind: str, generator: torch.Generator | None) -> Tensor:
        """A random point [B, ...]: "uniform" in the ball, or "gaussian" with standard deviation 0.001 around x; then cut."""
        if kind == "gaussian" or self.norm == "l2":
            noise = _empty(x, generator).normal_(generator=generator).to(x.device)
            if kind == "gaussian":
                return self.project(x, x + GAUSSIAN_START * noise)
            share = _empty(x.new_empty(len(x)), generator).uniform_(generator=generator).to(x.device)
            lengths = self.radius * share ** (1 / max(1, x[:1].numel()))  # volume grows with this power of the length
            return self.project(x, x + _per_row(lengths, x) * _unit(noise))
        return self.project(x, x + self.radius * _empty(x, generator).uniform_(-1, 1, generator=generator).to(x.device))

    def step(self, gradient: Tensor, size: float) -> Tensor:
        """The step of this size in the steepest direction: size * sign(g) for l-inf, size * g/||g|| for l2; 0 where g is 0."""
        return size * (gradient.sign() if self.norm == "linf" else _unit(gradient))

    def project(self, x: Tensor, point: Tensor) -> Tensor:
        """`point` back into the ball around x, then into the bounds: as x lies within them, the second keeps the first."""
        if self.norm == "linf":
            point = point.clamp(x - self.radius, x + self.radius)
        else:
            norms = torch.linalg.vector_norm((point - x).flatten(1), dim=1)
            point = x + (point - x) * _per_row(self.radius / norms.clamp_min(self.radius), x)
        low, high = self.bounds
        point = torch.maximum(point, low.to(point)) if isinstance(low, Tensor) else point.clamp_min(low)
        return torch.minimum(point, high.to(point)) if isinstance(high, Tensor) else point.clamp_max(high)


def _check_bounds(bounds: tuple[Bound, Bound]) -> None:
    expected = "(low, high), two numbers or tensors, low < high"
    fix = "bounds=(0.0, 1.0) for pictures in [0, 1]; (-math.inf, math.inf) for none"
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise errors.argument("bounds", expected=expected, got=bounds, fix=fix)
    for bound in bounds:
        if not isinstance(bound, Tensor) and not (isinstance(bound, Real) and not math.isnan(bound)):
            raise errors.argument("bounds", expected=expected, got=bound, fix=fix)
    low, high = (torch.as_tensor(bound) for bound in bounds)
    if low.device.type == high.device.type == "cpu" and not bool((low < high).all()):  # a GPU is not waited for
        raise errors.argument("bounds", expected=expected, got=_shown(bounds), fix=fix)


def check_broadcast(bounds: tuple[Bound, Bound], x: Tensor) -> None:
    """Raises LegatoValueError for tensors of bounds that do not broadcast to the inputs x [B, ...]."""
    for bound in bounds:
        if isinstance(bound, Tensor):
            try:
                fits = torch.broadcast_shapes(bound.shape, x.shape) == x.shape
            except RuntimeError:
                fits = False
            if not fits:
                raise errors.argument(
                    "bounds", expected=f"numbers, or tensors that broadcast to the inputs {list(x.shape)}",
                    got=f"shape {list(bound.shape)}", fix="one bound a channel has shape [C, 1, 1]",
                )  # fmt: skip


def _shown(bounds: tuple[Bound, Bound]) -> str:
    low, high = (f"a tensor of shape {list(b.shape)}" if isinstance(b, Tensor) else f"{b:g}" for b in bounds)
    return f"({low}, {high})"


def _slack(bound: Tensor) -> Tensor:
    return ROUNDING * bound.abs().clamp_min(1).nan_to_num(posinf=0)


def _empty(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """To be filled with random numbers; a generator draws on its own device."""
    return torch.empty_like(like, device=like.device if generator is None else generator.device)


def _unit(rows: Tensor) -> Tensor:
    """Each row [B, ...] divided by its l2 norm; a row of zeros stays. Scaled first, as the square of a small gradient is 0."""
    flat = rows.flatten(1)
    if flat.numel() == 0:
        return rows
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    norms: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return (flat / norms.clamp_min(torch.finfo(flat.dtype).tiny)).view_as(rows)


def _per_row(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.dim() - 1))
