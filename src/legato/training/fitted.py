"""What a run gives back, and the best weights that it saw."""

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from legato import errors
from legato.training.checkpoint import read_tensors, write_tensors

Metrics = dict[str, Any]

BEST_FILE = "best.safetensors"


@dataclass(frozen=True)
class Best:
    """The weights with the lowest validation metric."""

    value: float
    """The metric, finite."""
    epoch: int
    """The epoch, from 0, at whose end it was measured."""
    weights: dict[str, Tensor] = field(repr=False)
    """A copy of the evaluated model's state_dict, on the CPU."""


@dataclass
class Fitted:
    """What a run gave."""

    history: list[Metrics]
    """An entry an epoch: epoch, step, train_loss, learning_rate, seconds, and what `validate` gave; None = not finite."""
    diverged: str | None
    """None, or at which step and how the loss stopped being finite, or the words of `stop`; the run ended there."""
    steps: int
    """Optimizer steps done."""
    seconds: float
    """Wall seconds in the loop, those of earlier processes included."""
    model: nn.Module = field(repr=False)
    """The trained model; with `ema_decay` the averaged one, in eval mode."""
    best: Best | None = field(repr=False)
    """None without `validate`, and where its metric was never finite."""


@final
class KeepBest:
    """Keeps a copy of the best weights, and writes it to the folder when it has changed.

    Args:
        metric: the name in the validation metrics whose minimum counts.
        folder: where `best.safetensors` stands; None for a run that writes nothing.
        writes: whether this process writes that file; all read it.
    """

    def __init__(self, metric: str, folder: Path | None, *, writes: bool = True) -> None:
        self.metric = metric
        self._writes = writes
        self.best: Best | None = None
        self._path = None if folder is None else Path(folder) / BEST_FILE
        self._written = True
        self._warned = False

    def look(self, metrics: Mapping[str, float | None], epoch: int, model: nn.Module) -> None:
        """Copy the model's weights if this epoch's metric is the lowest so far."""
        if self.metric not in metrics:
            if metrics and not self._warned:
                names = ", ".join(metrics)
                text = f"best={self.metric!r} is not among what validate returns ({names}): no best weights are kept."
                warnings.warn(text, errors.LegatoWarning, stacklevel=2)
                self._warned = True
            return
        value = metrics[self.metric]
        if value is not None and (self.best is None or value < self.best.value):
            state = model.state_dict().items()
            # clone() because .cpu() of a tensor on the CPU is that tensor itself, which training goes on to change.
            weights = {name: value.detach().cpu().clone() for name, value in state if isinstance(value, Tensor)}
            self.best = Best(value, epoch, weights)
            self._written = False

    def write(self) -> None:
        """Bring the folder up to date; call it before the checkpoint that knows of this epoch."""
        if self._path is None or self._written or self.best is None or not self._writes:
            return
        words = {"value": json.dumps(self.best.value), "epoch": str(self.best.epoch), "metric": self.metric}
        write_tensors(self._path, self.best.weights, words)
        self._written = True

    def resume(self) -> None:
        """Take up the best weights of an earlier process.

        They may be newer than its last checkpoint; the run then passes that epoch again and finds nothing better.
        """
        if self._path is None or not self._path.exists():
            return
        try:
            weights, words = read_tensors(self._path)
            best = Best(json.loads(words["value"]), int(words["epoch"]), weights)
            if words["metric"] == self.metric:
                self.best = best
                return
            problem = f"they are those by {words['metric']!r}, and this run keeps those by {self.metric!r}"
        except (errors.CheckpointError, KeyError, ValueError) as error:
            problem = str(error)
        text = f"the best weights of earlier epochs are not taken up from {self._path}: {problem}."
        warnings.warn(text, errors.LegatoWarning, stacklevel=2)


def plain_number(value: Any) -> float | None:
    """A Python float for JSON; None for NaN and infinities."""
    number = float(value)
    return number if math.isfinite(number) else None
