"""The objective of a denoiser for the training loop: predict what was added, and, if asked, move evenly with it."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Generator, Tensor, nn

from legato import errors
from legato.diffusion.denoiser import Condition, Denoiser
from legato.diffusion.schedule import NoiseSchedule
from legato.diffusion.smoothness import SmoothnessRegularizer
from legato.training import Batch

Told = Callable[[Tensor, Generator], Condition]
"""(targets [B], generator) -> the condition of the network."""


@final
class DenoisingObjective:
    """mean |output - target|^2 over elements, and the term of a `SmoothnessRegularizer`; a batch is (x0, targets, index).

    t is uniform over the levels and the noise Gaussian, both from a generator of this object whose state is saved, so that a
    resumed run goes on with the same numbers. Under autocast the base loss has a pass of its own, for the term needs float32.

    Args:
        schedule: levels and what the network predicts.
        condition: makes the network's condition of the batch's targets; None for a network without one. See `class_condition`.
        regularizer: the smoothness term.
        seed: of noise, timesteps and what `condition` draws; several processes need a seed each.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        condition: Told | None = None,
        regularizer: SmoothnessRegularizer | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.schedule, self.condition, self.regularizer = schedule, condition, regularizer
        self.generator = Generator().manual_seed(seed)

    def begin_epoch(self, epoch: int) -> None:
        """Nothing to do."""

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """The loss of a batch, a scalar."""
        x0, targets, _ = batch
        told = Denoiser(model, self.schedule)
        t = torch.randint(len(self.schedule), (len(x0),), generator=self.generator).to(x0.device)
        noise = torch.randn(x0.shape, dtype=x0.dtype, generator=self.generator).to(x0.device)
        condition = {} if self.condition is None else self.condition(targets, self.generator)
        term, output = x0.new_zeros(()), None
        acts = self.regularizer is not None and self.regularizer.due()
        if self.regularizer is not None:
            term, output = self.regularizer(told, x0, noise, t, condition)
        if output is None or torch.is_autocast_enabled(x0.device.type):
            output = told.output(self.schedule.noisy(x0, noise, t), t, condition)
        base = torch.nn.functional.mse_loss(output.to(x0), self.schedule.target(x0, noise, t))
        return base + term if acts else base

    def after_step(self, model: nn.Module) -> None:
        """Nothing to do."""

    def gradients(self, closure: Callable[[], Tensor]) -> Tensor:
        """The gradients of the loss itself."""
        return closure()

    def state_dict(self) -> dict[str, Any]:
        """The generator, and the state of the term."""
        term = None if self.regularizer is None else self.regularizer.state_dict()
        return {"generator": self.generator.get_state(), "term": term}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken."""
        self.generator.set_state(state["generator"].cpu())
        if self.regularizer is not None:
            self.regularizer.load_state_dict(state["term"])


def class_condition(nothing: int, drop: float = 0.1, name: str = "class_labels") -> Told:
    """The class as condition; each is replaced by the class `nothing` with probability `drop`, for guidance without a classifier.

    Raises: LegatoValueError for a drop outside [0, 1).
    """
    if not 0 <= drop < 1:
        raise errors.argument("drop", expected="a probability in [0, 1)", got=drop, fix="0.1 is usual")

    def condition(targets: Tensor, generator: Generator) -> Condition:
        dropped = torch.rand(targets.shape, generator=generator).to(targets.device) < drop
        return {name: targets.masked_fill(dropped, nothing)}

    return condition
