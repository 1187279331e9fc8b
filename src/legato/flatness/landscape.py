"""The loss along lines and planes through the weights: in random directions scaled filter by filter, and from one model to another."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from legato import errors
from legato.flatness.surface import Surface

Metric: TypeAlias = Callable[[Any, Any], Tensor | float]
"""(output, targets) -> the mean over the rows, such as the share of wrong answers."""
STATISTICS = ("re-estimated", "interpolated")


@dataclass(frozen=True)
class Landscape:
    """The loss on a line [A] or a grid [A, A] of weights."""

    steps: NDArray[np.float64]
    """[A]: how far along each direction; 0 is w. Between two models 0 is the first and 1 the second."""
    loss: NDArray[np.float64]
    """[A], or [A, A] with the first direction along the rows."""
    metric: NDArray[np.float64] | None
    """Of the same shape, where a metric was given."""
    mode: str
    rows: int
    lengths: tuple[float, ...]
    """The l2 norm of each direction, so that steps * length is a distance of weights."""
    directions: Tensor = field(repr=False, compare=False)
    """[1 or 2, P]."""


@dataclass(frozen=True)
class Path:
    """The loss on the straight line between two models."""

    steps: NDArray[np.float64]
    """[A]: 0 is the first model, 1 the second."""
    loss: NDArray[np.float64]
    """[A]."""
    metric: NDArray[np.float64] | None
    """[A], where a metric was given."""
    mode: str
    rows: int
    distance: float
    """|w1 - w0|, over all parameters."""
    statistics: str
    """What batch normalisation used: "re-estimated", "interpolated", or "none" where there is nothing to choose."""

    @property
    def barrier(self) -> float:
        """The most by which the loss between the models lies above the straight line between their losses, >= 0."""
        inside = (self.steps >= 0) & (self.steps <= 1)
        steps, loss = self.steps[inside], self.loss[inside]
        return float(np.max(loss - np.interp(steps, [0.0, 1.0], [_at(0.0, steps, loss), _at(1.0, steps, loss)])))


def filter_normalised_direction(surface: Surface, generator: torch.Generator) -> Tensor:
    """A random direction whose every filter has the norm that the filter has in the weights.

    Drawn from N(0, 1); then, for each tensor with two or more axes and each index along its first axis (an output channel, a row of a
    linear layer), d[f] <- d[f] |w[f]| / |d[f]|. Tensors with one axis or none, that is biases and the scales and shifts of
    normalisation layers, get 0: they stay where they are.

    Args:
        generator: on any device.
    Returns: [P], in the order of `surface.blocks`. Multiplying the filters of a layer by a > 0 multiplies their part by a.
    Source: Li et al. 2018, arXiv 1712.09913, section 4; zeros for biases and normalisation as in its figures.
    """
    return torch.cat([_filters(p.detach(), generator).to(surface.device, surface.dtype) for p in surface.parameters])


def landscape(
    surface: Surface,
    generator: torch.Generator,
    *,
    axes: int = 1,
    points: int = 21,
    span: float = 1.0,
    metric: Metric | None = None,
    directions: Tensor | None = None,
    tick: Callable[[], None] | None = None,
) -> Landscape:
    """L(w + a d) on a line, or L(w + a d + b d') on a grid, a and b in [-span, span].

    In mode "eval" batch normalisation keeps the running statistics of w everywhere. A picture is one random cut: curvature that
    the direction does not meet is not seen, and in a million dimensions it meets little. Compare models on equal spans and
    directions of their own, and read numbers elsewhere.

    Args:
        surface: the loss as a function of the weights.
        generator: of the directions.
        axes: 1 or 2.
        points: on each axis, odd and >= 3, so that w is one of them; each costs a pass over the data, points^axes in all.
        span: > 0, in units of the direction.
        metric: `(output, targets) -> mean over the rows`, read in the same passes.
        directions: [axes, P] instead of random ones, such as eigenvectors or trajectories.
        tick: called after each pass.
    Raises: LegatoValueError for a number out of range or directions of another shape.
    """
    _check(points, odd=True)
    if axes not in (1, 2):
        raise errors.argument("axes", expected="1 or 2", got=axes)
    if not 0 < span < math.inf:
        raise errors.argument("span", expected="a finite number > 0", got=span)
    if directions is None:
        directions = torch.stack([filter_normalised_direction(surface, generator) for _ in range(axes)])
        if not directions.any():
            raise errors.argument(
                "surface", expected="a weight other than 0 with two axes or more, for there alone are filters", got="none",
                fix="pass directions of your own",
            )  # fmt: skip
    if list(directions.shape) != [axes, surface.size]:
        raise errors.argument(
            "directions", expected=f"shape [{axes}, {surface.size}]", got=f"shape {list(directions.shape)}"
        )
    steps = np.linspace(-span, span, points)
    steps[points // 2] = 0.0
    reader = _Reader(surface, surface.model, metric)
    grid = np.stack(np.meshgrid(*[steps] * axes, indexing="ij"), axis=-1).reshape(-1, axes)
    for place in grid:
        with surface.at(torch.as_tensor(place).to(directions) @ directions):
            reader.read()
        if tick is not None:
            tick()
    loss, values = reader.arrays([points] * axes)
    lengths = tuple(torch.linalg.vector_norm(directions, dim=1).tolist())
    return Landscape(steps, loss, values, surface.mode, surface.rows, lengths, directions)


def path_between(
    surface: Surface,
    other: nn.Module,
    *,
    points: int = 21,
    margin: float = 0.25,
    statistics: str = "re-estimated",
    metric: Metric | None = None,
    tick: Callable[[], None] | None = None,
) -> Path:
    """L((1 - a) w0 + a w1) for a in [-margin, 1 + margin], from the surface's model to another of equal shape.

    All parameters move, frozen ones too. What batch normalisation divides by belongs to the weights: averages of two models'
    running statistics fit neither the one nor the other, and raise a barrier that is none of the weights'. By default they are
    estimated anew at each point, on the surface's own batches (means over batches, weighed by rows; dropout off), at the two
    ends as well. "interpolated" moves them with the weights: then the ends are the models as they are. In mode "train", and
    without running statistics, there is nothing to choose.

    A barrier between two models says little about either: networks that differ by the order of their units are equal functions.

    Args:
        other: with the same names and shapes of parameters and buffers.
        points: on the whole line, >= 3; 0 and 1 are always among the steps.
        margin: >= 0, how far to go beyond the two.
        statistics: "re-estimated" (one more pass a point) or "interpolated".
        metric, tick: as in `landscape`.
    Raises: LegatoValueError for a number out of range or models that differ in shape.
    """
    _check(points, odd=False)
    if statistics not in STATISTICS:
        raise errors.choice("statistics", statistics, STATISTICS)
    if not 0 <= margin < math.inf:
        raise errors.argument("margin", expected="a finite number >= 0", got=margin)
    first, second = (_state(model) for model in (surface.model, getattr(other, "_orig_mod", other)))
    _check_equal(first, second)
    second = {name: value.to(first[name]) for name, value in second.items()}
    moving = copy.deepcopy(surface.model)
    norms = [module for module in moving.modules() if _has_statistics(module)] if surface.mode == "eval" else []
    names = {name for name, _ in moving.named_parameters()}
    steps = np.unique(np.concatenate([np.linspace(-margin, 1 + margin, points), [0.0, 1.0]]).round(12))
    reader = _Reader(surface, moving, metric)
    for step in steps:
        _place(moving, first, second, float(step))
        if norms and statistics == "re-estimated":
            _estimate(norms, reader.surface)
        reader.read()
        if tick is not None:
            tick()
    loss, values = reader.arrays([len(steps)])
    distance = math.sqrt(sum(float((second[n] - first[n]).double().square().sum()) for n in names))
    return Path(steps, loss, values, surface.mode, surface.rows, distance, statistics if norms else "none")


class _Reader:
    """Loss and metric of a model in the same pass, again and again."""

    def __init__(self, like: Surface, model: nn.Module, metric: Metric | None) -> None:
        self._loss, self._metric = like.loss, metric
        self.surface = Surface(model, self._noting, like.batches, like.mode, seed=like.seed)
        self._noted: list[tuple[int, Tensor | float]] = []
        self._read: list[tuple[float, float]] = []

    def read(self) -> None:
        self._noted.clear()
        loss = self.surface.value()
        rows = sum(n for n, _ in self._noted)
        self._read.append((loss, math.fsum(n * float(value) for n, value in self._noted) / rows if rows else math.nan))

    def arrays(self, shape: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        loss, metric = np.array(self._read, dtype=np.float64).T.reshape(2, *shape)
        return loss, None if self._metric is None else metric

    def _noting(self, output: Any, targets: Any) -> Tensor:
        if self._metric is not None:
            with torch.no_grad():
                self._noted.append((len(targets), self._metric(output, targets)))
        return self._loss(output, targets)


def _filters(weight: Tensor, generator: torch.Generator) -> Tensor:
    if weight.dim() < 2:
        return weight.new_zeros(weight.numel())
    drawn = torch.randn(weight.shape, generator=generator, device=generator.device, dtype=weight.dtype).to(
        weight.device
    )
    filters, rows = weight.flatten(1), drawn.flatten(1)
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    scaled: Tensor = rows * torch.linalg.vector_norm(filters, dim=1, keepdim=True)
    return scaled.reshape(-1)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in (*model.named_parameters(), *model.named_buffers())}


def _place(model: nn.Module, first: dict[str, Tensor], second: dict[str, Tensor], step: float) -> None:
    """Every floating point parameter and buffer of `model` at `step` between the two; equal in every bit at 0 and at 1."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.lerp(first[name], second[name], step))
        for variance in (m.running_var for m in model.modules() if _has_statistics(m)):
            assert isinstance(variance, Tensor)
            variance.clamp_min_(0)  # beyond the two models the line may lead below


def _estimate(norms: Sequence[Any], surface: Surface) -> None:
    """Running statistics of the model at its present weights: each batch's mean and variance, averaged over rows."""
    kept = [(norm.momentum, norm.training) for norm in norms]
    seen = dict.fromkeys(norms, 0)

    def before(norm: Any, inputs: Any) -> None:
        rows = len(inputs[0])
        seen[norm] += rows
        norm.training, norm.momentum = True, rows / seen[norm]

    hooks = [norm.register_forward_pre_hook(before) for norm in norms]
    try:
        surface.value()
    except ValueError as problem:  # torch: a single value has no variance
        raise errors.argument(
            "batches", expected="2 rows or more in each, to estimate batch normalisation's statistics", got=str(problem),
            fix='larger batches, or statistics="interpolated"',
        ) from problem  # fmt: skip
    finally:
        for hook in hooks:
            hook.remove()
        for norm, (momentum, training) in zip(norms, kept, strict=True):
            norm.momentum, norm.training = momentum, training


def _has_statistics(module: nn.Module) -> bool:
    return getattr(module, "running_mean", None) is not None and hasattr(module, "momentum")


def _check(points: int, *, odd: bool) -> None:
    if not isinstance(points, int) or points < 3 or (odd and points % 2 == 0):
        raise errors.argument(
            "points", expected="an odd whole number >= 3" if odd else "a whole number >= 3", got=points
        )


def _check_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name in dict.fromkeys((*first, *second)):
        shapes = [list(state[name].shape) if name in state else "nothing of that name" for state in (first, second)]
        if shapes[0] != shapes[1]:
            raise errors.argument("other", expected=f"a model of equal shape: {name} {shapes[0]}", got=shapes[1])


def _at(step: float, steps: NDArray[np.float64], loss: NDArray[np.float64]) -> float:
    return float(loss[np.flatnonzero(steps == step)[0]])
