"""What the loop trains with: objectives and batches, as the two small protocols that it knows."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from legato.training.checks import check_output

Batch = tuple[Tensor, Tensor, Tensor]
"""(inputs [B, ...], targets [B, ...], index int64 [B]); `index` is the row of the training split, -1 where there is none."""


class EpochBatches(Protocol):
    """Batches as a function of the epoch's number, so that a run can be taken up again at any batch.

    The same epoch must give the same batches in the same order, from its own seed or from the global random numbers.
    """

    def __len__(self) -> int:
        """Batches an epoch; the same for every epoch and every process."""
        ...

    def epoch(self, epoch: int, /) -> Iterator[Batch]:
        """The batches of epoch 0, 1, 2 ..."""
        ...


class Objective(Protocol):
    """What is minimised. The loop calls these methods and no others."""

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first batch of each epoch, counted from 0; also before a run resumes in its middle."""
        ...

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """The mean loss over the rows of one (micro-)batch, a scalar with a graph; `step` counts optimizer steps from 0."""
        ...

    def after_step(self, model: nn.Module) -> None:
        """Called after each optimizer step with the bare model (neither compiled nor wrapped for several processes)."""
        ...

    def gradients(self, closure: Callable[[], Tensor]) -> Tensor:
        """Leave the gradients of one optimizer step in `.grad` and return its mean loss, detached.

        `closure` clears the gradients, runs forward and backward over the whole accumulation group and returns the
        group's mean loss. Plain objectives return `closure()`; sharpness-aware ones call it twice.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: tensors, numbers, strings, and dicts, lists, tuples of these."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        ...


@final
class Criterion:
    """Any `criterion(output, target) -> mean loss` as an objective: loss = criterion(model(inputs), targets).

    A criterion that has `begin_epoch`, `state_dict` and `load_state_dict` gets those calls; one that is a Module is
    moved to the outputs' device. Outputs and targets are compared once, at step 0: index targets must be int64 in
    0 .. C-1 (or the criterion's `ignore_index`), and element-wise losses of torch need equal shapes.

    Args:
        criterion: a function or Module of (output, target) that returns a scalar, the mean over the batch.
    """

    def __init__(self, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.criterion = criterion
        self._device: torch.device | None = None

    def begin_epoch(self, epoch: int) -> None:
        """Pass the epoch on to a criterion that wants it."""
        if hasattr(self.criterion, "begin_epoch"):
            self.criterion.begin_epoch(epoch)

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """criterion(model(inputs), targets)."""
        inputs, targets, _ = batch
        output = model(inputs)
        if output.device != self._device:
            self._move(output.device)
        if step == 0:
            check_output(output, targets, self.criterion)
        return self.criterion(output, targets)

    def after_step(self, model: nn.Module) -> None:
        """Nothing to do."""

    def gradients(self, closure: Callable[[], Tensor]) -> Tensor:
        """The gradients of the loss itself."""
        return closure()

    def state_dict(self) -> dict[str, Any]:
        """The criterion's state; empty for a plain function."""
        state: dict[str, Any] = self.criterion.state_dict() if hasattr(self.criterion, "state_dict") else {}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Pass the state on to a criterion that has one."""
        if hasattr(self.criterion, "load_state_dict"):
            self.criterion.load_state_dict(state)

    def _move(self, device: torch.device) -> None:
        if isinstance(self.criterion, nn.Module):
            self.criterion.to(device)
        self._device = device
