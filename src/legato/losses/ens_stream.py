"""What EnsLoss draws: sizes of derivatives for one batch after the other, from random numbers of its own."""

import warnings
from typing import Any, final

import numpy as np
import torch
from torch import Generator, Tensor

from legato import errors
from legato.losses.ens_derivatives import ORDERED_ROWS, falling_sizes

BLOCK, BATCHES = 8192, 64
"""At most so many numbers, for so many batches, are drawn at once: for small batches the calls cost more than the numbers."""

_Kind = tuple[int, torch.dtype, torch.device]


@final
class SizeStream:
    """`falling_sizes` for batch after batch, and lambda for epoch after epoch; the state goes on in every bit.

    The numbers are those that a generator of this seed gives, batch by batch, to a call of torch.randn for each (up to B = 2047,
    for multiples of 16), as in the official code after torch.manual_seed(seed).

    Args:
        lambda_, period, clip, random, seed: as in `EnsLoss`.
    """

    def __init__(self, lambda_: float, period: int | None, clip: float, random: bool, seed: int) -> None:
        self.first_lambda, self.period, self.clip, self.random, self.seed = lambda_, period, clip, random, seed
        self.lambda_, self.epoch = lambda_, 0
        self._generator: Generator | None = None
        self._ready: dict[_Kind, list[Tensor]] = {}  # sizes of batches to come, the next one last
        self._saved: dict[str, Any] | None = None  # a loaded state, until the device is known
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Set lambda; what was drawn with another one is thrown away."""
        self.epoch = epoch
        redraws = 0 if self.period is None else (epoch + 1) // self.period
        now = self.first_lambda
        if redraws:
            now = float(np.random.default_rng([self.seed, redraws]).uniform(-1, 1))
        if now != self.lambda_:
            self.lambda_ = now
            self._ready.clear()
            if self._saved is not None:
                self._saved["ready"] = []

    def next(self, like: Tensor) -> Tensor:
        """Falling sizes [B] for margins [B] of the type and device of `like`."""
        if torch.compiler.is_compiling() and not self.random:
            return self._sizes(1, like)[0]
        rows = self._ready.get((like.shape[0], like.dtype, like.device))
        if not rows:
            rows = self._refill(like)
        return rows.pop() if self.random else rows[-1]

    def _refill(self, like: Tensor) -> list[Tensor]:
        size = like.shape[0]
        key = (size, like.dtype, like.device)
        if self.random and (self._generator is None or self._generator.device != like.device):
            self._generator = self._begin(like.device)
        if not self._ready.get(key):
            batches = min(BATCHES, BLOCK // size) if self.random and 0 < size < ORDERED_ROWS else 1
            self._ready[key] = list(reversed(self._sizes(batches, like).unbind(0)))
        return self._ready[key]

    def _sizes(self, batches: int, like: Tensor) -> Tensor:
        return falling_sizes(batches, like, self.lambda_, self.clip, random=self.random, generator=self._generator)

    def _begin(self, device: torch.device) -> Generator:
        """A generator on the device, where a loaded state was if there is one."""
        generator, saved = Generator(device).manual_seed(self.seed), self._saved
        self._ready.clear()
        self._saved = None
        if saved is not None and saved["device"] == device.type:
            generator.set_state(saved["generator"].cpu())
            for block in saved["ready"]:
                self._ready[block.shape[1], block.dtype, device] = list(block.to(device).unbind(0))
        elif saved is not None:
            text = f"the draws of a run on {saved['device']} cannot go on on {device.type}: a new sequence begins"
            warnings.warn(text, errors.LegatoWarning, stacklevel=8)  # the line that called the loss
        return generator

    def state(self) -> dict[str, Any]:
        """Tensors, numbers and strings."""
        drawn = self._saved or {"device": "", "generator": torch.empty(0, dtype=torch.uint8), "ready": []}
        if self._generator is not None:
            ready = [torch.stack(rows) for rows in self._ready.values() if rows]
            drawn = {
                "device": self._generator.device.type,
                "generator": self._generator.get_state(),
                "ready": ready,
            }
        return {"seed": self.seed, "epoch": self.epoch, **drawn}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was; the seed is that of the state."""
        self.seed = state["seed"]
        self.begin_epoch(state["epoch"])
        self._generator = None
        self._ready.clear()
        self._saved = {name: state[name] for name in ("device", "generator", "ready")} if state["device"] else None
