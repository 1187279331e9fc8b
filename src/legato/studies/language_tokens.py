"""A model of [B, T] tokens for objectives that know rows: every token is a row. And what is read of the model on the way."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from legato.stability.attention import Interception, Values
from legato.training import Batch, Objective


@final
class TokenRows:
    """An objective of rows [B, C] for a model that gives [B, T, C]: batches and outputs are flattened to B * T rows.

    Args:
        objective: what is minimised.
        after: called with the bare model and the number of steps that are done, after each step.
    """

    def __init__(self, objective: Objective, after: Callable[[nn.Module, int], None] | None = None) -> None:
        self.objective, self.after, self.steps = objective, after, 0

    def begin_epoch(self, epoch: int) -> None:
        """Pass the epoch on."""
        self.objective.begin_epoch(epoch)

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """The objective's mean over all tokens; the index of a token is that of its window and its place in it."""
        inputs, targets, index = batch
        places = index[:, None] + torch.arange(targets.shape[1], device=index.device)
        return self.objective.loss(_Flat(model), (inputs, targets.flatten(), places.flatten()), step)

    def after_step(self, model: nn.Module) -> None:
        """Pass the model on."""
        self.steps += 1
        self.objective.after_step(model)
        if self.after is not None:
            self.after(model, self.steps)

    def gradients(self, closure: Callable[[], Tensor]) -> Tensor:
        """What the objective makes of them."""
        return self.objective.gradients(closure)

    def state_dict(self) -> dict[str, Any]:
        """The objective's, and the number of steps."""
        return {"objective": self.objective.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.objective.load_state_dict(state["objective"])
        self.steps = state["steps"]


class _Flat(nn.Module):
    """The same model with an output of rows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        rows: Tensor = self.model(tokens).flatten(0, 1)
        return rows


@final
class Probe:
    """Reads the attention on the same tokens at chosen steps, exactly: `readings` has one table a step.

    Args:
        tokens: int64 [B, T], on the model's device.
        steps: how many optimizer steps are done when it is read; 0 is the untrained model.
    """

    def __init__(self, tokens: Tensor, steps: Sequence[int]) -> None:
        self.tokens, self.steps = tokens, frozenset(steps)
        self.readings: list[dict[str, Any]] = []

    def __call__(self, model: nn.Module, step: int) -> None:
        """Read, if this step is one of those."""
        if step in self.steps:
            self.readings.append({"step": step, **attention(model, self.tokens)})


@torch.no_grad()
def attention(model: nn.Module, tokens: Tensor) -> dict[str, list[float]]:
    """Of each attention layer, in the order in which they run: the largest logit over heads, and the mean entropy in nats.

    Args:
        model: called with the tokens in the mode that it is in.
        tokens: int64 [B, T].
    """
    seen: list[Values] = []
    with Interception(lambda values, source: seen.append(values), exact=True):
        model(tokens)
    largest = [_known(values.maximum).amax() for values in seen]
    entropy = [(_known(values.entropy) / values.rows).mean() for values in seen]
    return {"attention_max": torch.stack(largest).tolist(), "attention_entropy": torch.stack(entropy).tolist()}


def _known(value: Tensor | None) -> Tensor:
    assert value is not None  # exact readings have all
    return value


@final
class GradientSize:
    """RMS of a parameter's gradient as the optimizer finds it, clipped, over the last steps; nothing waits for the device.

    Args:
        weight: whose gradient.
        optimizer: that steps.
        steps: how many of the last ones.
    """

    def __init__(self, weight: Tensor, optimizer: Optimizer, steps: int) -> None:
        self.weight = weight
        self._norms: deque[Tensor] = deque(maxlen=steps)
        optimizer.register_step_pre_hook(lambda *_: self._look())

    def _look(self) -> None:
        if self.weight.grad is not None:
            self._norms.append(self.weight.grad.detach().norm())

    @property
    def mean(self) -> float:
        """The mean over those steps of sqrt(mean g^2); NaN before the first."""
        if not self._norms:
            return math.nan
        return float(torch.stack([*self._norms]).double().mean()) / math.sqrt(self.weight.numel())
