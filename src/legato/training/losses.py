"""The losses of an epoch, kept on the device until somebody reads them, so that no step waits for the device."""

import math
from typing import final

import torch
from torch import Tensor


@final
class EpochLosses:
    """Mean loss over rows, and the first step whose loss was not finite.

    Reading at other moments changes no bit of the mean: values are added one by one, in order, in float64.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self.rows = 0
        self.first_bad: tuple[int, float] | None = None
        self._waiting: list[Tensor] = []
        self._sizes: list[int] = []

    def add(self, loss: Tensor, rows: int) -> None:
        """Take the mean loss of one step over `rows` rows."""
        self._waiting.append(loss.detach())
        self._sizes.append(rows)

    def read(self, step: int) -> None:
        """Add up what waits (the device is synchronised here); `step` is the number of steps done."""
        if not self._waiting:
            return
        values = torch.stack(self._waiting).tolist()
        first = step - len(values)
        for i, (value, rows) in enumerate(zip(values, self._sizes, strict=True)):
            if not math.isfinite(value) and self.first_bad is None:
                self.first_bad = (first + i, value)
            self.total += value * rows
            self.rows += rows
        self._waiting.clear()
        self._sizes.clear()
