"""Momentum-SAM: the weights are moved along the momentum, which is known beforehand, so one pass a step is enough."""

from typing import Any, final

import torch
from torch import Tensor, nn

from legato import errors
from legato.flatness.looksam import fitting
from legato.flatness.perturbation import (
    Closure,
    check_model,
    check_radius,
    chosen,
    first_pass,
    moved,
    quotient,
    times,
    total_norm,
    trainable,
    widened,
)


@final
class MSAM:
    """The gradients of Momentum-SAM: one pass a step, at w - radius * v / |v|; the cost of a plain step.

    v is the sum of the earlier gradients g, each `momentum` times the one after it: v = momentum * v + g, as in SGD. The sign is the
    authors': against the earlier gradients, where the optimizer is going to step, and not up the slope as in SAM. The
    norm is over all tensors together. The first step is a plain one. The weights come back before `gradients` returns,
    so there is nothing to move back before an evaluation. Gradients that are not finite do not enter v.

    Memory: two more copies of the trainable weights, one of them for v.

    Args:
        model: as in `SAM`.
        radius: >= 0, in the unit of the weights; far larger than that of SAM.
        momentum: in [0, 1), that of the optimizer.
    Raises: LegatoValueError for a number out of range or a model without trainable parameters; LegatoTypeError for no model.
    Source: Becker, Altrock, Risse 2024, arXiv 2401.12033.
    """

    def __init__(self, model: nn.Module, radius: float, momentum: float = 0.9) -> None:
        check_model(model)
        check_radius(radius)
        if not (isinstance(momentum, int | float) and 0 <= momentum < 1):
            raise errors.argument("momentum", expected="a plain number in [0, 1)", got=momentum, fix="momentum=0.9")
        self.model, self.radius, self.momentum = model, radius, momentum
        self.velocity: dict[str, Tensor] = {}

    def gradients(self, closure: Closure) -> Tensor:
        """Leave the gradients of the step in `.grad` and return the mean loss at the moved weights, detached.

        Args:
            closure: as in `SAM.gradients`, called once.
        Raises: LegatoTypeError or LegatoValueError for a closure that returns no tensor or leaves no gradients.
        """
        weights = trainable(self.model)
        names = [name for name in self.velocity if name in weights]
        with moved([weights[name] for name in names], self._offsets(names)):
            here = first_pass(self.model, closure)
        self._remember(here.names, here.gradients)
        return here.loss

    def _offsets(self, names: list[str]) -> list[Tensor]:
        if not names:
            return []
        velocity = [self.velocity[name] for name in names]
        return times(velocity, quotient(-self.radius, total_norm(velocity)))

    def _remember(self, names: list[str], gradients: list[Tensor]) -> None:
        with torch.no_grad():
            g = widened(gradients)
            before = [self.velocity.get(name, torch.zeros_like(new)) for name, new in zip(names, g, strict=True)]
            after = list(torch._foreach_mul(before, self.momentum))
            torch._foreach_add_(after, g)
            self.velocity |= dict(zip(names, chosen(total_norm(g).isfinite(), after, before), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """v by name of the parameter."""
        return {"velocity": {name: value.clone() for name, value in self.velocity.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave. Raises: LegatoValueError for that of another model."""
        self.velocity = fitting(self.model, state["velocity"])
