"""Sharpness-aware minimisation: the gradient is taken where the loss is highest near the weights. It costs two passes a step."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, final

import torch
from torch import Tensor, nn

from legato import errors
from legato.flatness.perturbation import (
    Closure,
    check_model,
    check_radius,
    first_pass,
    quotient,
    second_pass,
    times,
    total_norm,
    widened,
)


def sam_perturbation(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    radius: float,
    *,
    adaptive: bool | Sequence[bool] = False,
    eta: float = 0.01,
) -> list[Tensor]:
    """The offset of the weights that raises a loss most, to first order, in the ball (SAM) or the ellipsoid (ASAM).

    offset = radius * T^2 g / |T g|, with the norm over all tensors together; T = 1 (SAM) or |w| + eta (ASAM).
    |offset / T| = radius. A gradient of 0 gives an offset of 0; one that is not finite gives offsets that are not finite.

    Args:
        weights: w, tensors of any shape, floating point.
        gradients: g, of the shapes of the weights.
        radius: >= 0, in the unit of the weights (SAM) or relative to them (ASAM).
        adaptive: whether T = |w| + eta; one answer for all tensors, or one for each.
        eta: >= 0, in the unit of the weights; keeps weights of 0 moving.
    Returns: offsets of the shapes of the weights; float32 for float16 and bfloat16.
    Raises: LegatoValueError for a number out of range or lists that do not fit.
    Source: Foret et al. 2021, arXiv 2010.01412, equation 2 with p = 2; Kwon et al. 2021, arXiv 2102.11600.
    """
    check_radius(radius)
    _check_eta(eta)
    _check_lists(weights, gradients, adaptive)
    return climb(weights, gradients, radius, adaptive=adaptive, eta=eta)[0]


def climb(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    radius: float,
    *,
    adaptive: bool | Sequence[bool] = False,
    eta: float = 0.01,
) -> tuple[list[Tensor], Tensor]:
    """`sam_perturbation` without its checks, and the norm |T g| []."""
    which = [adaptive] * len(weights) if isinstance(adaptive, bool) else adaptive
    with torch.no_grad():
        steep = widened(gradients)
        if not any(which):
            norm = total_norm(steep)
            return times(steep, quotient(radius, norm)), norm
        scales = [w.abs() + eta if by_weight else None for w, by_weight in zip(widened(weights), which, strict=True)]
        steep = _times_each(steep, scales)
        norm = total_norm(steep)
        return _times_each(times(steep, quotient(radius, norm)), scales), norm


@final
class SAM:
    """The gradients of SAM for any optimizer and any loop: two passes, so about twice the time of a plain step.

    `loss = sam.gradients(closure)` leaves in `.grad` the gradients at w + radius * g / |g|, where g are those at w, and
    returns the mean loss at w. Then clip, unscale and step as usual. The weights are what they were, to the last bit. The
    second pass draws the same dropout as the first, and counts neither in BatchNorm's running statistics nor in any other
    buffer. Weights without a gradient, frozen ones among them, stay where they are; if all gradients are 0, all do.

    Gradients that are not finite are left as they are, for a GradScaler to see; the second pass is then left out on the
    CPU. On other devices nothing is read. Between processes DistributedDataParallel averages the gradients of both passes,
    so every process moves its weights by the same offset.

    Memory: one more copy of the trainable weights, and of the buffers.

    Args:
        model: whose trainable parameters are moved; bare, compiled or in DistributedDataParallel.
        radius: >= 0, in the unit of the weights. It may be set anew between steps.
    Raises: LegatoValueError for a radius out of range or a model without trainable parameters; LegatoTypeError for no model.
    Source: Foret et al. 2021, arXiv 2010.01412.
    """

    def __init__(self, model: nn.Module, radius: float = 0.05) -> None:
        check_model(model)
        check_radius(radius)
        self.model, self.radius = model, radius

    def gradients(self, closure: Closure) -> Tensor:
        """Leave the gradients of the step in `.grad` and return the mean loss at the weights, detached.

        Args:
            closure: runs forward and backward over all rows of the step and returns their mean loss. It is called twice
                and must do the same both times. Gradients are cleared before each call.
        Raises: LegatoTypeError or LegatoValueError for a closure that returns no tensor or leaves no gradients.
        """
        first = first_pass(self.model, closure)
        offsets, norm = climb(first.weights, first.gradients, self.radius)
        second_pass(first, offsets, norm, closure)
        return first.loss

    def state_dict(self) -> dict[str, Any]:
        """Empty: nothing is kept from one step to the next."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take over. Raises: LegatoValueError for a state of something else."""
        check_no_state(state)


@final
class ASAM:
    """The gradients of ASAM: as `SAM`, in an ellipsoid with half-axes radius * (|w| + eta).

    The offset is radius * T^2 g / |T g| with T = |w| + eta, so that large weights move farther. T = 1 for parameters with
    "bias" in the last part of their name, as in the authors' code.

    Args:
        model: as in `SAM`.
        radius: >= 0, relative to the weights; about ten times that of SAM or more.
        eta: >= 0, in the unit of the weights.
    Raises: LegatoValueError for a number out of range or a model without trainable parameters; LegatoTypeError for no model.
    Source: Kwon et al. 2021, arXiv 2102.11600.
    """

    def __init__(self, model: nn.Module, radius: float = 2.0, eta: float = 0.01) -> None:
        check_model(model)
        check_radius(radius)
        _check_eta(eta)
        self.model, self.radius, self.eta = model, radius, eta

    def gradients(self, closure: Closure) -> Tensor:
        """As in `SAM`."""
        first = first_pass(self.model, closure)
        adaptive = ["bias" not in name.rpartition(".")[2] for name in first.names]
        offsets, norm = climb(first.weights, first.gradients, self.radius, adaptive=adaptive, eta=self.eta)
        second_pass(first, offsets, norm, closure)
        return first.loss

    def state_dict(self) -> dict[str, Any]:
        """Empty: nothing is kept from one step to the next."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take over. Raises: LegatoValueError for a state of something else."""
        check_no_state(state)


def check_no_state(state: dict[str, Any]) -> None:
    """The state of a method that keeps none. Raises: LegatoValueError."""
    if state:
        raise errors.argument("state", expected="an empty state", got=f"keys {sorted(state)}")


def _times_each(tensors: list[Tensor], scales: Sequence[Tensor | None]) -> list[Tensor]:
    return [t if scale is None else t * scale for t, scale in zip(tensors, scales, strict=True)]


def _check_eta(eta: float) -> None:
    if not (isinstance(eta, Real) and 0 <= float(eta) < math.inf):
        raise errors.argument(
            "eta", expected="a plain finite number >= 0", got=eta, fix="eta=0.01 is the authors' value"
        )


def _check_lists(weights: Sequence[Tensor], gradients: Sequence[Tensor], adaptive: bool | Sequence[bool]) -> None:
    shapes, others = ([list(tensor.shape) for tensor in tensors] for tensors in (weights, gradients))
    if not shapes:
        raise errors.argument("weights", expected="at least one tensor", got="none")
    if shapes != others:
        raise errors.argument("gradients", expected=f"tensors of shapes {shapes}", got=f"shapes {others}")
    if not isinstance(adaptive, bool) and len(adaptive) != len(shapes):
        raise errors.argument(
            "adaptive", expected=f"True, False or {len(shapes)} of these", got=f"{len(adaptive)} values"
        )
