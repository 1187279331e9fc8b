"""A training objective that changes among a few losses as it goes, by what a `Selector` learns from held-out rows."""

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from legato import errors
from legato.online.selector import Selector

Criterion = Callable[[Tensor, Tensor], Tensor]
"""(output, target) -> mean loss, a scalar with a graph."""


def expected_error(output: Tensor, target: Tensor) -> Tensor:
    """The chance to be wrong of whoever guesses by the model's own probabilities: the mean of 1 - p, p = softmax(output) at target.

    In expectation over labels that flip to any of the C - 1 other classes with probability r, it is (1 - r C/(C - 1)) times its
    value on true labels, plus r: labels that are wrong in this way shrink a fall of it, but do not change which fall is the larger.

    Args:
        output: [B, C] floating point, scores before any softmax.
        target: [B] int64.
    Returns: [], in [0, 1].
    """
    return 1 - output.float().softmax(1).gather(1, target[:, None]).mean()


@final
class SelectedLoss:
    """One of a few losses, chosen anew every few steps: an objective for `legato.fit`.

    After every `every`-th step the model is put to the held-out rows, the selector is told by how much `measure` has fallen
    since the last time, and it chooses the loss to go on with. Each time costs a forward pass over the held-out rows, in evaluation
    mode, and a look at the device. The first time only says where the fall begins, and a measure that is not finite is not reported.

    Whether the choice is a good one is not promised: see `Selector`. The selector is judged by one measure for all losses, so that
    a loss is never judged by itself, and by what falls within a few steps, which need not be what is best in the end.

    Args:
        criteria: the losses by name. Those with `begin_epoch` and `state_dict` get these calls.
        held_out: (inputs [R, ...], targets [R]) that are not trained on; may be set later, but before the first step.
        selector: of the names of `criteria`; one with its defaults if None.
        every: steps >= 1 between two looks.
        measure: (output, target) -> scalar, the smaller the better.
    Raises: LegatoValueError for a number out of range, or a selector of other names.
    """

    def __init__(
        self,
        criteria: Mapping[str, Criterion],
        held_out: tuple[Tensor, Tensor] | None = None,
        selector: Selector | None = None,
        *,
        every: int = 5,
        measure: Criterion = expected_error,
    ) -> None:
        if not (isinstance(every, int) and every >= 1):
            raise errors.argument("every", expected="a whole number >= 1 of steps", got=every)
        self.criteria = dict(criteria)
        self.selector = Selector(list(self.criteria)) if selector is None else selector
        if set(self.selector.names) != set(self.criteria):
            raise errors.argument(
                "selector", expected=f"one of {', '.join(self.criteria)}", got=f"one of {', '.join(map(str, self.selector.names))}"
            )  # fmt: skip
        self.held_out, self.every, self.measure = held_out, every, measure
        self.steps: dict[str, int] = dict.fromkeys(self.criteria, 0)
        """How many steps each loss has been trained with."""
        self._last: float | None = None
        self._device: torch.device | None = None

    def begin_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the losses that want it."""
        for criterion in self.criteria.values():
            if hasattr(criterion, "begin_epoch"):
                criterion.begin_epoch(epoch)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], step: int) -> Tensor:
        """The chosen loss of the batch (inputs, targets, index)."""
        if self.held_out is None:
            fix = "selected.held_out = (inputs, targets), rows that are not trained on"
            raise errors.argument("held_out", expected="(inputs, targets)", got=None, fix=fix)
        inputs, targets, _ = batch
        output = model(inputs)
        if output.device != self._device:
            self._move(output.device)
        loss: Tensor = self.criteria[self.selector.choose()](output, targets)
        return loss

    def after_step(self, model: nn.Module) -> None:
        """Count the step; after every `every`-th look at the held-out rows, report, and choose anew."""
        self.steps[self.selector.choose()] += 1
        if sum(self.steps.values()) % self.every:
            return
        now = self._look(model)
        if self._last is not None and abs(self._last - now) < float("inf"):
            self.selector.report(self._last - now)
        self._last = now

    def gradients(self, closure: Callable[[], Tensor]) -> Tensor:
        """The gradients of the loss itself."""
        return closure()

    def state_dict(self) -> dict[str, Any]:
        """All but the held-out rows."""
        kept = {n: c.state_dict() for n, c in self.criteria.items() if hasattr(c, "state_dict")}
        return {"criteria": kept, "selector": self.selector.state_dict(), "steps": dict(self.steps), "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was, with the same choices."""
        for name, own in state["criteria"].items():
            self.criteria[name].load_state_dict(own)  # type: ignore[attr-defined]
        self.selector.load_state_dict(state["selector"])
        self.steps, self._last = dict(state["steps"]), state["last"]

    @torch.no_grad()
    def _look(self, model: nn.Module) -> float:
        """The measure on the held-out rows, in evaluation mode."""
        assert self.held_out is not None  # `loss` has seen to it
        inputs, targets = self.held_out
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            return float(self.measure(model(inputs), targets))
        finally:
            for module, training in modes:
                module.training = training

    def _move(self, device: torch.device) -> None:
        for criterion in self.criteria.values():
            if isinstance(criterion, nn.Module):
                criterion.to(device)
        assert self.held_out is not None  # `loss` has seen to it
        self.held_out = (self.held_out[0].to(device), self.held_out[1].to(device))
        self._device = device
