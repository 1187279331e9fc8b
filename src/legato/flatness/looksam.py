"""LookSAM: a full SAM step now and then, and what it has found reused in the steps between."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from legato import errors
from legato.flatness.perturbation import (
    Closure,
    check_model,
    check_radius,
    chosen,
    first_pass,
    inner_product,
    quotient,
    second_pass,
    times,
    total_norm,
    trainable,
    widened,
)
from legato.flatness.sam import climb

NOISE = 100
"""An orthogonal part shorter than this many rounding errors of the gradient is taken for one, and not blown up."""


def orthogonal_direction(perturbed: Sequence[Tensor], plain: Sequence[Tensor]) -> list[Tensor]:
    """The unit vector along that part of SAM's gradient which is orthogonal to the plain one.

    v = p - (p . g / |g|^2) g;  direction = v / |v|, with all tensors taken together; p perturbed, g plain.
    0 where |v| is not beyond rounding, that is 100 eps |p|: then p and g point the same way, and v is noise.

    Args:
        perturbed: SAM's gradients, tensors of any shape.
        plain: the gradients at the weights themselves, of the same shapes.
    Returns: tensors of the shapes of the arguments; float32 for float16 and bfloat16.
    Source: Liu et al. 2022, arXiv 2203.02714, algorithm 1.
    """
    with torch.no_grad():
        p, g = widened(perturbed), widened(plain)
        along = quotient(inner_product(p, g), total_norm(g).square())
        v = list(torch._foreach_sub(p, times(g, along)))
        length = total_norm(v)
        beyond = length > NOISE * torch.finfo(p[0].dtype).eps * total_norm(p)
        return times(v, torch.where(beyond, 1 / length, 0.0))


@final
class LookSAM:
    """The gradients of LookSAM: SAM in each `every`-th step, one pass in the others; about 1 + 1/every times a plain step.

    A SAM step keeps the direction of its gradient's part that is orthogonal to the plain gradient g. The steps between use
    g + alpha * |g| * direction. The first step is a SAM step. If its gradients are not finite, the direction stays what it was.

    Memory: one more copy of the trainable weights for the direction; in a SAM step two more, for the weights and g.

    Args:
        model, radius: as in `SAM`.
        every: k, a whole number >= 1; 1 is SAM.
        alpha: >= 0, no unit; how much of the direction is added.
    Raises: LegatoValueError for a number out of range or a model without trainable parameters; LegatoTypeError for no model.
    Source: Liu et al. 2022, arXiv 2203.02714.
    """

    def __init__(self, model: nn.Module, radius: float, every: int = 5, alpha: float = 0.7) -> None:
        check_model(model)
        check_radius(radius)
        if not (isinstance(every, int) and every >= 1):
            raise errors.argument("every", expected="a whole number >= 1", got=every, fix="every=1 is SAM")
        if not (isinstance(alpha, int | float) and 0 <= alpha < float("inf")):
            raise errors.argument("alpha", expected="a plain finite number >= 0", got=alpha, fix="alpha=0.7")
        self.model, self.radius, self.every, self.alpha = model, radius, every, alpha
        self.step = 0
        self.directions: dict[str, Tensor] = {}

    def gradients(self, closure: Closure) -> Tensor:
        """As in `SAM.gradients`; the closure is called twice in each `every`-th step, else once."""
        looks = self.step % self.every == 0
        loss = self._look(closure) if looks else self._reuse(closure)
        self.step += 1
        return loss

    def _look(self, closure: Closure) -> Tensor:
        first = first_pass(self.model, closure)
        plain = first.gradients
        offsets, norm = climb(first.weights, plain, self.radius)
        second_pass(first, offsets, norm, closure)
        if self.every > 1:
            found = orthogonal_direction(first.gradients, plain)
            before = [
                self.directions.get(name, torch.zeros_like(new)) for name, new in zip(first.names, found, strict=True)
            ]
            kept = chosen(total_norm(found).isfinite(), found, before)
            self.directions = dict(zip(first.names, kept, strict=True))
        return first.loss

    def _reuse(self, closure: Closure) -> Tensor:
        first = first_pass(self.model, closure)
        known = [
            (g, self.directions[n]) for n, g in zip(first.names, first.gradients, strict=True) if n in self.directions
        ]
        if known:
            length = self.alpha * total_norm(first.gradients)
            with torch.no_grad():
                torch._foreach_add_([g for g, _ in known], times([direction for _, direction in known], length))
        return first.loss

    def state_dict(self) -> dict[str, Any]:
        """The number of the step and the directions by name of the parameter."""
        return {"step": self.step, "directions": {name: value.clone() for name, value in self.directions.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave. Raises: LegatoValueError for that of another model."""
        self.directions = fitting(self.model, state["directions"])
        self.step = state["step"]


def fitting(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of `tensors` on the devices of the parameters of these names. Raises: LegatoValueError if they do not fit."""
    weights = trainable(model)
    for name, tensor in tensors.items():
        if name not in weights or weights[name].shape != tensor.shape:
            got = f"{name} of shape {list(tensor.shape)}"
            raise errors.argument(
                "state", expected="the state of this model", got=got, fix="load the state of the same model"
            )
    return {name: tensor.detach().to(weights[name].device, copy=True) for name, tensor in tensors.items()}
