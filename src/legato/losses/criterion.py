"""The comp-sum loss as an object with a schedule for tau and an eye on its two ways to fail, and its named special cases."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from legato import errors
from legato.losses.arguments import check_range, num_classes
from legato.losses.comp_sum import check_parameters, comp_sum_loss

SMALLEST_MEAN_WEIGHT = 1e-3


@dataclass(frozen=True)
class Warmup:
    """A schedule for tau: linear from `start` to `end` over the first `epochs` epochs, then constant."""

    end: float
    """Tau from epoch number `epochs` on."""
    epochs: int
    """How many epochs, from 0, have a smaller or larger tau; 0 is a constant tau."""
    start: float = 1.0
    """Tau in epoch 0; 1 is cross-entropy."""

    def __post_init__(self) -> None:
        if not (isinstance(self.epochs, int) and self.epochs >= 0):
            raise errors.argument("epochs", expected="a whole number >= 0", got=self.epochs)

    def __call__(self, epoch: int) -> float:
        """Tau in the epoch with this number, counted from 0."""
        return self.end if epoch >= self.epochs else self.start + (self.end - self.start) * epoch / self.epochs


class CompSumLoss(nn.Module):
    """`comp_sum_loss` as an object: a drop-in for `torch.nn.CrossEntropyLoss`.

    With a `Warmup` as tau, call `begin_epoch(epoch)` at the start of each epoch; `legato.fit` does. `state_dict` keeps the epoch.

    It reads values where the function cannot afford to wait for the device: at its first call, that the classes are in range (on
    a GPU; on the CPU the kernel looks) and that tau > 1 leaves a gradient (mean of p^(tau-1) >= 0.001); for tau < 1 at the calls
    1, 2, 4, 8 ..., that the loss is finite. What is found is warned of once. Under torch.compile nothing is read; inside
    torch.vmap, where nothing can be read, use the function.

    Args:
        tau: a number >= 0 or a `Warmup`.
        temperature, weight, ignore_index, label_smoothing, reduction: as in `comp_sum_loss`.
    Raises: LegatoValueError for a number out of range.
    """

    weight: Tensor | None

    def __init__(
        self,
        tau: float | Warmup = 1.0,
        *,
        temperature: float = 1.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.schedule = tau if isinstance(tau, Warmup) else Warmup(end=tau, epochs=0)
        for bound in (self.schedule.start, self.schedule.end):
            check_parameters(bound, temperature, label_smoothing, reduction)
        self.temperature = temperature
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.epoch, self.calls, self.warned = 0, 0, False

    @property
    def tau(self) -> float:
        """Tau in this epoch."""
        return self.schedule(self.epoch)

    def begin_epoch(self, epoch: int) -> None:
        """Tell the schedule which epoch, from 0, is about to begin."""
        self.epoch = epoch

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch; see `comp_sum_loss`."""
        if torch.compiler.is_compiling():
            return self._loss(logits, target)
        self.calls += 1
        indices = not target.is_floating_point()
        if self.calls == 1 and indices and target.device.type != "cpu":
            check_range(target, num_classes(logits), self.ignore_index)
        loss = self._loss(logits, target)
        if not self.warned and self.tau < 1 and self.calls.bit_count() == 1:
            self._warn_of_overflow(loss.detach())
        if self.calls == 1 and self.tau > 1 and indices:
            self._warn_of_vanishing(logits.detach(), target)
        return loss

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return comp_sum_loss(
            logits, target, self.tau, temperature=self.temperature, weight=self.weight,
            ignore_index=self.ignore_index, label_smoothing=self.label_smoothing, reduction=self.reduction,
        )  # fmt: skip

    def _warn_of_overflow(self, loss: Tensor) -> None:
        if not bool(loss.isfinite().all()):
            self._warn(
                f"the loss is infinite or NaN: tau={self.tau:g} overflows for samples that the model finds very unlikely. "
                "Fix: tau >= 1, a higher temperature, or smaller logits"
            )

    def _warn_of_vanishing(self, logits: Tensor, target: Tensor) -> None:
        ce = comp_sum_loss(
            logits, target, temperature=self.temperature, ignore_index=self.ignore_index, reduction="none"
        )
        weights = ((1 - self.tau) * ce).exp()[target != self.ignore_index]
        if len(weights) and bool(weights.mean() < SMALLEST_MEAN_WEIGHT):
            self._warn(
                f"the gradients vanish: at tau={self.tau:g} the mean of p^(tau-1) is {float(weights.mean()):.1e} at the first call. "
                f"Fix: warm up from tau=1, CompSumLoss(Warmup(end={self.tau:g}, epochs=5))"
            )

    def _warn(self, text: str) -> None:
        self.warned = True
        warnings.warn(text, errors.LegatoWarning, stacklevel=6)  # the line that called this object

    def get_extra_state(self) -> dict[str, Any]:
        """The epoch, so that a resumed schedule goes on where it was, and what has been looked at."""
        return {"epoch": self.epoch, "calls": self.calls, "warned": self.warned}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up the epoch again."""
        self.epoch, self.calls, self.warned = state["epoch"], state["calls"], state["warned"]

    def extra_repr(self) -> str:
        """`tau=1.7`, and whatever differs from its default."""
        tau = f"tau={self.schedule if self.schedule.epochs else self.schedule.end}"
        defaults = {"temperature": 1.0, "ignore_index": -100, "label_smoothing": 0.0, "reduction": "mean"}
        others = [f"{name}={getattr(self, name)!r}" for name, value in defaults.items() if getattr(self, name) != value]
        return ", ".join([tau, *([] if self.weight is None else [f"weight=[{len(self.weight)}]"]), *others])


def gce(q: float = 0.7, **options: Any) -> CompSumLoss:
    """Generalised cross-entropy (1 - p^q)/q: comp-sum with tau = 1 + q.

    Args:
        q: > -1, usually in (0, 1]; 0.7 is the paper's value.
        options: as in `CompSumLoss`.
    Source: Zhang and Sabuncu 2018, arXiv 1805.07836.
    """
    return CompSumLoss(1 + q, **options)


def mae(**options: Any) -> CompSumLoss:
    """1 - p: comp-sum with tau = 2. Half of the L1 distance to the one-hot target, so others' 'MAE' may be twice this."""
    return CompSumLoss(2.0, **options)


def sum_exponential(**options: Any) -> CompSumLoss:
    """1/p - 1, the sum over the other classes of exp(h_j - h_y): comp-sum with tau = 0."""
    return CompSumLoss(0.0, **options)
