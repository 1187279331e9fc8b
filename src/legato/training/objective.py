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


class Term(Protocol):
    """What is added to the loss of a batch, such as a penalty on the change of the outputs."""

    def begin_epoch(self, epoch: int) -> None:
        """As in `Objective`."""
        ...

    def penalty(self, output: Tensor, batch: Batch) -> Tensor:
        """The mean over the rows of the batch, a scalar; `output` is what the criterion saw."""
        ...

    def after_step(self, model: nn.Module) -> None:
        """As in `Objective`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """As in `Objective`."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As in `Objective`."""
        ...


class GradientMethod(Protocol):
    """Another way to the gradients of a step, such as sharpness-aware minimisation."""

    def gradients(self, closure: Callable[[], Tensor]) -> Tensor:
        """As in `Objective`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """As in `Objective`."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As in `Objective`."""
        ...


@final
class Criterion:
    """Any `criterion(output, target) -> mean loss` as an objective, and terms that are added to it.

    loss = criterion(output, targets) + sum over terms of penalty(output, batch), with output = model(inputs).

    A criterion that has `begin_epoch`, `state_dict` and `load_state_dict` gets those calls; one that is a Module is
    moved to the outputs' device. Outputs and targets are compared once, at step 0: index targets must be int64 in
    0 .. C-1 (or the criterion's `ignore_index`), and element-wise losses of torch need equal shapes.

    Args:
        criterion: a function or Module of (output, target) that returns a scalar, the mean over the batch.
        terms: such as `legato.flatness.SAF`.
    """

    def __init__(self, criterion: Callable[[Tensor, Tensor], Tensor], *terms: Term) -> None:
        self.criterion = criterion
        self.terms = terms
        self._device: torch.device | None = None

    def begin_epoch(self, epoch: int) -> None:
        """Pass the epoch on to whoever wants it."""
        if hasattr(self.criterion, "begin_epoch"):
            self.criterion.begin_epoch(epoch)
        for term in self.terms:
            term.begin_epoch(epoch)

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """criterion(model(inputs), targets), and the terms."""
        inputs, targets, _ = batch
        output = model(inputs)
        if output.device != self._device:
            self._move(output.device)
        if step == 0:
            check_output(output, targets, self.criterion)
        loss = self.criterion(output, targets)
        for term in self.terms:
            loss = loss + term.penalty(output, batch)
        return loss

    def after_step(self, model: nn.Module) -> None:
        """Pass the model on to the terms."""
        for term in self.terms:
            term.after_step(model)

    def gradients(self, closure: Callable[[], Tensor]) -> Tensor:
        """The gradients of the loss itself."""
        return closure()

    def state_dict(self) -> dict[str, Any]:
        """The state of the criterion, empty for a plain function, and those of the terms."""
        own = self.criterion.state_dict() if hasattr(self.criterion, "state_dict") else {}
        return {"criterion": own, "terms": [term.state_dict() for term in self.terms]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Pass the states on."""
        if hasattr(self.criterion, "load_state_dict"):
            self.criterion.load_state_dict(state["criterion"])
        for term, of_term in zip(self.terms, state["terms"], strict=True):
            term.load_state_dict(of_term)

    def _move(self, device: torch.device) -> None:
        if isinstance(self.criterion, nn.Module):
            self.criterion.to(device)
        self._device = device


@final
class WithGradients:
    """An objective whose gradients are found by another method; all else is the objective's own.

    Args:
        objective: what is minimised.
        method: such as `legato.flatness.SAM(model)`.
    """

    def __init__(self, objective: Objective, method: GradientMethod) -> None:
        self.objective, self.method = objective, method

    def begin_epoch(self, epoch: int) -> None:
        """Pass the epoch on."""
        self.objective.begin_epoch(epoch)

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """The objective's loss."""
        return self.objective.loss(model, batch, step)

    def after_step(self, model: nn.Module) -> None:
        """Pass the model on."""
        self.objective.after_step(model)

    def gradients(self, closure: Callable[[], Tensor]) -> Tensor:
        """What the method makes of the objective's gradients."""
        return self.method.gradients(lambda: self.objective.gradients(closure))

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"objective": self.objective.state_dict(), "method": self.method.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Pass the states on."""
        self.objective.load_state_dict(state["objective"])
        self.method.load_state_dict(state["method"])
