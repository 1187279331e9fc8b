"""How much the loss can rise near the weights: in a ball (SAM), in a ball that scales with the weights (ASAM), group by group (m-sharpness)."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from legato import errors
from legato.flatness.surface import Loss, Surface

REACH = 2.0
"""First length of a step of ascent, in radii: one radius leads from the centre to the sphere, two across it."""
LONGER, SHORTER = 2.0, 0.25
"""What a step's length is multiplied by after a rise and after a fall."""


@dataclass(frozen=True)
class Sharpness:
    """What `sam_sharpness` found, with what it has to be read with."""

    sharpness: float
    """The largest rise L(w + e) - L(w) that was found in the ball, >= 0: a lower bound of the largest there is."""
    radius: float
    """Of the ball."""
    steps: int
    """Steps of ascent from each starting point."""
    adaptive: bool
    """Whether the ball scales with the weights."""
    mode: str
    """"eval" or "train"."""
    rows: int
    """Rows of the data set."""
    loss: float
    """L(w)."""
    gradient_norm: float
    """|dL/dw|, not scaled."""
    first_order: float
    """What the gradient alone foretells: radius |g|, or radius | (|w| + eta) g | in the adaptive ball."""
    rises: tuple[float, ...]
    """The rise at each point that was tried, in order; the first is that of the one step of SAM, and may be negative."""
    values: int
    """Passes over the data that gave a value."""
    gradients: int
    """Passes that gave a gradient."""
    offset: Tensor = field(repr=False, compare=False)
    """The e [P] of the largest rise; 0 if none was found."""


@dataclass(frozen=True)
class GroupSharpness:
    """What `m_sharpness` found."""

    sharpness: float
    """The mean over groups of each one's own sharpness; a group counts by its rows."""
    standard_error: float
    """Of that mean, over groups; NaN for a single one."""
    groups: int
    group_rows: int
    """m: rows of the largest group."""
    radius: float
    steps: int
    adaptive: bool
    mode: str
    rows: int
    loss: float
    """The mean over all rows."""
    gradient_norm: float
    """The mean over groups of the norm of each one's own gradient; at least the norm of the mean gradient."""
    each: tuple[float, ...] = field(repr=False)
    """The sharpness of each group."""
    values: int = 0
    gradients: int = 0


def sam_sharpness(
    surface: Surface,
    radius: float = 0.05,
    steps: int = 1,
    *,
    adaptive: bool = False,
    eta: float = 0.0,
    restarts: int = 0,
    generator: torch.Generator | None = None,
) -> Sharpness:
    """The largest rise of the loss in a ball around the weights, from below.

    SAM:  max over |e|_2 <= radius of L(w + e) - L(w).        ASAM (adaptive):  |e / (|w| + eta)|_2 <= radius.

    One step goes to e = radius g/|g| (with T = |w| + eta: e = radius T^2 g/|T g|), the point that SAM visits. More steps climb on
    from there by normalised gradients, projected into the ball; a step that does not rise is taken back and tried again at a
    quarter of the length, and one that does is followed by one of twice the length. So one step <= more steps <= the maximum. At a point of gradient 0 nothing rises to first order: use `restarts`.

    Not invariant: a ReLU network whose layers are rescaled by a and 1/a computes the same, and has another SAM sharpness. ASAM's
    at eta = 0 is the same for both. Where the loss is near 0, cross-entropy's sharpness is near 0 too, and tells nothing.

    Args:
        surface: the loss as a function of the weights.
        radius: > 0; without unit for ASAM, which wants about ten times SAM's.
        steps: of ascent, >= 1; each costs a value and at most one gradient. 1 is "SAM sharpness", 5 to 20 "PGD in the ball".
        adaptive: ASAM.
        eta: >= 0, keeps weights near 0 movable in the adaptive ball. Above 0 the invariance is only approximate.
        restarts: >= 0 further climbs, each from a random point of the sphere.
        generator: of the restarts; None is seeded with the surface's seed.
    Raises: LegatoValueError for a number out of range, or a loss that is not finite at w.
    Source: Foret et al. 2021, arXiv 2010.01412 (SAM); Kwon et al. 2021, arXiv 2102.11600 (ASAM).
    """
    check_ball(radius, steps, eta, restarts)
    loss, gradient = surface.value(), surface.gradient()
    if not math.isfinite(loss):
        raise errors.argument("surface", expected="a finite loss at the weights", got=loss)
    hill = _Hill(surface, radius, surface.weights().abs() + eta if adaptive else None, loss)
    slope = hill.scaled(gradient)
    hill.climb(None, 0.0, slope, steps)
    if restarts:
        dice = generator or torch.Generator().manual_seed(surface.seed)
        for _ in range(restarts):
            start = torch.randn(surface.size, generator=dice, device=dice.device, dtype=surface.dtype)
            start = hill.on_sphere(start.to(surface.device))
            hill.climb(start, hill.rise(start), None, steps)
    return Sharpness(
        sharpness=hill.best, radius=radius, steps=steps, adaptive=adaptive, mode=surface.mode, rows=surface.rows, loss=loss,
        gradient_norm=_norm(gradient), first_order=radius * _norm(slope), rises=tuple(hill.rises), values=1 + len(hill.rises),
        gradients=1 + hill.gradients, offset=torch.zeros_like(gradient) if hill.place is None else hill.scaled(hill.place),
    )  # fmt: skip


def m_sharpness(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Sequence[Any]],
    radius: float = 0.05,
    steps: int = 1,
    *,
    adaptive: bool = False,
    eta: float = 0.0,
    mode: str = "eval",
    seed: int = 0,
) -> GroupSharpness:
    """The mean of the sharpnesses of groups of m rows, each with a worst point of its own: what SAM lowers, a batch at a time.

    The smaller m, the larger it is: the mean of maxima is at least the maximum of the mean.

    Args:
        model, loss, mode, seed: as in `Surface`.
        batches: groups of m rows, (inputs, targets, ...); the last one may be smaller and counts by its rows.
        radius, steps, adaptive, eta: as in `sam_sharpness`, which is asked for each group.
    Raises: LegatoValueError as there, and for no group.
    Source: Foret et al. 2021, arXiv 2010.01412, section 4.1; Andriushchenko and Flammarion 2022, arXiv 2206.06232.
    """
    check_ball(radius, steps, eta, 0)
    found = [
        sam_sharpness(Surface(model, loss, [group], mode, seed=seed), radius, steps, adaptive=adaptive, eta=eta)
        for group in _listed(batches, seed)
        if len(group[1])
    ]
    if not found:
        raise errors.argument("batches", expected="one group or more, of one row or more", got="none")
    rows = [one.rows for one in found]
    mean, error = weighted_mean([one.sharpness for one in found], rows)
    return GroupSharpness(
        sharpness=mean, standard_error=error, groups=len(found), group_rows=max(rows), radius=radius, steps=steps,
        adaptive=adaptive, mode=mode, rows=sum(rows), loss=weighted_mean([one.loss for one in found], rows)[0],
        gradient_norm=weighted_mean([one.gradient_norm for one in found], rows)[0],
        each=tuple(one.sharpness for one in found),
        values=max(one.values for one in found), gradients=max(one.gradients for one in found),
    )  # fmt: skip


def rise_standard_error(surface: Surface, offset: Tensor, groups: int = 50) -> float:
    """How far the rise L(w + offset) - L(w) would vary from one sample of rows to another, the offset being given.

    From the spread of the rise over groups of rows: batches of tensors are cut so that there are about `groups` in all; in mode
    "train", and for other batches, each batch is a group. An offset that was found on the same rows fits them a little too well,
    which this does not see.

    Args:
        offset: [P].
        groups: >= 2.
    Returns: NaN where there is but one group.
    Raises: LegatoValueError for fewer than 2 groups.
    """
    if groups < 2:
        raise errors.argument("groups", expected="at least 2", got=groups)
    size = -(-surface.rows // groups)
    batches = [batch for batch in _listed(surface.batches, surface.seed) if len(batch[1])]
    parts = [part for batch in batches for part in (cut(batch, size) if surface.mode == "eval" else (batch,))]
    small = [Surface(surface.model, surface.loss, [part], surface.mode, seed=surface.seed) for part in parts]
    before = [one.value() for one in small]
    with surface.at(offset):
        rises = [one.value() - value for one, value in zip(small, before, strict=True)]
    return weighted_mean(rises, [len(part[1]) for part in parts])[1]


def cut(batch: Sequence[Any], rows: int) -> Iterator[Sequence[Any]]:
    """A batch of tensors in pieces of at most `rows` rows; one of anything else stays whole."""
    inputs, targets = batch[:2]
    if isinstance(inputs, Tensor) and isinstance(targets, Tensor) and len(inputs) == len(targets):
        yield from zip(inputs.split(rows), targets.split(rows), strict=True)
    else:
        yield batch


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error from the spread of the values: s/sqrt(n) for equal weights; NaN for one value."""
    total, n = math.fsum(weights), len(values)
    mean = math.fsum(w * v for w, v in zip(weights, values, strict=True)) / total
    if n < 2:
        return mean, math.nan
    spread = math.fsum((w / total * (v - mean)) ** 2 for w, v in zip(weights, values, strict=True))
    return mean, math.sqrt(spread * n / (n - 1))


def check_ball(radius: float, steps: int, eta: float, restarts: int) -> None:
    """The plain numbers of `sam_sharpness`. Raises: LegatoValueError for the first that is out of its range."""
    if not 0 < radius < math.inf:
        raise errors.argument("radius", expected="a finite number > 0", got=radius)
    if not (isinstance(steps, int) and steps >= 1):
        raise errors.argument("steps", expected="a whole number >= 1", got=steps)
    if not 0 <= eta < math.inf:
        raise errors.argument("eta", expected="a finite number >= 0", got=eta)
    if not (isinstance(restarts, int) and restarts >= 0):
        raise errors.argument("restarts", expected="a whole number >= 0", got=restarts)


@dataclass
class _Hill:
    """The rise as a function of u in the ball |u| <= radius, with e = T u; what was tried and the best of it."""

    surface: Surface
    radius: float
    scale: Tensor | None
    """T [P]; None is 1."""
    loss: float
    best: float = 0.0
    place: Tensor | None = None
    """The u of the best; None is the centre."""
    rises: list[float] = field(default_factory=list)
    gradients: int = 0

    def scaled(self, vector: Tensor) -> Tensor:
        """T times it."""
        return vector if self.scale is None else self.scale * vector

    def on_sphere(self, vector: Tensor) -> Tensor:
        return vector * (self.radius / _norm(vector))

    def rise(self, u: Tensor) -> float:
        """L(w + T u) - L(w); noted."""
        with self.surface.at(self.scaled(u)):
            found = self.surface.value() - self.loss
        self.rises.append(found)
        if found > self.best:
            self.best, self.place = found, u
        return found

    def slope(self, u: Tensor) -> Tensor:
        """Its gradient for u."""
        self.gradients += 1
        with self.surface.at(self.scaled(u)):
            return self.scaled(self.surface.gradient())

    def climb(self, u: Tensor | None, rise: float, slope: Tensor | None, steps: int) -> None:
        """Ascend from u (None is the centre), where the rise is known and the slope may be."""
        length = REACH * self.radius
        for _ in range(steps):
            if slope is None:
                assert u is not None
                slope = self.slope(u)
            steepness = _norm(slope)
            if not 0 < steepness < math.inf:
                return
            step = slope * (length / steepness)
            there = step if u is None else u + step
            if _norm(there) > self.radius:
                there = self.on_sphere(there)
            found = self.rise(there)
            if found > rise:
                u, rise, slope, length = there, found, None, length * LONGER
            else:
                length *= SHORTER


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))


def _listed(batches: Iterable[Sequence[Any]], seed: int) -> list[Sequence[Any]]:
    """All batches, in the order in which a `Surface` with this seed reads them; the global random numbers stay where they are."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return list(batches)
