"""Efficient SAM: some of the weights are moved, and some of the rows are looked at a second time."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from legato import errors
from legato.flatness.perturbation import (
    Closure,
    Randomness,
    check_model,
    check_radius,
    check_share,
    first_pass,
    random_states,
    replayed,
    second_pass,
)
from legato.flatness.sam import climb

FEWEST = 2
"""Rows that are kept at least, since BatchNorm cannot train on one."""


def sharpest_rows(before: Tensor, after: Tensor, share: float) -> Tensor:
    """The rows whose loss rises most when the weights are moved.

    Args:
        before: [B], the losses at the weights.
        after: [B], the losses at the moved weights.
        share: in (0, 1]; int(share * B) rows are kept, and at least two, if there are two.
    Returns: int64 [kept], row numbers in ascending order.
    Source: Du et al. 2022, arXiv 2110.03141, sharpness-sensitive data selection.
    """
    kept = min(len(before), max(FEWEST, int(share * len(before))))
    return (after - before).topk(kept).indices.sort().values


@final
class ESAM:
    """Efficient SAM as a whole objective for `legato.training.fit`, since it needs the loss of each row.

    The first pass is SAM's. Each parameter tensor is then moved with probability `weight_share`, by 1 / weight_share of
    SAM's offset, so that the mean offset is SAM's. The second pass is one forward pass over all rows and a full one over the
    share of them whose loss rose most, chosen in each batch alone (in each process and micro-batch). BatchNorm, dropout, gradients
    that are not finite, and memory: as in `SAM`, except that the kept rows draw new dropout.

    Time, with a backward pass of two forward passes: (4 + 3 data_share) / 3 of a plain step, 1.83 at one half.

    Args:
        criterion: a function or Module of (output, targets) that returns the loss of each row [B], reduction="none".
        model: whose trainable parameters are moved.
        radius: >= 0, in the unit of the weights.
        weight_share: in (0, 1]; the paper's beta.
        data_share: in (0, 1]; the paper's gamma. With 1 for both shares this is SAM.
        seed: of the choice of weights; the same in all processes.
    Raises: LegatoValueError for a number out of range or a model without trainable parameters; LegatoTypeError for no model.
    Source: Du et al. 2022, arXiv 2110.03141.
    """

    def __init__(
        self,
        criterion: Callable[[Tensor, Tensor], Tensor],
        model: nn.Module,
        radius: float,
        weight_share: float = 0.6,
        data_share: float = 0.5,
        seed: int = 0,
    ) -> None:
        check_model(model)
        check_radius(radius)
        check_share("weight_share", weight_share)
        check_share("data_share", data_share)
        self.criterion, self.model, self.radius = criterion, model, radius
        self.weight_share, self.data_share = weight_share, data_share
        self.generator = torch.Generator().manual_seed(seed)
        self._seen: list[tuple[Tensor, Randomness]] | None = (
            None  # what the first pass leaves for the second, a batch each
        )
        self._left: list[tuple[Tensor, Randomness]] | None = None  # what the second pass has not used yet

    def begin_epoch(self, epoch: int) -> None:
        """Pass the epoch on to a criterion that wants it."""
        if hasattr(self.criterion, "begin_epoch"):
            self.criterion.begin_epoch(epoch)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], step: int) -> Tensor:
        """The mean loss over the rows of the batch; in the second pass, over those that are kept."""
        inputs, targets, _ = batch
        if self._left is not None:
            return self._loss_of_kept(model, inputs, targets)
        states = random_states({inputs.device}) if self._seen is not None else {}
        losses = self._losses(model, inputs, targets)
        if self._seen is not None:
            self._seen.append((losses.detach(), states))
        return losses.mean()

    def _loss_of_kept(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        assert self._left is not None
        if self.data_share == 1:
            return self._losses(model, inputs, targets).mean()
        before, states = self._left.pop(0)
        with torch.no_grad(), replayed(states):
            after = self._losses(model, inputs, targets)
        rows = sharpest_rows(before, after, self.data_share)
        return self._losses(model, inputs[rows], targets[rows]).mean()

    def _losses(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        losses = self.criterion(model(inputs), targets)
        if not isinstance(losses, Tensor) or losses.shape != (len(inputs),):
            got = f"shape {list(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            fix = 'reduction="none" in the criterion'
            raise errors.argument(
                "criterion", expected=f"the loss of each row, shape [{len(inputs)}]", got=got, fix=fix
            )
        return losses

    def after_step(self, model: nn.Module) -> None:
        """Nothing to do."""

    def gradients(self, closure: Closure) -> Tensor:
        """Leave the gradients of the step in `.grad` and return the mean loss of all rows at the weights, detached.

        Args:
            closure: as in `SAM.gradients`; it must get its losses from `loss` of this object.
        Raises: LegatoTypeError or LegatoValueError for a closure that returns no tensor, leaves no gradients or has not
            called `loss`.
        """
        self._seen = []
        try:
            first = first_pass(self.model, closure)
            if not self._seen:
                raise errors.argument(
                    "closure", expected="calls of loss of this ESAM", got="none", fix="call esam.loss(...)"
                )
            offsets, norm = climb(first.weights, first.gradients, self.radius)
            self._left, self._seen = self._seen, None
            second_pass(first, self._thinned(offsets), norm, closure)
        finally:
            self._seen = self._left = None
        return first.loss

    def _thinned(self, offsets: list[Tensor]) -> list[Tensor]:
        """Each offset / weight_share with probability weight_share, else 0; drawn on the CPU, so no device is waited for."""
        if self.weight_share == 1:
            return offsets
        moves = torch.rand(len(offsets), generator=self.generator) < self.weight_share
        return [o * (move / self.weight_share) for o, move in zip(offsets, moves.tolist(), strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """The state of the criterion, empty for a plain function, and of the choice of weights."""
        own = self.criterion.state_dict() if hasattr(self.criterion, "state_dict") else {}
        return {"criterion": own, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        if hasattr(self.criterion, "load_state_dict"):
            self.criterion.load_state_dict(state["criterion"])
        self.generator.set_state(state["generator"])
